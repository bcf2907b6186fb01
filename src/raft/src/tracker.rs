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

    /// Takes the waiters of a batch, if it was made by this process and is still waited for.
    pub fn take(&self, origin: Origin) -> Option<Waiting> {
        if origin.member != self.member || origin.boot != self.boot {
            return None;
        }
        self.waiting.lock().remove(&origin.sequence)
    }

    /// Takes all of them.
    pub fn take_all(&self) -> Vec<Waiting> {
        std::mem::take(&mut *self.waiting.lock()).into_values().collect()
    }
}
