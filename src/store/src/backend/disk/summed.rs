//! Checksums under redb: every page that is read is checked, whatever it is for.
//!
//! redb keeps checksums of its pages but looks at them only when it repairs; an ordinary read trusts what it gets, and a
//! rotten page is served, or panics. So a CRC32C of each 4 KiB page is kept beside the pages:
//!
//! ```text
//!  page 0       superblock: magic, format, CRC
//!  page 1       sums of group 0: 1024 × u32          ┐
//!  page 2       redb's header, in one sector with its own CRC  │ group 0: 4 MiB of redb's pages
//!  page 3…1025  redb's pages                          ┘
//!  page 1026    sums of group 1 …
//! ```
//!
//! Sums go out with the sync that makes their pages durable. A page of a committed state is never written again while
//! that state may come back (redb copies on write), so its sum does not change either; a page of sums that is torn by a
//! power loss between sectors therefore still holds the right sums of every page that counts.
//!
//! The sum covers the page's number, so that a page written to the wrong place is noticed. The sum 0 stands for a page
//! that was never written. Redb never reads one; who does has lost pages and sums together, to a hole in the file.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::{Patient, layout};
use crate::backend::Error;
use crate::backend::format::FORMAT;

const PAGE: u64 = 4096;
/// Sums in one page.
const GROUP: u64 = PAGE / 4;
/// What redb's header may take; the rest of its sector is the CRC.
const HEADER_MAX: usize = SECTOR - 4;
/// Sums that are looked up together. Most reads are of one page.
const SUMS_AT_ONCE: usize = 16;
/// Written as a whole or not at all.
const SECTOR: usize = 512;
const MAGIC: &[u8; 16] = b"quorate backend\n";

#[derive(Debug)]
pub(in crate::backend) struct Summed {
    disk: Patient,
    /// Length as redb sees it.
    len: AtomicU64,
    /// Loaded when first needed.
    groups: RwLock<Vec<Option<Box<Group>>>>,
}

#[derive(Debug)]
struct Group {
    sums: [u32; GROUP as usize],
    dirty: bool,
}

impl Summed {
    /// Puts the superblock on an empty disk, or checks the one that is there.
    pub fn open(disk: Patient) -> Result<Self, Error> {
        let failed = Error::disk("read the head of the backend file");
        let len = disk.size().map_err(&failed)?;
        let new = len == 0;
        let len = if new {
            let mut page = [0; PAGE as usize];
            page[..16].copy_from_slice(MAGIC);
            page[16..20].copy_from_slice(&FORMAT.to_le_bytes());
            let crc = crc32c::crc32c(&page[..20]);
            page[20..24].copy_from_slice(&crc.to_le_bytes());
            disk.write(0, &page)
                .and_then(|()| disk.sync())
                .map_err(Error::disk("write the head of the backend file"))?;
            0
        } else {
            if len < PAGE {
                return Err(Error::Foreign);
            }
            let mut head = [0; 24];
            disk.read(0, &mut head).map_err(&failed)?;
            check_head(&head)?;
            logical_len(len)
        };
        let summed = Self {
            disk,
            len: AtomicU64::new(len),
            groups: RwLock::default(),
        };
        if !new {
            summed.check_len(len)?;
        }
        Ok(summed)
    }

    /// What redb would take for a new file, or would not survive.
    fn check_len(&self, len: u64) -> Result<(), Error> {
        // A file that was ever finished has more than a head.
        if len > 0 {
            let mut header = [0; layout::LEN];
            let read = self.read_header(&mut header);
            read.map_err(|error| Error::database("read the header of the backend file")(error.into()))?;
            if layout::stored_len(&header).is_none_or(|stored| stored <= len) {
                return Ok(());
            }
        }
        Err(Error::Corrupt {
            what: format!("its file was cut short, to {len} bytes of pages"),
        })
    }

    /// Runs `with` on the group, loaded. `change` says that it is about to differ from what is on the disk.
    fn group<T>(&self, group: u64, change: bool, with: impl FnOnce(&mut Group) -> T) -> io::Result<T> {
        let mut groups = self.groups.write();
        let at = group as usize;
        if groups.len() <= at {
            groups.resize_with(at + 1, || None);
        }
        let loaded = match &mut groups[at] {
            Some(loaded) => loaded,
            none => none.insert(self.load(group)?),
        };
        loaded.dirty |= change;
        Ok(with(loaded))
    }

    fn load(&self, group: u64) -> io::Result<Box<Group>> {
        let mut bytes = [0; PAGE as usize];
        let mut sums = [0; GROUP as usize];
        let pages = self
            .len
            .load(Ordering::Acquire)
            .div_ceil(PAGE)
            .saturating_sub(group * GROUP);
        if pages > 0 {
            self.disk.read(sums_at(group), &mut bytes)?;
            for (sum, bytes) in sums.iter_mut().zip(bytes.as_chunks::<4>().0).take(pages as usize) {
                *sum = u32::from_le_bytes(*bytes);
            }
        }
        Ok(Box::new(Group { sums, dirty: false }))
    }

    /// The sums that `pages` (of one group) should have.
    fn expected(&self, first: u64, out: &mut [u32]) -> io::Result<()> {
        let (group, at) = (first / GROUP, (first % GROUP) as usize);
        if let Some(Some(loaded)) = self.groups.read().get(group as usize) {
            out.copy_from_slice(&loaded.sums[at..at + out.len()]);
            return Ok(());
        }
        let len = out.len();
        self.group(group, false, |loaded| out.copy_from_slice(&loaded.sums[at..at + len]))
    }

    /// Writes without the lock: a write waits while the disk is full, and readers need their sums meanwhile.
    fn flush_sums(&self) -> io::Result<()> {
        let mut next = 0;
        while let Some((group, bytes)) = self.take_dirty(next) {
            let written = self.disk.write(sums_at(group as u64), &bytes);
            if written.is_err()
                && let Some(Some(loaded)) = self.groups.write().get_mut(group)
            {
                loaded.dirty = true;
            }
            written?;
            next = group + 1;
        }
        Ok(())
    }

    /// The page of the first dirty group at or behind `from`, which counts as written from now on.
    fn take_dirty(&self, from: usize) -> Option<(usize, [u8; PAGE as usize])> {
        let mut groups = self.groups.write();
        let behind = groups.iter_mut().enumerate().skip(from);
        let (group, loaded) = behind
            .filter_map(|(group, loaded)| Some((group, loaded.as_mut()?)))
            .find(|(_, loaded)| loaded.dirty)?;
        loaded.dirty = false;
        let mut bytes = [0; PAGE as usize];
        for (bytes, sum) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(&loaded.sums) {
            *bytes = sum.to_le_bytes();
        }
        Some((group, bytes))
    }

    fn read_header(&self, out: &mut [u8]) -> io::Result<()> {
        let mut sector = [0; SECTOR];
        self.disk.read(page_at(0), &mut sector)?;
        let (body, crc) = sector.split_at(HEADER_MAX);
        if crc32c::crc32c(body).to_le_bytes() != *crc {
            return Err(rotten("header"));
        }
        out.copy_from_slice(&body[..out.len()]);
        Ok(())
    }

    fn write_header(&self, data: &[u8]) -> io::Result<()> {
        let mut sector = [0; SECTOR];
        sector[..data.len()].copy_from_slice(data);
        let crc = crc32c::crc32c(&sector[..HEADER_MAX]);
        sector[HEADER_MAX..].copy_from_slice(&crc.to_le_bytes());
        self.disk.write(page_at(0), &sector)
    }
}

impl redb::StorageBackend for Summed {
    fn len(&self) -> io::Result<u64> {
        Ok(self.len.load(Ordering::Acquire))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset + out.len() as u64 > self.len.load(Ordering::Acquire) {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "read beyond the end of the backend file",
            ));
        }
        if offset == 0 && out.len() <= HEADER_MAX {
            return self.read_header(out);
        }
        for (page, run) in runs(offset, out.len())? {
            let bytes = &mut out[run];
            self.disk.read(page_at(page), bytes)?;
            let mut pages = bytes.chunks(PAGE as usize).zip(page..);
            loop {
                let some = pages.by_ref().take(SUMS_AT_ONCE);
                let mut found = [(0, 0); SUMS_AT_ONCE];
                let mut len = 0;
                for ((bytes, page), found) in some.zip(&mut found) {
                    *found = (page, sum(page, bytes));
                    len += 1;
                }
                let Some((first, _)) = found[..len].first() else { break };
                let mut expected = [0; SUMS_AT_ONCE];
                self.expected(*first, &mut expected[..len])?;
                if let Some(((page, _), _)) = found[..len]
                    .iter()
                    .zip(expected)
                    .find(|((_, found), expected)| found != expected)
                {
                    return Err(rotten(&format!("page {page}")));
                }
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let before = self.len.load(Ordering::Acquire);
        let pages = len.div_ceil(PAGE);
        if len < before {
            // What is cut off reads as zeros if the file grows again.
            let group = pages / GROUP;
            self.group(group, true, |loaded| loaded.sums[(pages % GROUP) as usize..].fill(0))?;
            self.groups.write().truncate(pages.div_ceil(GROUP) as usize);
        }
        self.disk.set_len(physical_len(len))?;
        self.len.store(len, Ordering::Release);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.flush_sums()?;
        self.disk.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset == 0 && data.len() <= HEADER_MAX {
            return self.write_header(data);
        }
        for (page, run) in runs(offset, data.len())? {
            let bytes = &data[run];
            self.disk.write(page_at(page), bytes)?;
            self.group(page / GROUP, true, |group| {
                let sums = &mut group.sums[(page % GROUP) as usize..];
                for ((bytes, page), expected) in bytes.chunks(PAGE as usize).zip(page..).zip(sums) {
                    *expected = sum(page, bytes);
                }
            })?;
        }
        Ok(())
    }
}

fn check_head(head: &[u8; 24]) -> Result<(), Error> {
    let (body, crc) = head.split_at(20);
    let (magic, found) = body.split_at(16);
    if magic != MAGIC {
        return Err(Error::Foreign);
    }
    if crc32c::crc32c(body).to_le_bytes() != *crc {
        return Err(Error::Corrupt {
            what: "checksum of the file's head does not match".into(),
        });
    }
    match found.try_into().map(u32::from_le_bytes) {
        Ok(found) if found > FORMAT => Err(Error::Format { found, known: FORMAT }),
        _ => Ok(()),
    }
}

/// The parts of a read or write that lie in one group each: first page, and where in the buffer.
fn runs(offset: u64, len: usize) -> io::Result<impl Iterator<Item = (u64, std::ops::Range<usize>)>> {
    if !offset.is_multiple_of(PAGE) || !(len as u64).is_multiple_of(PAGE) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "backend file is read and written by whole pages",
        ));
    }
    let mut done = 0;
    Ok(std::iter::from_fn(move || {
        let page = (offset + done) / PAGE;
        let left = len as u64 - done;
        let run = left.min((GROUP - page % GROUP) * PAGE);
        let at = done as usize;
        done += run;
        (run > 0).then_some((page, at..at + run as usize))
    }))
}

/// Never 0.
fn sum(page: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&page.to_le_bytes()), bytes).max(1)
}

/// Where a page of redb's lies.
fn page_at(page: u64) -> u64 {
    sums_at(page / GROUP) + (1 + page % GROUP) * PAGE
}

fn sums_at(group: u64) -> u64 {
    PAGE + group * (GROUP + 1) * PAGE
}

fn physical_len(len: u64) -> u64 {
    if len == 0 {
        PAGE
    } else {
        page_at((len - 1) / PAGE) + (len - 1) % PAGE + 1
    }
}

fn logical_len(physical: u64) -> u64 {
    let body = physical.saturating_sub(PAGE);
    let group = body / ((GROUP + 1) * PAGE);
    group * GROUP * PAGE + (body % ((GROUP + 1) * PAGE)).saturating_sub(PAGE)
}

fn rotten(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("checksum of {what} of the file does not match"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_go_there_and_back() {
        for pages in [0, 1, 2, GROUP - 1, GROUP, GROUP + 1, 5 * GROUP] {
            for more in [0, 1, 320, PAGE - 1] {
                let len = pages * PAGE + more;
                assert_eq!(logical_len(physical_len(len)), len);
            }
        }
    }

    #[test]
    fn pages_and_sums_never_share_a_place() {
        let mut places: Vec<u64> = (0..3 * GROUP).map(page_at).chain((0..3).map(sums_at)).collect();
        places.sort_unstable();
        assert_eq!(places[0], PAGE, "the superblock is before all");
        assert!(places.windows(2).all(|pair| pair[1] - pair[0] == PAGE));
    }

    #[test]
    fn runs_cover_the_buffer_and_stay_within_groups() {
        let len = (3 * GROUP * PAGE) as usize;
        let all: Vec<_> = runs((GROUP - 1) * PAGE, len).unwrap().collect();
        assert_eq!(all.len(), 4);
        assert_eq!(all[0], (GROUP - 1, 0..PAGE as usize));
        assert_eq!(all.last().map(|(_, run)| run.end), Some(len));
        assert!(
            all.windows(2)
                .all(|pair| pair[0].1.end == pair[1].1.start && pair[1].0.is_multiple_of(GROUP))
        );
        assert!(runs(5, 4096).is_err());
    }
}
