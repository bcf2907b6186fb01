//! Who waits for which batch. A batch is answered once: by this member's apply, or by the news that its fate is
//! unknown.

use crate::batch::Origin;
use crate::proposer::ProposeError;
use parking_lot::Mutex;
use quorate_store::command::Outcome;
use std::collections::HashMap;
use tokio::sync::oneshot;

/// One request's place in a batch. The receiver may be gone (the client left); the command runs all the same.
pub type Waiter = oneshot::Sender<Result<Applied, ProposeError>>;

/// A command's outcome with the log index of its batch.
#[derive(Debug)]
pub struct Applied {
    pub outcome: Outcome,
    pub index: u64,
}

#[derive(Default)]
pub struct Tracker {
    boot: u64,
    member: u64,
    waiting: Mutex<HashMap<u64, Vec<Waiter>>>,
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

    pub fn register(&self, sequence: u64, waiters: Vec<Waiter>) {
        let before = self.waiting.lock().insert(sequence, waiters);
        debug_assert!(before.is_none(), "sequence {sequence} used twice");
    }

    /// Takes the waiters of a batch, if it was made by this process and is still waited for.
    pub fn take(&self, origin: Origin) -> Option<Vec<Waiter>> {
        if origin.member != self.member || origin.boot != self.boot {
            return None;
        }
        self.waiting.lock().remove(&origin.sequence)
    }

    pub fn fail_all(&self, error: ProposeError) {
        let all = std::mem::take(&mut *self.waiting.lock());
        for waiter in all.into_values().flatten() {
            let _ = waiter.send(Err(error));
        }
    }
}
