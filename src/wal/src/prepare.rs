//! Segments made ready before they are needed, and purged ones put to new use.
//!
//! A segment given to the writer is zero-filled or recycled, so that no write to it changes the file's metadata (which
//! is what makes its syncs cheap) or runs out of space; it carries its header; it has its name; and all that is synced.
//! What is missing for that is done here, on a helper thread, while the segment before it is being filled.
//!
//! A purged segment is renamed, and the rename synced, before the file is touched: until then a crash may bring it back
//! as part of the log, and after that no crash can.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::disk::{Disk, File};
use crate::format::{HEADER, encode_header};
use crate::segment::{self, SegmentId};
use crate::{Error, Options};

/// A new segment is filled in steps of this many bytes, each synced, so that the log's own syncs don't queue behind one
/// huge flush.
const FILL_BYTES: u64 = 1 << 20;
const FIRST_BYTES: u64 = 4 << 20;
/// How often a full disk is tried again without being asked.
const RETRY: Duration = Duration::from_millis(500);

/// A segment ready for use.
#[derive(Clone, Debug)]
pub(crate) struct Fresh {
    pub id: SegmentId,
    pub bytes: u64,
    pub file: Arc<dyn File>,
}

/// A purged segment kept for reuse.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spare {
    pub id: SegmentId,
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Want {
    id: SegmentId,
    bytes: u64,
}

#[derive(Debug, Default)]
struct State {
    want: Option<Want>,
    ready: Option<Fresh>,
    /// Why the last try failed; cleared by the next one.
    failed: Option<Error>,
    /// Purged segments that still have their names.
    freed: Vec<Spare>,
    spares: Vec<Spare>,
    stop: bool,
}

/// Shared by the writer, which takes segments and gives purged ones back, and the helper thread that makes them.
pub(crate) struct Preparer {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    segment_bytes: u64,
    spares_max: usize,
    state: Mutex<State>,
    changed: Condvar,
    /// One at a time works on files: the helper thread, or whoever calls [`work`](Self::work) where there is none.
    working: Mutex<()>,
    background: bool,
    space: Arc<AtomicBool>,
}

impl Preparer {
    pub(crate) fn new(disk: Arc<dyn Disk>, options: &Options) -> Self {
        Self {
            disk,
            dir: options.dir.clone(),
            segment_bytes: options.segment_bytes,
            spares_max: options.spare_segments,
            state: Mutex::default(),
            changed: Condvar::new(),
            working: Mutex::new(()),
            background: options.prepare_ahead,
            space: Arc::new(AtomicBool::new(true)),
        }
    }

    /// Takes over what recovery found: spares, and the prepared next segment if there was one.
    pub(crate) fn adopt(&self, spares: Vec<Spare>, ready: Option<Fresh>) {
        let mut state = self.state.lock();
        state.spares = spares;
        state.ready = ready;
    }

    /// False while the next segment can't be made for want of space.
    pub(crate) fn space(&self) -> &Arc<AtomicBool> {
        &self.space
    }

    /// Bytes of the segment that is ready, if one is.
    pub(crate) fn ready_bytes(&self) -> u64 {
        self.state.lock().ready.as_ref().map_or(0, |ready| ready.bytes)
    }

    /// A segment is wanted, and whether there will be one is not known yet.
    pub(crate) fn is_preparing(&self) -> bool {
        let state = self.state.lock();
        state.want.is_some() && state.failed.is_none() && !state.stop
    }

    /// Size for the segment after one of `before` bytes.
    pub(crate) fn bytes_after(&self, before: Option<u64>) -> u64 {
        before
            .map_or(FIRST_BYTES, |before| before.saturating_mul(2))
            .min(self.segment_bytes)
    }

    /// The first segment of a new log, made on the spot.
    pub(crate) fn make_first(&self) -> Result<Fresh, Error> {
        self.make(Want {
            id: SegmentId::FIRST,
            bytes: self.bytes_after(None),
        })
    }

    /// Asks for a segment ahead of need.
    pub(crate) fn want(&self, id: SegmentId, bytes: u64) {
        let mut state = self.state.lock();
        if state.ready.as_ref().is_none_or(|ready| ready.id != id) {
            state.want = Some(Want { id, bytes });
            self.changed.notify_all();
        }
    }

    /// The segment `id` with at least `bytes`; waits where it is still being made.
    pub(crate) fn take(&self, id: SegmentId, bytes: u64) -> Result<Fresh, Error> {
        let mut state = self.state.lock();
        let fits = |ready: &Fresh| ready.id == id && ready.bytes >= bytes;
        if state.ready.as_ref().is_none_or(|ready| !fits(ready)) {
            let bytes = bytes.max(state.want.filter(|want| want.id == id).map_or(0, |want| want.bytes));
            state.want = Some(Want { id, bytes });
            state.failed = None; // an older answer does not count
            self.changed.notify_all();
        }
        loop {
            if let Some(ready) = state.ready.take_if(|ready| fits(ready)) {
                return Ok(ready);
            }
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            if state.stop {
                return Err(Error::Closed);
            }
            if self.background {
                self.changed.wait(&mut state);
            } else {
                drop(state);
                self.work();
                state = self.state.lock();
            }
        }
    }

    /// Hands over segments that the log no longer needs. Their purge is durable.
    pub(crate) fn free(&self, segments: Vec<Spare>) {
        let mut state = self.state.lock();
        state.freed.extend(segments);
        self.changed.notify_all();
    }

    pub(crate) fn stop(&self) {
        self.state.lock().stop = true;
        self.changed.notify_all();
    }

    /// The helper thread.
    pub(crate) fn run(&self) {
        loop {
            let mut state = self.state.lock();
            while !state.stop && state.freed.is_empty() && (state.want.is_none() || state.failed.is_some()) {
                if state.failed.is_none() {
                    self.changed.wait(&mut state);
                } else if self.changed.wait_for(&mut state, RETRY).timed_out() {
                    state.failed = None;
                }
            }
            if state.stop {
                return;
            }
            drop(state);
            self.work();
        }
    }

    /// Does what there is to do, once.
    pub(crate) fn work(&self) {
        let _one = self.working.lock();
        let freed = std::mem::take(&mut self.state.lock().freed);
        if !freed.is_empty() {
            let outcome = self.retire(&freed);
            let mut state = self.state.lock();
            match outcome {
                Ok(spares) => {
                    state.spares.extend(spares);
                    state.failed = None; // there may be space now
                }
                // Still segments by name, and out of use: the next start finds and retires them.
                Err(error) => state.failed = Some(error),
            }
            self.changed.notify_all();
        }
        let Some(want) = self.state.lock().want else {
            return;
        };
        let outcome = self.make(want);
        let mut state = self.state.lock();
        match outcome {
            Ok(fresh) => {
                self.space.store(true, Ordering::Release);
                state.failed = None;
                // The writer may have asked for more meanwhile.
                if state.want == Some(want) {
                    state.want = None;
                    state.ready = Some(fresh);
                }
            }
            Err(error) => {
                if matches!(error, Error::NoSpace) {
                    self.space.store(false, Ordering::Release);
                }
                state.failed = Some(error);
            }
        }
        self.changed.notify_all();
    }

    /// Renames or deletes purged segments.
    fn retire(&self, freed: &[Spare]) -> Result<Vec<Spare>, Error> {
        let mut free_places = self.spares_max.saturating_sub(self.state.lock().spares.len());
        let mut spares = Vec::new();
        // From the oldest on, so that a crash leaves no gap between those that keep their names.
        for spare in freed {
            let path = self.dir.join(spare.id.file_name());
            if free_places > 0 && spare.bytes >= self.segment_bytes {
                let to = self.dir.join(segment::spare_name(spare.id));
                self.disk
                    .rename(&path, &to)
                    .map_err(|e| Error::io("retire log segment", path, e))?;
                spares.push(*spare);
                free_places -= 1;
            } else {
                self.disk
                    .remove(&path)
                    .map_err(|e| Error::io("remove purged log segment", path, e))?;
            }
        }
        self.sync_dir()?;
        Ok(spares)
    }

    fn make(&self, want: Want) -> Result<Fresh, Error> {
        let path = self.dir.join(want.id.file_name());
        // One that was prepared and turned out too small.
        let stale = self.state.lock().ready.take();
        if let Some(stale) = stale {
            let path = self.dir.join(stale.id.file_name());
            self.disk
                .remove(&path)
                .map_err(|e| Error::io("remove unused log segment", path, e))?;
            self.sync_dir()?;
        }
        let spare = {
            let mut state = self.state.lock();
            let found = state.spares.iter().position(|spare| spare.bytes >= want.bytes);
            found.map(|at| state.spares.swap_remove(at))
        };
        let (from, bytes, file) = match spare {
            Some(spare) => {
                let from = self.dir.join(segment::spare_name(spare.id));
                let file = self
                    .disk
                    .open(&from)
                    .map_err(|e| Error::io("open spare log segment", &from, e))?;
                (from, spare.bytes, file)
            }
            None => {
                let from = self.dir.join(segment::UNFINISHED);
                match self.fill(&from, want.bytes) {
                    Ok(file) => (from, want.bytes, file),
                    Err(error) => {
                        // What was filled so far would only keep the disk full.
                        let _ = self.disk.remove(&from);
                        return Err(error);
                    }
                }
            }
        };
        let prepared = (|| {
            file.write_at(&encode_header(want.id, bytes), 0)?;
            file.sync()?;
            self.disk.rename(&from, &path)
        })();
        prepared.map_err(|e| Error::io("prepare log segment", &from, e))?;
        self.sync_dir()?;
        Ok(Fresh {
            id: want.id,
            bytes,
            file,
        })
    }

    fn fill(&self, path: &PathBuf, bytes: u64) -> Result<Arc<dyn File>, Error> {
        let failed = |e: io::Error| Error::io("fill new log segment", path, e);
        let file = match self.disk.create(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                self.disk.remove(path).and_then(|()| self.disk.create(path))
            }
            other => other,
        }
        .map_err(failed)?;
        let zeros = vec![0; FILL_BYTES.min(bytes) as usize];
        let mut at = HEADER as u64;
        while at < bytes {
            let step = (bytes - at).min(zeros.len() as u64);
            file.write_at(&zeros[..step as usize], at).map_err(failed)?;
            file.sync().map_err(failed)?;
            at += step;
            if self.background && self.state.lock().stop {
                return Err(Error::Closed);
            }
        }
        Ok(file)
    }

    fn sync_dir(&self) -> Result<(), Error> {
        self.disk
            .sync_dir(&self.dir)
            .map_err(|e| Error::io("sync log directory", &self.dir, e))
    }
}
