//! The backend file on a real disk, where it has its name, and what lies beside it there.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, OFlags, fallocate};

use super::{Disk, Place};
use crate::backend::Error;

/// `st_blocks` counts in these, whatever the file system's block size is.
const STAT_BLOCK: u64 = 512;

#[derive(Debug)]
pub struct FileDisk {
    file: File,
    /// The same file past the page cache, while it is made.
    direct: Mutex<Option<File>>,
    reserve: Mutex<Option<File>>,
    reserved: AtomicU64,
}

impl FileDisk {
    /// Opens the file and locks it against other processes.
    fn open(path: &Path, new: bool) -> Result<Arc<Self>, Error> {
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .create(new)
            .truncate(false)
            .mode(0o600)
            .open(path);
        let file = open.map_err(failed("open backend file", path))?;
        match file.try_lock() {
            Ok(()) => (),
            Err(TryLockError::WouldBlock) => return Err(Error::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(failed("lock backend file", path)(source)),
        }
        if new {
            // What a crashed attempt left, if anything.
            file.set_len(0).map_err(failed("empty backend file", path))?;
        }
        Ok(Arc::new(Self {
            file,
            direct: Mutex::default(),
            reserve: Mutex::default(),
            reserved: AtomicU64::new(0),
        }))
    }

    /// A file system that has no direct writes gets ordinary ones.
    fn open_direct(&self, path: &Path) {
        let flags = OFlags::DIRECT.bits().cast_signed();
        let open = OpenOptions::new().write(true).custom_flags(flags).open(path);
        *self.direct.lock() = open.ok();
    }

    fn open_reserve(&self, path: &Path) -> Result<(), Error> {
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path);
        let reserve = open.map_err(failed("open reserve file", path))?;
        let stat = reserve.metadata().map_err(failed("look at reserve file", path))?;
        self.reserved
            .store(stat.len().min(stat.blocks() * STAT_BLOCK), Ordering::Release);
        *self.reserve.lock() = Some(reserve);
        Ok(())
    }

    /// The reserve belongs to the file that has the name.
    fn take_reserve_of(&self, other: &Self) {
        let reserve = other.reserve.lock().take();
        self.reserved
            .store(other.reserved.swap(0, Ordering::AcqRel), Ordering::Release);
        *self.reserve.lock() = reserve;
    }
}

/// A path, with the reserve (`<name>.reserve`) and a file under way (`<name>.incoming`) beside it.
#[derive(Debug)]
pub struct FilePlace {
    path: PathBuf,
    files: Mutex<Files>,
}

/// Who has a file open keeps it; the place only finds it again.
#[derive(Debug, Default)]
struct Files {
    current: Weak<FileDisk>,
    incoming: Weak<FileDisk>,
}

impl FilePlace {
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            files: Mutex::default(),
        }
    }

    fn incoming_path(&self) -> PathBuf {
        with_suffix(&self.path, ".incoming")
    }

    fn reserve_path(&self) -> PathBuf {
        with_suffix(&self.path, ".reserve")
    }

    fn sync_folder(&self) -> Result<(), Error> {
        let folder = self
            .path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(failed("sync the folder of backend file", &self.path))
    }
}

impl Place for FilePlace {
    fn current(&self) -> Result<Option<Arc<dyn Disk>>, Error> {
        let path = &self.path;
        if !path.try_exists().map_err(failed("look for backend file", path))? {
            return Ok(None);
        }
        let disk = FileDisk::open(path, false)?;
        disk.open_reserve(&self.reserve_path())?;
        // What a crash left of one under way. Nobody else makes one while the file is locked.
        self.discard();
        self.files.lock().current = Arc::downgrade(&disk);
        Ok(Some(disk))
    }

    fn incoming(&self) -> Result<Arc<dyn Disk>, Error> {
        let path = self.incoming_path();
        let disk = FileDisk::open(&path, true)?;
        disk.open_direct(&path);
        self.files.lock().incoming = Arc::downgrade(&disk);
        Ok(disk)
    }

    fn adopt(&self) -> Result<(), Error> {
        let mut files = self.files.lock();
        let path = &self.path;
        let gone = || failed("name new backend file", path)(io::ErrorKind::NotFound.into());
        let disk = files.incoming.upgrade().ok_or_else(gone)?;
        disk.direct.lock().take();
        disk.file.sync_all().map_err(failed("sync new backend file", path))?;
        std::fs::rename(self.incoming_path(), path).map_err(failed("name new backend file", path))?;
        self.sync_folder()?;
        match files.current.upgrade() {
            Some(old) => disk.take_reserve_of(&old),
            None => disk.open_reserve(&self.reserve_path())?,
        }
        *files = Files {
            current: Arc::downgrade(&disk),
            incoming: Weak::new(),
        };
        Ok(())
    }

    fn discard(&self) {
        // At worst it takes space until the next one, which empties it.
        let _ = std::fs::remove_file(self.incoming_path());
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::File {
        doing,
        path: path.to_owned(),
        source: Arc::new(source),
    }
}

impl Disk for FileDisk {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn write_past_cache(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut direct = self.direct.lock();
        if let Some(file) = &*direct {
            match file.write_all_at(data, offset) {
                // It opens such files, and has other wishes.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => *direct = None,
                result => return result,
            }
        }
        drop(direct);
        self.write(offset, data)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks() * STAT_BLOCK)
    }

    fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::Acquire)
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        let reserve = self.reserve.lock();
        let Some(reserve) = &*reserve else {
            // A file without the name has none, and gets none.
            return if bytes == 0 {
                Ok(())
            } else {
                Err(io::ErrorKind::Unsupported.into())
            };
        };
        let now = self.reserved();
        if bytes > now {
            match fallocate(reserve, FallocateFlags::empty(), now, bytes - now) {
                // Without the call, blocks are had by writing them.
                Err(rustix::io::Errno::OPNOTSUPP) => fill(reserve, now, bytes)?,
                result => result?,
            }
        } else {
            reserve.set_len(bytes)?;
        }
        self.reserved.store(bytes, Ordering::Release);
        Ok(())
    }
}

fn fill(file: &File, from: u64, to: u64) -> io::Result<()> {
    let zeros = [0; 64 << 10];
    let mut at = from;
    while at < to {
        let len = (to - at).min(zeros.len() as u64);
        file.write_all_at(&zeros[..len as usize], at)?;
        at += len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where that is refused, as this file system does for an odd length, it is written through the cache.
    #[test]
    fn what_is_written_past_the_cache_is_read_back() {
        const BLOCK: usize = 4096;
        let folder = tempfile::tempdir().unwrap();
        let place = FilePlace::new(&folder.path().join("backend"));
        let disk = place.incoming().unwrap();
        let file = place.files.lock().incoming.upgrade().unwrap();
        let is_direct = || file.direct.lock().is_some();
        let flags = OFlags::DIRECT.bits().cast_signed();
        let (mut open, other) = (OpenOptions::new(), folder.path().join("other"));
        let has_direct = open.write(true).create(true).custom_flags(flags).open(other).is_ok();
        assert_eq!(is_direct(), has_direct);
        let memory = vec![7; 4 * BLOCK];
        let begin = memory.as_ptr().align_offset(BLOCK);
        let blocks = &memory[begin..][..2 * BLOCK];
        let mut out = vec![0; 2 * BLOCK];
        for (offset, len) in [(0, 2 * BLOCK), (BLOCK, 100), (4 * BLOCK, 2 * BLOCK)] {
            disk.write_past_cache(offset as u64, &blocks[..len]).unwrap();
            disk.read(offset as u64, &mut out[..len]).unwrap();
            assert_eq!(out[..len], blocks[..len], "{len} at {offset}");
            out.fill(0);
            assert_eq!(is_direct(), has_direct && offset == 0, "after {len} at {offset}");
        }
        disk.sync().unwrap();
        place.adopt().unwrap();
        assert_eq!(std::fs::read(folder.path().join("backend")).unwrap().len(), 6 * BLOCK);
    }
}
