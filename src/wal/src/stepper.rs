//! A log without threads: the writer's turns, taken by hand.
//!
//! ```text
//!  append, vote, … ──► queue ──► on_work ··► somebody's task ──► Stepper::step: one batch, written, synced, answered
//! ```
//!
//! For simulations, in which all of a cluster runs on one thread and every run of a seed is the same run. Batches,
//! faults, answers and their order come from the code that the writer thread runs; what differs is who waits. Nobody
//! does here: `close` and the drop of the last handle take the turns that are left on their caller's thread.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::wal::Shared;
use crate::writer::Writer;

/// The writer, shared by the stepper and the handles of the log. It is gone once it has ended.
#[derive(Clone)]
pub(crate) struct Turns {
    shared: Arc<Shared>,
    writer: Arc<Mutex<Option<Writer>>>,
}

impl Turns {
    pub(crate) fn new(shared: Arc<Shared>, writer: Writer) -> Self {
        Self {
            shared,
            writer: Arc::new(Mutex::new(Some(writer))),
        }
    }

    /// One turn, if there is anything to do. `None`: this is within a turn already, so in a callback.
    fn take(&self) -> Option<bool> {
        let mut writer = self.writer.try_lock()?;
        let Some(running) = writer.as_mut() else {
            return Some(false);
        };
        let Some(taken) = self.shared.try_next() else {
            running.idle_work(); // there may be space again for the next segment
            return Some(false);
        };
        if !running.turn(taken) {
            *writer = None;
        }
        Some(true)
    }

    /// All turns up to the end, which the caller has asked for.
    pub(crate) fn finish(&self) {
        loop {
            match self.take() {
                Some(true) => {}
                Some(false) => return,
                None => return self.shared.wake(),
            }
        }
    }
}

/// Takes the turns of a log that was opened with [`Wal::open_stepped`](crate::Wal::open_stepped).
///
/// Log and stepper belong on one thread. Dropping the stepper stops nothing: what is queued then waits for the log to be
/// closed or dropped.
pub struct Stepper {
    turns: Turns,
}

impl Stepper {
    pub(crate) fn new(turns: Turns) -> Self {
        Self { turns }
    }

    /// One turn of the writer: what is queued, up to the size of a batch, is written and synced, then answered. True
    /// when there is more to do. In a callback, which is within a turn, it does nothing.
    pub fn step(&mut self) -> bool {
        self.turns.take().is_some() && self.turns.shared.has_work()
    }

    /// The process dies: what is queued is neither written nor answered, and from now on the log is closed. What was
    /// written stays as it is on the disk, whose power may be cut before or after.
    pub fn kill(&mut self) {
        self.turns.shared.kill();
        self.turns.finish();
    }
}
