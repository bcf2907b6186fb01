//! Writes gathered up to the next sync, then written in long runs past the page cache.
//!
//! redb writes page by page. For a file that is made in one go, which nobody reads meanwhile, that means a copy of all
//! of it in the page cache: as much memory, and a long last sync that every other sync of the disk waits behind. Here
//! the pages of a commit are put in order first and go to the disk a MiB at a time, from memory that is used over and
//! over.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Disk;
use crate::polite::Polite;

const BLOCK: usize = 4096;
/// Blocks of one extent.
const BLOCKS: usize = 256;
const EXTENT: u64 = (BLOCK * BLOCKS) as u64;
/// Extents that are gathered before they are written without anybody asking.
const EXTENTS_MAX: usize = 32;

#[derive(Debug)]
pub(in crate::backend) struct Gathered {
    disk: Arc<dyn Disk>,
    gathering: Mutex<Gathering>,
}

#[derive(Debug, Default)]
struct Gathering {
    /// Of the file, once asked for. The disk always knows it.
    len: Option<u64>,
    /// By their place in the file.
    extents: BTreeMap<u64, Extent>,
    /// Empty ones.
    spare: Vec<Extent>,
    polite: Polite,
}

/// What is to be written of one MiB of the file.
#[derive(Debug)]
struct Extent {
    memory: Vec<u8>,
    /// Where in `memory` the extent begins, so that it lies as direct writes want it.
    begin: usize,
    held: [bool; BLOCKS],
}

impl Gathered {
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self {
            disk,
            gathering: Mutex::default(),
        }
    }

    fn read_held(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let gathering = self.gathering.lock();
        for (place, part) in parts(offset, out.len()) {
            let out = &mut out[part];
            match gathering.extents.get(&place.extent) {
                Some(extent) if extent.held[place.block] => {
                    let bytes = &extent.bytes()[place.within()];
                    out.copy_from_slice(&bytes[place.at..place.at + out.len()]);
                }
                _ => self.disk.read(place.offset(), out)?,
            }
        }
        Ok(())
    }
}

impl Disk for Gathered {
    fn size(&self) -> io::Result<u64> {
        self.disk.size()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let any_held = {
            let gathering = self.gathering.lock();
            let first = offset / EXTENT;
            let end = (offset + out.len() as u64).div_ceil(EXTENT);
            gathering.extents.range(first..end).next().is_some()
        };
        match any_held {
            true => self.read_held(offset, out),
            false => self.disk.read(offset, out),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut gathering = self.gathering.lock();
        if len < gathering.len(&*self.disk)? {
            // What lies beyond the new end is not to come back.
            gathering.write_out(&*self.disk)?;
        }
        gathering.set_len(&*self.disk, len)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut gathering = self.gathering.lock();
        let mut len = gathering.len(&*self.disk)?;
        if offset + data.len() as u64 > len {
            len = offset + data.len() as u64;
            gathering.set_len(&*self.disk, len)?;
        }
        for (place, part) in parts(offset, data.len()) {
            let data = &data[part];
            if !gathering.extents.contains_key(&place.extent) {
                if gathering.extents.len() == EXTENTS_MAX {
                    gathering.write_out(&*self.disk)?;
                }
                let empty = gathering.spare.pop().unwrap_or_else(Extent::new);
                gathering.extents.insert(place.extent, empty);
            }
            if let Some(extent) = gathering.extents.get_mut(&place.extent) {
                extent.put(&*self.disk, len, place, data)?;
            }
        }
        gathering.polite.pass(data.len());
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.gathering.lock().write_out(&*self.disk)?;
        self.disk.sync()
    }

    fn allocated(&self) -> io::Result<u64> {
        self.disk.allocated()
    }

    fn reserved(&self) -> u64 {
        self.disk.reserved()
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        self.disk.reserve(bytes)
    }
}

impl Gathering {
    fn len(&mut self, disk: &dyn Disk) -> io::Result<u64> {
        match self.len {
            Some(len) => Ok(len),
            None => Ok(*self.len.insert(disk.size()?)),
        }
    }

    fn set_len(&mut self, disk: &dyn Disk, len: u64) -> io::Result<()> {
        self.len = None;
        disk.set_len(len)?;
        self.len = Some(len);
        Ok(())
    }

    /// What could not be written stays.
    fn write_out(&mut self, disk: &dyn Disk) -> io::Result<()> {
        let len = self.len(disk)?;
        while let Some(entry) = self.extents.first_entry() {
            let begin = *entry.key() * EXTENT;
            let extent = entry.get();
            for run in extent.runs() {
                let first = run.start * BLOCK;
                let end = (run.end * BLOCK).min((len - begin) as usize);
                // A file that ends within a block must not grow by the rest of it.
                let (blocks, rest) = extent.bytes()[first..end].split_at((end - first) / BLOCK * BLOCK);
                if !blocks.is_empty() {
                    disk.write_past_cache(begin + first as u64, blocks)?;
                }
                if !rest.is_empty() {
                    disk.write(begin + (end - rest.len()) as u64, rest)?;
                }
            }
            let mut extent = entry.remove();
            extent.held.fill(false);
            self.spare.push(extent);
        }
        Ok(())
    }
}

impl Extent {
    fn new() -> Self {
        let memory = vec![0; BLOCK * (BLOCKS + 1)];
        let begin = memory.as_ptr().align_offset(BLOCK).min(BLOCK);
        Self {
            memory,
            begin,
            held: [false; BLOCKS],
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.begin..][..BLOCK * BLOCKS]
    }

    /// Of a file of `len` bytes.
    fn put(&mut self, disk: &dyn Disk, len: u64, place: Place, data: &[u8]) -> io::Result<()> {
        let begin = self.begin;
        let block = &mut self.memory[begin..][place.within()];
        if data.len() < BLOCK && !self.held[place.block] {
            let offset = place.offset() - place.at as u64;
            let there = (len - offset).min(BLOCK as u64) as usize;
            disk.read(offset, &mut block[..there])?;
            block[there..].fill(0); // as which it reads if the file grows
        }
        block[place.at..place.at + data.len()].copy_from_slice(data);
        self.held[place.block] = true;
        Ok(())
    }

    /// Of held blocks.
    fn runs(&self) -> impl Iterator<Item = Range<usize>> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let start = from + self.held[from..].iter().position(|held| *held)?;
            let rest = &self.held[start..];
            from = start + rest.iter().position(|held| !*held).unwrap_or(rest.len());
            Some(start..from)
        })
    }
}

#[derive(Clone, Copy)]
struct Place {
    extent: u64,
    /// Of the extent.
    block: usize,
    /// Byte of the block.
    at: usize,
}

impl Place {
    fn offset(self) -> u64 {
        self.extent * EXTENT + (self.block * BLOCK + self.at) as u64
    }

    /// The block in its extent.
    fn within(self) -> Range<usize> {
        self.block * BLOCK..(self.block + 1) * BLOCK
    }
}

/// The parts of a range that lie in one block each: where, and which bytes of the range.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (Place, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let offset = offset + done as u64;
        let within = (offset % EXTENT) as usize;
        let place = Place {
            extent: offset / EXTENT,
            block: within / BLOCK,
            at: within % BLOCK,
        };
        let begin = done;
        done += (BLOCK - place.at).min(len - done);
        (done > begin).then_some((place, begin..done))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemDisk, Rng};

    const SECTOR: u64 = 512;

    fn image_of(disk: &dyn Disk) -> Vec<u8> {
        let mut image = vec![0; disk.size().unwrap() as usize];
        disk.read(0, &mut image).unwrap();
        image
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        let mut rng = Rng(7);
        let disk = MemDisk::default();
        let gathered = Gathered::new(Arc::new(disk.clone()));
        let mut model = Vec::new();
        for round in 0..10_000 {
            let len = model.len() as u64;
            match rng.below(40) {
                0 => {
                    let most = [20, 40 * EXTENT / SECTOR][rng.below(2) as usize];
                    let len = rng.below(most) * SECTOR;
                    gathered.set_len(len).unwrap();
                    model.resize(len as usize, 0);
                }
                1 => {
                    gathered.sync().unwrap();
                    assert!(image_of(&disk) == model, "round {round}");
                }
                2..20 if len > 0 => {
                    let offset = rng.below(len);
                    let mut out = vec![0; rng.below((len - offset).min(20_000) + 1) as usize];
                    gathered.read(offset, &mut out).unwrap();
                    assert!(out == model[offset as usize..][..out.len()], "round {round}");
                }
                _ if len > 0 => {
                    let offset = rng.below(len / SECTOR) * SECTOR;
                    let data = vec![rng.below(256) as u8; ((1 + rng.below(40)) * SECTOR) as usize];
                    gathered.write(offset, &data).unwrap();
                    model.resize(model.len().max(offset as usize + data.len()), 0);
                    assert_eq!(gathered.size().unwrap(), model.len() as u64);
                    model[offset as usize..][..data.len()].copy_from_slice(&data);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn neighbours_are_written_together_and_lie_in_memory_as_on_the_disk() {
        #[derive(Debug, Default)]
        struct Watched(Mutex<Vec<(u64, usize)>>);
        impl Disk for Watched {
            fn size(&self) -> io::Result<u64> {
                Ok(4 * EXTENT)
            }
            fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
                unreachable!("whole blocks are not read first")
            }
            fn set_len(&self, _: u64) -> io::Result<()> {
                Ok(())
            }
            fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
                unreachable!("all goes past the cache")
            }
            fn write_past_cache(&self, offset: u64, data: &[u8]) -> io::Result<()> {
                assert!(data.as_ptr().align_offset(BLOCK) == 0 && offset.is_multiple_of(BLOCK as u64));
                self.0.lock().push((offset, data.len()));
                Ok(())
            }
            fn sync(&self) -> io::Result<()> {
                self.0.lock().push((u64::MAX, 0));
                Ok(())
            }
            fn allocated(&self) -> io::Result<u64> {
                Ok(0)
            }
            fn reserved(&self) -> u64 {
                0
            }
            fn reserve(&self, _: u64) -> io::Result<()> {
                Ok(())
            }
        }
        let watched = Arc::new(Watched::default());
        let gathered = Gathered::new(watched.clone());
        let block = BLOCK as u64;
        for at in [9, 3, 1, 2, 255, 256, 257] {
            gathered.write(at * block, &[1; BLOCK]).unwrap();
        }
        assert!(watched.0.lock().is_empty());
        gathered.sync().unwrap();
        let expected = [
            (block, 3 * BLOCK),
            (9 * block, BLOCK),
            (255 * block, BLOCK),
            (EXTENT, 2 * BLOCK),
            (u64::MAX, 0),
        ];
        assert_eq!(*watched.0.lock(), expected);
    }
}
