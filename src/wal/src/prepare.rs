//! Segments made ready before they are needed, and purged ones put to new use.
//!
//! A segment given to the writer is zero-filled or recycled, so that no write to it changes the file's metadata (which
//! is what makes its syncs cheap) or runs out of space; it carries its header; it has its name; and all that is synced.
//! What is missing for that is done here, on a helper thread, while the segment before it is being filled.
//!
//! A purged segment is renamed, and the rename synced, before the file is touched: until then a crash may bring it back
//! as part of the log, and after that no crash can.
//!
//! On a full disk nothing is filled to find that out: the disk is asked, now and then, how much it has left. If that is
//! too little for a whole segment, a smaller one will do. Where it says one thing and does another, as with a quota, the
//! tries become rare.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::disk::{Disk, File};
use crate::format::{HEADER, encode_header, usable};
use crate::segment::{self, SegmentId};
use crate::{Error, Options};

/// A new segment is filled in steps of this many bytes, each synced, so that the log's own syncs don't queue behind one
/// huge flush.
const FILL_BYTES: u64 = 1 << 20;
const FIRST_BYTES: u64 = 4 << 20;
/// Where the disk has less than this, it is full. What is prepared must hold some batches of the largest size beside what
/// is kept for those that make room, or nobody could tell in time that it will not do.
const LESS_BYTES_MIN: u64 = 8 << 20;
/// How often a full disk is asked again for its space.
const RETRY: Duration = Duration::from_millis(500);
/// How seldom a disk that fails without saying so beforehand is tried, at last.
const RETRY_MAX: Duration = Duration::from_secs(30);

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
    /// The size to make it; less will do where the disk has no more.
    bytes: u64,
    /// Bytes of one record that it has to have room for.
    need: u64,
}

impl Want {
    fn is_met_by(&self, id: SegmentId, bytes: u64) -> bool {
        self.id == id && usable(bytes) >= self.need
    }

    /// Sizes that will do, the best first.
    fn sizes(self) -> impl Iterator<Item = u64> {
        std::iter::successors(Some(self.bytes), |bytes| Some(bytes / 2))
            .take_while(move |bytes| *bytes == self.bytes || (*bytes >= LESS_BYTES_MIN && usable(*bytes) >= self.need))
    }
}

/// Why the last try failed.
#[derive(Debug)]
struct Failure {
    error: Error,
    /// When the helper thread tries again; without one it is tried whenever there is time.
    until: Option<Instant>,
    /// The disk was written to before it refused, so nobody repeats that on the spot.
    costly: bool,
}

#[derive(Debug, Default)]
struct State {
    want: Option<Want>,
    ready: Option<Fresh>,
    /// Cleared by the next try.
    failed: Option<Failure>,
    /// What the next costly failure pauses for, if it is not the first in a row.
    pause: Option<Duration>,
    owner: u64,
    /// Purged segments that still have their names.
    freed: Vec<Spare>,
    spares: Vec<Spare>,
    stop: bool,
}

impl State {
    fn fail(&mut self, error: Error, costly: bool, background: bool) {
        let pause = match costly {
            true => self.pause.map_or(RETRY, |pause| (pause * 2).min(RETRY_MAX)),
            false => RETRY,
        };
        self.pause = costly.then_some(pause).or(self.pause);
        let until = background.then(|| Instant::now() + pause);
        self.failed = Some(Failure { error, until, costly });
    }
}

/// Why a segment was not made, and whether finding out took writing to the disk.
struct Refusal {
    error: Error,
    costly: bool,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { error, costly: true }
    }
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

    /// Takes over what recovery found: spares, the prepared next segment if there was one, and whose log it is.
    pub(crate) fn adopt(&self, spares: Vec<Spare>, ready: Option<Fresh>, owner: u64) {
        let mut state = self.state.lock();
        state.spares = spares;
        state.ready = ready;
        state.owner = owner;
    }

    /// False while the next segment can't be made for want of space.
    pub(crate) fn space(&self) -> &Arc<AtomicBool> {
        &self.space
    }

    /// Bytes of entries that the segment that is ready has room for, if one is.
    pub(crate) fn ready_bytes(&self) -> u64 {
        self.state.lock().ready.as_ref().map_or(0, |ready| usable(ready.bytes))
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
            need: 0,
        })
        .map_err(|refusal| refusal.error)
    }

    /// Asks for a segment ahead of need.
    pub(crate) fn want(&self, id: SegmentId, bytes: u64) {
        let mut state = self.state.lock();
        if state.ready.as_ref().is_none_or(|ready| ready.id != id) {
            state.want = Some(Want { id, bytes, need: 0 });
            self.changed.notify_all();
        }
    }

    /// The segment `id` if it is ready and has room for a record of `need` bytes.
    pub(crate) fn take_ready(&self, id: SegmentId, need: u64) -> Option<Fresh> {
        let want = Want { id, bytes: 0, need };
        let mut state = self.state.lock();
        state.ready.take_if(|ready| want.is_met_by(ready.id, ready.bytes))
    }

    /// The segment `id`, of `bytes` if possible and with room for a record of `need` bytes in any case; waits where it is
    /// still being made.
    pub(crate) fn take(&self, id: SegmentId, bytes: u64, need: u64) -> Result<Fresh, Error> {
        let want = Want { id, bytes, need };
        let mut state = self.state.lock();
        let fits = |ready: &Fresh| want.is_met_by(ready.id, ready.bytes);
        if state.ready.as_ref().is_none_or(|ready| !fits(ready)) {
            state.want = Some(want);
            // An older answer does not count, unless asking again would write a segment to find out.
            let repeats = self.background
                && matches!(
                    state.failed,
                    Some(Failure {
                        error: Error::NoSpace,
                        costly: true,
                        ..
                    })
                );
            if !repeats {
                state.failed = None;
            }
            self.changed.notify_all();
        }
        loop {
            if let Some(ready) = state.ready.take_if(|ready| fits(ready)) {
                return Ok(ready);
            }
            if let Some(Failure { error, .. }) = &state.failed {
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
                match state.failed.as_ref().and_then(|failure| failure.until) {
                    None => self.changed.wait(&mut state),
                    Some(until) if self.changed.wait_until(&mut state, until).timed_out() => state.failed = None,
                    Some(_) => {}
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
                    (state.failed, state.pause) = (None, None); // there may be space now
                }
                // Still segments by name, and out of use: the next start finds and retires them.
                Err(error) => state.fail(error, true, self.background),
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
                (state.failed, state.pause) = (None, None);
                // The writer may have asked for more meanwhile; then this one goes when that is made.
                state.want.take_if(|want| want.is_met_by(fresh.id, fresh.bytes));
                state.ready = Some(fresh);
            }
            Err(Refusal { error, costly }) => {
                if matches!(error, Error::NoSpace) {
                    self.space.store(false, Ordering::Release);
                }
                state.fail(error, costly, self.background);
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

    fn make(&self, want: Want) -> Result<Fresh, Refusal> {
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
        let (spare, owner) = {
            let mut state = self.state.lock();
            let found = state.spares.iter().position(|spare| spare.bytes >= want.bytes);
            (found.map(|at| state.spares.swap_remove(at)), state.owner)
        };
        let prepare = |file: &dyn File, from: &Path, bytes: u64| {
            file.write_at(&encode_header(want.id, bytes, owner), 0)?;
            file.sync()?;
            self.disk.rename(from, &path)
        };
        let (bytes, file) = match spare {
            Some(spare) => {
                let from = self.dir.join(segment::spare_name(spare.id));
                let file = self.disk.open(&from).and_then(|file| {
                    prepare(&*file, &from, spare.bytes)?;
                    Ok(file)
                });
                match file {
                    Ok(file) => (spare.bytes, file),
                    Err(e) => {
                        // It is as good as before, if it is there at all.
                        if e.kind() != io::ErrorKind::NotFound {
                            self.state.lock().spares.push(spare);
                        }
                        return Err(Error::io("prepare spare log segment", from, e).into());
                    }
                }
            }
            None => {
                let bytes = self.affordable(want)?;
                let from = self.dir.join(segment::UNFINISHED);
                let file = self.fill(&from, bytes).and_then(|file| {
                    prepare(&*file, &from, bytes).map_err(|e| Error::io("prepare log segment", &from, e))?;
                    Ok(file)
                });
                match file {
                    Ok(file) => (bytes, file),
                    Err(error) => {
                        // What was filled so far would only keep the disk full.
                        let _ = self.disk.remove(&from);
                        return Err(error.into());
                    }
                }
            }
        };
        self.sync_dir()?;
        Ok(Fresh {
            id: want.id,
            bytes,
            file,
        })
    }

    /// The largest of the sizes wanted that the disk has space for. It costs nothing to ask.
    fn affordable(&self, want: Want) -> Result<u64, Refusal> {
        // A disk that can't tell is tried.
        let free = self.disk.free_bytes(&self.dir).unwrap_or(u64::MAX);
        want.sizes().find(|bytes| *bytes <= free).ok_or(Refusal {
            error: Error::NoSpace,
            costly: false,
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
