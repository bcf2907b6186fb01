//! The backend file on a real disk, and the reserve file beside it (`<name>.reserve`).

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, fallocate};

use super::Disk;
use crate::backend::Error;

/// `st_blocks` counts in these, whatever the file system's block size is.
const STAT_BLOCK: u64 = 512;

#[derive(Debug)]
pub struct FileDisk {
    file: File,
    reserve: File,
    reserved: AtomicU64,
}

impl FileDisk {
    /// Opens the file and locks it against other processes. A new one is first made under another name by `prepare`,
    /// so that a crash on the way leaves no half-made file behind.
    pub(in crate::backend) fn open(
        path: &Path,
        prepare: impl FnOnce(Arc<FileDisk>) -> Result<(), Error>,
    ) -> Result<Arc<Self>, Error> {
        if path.try_exists().map_err(failed("look for backend file", path))? {
            return Self::open_one(path, path, false);
        }
        let new = with_suffix(path, ".new");
        let disk = Self::open_one(&new, path, true)?;
        prepare(disk.clone())?;
        disk.file.sync_all().map_err(failed("sync new backend file", &new))?;
        std::fs::rename(&new, path).map_err(failed("name new backend file", path))?;
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(failed("sync the folder of backend file", path))?;
        Ok(disk)
    }

    fn open_one(path: &Path, beside: &Path, new: bool) -> Result<Arc<Self>, Error> {
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .create(new)
            .truncate(false)
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
        let reserve_path = with_suffix(beside, ".reserve");
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&reserve_path);
        let reserve = open.map_err(failed("open reserve file", &reserve_path))?;
        let stat = reserve
            .metadata()
            .map_err(failed("look at reserve file", &reserve_path))?;
        let reserved = AtomicU64::new(stat.len().min(stat.blocks() * STAT_BLOCK));
        Ok(Arc::new(Self {
            file,
            reserve,
            reserved,
        }))
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
        let now = self.reserved();
        if bytes > now {
            match fallocate(&self.reserve, FallocateFlags::empty(), now, bytes - now) {
                // Without the call, blocks are had by writing them.
                Err(rustix::io::Errno::OPNOTSUPP) => fill(&self.reserve, now, bytes)?,
                result => result?,
            }
        } else {
            self.reserve.set_len(bytes)?;
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
