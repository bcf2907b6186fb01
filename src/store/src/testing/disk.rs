//! A disk in memory that remembers what it was told in which order, so that power can be cut between any two writes.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::Rng;
use crate::backend::disk::Disk;

const SECTOR: usize = 512;
const BLOCK: u64 = 4096;

/// What reaches the platter of the writes since the last sync.
#[derive(Clone, Copy, Debug)]
pub enum Survives {
    Nothing,
    /// One of them, whole.
    One,
    /// Each but one, whole.
    AllButOne,
    All,
    /// Each sector of each write, by the toss of a coin.
    Sectors,
}

pub const ALL_CASES: [Survives; 5] = [
    Survives::Nothing,
    Survives::One,
    Survives::AllButOne,
    Survives::All,
    Survives::Sectors,
];

/// A page for which the disk hands out something else, and calls it good.
#[derive(Clone, Debug)]
pub struct Misread {
    pub page: u64,
    pub instead: Vec<u8>,
}

#[derive(Clone, Debug)]
pub enum Op {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
}

#[derive(Debug, Default)]
struct State {
    now: Vec<u8>,
    trace: Vec<Op>,
    tracing: bool,
    syncs: u64,
    fail_sync: Option<u64>,
    writes: u64,
    fail_write: Option<u64>,
    fail_reads: bool,
    misread: Option<Misread>,
    /// Writes that begin here find no space.
    full_at: Option<u64>,
    bytes_read: u64,
    blocks: HashSet<u64>,
    reserved: u64,
    capacity: Option<u64>,
    /// What is safe, where that is asked for.
    platter: Option<Replay>,
    off: bool,
}

/// Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct MemDisk(Arc<Mutex<State>>);

impl MemDisk {
    pub fn with_image(image: Vec<u8>) -> Self {
        let disk = Self::default();
        disk.state().now = image;
        disk
    }

    /// An empty one that knows at any time what a loss of power would leave.
    pub fn crashable() -> Self {
        Self::crashable_with(Vec::new())
    }

    fn crashable_with(image: Vec<u8>) -> Self {
        let disk = Self::with_image(image.clone());
        disk.state().platter = Some(Replay::new(image));
        disk
    }

    /// The power goes, or, where everything survives, just the process. Whoever still has this disk hears nothing but
    /// errors from now on; what it comes back as is another one.
    ///
    /// # Panics
    /// If the disk was not made [`crashable`](Self::crashable).
    pub fn power_loss(&self, survives: Survives, rng: &mut Rng) -> Self {
        let mut state = self.state();
        state.off = true;
        let platter = state.platter.take();
        drop(state);
        let platter = platter.expect("a crashable disk, and its first crash");
        Self::crashable_with(platter.power_loss(survives, rng))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    fn powered(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        match state.off {
            true => Err(io::Error::from_raw_os_error(5)),
            false => Ok(state),
        }
    }

    pub fn image(&self) -> Vec<u8> {
        self.state().now.clone()
    }

    /// From now on every operation is remembered.
    pub fn start_trace(&self) -> Vec<u8> {
        let mut state = self.state();
        state.tracing = true;
        state.trace.clear();
        state.now.clone()
    }

    pub fn trace_len(&self) -> usize {
        self.state().trace.len()
    }

    pub fn trace(&self) -> Vec<Op> {
        self.state().trace.clone()
    }

    /// The sync after that many good ones fails, and every later one.
    pub fn fail_sync_after(&self, good: u64) {
        let mut state = self.state();
        state.fail_sync = Some(state.syncs + good);
    }

    /// The write after that many more good ones fails, and every later one.
    pub fn fail_write_after(&self, good: u64) {
        let mut state = self.state();
        state.fail_write = Some(state.writes + good);
    }

    /// A misdirected read: from now on the `page` reads as the one that lies `by` pages further on.
    pub fn shift_reads(&self, page: u64, by: i64) {
        let mut state = self.state();
        let other = page
            .checked_add_signed(by)
            .filter(|page| page * BLOCK < state.now.len() as u64);
        let instead = other.map_or(vec![0; BLOCK as usize], |other| page_of(&state.now, other));
        state.misread = Some(Misread { page, instead });
    }

    /// A stale read: from now on the `page` reads as it was in `image`.
    pub fn stale_reads(&self, page: u64, image: &[u8]) {
        let instead = page_of(image, page);
        self.state().misread = Some(Misread { page, instead });
    }

    /// Writes at this offset find no space, as on a file system that never writes in place.
    pub fn set_full_at(&self, offset: Option<u64>) {
        self.state().full_at = offset;
    }

    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    pub fn fail_reads(&self, fail: bool) {
        self.state().fail_reads = fail;
    }

    pub fn bytes_read(&self) -> u64 {
        self.state().bytes_read
    }

    /// Blocks that the array and its reserve may take together.
    pub fn set_capacity(&self, bytes: u64) {
        self.state().capacity = Some(bytes);
    }

    pub fn used(&self) -> u64 {
        let state = self.state();
        state.blocks.len() as u64 * BLOCK + state.reserved
    }
}

/// Zeros where there is none.
fn page_of(image: &[u8], page: u64) -> Vec<u8> {
    let from = (page * BLOCK) as usize;
    let mut bytes = image
        .get(from..image.len().min(from + BLOCK as usize))
        .unwrap_or_default()
        .to_vec();
    bytes.resize(BLOCK as usize, 0);
    bytes
}

impl State {
    fn note(&mut self, op: impl Fn() -> Op) {
        if self.tracing {
            self.trace.push(op());
        }
        if let Some(platter) = &mut self.platter {
            platter.take(op());
        }
    }

    fn check_room(&self, blocks: u64, reserved: u64) -> io::Result<()> {
        let used = blocks * BLOCK + reserved;
        if self.capacity.is_some_and(|capacity| used > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl Disk for MemDisk {
    fn size(&self) -> io::Result<u64> {
        Ok(self.powered()?.now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.powered()?;
        if state.fail_reads {
            return Err(io::Error::from_raw_os_error(5));
        }
        state.bytes_read += out.len() as u64;
        let from = offset as usize;
        let bytes = state
            .now
            .get(from..from + out.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        if let Some(Misread { page, instead }) = &state.misread {
            let start = page * BLOCK;
            for (at, byte) in (offset..).zip(out.iter_mut()) {
                if let Some(wrong) = at.checked_sub(start).and_then(|at| instead.get(at as usize)) {
                    *byte = *wrong;
                }
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.powered()?;
        state.now.resize(len as usize, 0);
        state.blocks.retain(|block| block * BLOCK < len);
        state.note(|| Op::SetLen(len));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.powered()?;
        if state.fail_write.is_some_and(|good| state.writes >= good) {
            return Err(io::Error::from_raw_os_error(5));
        }
        if state.full_at == Some(offset) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.writes += 1;
        let end = offset + data.len() as u64;
        let touched = offset / BLOCK..end.div_ceil(BLOCK);
        let new = touched.clone().filter(|block| !state.blocks.contains(block)).count();
        if new > 0 {
            state.check_room((state.blocks.len() + new) as u64, state.reserved)?;
        }
        state.blocks.extend(touched);
        if state.now.len() < end as usize {
            state.now.resize(end as usize, 0);
            state.note(|| Op::SetLen(end));
        }
        state.now[offset as usize..end as usize].copy_from_slice(data);
        state.note(|| Op::Write(offset, data.to_vec()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.powered()?;
        if state.fail_sync.is_some_and(|good| state.syncs >= good) {
            return Err(io::Error::from_raw_os_error(5));
        }
        state.syncs += 1;
        state.note(|| Op::Sync);
        Ok(())
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.state().blocks.len() as u64 * BLOCK)
    }

    fn reserved(&self) -> u64 {
        self.state().reserved
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.state();
        if bytes > state.reserved {
            state.check_room(state.blocks.len() as u64, bytes)?;
        }
        state.reserved = bytes;
        Ok(())
    }
}

/// Plays a trace on the image it started from and cuts the power where it is asked to.
#[derive(Debug)]
pub struct Replay {
    durable: Vec<u8>,
    unsynced: Vec<Op>,
}

impl Replay {
    pub fn new(start: Vec<u8>) -> Self {
        Self {
            durable: start,
            unsynced: Vec::new(),
        }
    }

    pub fn step(&mut self, op: &Op) {
        self.take(op.clone());
    }

    fn take(&mut self, op: Op) {
        match op {
            Op::Sync => {
                for op in self.unsynced.drain(..) {
                    apply(&mut self.durable, &op, |_| true);
                }
            }
            op => self.unsynced.push(op),
        }
    }

    pub fn has_unsynced(&self) -> bool {
        !self.unsynced.is_empty()
    }

    /// What is on the platter if the power goes now.
    pub fn power_loss(&self, survives: Survives, rng: &mut Rng) -> Vec<u8> {
        let mut image = self.durable.clone();
        let chosen = rng.below(self.unsynced.len().max(1) as u64) as usize;
        for (at, op) in self.unsynced.iter().enumerate() {
            let whole = match survives {
                Survives::Nothing => false,
                Survives::One => at == chosen,
                Survives::AllButOne => at != chosen,
                Survives::All => true,
                Survives::Sectors => {
                    apply(&mut image, op, |_| rng.chance(50));
                    continue;
                }
            };
            if whole {
                apply(&mut image, op, |_| true);
            }
        }
        image
    }
}

fn apply(image: &mut Vec<u8>, op: &Op, mut reaches: impl FnMut(usize) -> bool) {
    match op {
        Op::Sync => (),
        Op::SetLen(len) => {
            if reaches(0) {
                image.resize(*len as usize, 0);
            }
        }
        Op::Write(offset, data) => {
            let mut at = 0;
            while at < data.len() {
                let from = *offset as usize + at;
                let len = (SECTOR - from % SECTOR).min(data.len() - at);
                // A sector beyond the end of a file whose growth was lost is lost too.
                if reaches(at) && from + len <= image.len() {
                    image[from..from + len].copy_from_slice(&data[at..at + len]);
                }
                at += len;
            }
        }
    }
}
