//! Who waits for which batch. A batch is answered once: by this member's apply, or by the news that its fate is
//! unknown.

use crate::batch::Origin;
use crate::proposer::ProposeError;
use parking_lot::Mutex;
use quorate_store::command::Outcome;
use std::collections::HashMap;
use tokio::sync::oneshot;

/// One request's place in a batch. The receiver may be gone (the client left); the command runs all the same.
pub type Waiter = oneshot::Sender<Result<Outcome, ProposeError>>;

/// A batch that was handed to openraft.
#[derive(Default)]
pub struct Waiting {
    pub waiters: Vec<Waiter>,
    /// What it takes in the log.
    pub bytes: usize,
}

#[derive(Default)]
pub struct Tracker {
    boot: u64,
    member: u64,
    waiting: Mutex<HashMap<u64, Waiting>>,
}

impl Tracker {
    pub fn new(member: u64, boot: u64) -> Self {
        Self {
            boot,
            member,
            waiting: Mutex::default(),
        }
    }

    pub fn origin(&self, sequence: u64) -> Origin {
        Origin {
            member: self.member,
            boot: self.boot,
            sequence,
        }
    }

    pub fn register(&self, sequence: u64, waiting: Waiting) {
        let before = self.waiting.lock().insert(sequence, waiting);
        debug_assert!(before.is_none(), "sequence {sequence} used twice");
    }

    /// Somebody here waits for the batch. When it is committed and nobody does, nobody will.
    pub fn awaits(&self, origin: Origin) -> bool {
        self.is_own(origin) && self.waiting.lock().contains_key(&origin.sequence)
    }

    fn is_own(&self, origin: Origin) -> bool {
        origin.member == self.member && origin.boot == self.boot
    }

    /// Takes the waiters of a batch, if it was made by this process and is still waited for.
    pub fn take(&self, origin: Origin) -> Option<Waiting> {
        if !self.is_own(origin) {
            return None;
        }
        self.waiting.lock().remove(&origin.sequence)
    }

    /// Takes all of them.
    pub fn take_all(&self) -> Vec<Waiting> {
        std::mem::take(&mut *self.waiting.lock()).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_batches_of_this_start_are_awaited() {
        let tracker = Tracker::new(7, 2);
        tracker.register(1, Waiting::default());
        let own = tracker.origin(1);
        assert!(tracker.awaits(own));
        assert!(!tracker.awaits(tracker.origin(2)));
        assert!(!tracker.awaits(Origin { member: 8, ..own }));
        // A batch of before the restart, applied again.
        assert!(!tracker.awaits(Origin { boot: 1, ..own }));
        tracker.take(own);
        assert!(!tracker.awaits(own));
    }
}
