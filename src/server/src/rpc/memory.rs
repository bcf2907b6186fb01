//! Memory for request messages that are not complete, or not inflated: a share for each connection, and a budget for all.
//!
//! Who finds none left waits, within the deadline of its message, and meanwhile reads nothing. What it does not read
//! fills the connection's window, though, and those that do have memory need some of that window to get on: hence only so
//! many may wait that they cannot fill it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What the incomplete messages of one connection may take: ten of the largest that etcd's default allows.
pub(crate) const SHARE_BYTES: usize = 16 * 1024 * 1024;
/// Messages of one connection that may wait for memory.
pub(crate) const WAITING_MAX: usize = 112;

/// A budget of bytes.
#[derive(Clone, Debug)]
struct Budget {
    bytes: Arc<Semaphore>,
    total: usize,
}

impl Budget {
    fn new(bytes: usize) -> Self {
        let total = bytes.min(Semaphore::MAX_PERMITS).min(u32::MAX as usize);
        Self {
            bytes: Arc::new(Semaphore::new(total)),
            total,
        }
    }

    /// More than there is may go when there is nothing else.
    fn permits(&self, bytes: usize) -> u32 {
        bytes.min(self.total) as u32
    }

    fn try_take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.bytes).try_acquire_many_owned(self.permits(bytes)).ok()
    }

    async fn take(self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = self.permits(bytes);
        self.bytes.acquire_many_owned(permits).await.ok()
    }
}

/// The budget of all connections.
#[derive(Clone, Debug)]
pub(crate) struct MessageMemory(Budget);

impl MessageMemory {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Budget::new(bytes))
    }

    /// For one connection.
    pub(crate) fn share(&self) -> MemoryShare {
        MemoryShare {
            own: Budget::new(SHARE_BYTES),
            all: self.0.clone(),
            waiting: Arc::default(),
        }
    }
}

/// One connection's access to the budget.
#[derive(Debug)]
pub(crate) struct MemoryShare {
    own: Budget,
    all: Budget,
    waiting: Arc<AtomicUsize>,
}

/// Memory that is spoken for, until this is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

pub(crate) type Charging = Pin<Box<dyn Future<Output = Option<Charge>> + Send>>;

/// What came of asking for memory.
pub(crate) enum Asked {
    Granted(Charge),
    Wait(Charging),
    /// Too many wait already.
    Refused,
}

impl MemoryShare {
    pub(crate) fn ask(&self, bytes: usize) -> Asked {
        // Its own share first, so that a greedy connection queues behind itself and not before others.
        if let Some(own) = self.own.try_take(bytes)
            && let Some(all) = self.all.try_take(bytes)
        {
            return Asked::Granted(Charge { _own: own, _all: all });
        }
        let waiting = Waiting(Arc::clone(&self.waiting));
        if waiting.0.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            return Asked::Refused;
        }
        let (own, all) = (self.own.clone(), self.all.clone());
        Asked::Wait(Box::pin(async move {
            let _waiting = waiting;
            let own = own.take(bytes).await?;
            let all = all.take(bytes).await?;
            Some(Charge { _own: own, _all: all })
        }))
    }
}

struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn granted(asked: Asked) -> Charge {
        match asked {
            Asked::Granted(charge) => charge,
            Asked::Wait(_) => panic!("has to wait"),
            Asked::Refused => panic!("refused"),
        }
    }

    /// C6
    #[test]
    fn one_connection_cannot_take_it_all() {
        let memory = MessageMemory::new(SHARE_BYTES * 2);
        let (greedy, modest) = (memory.share(), memory.share());
        let mut held = vec![granted(greedy.ask(SHARE_BYTES))];
        let mut waiting = Vec::new();
        for _ in 0..WAITING_MAX {
            match greedy.ask(1000) {
                Asked::Wait(wait) => waiting.push(wait),
                _ => panic!("it has taken its share"),
            }
        }
        assert!(matches!(greedy.ask(1000), Asked::Refused));
        granted(modest.ask(SHARE_BYTES));
        // First come, first served, once something is given back.
        assert!(waiting.iter_mut().all(|wait| wait.now_or_never().is_none()));
        held.clear();
        assert!(waiting.iter_mut().all(|wait| wait.now_or_never().flatten().is_some()));
        waiting.clear();
        granted(greedy.ask(SHARE_BYTES * 3));
    }

    #[test]
    fn who_gives_up_makes_room() {
        let share = MessageMemory::new(100).share();
        let all = granted(share.ask(1000));
        let waiting: Vec<Asked> = (0..WAITING_MAX).map(|_| share.ask(1)).collect();
        assert!(matches!(share.ask(1), Asked::Refused));
        drop(waiting);
        assert!(matches!(share.ask(1), Asked::Wait(_)));
        drop(all);
        granted(share.ask(1));
    }
}
