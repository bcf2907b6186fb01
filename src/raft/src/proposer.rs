//! Commands in, batches out.
//!
//! A command is encoded into the open batch by the thread that brings it. The batcher takes what is there as soon as a
//! slot is free, so what arrives while the last batches are being written joins the next: one client sees the latency
//! of one sync, a thousand share one. There is no timer.
//!
//! What was handed to openraft is never proposed again: "not the leader" can also mean that the entry was appended
//! here and may still commit elsewhere.

use crate::batch::{Batch, Origin};
use crate::tracker::{Applied, Tracker, Waiter};
use crate::types::{FnResponder, RaftHandle, TypeConfig};
use bytes::BytesMut;
use openraft::error::ClientWriteError;
use openraft::raft::ClientWriteResult;
use parking_lot::Mutex;
use quorate_store::command::{self, Command};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use tokio::sync::{Notify, oneshot};

/// A batch closes when it holds this much: beyond, the cost of a sync is shared anyway and peers would need larger
/// messages. A single larger command is a batch of its own.
const BATCH_BYTES: usize = 1 << 20;

/// Batches between "handed to openraft" and "applied here": one being written while the one before is applied.
const BATCHES_IN_FLIGHT: usize = 2;

/// Commands and bytes that may wait for a batch. A client has no use for an answer that is a minute away.
const QUEUED_COMMANDS_MAX: usize = 100_000;
const QUEUED_BYTES_MAX: usize = 64 << 20;

/// Why a command has no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error("too many commands wait to be written")]
    TooManyRequests,
    #[error("this member is not the leader; nothing was proposed")]
    NotLeader,
    /// It may have been executed or may still be.
    #[error("leadership changed while the command was on its way; its fate is unknown")]
    Unknown,
    #[error("the node is stopping")]
    Stopped,
}

/// Where commands enter. Shared by all request handlers.
pub struct Proposer {
    tracker: Arc<Tracker>,
    queue: Mutex<Queue>,
    wake: Notify,
    slots: Arc<Slots>,
    stopped: AtomicBool,
    sequence: AtomicU64,
    /// Commands taken and not yet answered.
    pending: Arc<AtomicUsize>,
    failed: Arc<AtomicU64>,
}

#[derive(Default)]
struct Queue {
    batches: VecDeque<Building>,
    commands: usize,
    bytes: usize,
}

struct Building {
    buffer: BytesMut,
    waiters: Vec<Waiter>,
}

/// Slots for batches in flight. A plain semaphore would tie a slot to a future; here apply gives it back.
struct Slots {
    free: AtomicUsize,
    freed: Notify,
}

impl Slots {
    fn give_back(&self) {
        self.free.fetch_add(1, Ordering::Release);
        self.freed.notify_one();
    }

    fn try_take(&self) -> bool {
        self.free
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |free| free.checked_sub(1))
            .is_ok()
    }
}

impl Proposer {
    pub(crate) fn new(tracker: Arc<Tracker>) -> Self {
        Self {
            tracker,
            queue: Mutex::default(),
            wake: Notify::new(),
            slots: Arc::new(Slots {
                free: AtomicUsize::new(BATCHES_IN_FLIGHT),
                freed: Notify::new(),
            }),
            stopped: AtomicBool::new(false),
            sequence: AtomicU64::new(1),
            pending: Arc::default(),
            failed: Arc::default(),
        }
    }

    /// Takes a command. The receiver gets its outcome once it is applied here; dropping it changes nothing.
    pub fn propose(&self, command: &Command) -> Result<oneshot::Receiver<Result<Applied, ProposeError>>, ProposeError> {
        let (tx, rx) = oneshot::channel();
        {
            let mut queue = self.queue.lock();
            if self.stopped.load(Ordering::Acquire) {
                return Err(ProposeError::Stopped);
            }
            if queue.commands >= QUEUED_COMMANDS_MAX || queue.bytes >= QUEUED_BYTES_MAX {
                self.failed.fetch_add(1, Ordering::Relaxed);
                return Err(ProposeError::TooManyRequests);
            }
            queue.push(command, tx);
        }
        self.pending.fetch_add(1, Ordering::Relaxed);
        self.wake.notify_one();
        Ok(rx)
    }

    /// Commands that wait for their outcome.
    pub fn pending(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }

    /// Commands that ended without an outcome.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Refuses new commands; those already taken still go their way.
    pub(crate) fn close(&self) {
        let _queue = self.queue.lock();
        self.stopped.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// True once nothing is queued or in flight any more.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.load(Ordering::Acquire) == 0
    }

    /// Hands batches to openraft until closed and empty.
    pub(crate) async fn run(self: Arc<Self>, raft: RaftHandle) {
        loop {
            while self.queue.lock().batches.is_empty() {
                if self.stopped.load(Ordering::Acquire) {
                    return;
                }
                self.wake.notified().await;
            }
            while !self.slots.try_take() {
                self.slots.freed.notified().await;
            }
            let Some(Building { buffer, waiters }) = self.queue.lock().pop() else {
                self.slots.give_back();
                continue;
            };
            let origin = self.tracker.origin(self.sequence.fetch_add(1, Ordering::Relaxed));
            self.tracker.register(origin.sequence, waiters);
            let batch = Batch::seal(buffer, origin);
            if raft.client_write_ff(batch, Some(self.responder(origin))).await.is_err() {
                self.fail(origin, ProposeError::Stopped);
            }
        }
    }

    /// Whether the outcomes of a batch are waited for here.
    pub(crate) fn awaits(&self, origin: Origin) -> bool {
        self.tracker.awaits(origin)
    }

    /// Answers a batch that was applied here: one pass over its waiters.
    pub(crate) fn applied(&self, origin: Origin, index: u64, outcomes: impl Iterator<Item = command::Outcome>) {
        let Some(waiters) = self.tracker.take(origin) else {
            return;
        };
        self.settled(waiters.len());
        for (waiter, outcome) in waiters.into_iter().zip(outcomes) {
            let _ = waiter.send(Ok(Applied { outcome, index }));
        }
    }

    /// Ends every command that waits, after the raft core has ended.
    pub(crate) fn abandon(&self, error: ProposeError) {
        self.close();
        self.tracker.fail_all(error);
        let queued = std::mem::take(&mut *self.queue.lock());
        for waiter in queued.batches.into_iter().flat_map(|building| building.waiters) {
            let _ = waiter.send(Err(error));
        }
        self.pending.store(0, Ordering::Release);
    }

    fn fail(&self, origin: Origin, error: ProposeError) {
        let Some(waiters) = self.tracker.take(origin) else {
            return;
        };
        self.failed.fetch_add(waiters.len() as u64, Ordering::Relaxed);
        self.settled(waiters.len());
        for waiter in waiters {
            let _ = waiter.send(Err(error));
        }
    }

    fn settled(&self, commands: usize) {
        self.pending.fetch_sub(commands, Ordering::Release);
        self.slots.give_back();
    }

    fn responder(self: &Arc<Self>, origin: Origin) -> FnResponder<ClientWriteResult<TypeConfig>> {
        let proposer = self.clone();
        FnResponder(Box::new(move |result| match result {
            Ok(_) => {} // answered by apply already
            Err(ClientWriteError::ForwardToLeader(_)) => proposer.fail(origin, ProposeError::NotLeader),
            Err(_) => proposer.fail(origin, ProposeError::Unknown),
        }))
    }
}

impl Queue {
    fn push(&mut self, command: &Command, waiter: Waiter) {
        let full = |building: &Building| Batch::commands_len(&building.buffer) >= BATCH_BYTES;
        if self.batches.back().is_none_or(full) {
            self.batches.push_back(Building {
                buffer: Batch::buffer(4096),
                waiters: Vec::new(),
            });
        }
        if let Some(building) = self.batches.back_mut() {
            let before = building.buffer.len();
            command::encode_into(&mut building.buffer, command);
            building.waiters.push(waiter);
            self.commands += 1;
            self.bytes += building.buffer.len() - before;
        }
    }

    fn pop(&mut self) -> Option<Building> {
        let building = self.batches.pop_front()?;
        self.commands -= building.waiters.len();
        self.bytes -= Batch::commands_len(&building.buffer);
        Some(building)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_api::proto::etcdserverpb::PutRequest;

    fn put(bytes: usize) -> Command {
        Command::Put(PutRequest {
            key: "k".into(),
            value: vec![0; bytes].into(),
            ..Default::default()
        })
    }

    #[test]
    fn commands_share_a_batch_until_it_is_full() {
        let mut queue = Queue::default();
        for _ in 0..3 {
            queue.push(&put(600 << 10), oneshot::channel().0);
        }
        assert_eq!(
            queue.batches.iter().map(|b| b.waiters.len()).collect::<Vec<_>>(),
            [2, 1]
        );
        while queue.pop().is_some() {}
        assert_eq!((queue.commands, queue.bytes), (0, 0));
    }

    #[test]
    fn a_full_queue_and_a_closed_one_refuse() {
        let proposer = Proposer::new(Arc::new(Tracker::new(1, 1)));
        let mut taken = Vec::new();
        let refused = loop {
            match proposer.propose(&put(1 << 20)) {
                Ok(rx) => taken.push(rx),
                Err(error) => break error,
            }
        };
        assert_eq!(refused, ProposeError::TooManyRequests);
        assert_eq!(taken.len(), 64);
        proposer.close();
        assert_eq!(proposer.propose(&put(1)).unwrap_err(), ProposeError::Stopped);
        proposer.abandon(ProposeError::Stopped);
        for mut rx in taken {
            assert!(
                matches!(rx.try_recv(), Ok(Err(ProposeError::Stopped))),
                "every command gets an answer"
            );
        }
    }
}
