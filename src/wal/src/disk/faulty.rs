//! A disk in memory that fails as real ones do, on demand and reproducibly.
//!
//! It knows what has been synced. [`power_loss`](FaultyDisk::power_loss) keeps that, and of the rest whatever the
//! [`Tear`] says: each 512-byte sector on its own, so that writes are lost, torn and reordered. Handles from before are
//! dead afterwards, as the process would be. Nothing here is random but by a seed given.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::{Disk, File};
use file::Content;
use tear::Chooser;

mod file;
mod tear;

pub use tear::Tear;

/// Cheap to clone; clones are the same disk. [`fork`](Self::fork) makes another.
#[derive(Clone, Debug, Default)]
pub struct FaultyDisk(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    volume: Mutex<Volume>,
    resumed: Condvar,
}

type Inode = u64;

#[derive(Clone, Debug)]
enum Renaming {
    Create(PathBuf, Inode),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

#[derive(Clone, Debug)]
enum Misread {
    Error,
    Stale(Vec<u8>),
    Shifted(i64),
}

#[derive(Clone, Debug, Default)]
struct Volume {
    files: BTreeMap<Inode, Content>,
    names: BTreeMap<PathBuf, Inode>,
    durable_names: BTreeMap<PathBuf, Inode>,
    /// Changes of names that are not durable yet, in order.
    pending: Vec<Renaming>,
    dirs: BTreeSet<PathBuf>,
    /// All that were asked for.
    renames: Vec<(PathBuf, PathBuf)>,
    last_inode: Inode,
    /// Handles of an earlier life are dead.
    life: u64,
    calls: u64,
    syncs: u64,
    off: bool,
    cut_at: Option<u64>,
    fail_write_at: Option<u64>,
    fail_sync_at: Option<u64>,
    writes: u64,
    capacity: Option<u64>,
    quota: Option<u64>,
    /// Attempts to grow a file that the quota refused.
    over_quota: u64,
    misreads: BTreeMap<Inode, Misread>,
    sync_time: Duration,
    held: bool,
}

fn eio(what: &str) -> io::Error {
    io::Error::other(format!("injected: {what}"))
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no file {}", path.display()))
}

impl FaultyDisk {
    pub fn new() -> Self {
        Self::default()
    }

    /// A copy, unsynced bytes and all; what happens to one does not touch the other. Faults that were set stay behind.
    pub fn fork(&self) -> Self {
        let volume = self.0.volume.lock();
        let Volume {
            files,
            names,
            durable_names,
            pending,
            dirs,
            last_inode,
            life,
            calls,
            syncs,
            writes,
            ..
        } = &*volume;
        let volume = Volume {
            files: files.clone(),
            names: names.clone(),
            durable_names: durable_names.clone(),
            pending: pending.clone(),
            dirs: dirs.clone(),
            last_inode: *last_inode,
            life: *life,
            calls: *calls,
            syncs: *syncs,
            writes: *writes,
            ..Volume::default()
        };
        Self(Arc::new(Shared {
            volume: Mutex::new(volume),
            resumed: Condvar::new(),
        }))
    }

    /// Calls so far that change or sync anything.
    pub fn calls(&self) -> u64 {
        self.0.volume.lock().calls
    }

    /// Syncs of files so far.
    pub fn syncs(&self) -> u64 {
        self.0.volume.lock().syncs
    }

    /// After this many more calls the power goes: the next one is cut off half way, and everything fails from then on
    /// until [`power_loss`](Self::power_loss) says what is left.
    pub fn cut_power_after(&self, calls: u64) {
        let mut volume = self.0.volume.lock();
        volume.cut_at = Some(volume.calls + calls);
    }

    /// The power has gone at a planned cut.
    pub fn is_off(&self) -> bool {
        self.0.volume.lock().off
    }

    /// Loses power, now if it has not gone already, and comes back. Faults that were set are gone too.
    pub fn power_loss(&self, tear: Tear) {
        let mut volume = self.0.volume.lock();
        let volume = &mut *volume;
        let mut chooser = Chooser::new(tear, volume.files.values());
        let kept = match tear {
            Tear::Lose => 0,
            Tear::Keep | Tear::LoseFirst | Tear::LoseLast => volume.pending.len(),
            Tear::Mix(_) => (chooser.next() % (volume.pending.len() as u64 + 1)) as usize,
        };
        for change in volume.pending.drain(..).take(kept) {
            change.apply(&mut volume.durable_names);
        }
        for file in volume.files.values_mut() {
            file.lose_power(&mut chooser);
        }
        volume.names = volume.durable_names.clone();
        let alive: BTreeSet<Inode> = volume.names.values().copied().collect();
        volume.files.retain(|inode, _| alive.contains(inode));
        volume.pending.clear();
        volume.life += 1;
        volume.off = false;
        volume.held = false;
        volume.cut_at = None;
        volume.fail_write_at = None;
        volume.fail_sync_at = None;
        volume.capacity = None;
        volume.quota = None;
        volume.misreads.clear();
        self.0.resumed.notify_all();
    }

    /// The `nth` write from now on (1 is the next) fails with EIO, half of its bytes written.
    pub fn fail_write(&self, nth: u64) {
        let mut volume = self.0.volume.lock();
        volume.fail_write_at = Some(volume.writes + nth);
    }

    /// The `nth` sync of a file from now on (1 is the next) fails with EIO. What was unsynced can still be read, looks
    /// clean, and will never be durable unless it is written again.
    pub fn fail_sync(&self, nth: u64) {
        let mut volume = self.0.volume.lock();
        volume.fail_sync_at = Some(volume.syncs + nth);
    }

    /// Files may take this many bytes together; growing beyond fails with `StorageFull`. `None` lifts the limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.0.volume.lock().capacity = bytes;
    }

    /// The same, unseen by [`free_bytes`](Disk::free_bytes) and failing with `QuotaExceeded`.
    pub fn set_quota(&self, bytes: Option<u64>) {
        self.0.volume.lock().quota = bytes;
    }

    /// How often the quota has refused so far.
    pub fn over_quota(&self) -> u64 {
        self.0.volume.lock().over_quota
    }

    /// Writes to files so far.
    pub fn writes(&self) -> u64 {
        self.0.volume.lock().writes
    }

    /// Bytes that files take.
    pub fn used(&self) -> u64 {
        self.0.volume.lock().used()
    }

    /// Every sync takes this long.
    pub fn slow_syncs(&self, time: Duration) {
        self.0.volume.lock().sync_time = time;
    }

    /// Holds up syncs until called with `false`.
    pub fn hold_syncs(&self, hold: bool) {
        self.0.volume.lock().held = hold;
        self.0.resumed.notify_all();
    }

    /// Reads of the file fail with EIO.
    pub fn fail_reads(&self, path: &Path) {
        self.misread(path, |_| Misread::Error);
    }

    /// Reads of the file go on seeing what it holds now.
    pub fn stale_reads(&self, path: &Path) {
        self.misread(path, |content| Misread::Stale(content.bytes().to_vec()));
    }

    /// Reads of the file come from `by` bytes further on.
    pub fn shifted_reads(&self, path: &Path, by: i64) {
        self.misread(path, |_| Misread::Shifted(by));
    }

    fn misread(&self, path: &Path, how: impl Fn(&Content) -> Misread) {
        let mut volume = self.0.volume.lock();
        if let Some(inode) = volume.names.get(path).copied() {
            let misread = how(&volume.files[&inode]);
            volume.misreads.insert(inode, misread);
        }
    }

    /// Reads are right again.
    pub fn heal_reads(&self) {
        self.0.volume.lock().misreads.clear();
    }

    /// Turns one bit over, in what is read and what is durable.
    pub fn flip(&self, path: &Path, bit: u64) {
        self.corrupt(path, |bytes| {
            if let Some(byte) = bytes.get_mut((bit / 8) as usize) {
                *byte ^= 1 << (bit % 8);
            }
        });
    }

    /// Puts `bytes` at `offset`, in what is read and what is durable.
    pub fn overwrite(&self, path: &Path, offset: usize, bytes: &[u8]) {
        self.corrupt(path, |content| {
            if content.len() < offset + bytes.len() {
                content.resize(offset + bytes.len(), 0);
            }
            content[offset..offset + bytes.len()].copy_from_slice(bytes);
        });
    }

    fn corrupt(&self, path: &Path, change: impl Fn(&mut Vec<u8>)) {
        let mut volume = self.0.volume.lock();
        if let Some(inode) = volume.names.get(path).copied()
            && let Some(content) = volume.files.get_mut(&inode)
        {
            content.corrupt(change);
        }
    }

    /// Renames so far, in order.
    pub fn renames(&self) -> Vec<(PathBuf, PathBuf)> {
        self.0.volume.lock().renames.clone()
    }

    /// What the file holds, for tests to look at.
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let volume = self.0.volume.lock();
        volume.names.get(path).map(|inode| volume.files[inode].bytes().to_vec())
    }

    /// All files, sorted.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.0.volume.lock().names.keys().cloned().collect()
    }

    fn handle(&self, inode: Inode, life: u64, writable: bool) -> Arc<dyn File> {
        Arc::new(FaultyFile {
            disk: self.clone(),
            inode,
            life,
            writable,
        })
    }

    fn find(&self, path: &Path, writable: bool) -> io::Result<Arc<dyn File>> {
        let volume = self.0.volume.lock();
        if volume.off {
            return Err(eio("the power is off"));
        }
        let inode = *volume.names.get(path).ok_or_else(|| not_found(path))?;
        Ok(self.handle(inode, volume.life, writable))
    }
}

impl Renaming {
    fn apply(&self, names: &mut BTreeMap<PathBuf, Inode>) {
        match self {
            Self::Create(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            Self::Rename(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
            Self::Remove(path) => {
                names.remove(path);
            }
        }
    }

    fn touches(&self, dir: &Path) -> bool {
        let within = |path: &Path| path.parent() == Some(dir);
        match self {
            Self::Create(path, _) | Self::Remove(path) => within(path),
            Self::Rename(from, to) => within(from) || within(to),
        }
    }
}

impl Volume {
    fn used(&self) -> u64 {
        self.names.values().map(|inode| self.files[inode].len() as u64).sum()
    }

    /// Counts a call that changes or syncs something. True: this is the one that the power goes in.
    fn call(&mut self) -> io::Result<bool> {
        if self.off {
            return Err(eio("the power is off"));
        }
        let cut = self.cut_at == Some(self.calls);
        self.calls += 1;
        self.off |= cut;
        Ok(cut)
    }

    fn rename(&mut self, change: Renaming) -> io::Result<()> {
        let cut = self.call()?;
        change.apply(&mut self.names);
        self.pending.push(change);
        if cut { Err(eio("power cut")) } else { Ok(()) }
    }

    fn alive(&self, life: u64) -> io::Result<()> {
        if self.off || self.life != life {
            return Err(eio("the power went since this file was opened"));
        }
        Ok(())
    }

    /// Room for a file to grow from `from` to `to` bytes.
    fn grow(&mut self, from: usize, to: usize) -> io::Result<()> {
        let more = to.saturating_sub(from) as u64;
        if more > 0 && self.capacity.is_some_and(|capacity| self.used() + more > capacity) {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "injected: disk full"));
        }
        if more > 0 && self.quota.is_some_and(|quota| self.used() + more > quota) {
            self.over_quota += 1;
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "injected: over quota"));
        }
        Ok(())
    }
}

impl Disk for FaultyDisk {
    /// Directories are durable at once: losing one is losing the device.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut volume = self.0.volume.lock();
        volume.call()?;
        volume.dirs.extend(dir.ancestors().map(Path::to_path_buf));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let volume = self.0.volume.lock();
        if volume.off {
            return Err(eio("the power is off"));
        }
        if !volume.dirs.contains(dir) {
            return Err(not_found(dir));
        }
        let within = volume.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(within
            .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
            .collect())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut volume = self.0.volume.lock();
        if volume.names.contains_key(path) {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("{} exists", path.display()),
            ));
        }
        if !path.parent().is_some_and(|dir| volume.dirs.contains(dir)) {
            return Err(not_found(path));
        }
        volume.last_inode += 1;
        let inode = volume.last_inode;
        volume.files.insert(inode, Content::default());
        volume.rename(Renaming::Create(path.to_owned(), inode))?;
        Ok(self.handle(inode, volume.life, true))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.find(path, true)
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.find(path, false)
    }

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        let volume = self.0.volume.lock();
        Ok(volume
            .capacity
            .map_or(u64::MAX, |capacity| capacity.saturating_sub(volume.used())))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut volume = self.0.volume.lock();
        if !volume.names.contains_key(from) {
            return Err(not_found(from));
        }
        volume.renames.push((from.to_owned(), to.to_owned()));
        volume.rename(Renaming::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut volume = self.0.volume.lock();
        if !volume.names.contains_key(path) {
            return Err(not_found(path));
        }
        volume.rename(Renaming::Remove(path.to_owned()))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut volume = self.0.volume.lock();
        if volume.call()? {
            return Err(eio("power cut"));
        }
        let volume = &mut *volume;
        let (synced, pending): (Vec<_>, Vec<_>) = volume.pending.drain(..).partition(|change| change.touches(dir));
        synced.iter().for_each(|change| change.apply(&mut volume.durable_names));
        volume.pending = pending;
        Ok(())
    }
}

#[derive(Debug)]
struct FaultyFile {
    disk: FaultyDisk,
    inode: Inode,
    life: u64,
    writable: bool,
}

impl FaultyFile {
    fn writable(&self) -> io::Result<()> {
        match self.writable {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the file was opened for reading",
            )),
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Volume) -> io::Result<T>) -> io::Result<T> {
        let mut volume = self.disk.0.volume.lock();
        volume.alive(self.life)?;
        act(&mut volume)
    }
}

fn content(volume: &mut Volume, inode: Inode) -> io::Result<&mut Content> {
    volume.files.get_mut(&inode).ok_or_else(|| eio("the file is gone"))
}

impl File for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|volume| Ok(content(volume, self.inode)?.len() as u64))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.writable()?;
        self.with(|volume| {
            let from = content(volume, self.inode)?.len();
            volume.grow(from, len as usize)?;
            let cut = volume.call()?;
            content(volume, self.inode)?.set_len(len as usize);
            if cut { Err(eio("power cut")) } else { Ok(()) }
        })
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(|volume| match volume.misreads.get(&self.inode).cloned() {
            None => content(volume, self.inode)?.read(buf, offset),
            Some(Misread::Error) => Err(eio("read error")),
            Some(Misread::Stale(bytes)) => file::read(&bytes, buf, offset),
            Some(Misread::Shifted(by)) => content(volume, self.inode)?.read(buf, offset.saturating_add_signed(by)),
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.writable()?;
        self.with(|volume| {
            let (from, end) = (content(volume, self.inode)?.len(), offset as usize + bytes.len());
            volume.grow(from, end)?;
            let cut = volume.call()?;
            volume.writes += 1;
            let fails = volume.fail_write_at == Some(volume.writes);
            let part = if fails { &bytes[..bytes.len() / 2] } else { bytes };
            content(volume, self.inode)?.write(part, offset as usize);
            match (cut, fails) {
                (true, _) => Err(eio("power cut")),
                (_, true) => Err(eio("write error")),
                _ => Ok(()),
            }
        })
    }

    fn sync(&self) -> io::Result<()> {
        let mut volume = self.disk.0.volume.lock();
        while volume.held && volume.life == self.life {
            self.disk.0.resumed.wait(&mut volume);
        }
        let time = volume.sync_time;
        if !time.is_zero() {
            drop(volume);
            std::thread::sleep(time);
            volume = self.disk.0.volume.lock();
        }
        volume.alive(self.life)?;
        if volume.call()? {
            return Err(eio("power cut"));
        }
        volume.syncs += 1;
        if volume.fail_sync_at == Some(volume.syncs) {
            content(&mut volume, self.inode)?.sync_failed();
            return Err(eio("sync error"));
        }
        content(&mut volume, self.inode)?.sync();
        Ok(())
    }
}
