//! Commands in, batches out.
//!
//! A command is encoded into the open batch by the thread that brings it. The batcher takes what is there as soon as a
//! slot is free, so what arrives while the last batches are being written joins the next: one client sees the latency
//! of one sync, a thousand share one. There is no timer.
//!
//! What was handed to openraft is never proposed again: "not the leader" can also mean that the entry was appended
//! here and may still commit elsewhere.

use crate::batch::{Batch, Origin};
use crate::space::{self, LogSpace};
use crate::tracker::{Tracker, Waiter, Waiting};
use crate::types::{FnResponder, RaftHandle, TypeConfig};
use bytes::BytesMut;
use openraft::error::ClientWriteError;
use openraft::raft::ClientWriteResult;
use parking_lot::Mutex;
use quorate_store::command::{self, Command, Outcome};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};

/// A batch closes when it holds this much: beyond, the cost of a sync is shared anyway and peers would need larger
/// messages. A single larger command is a batch of its own.
const BATCH_BYTES: usize = 1 << 20;

/// Batches between "handed to openraft" and "applied here": one being written while the one before is applied.
const BATCHES_IN_FLIGHT: usize = 2;

/// Buffer of the first batch; later ones begin as large as the last one became.
const BATCH_BYTES_MIN: usize = 4 << 10;

/// How often the log is asked about its next segment, where it has no room without.
const SEGMENT_POLL: Duration = Duration::from_millis(1);

/// Commands and bytes that may wait for a batch. A client has no use for an answer that is a minute away.
///
/// etcd refuses when 5000 entries are committed and not applied. Here thousands of commands share an entry and apply is
/// never more than [`BATCHES_IN_FLIGHT`] behind, so what waits is not yet in the log and its measure is memory.
const QUEUED_COMMANDS_MAX: usize = 100_000;
const QUEUED_BYTES_MAX: usize = 256 << 20;

/// Why a command has no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error("too many commands wait to be written")]
    TooManyRequests,
    #[error("this member is not the leader; nothing was proposed")]
    NotLeader,
    #[error("no disk space left for the log; nothing was proposed")]
    NoSpace,
    /// It may have been executed or may still be.
    #[error("leadership changed while the command was on its way; its fate is unknown")]
    Unknown,
    #[error("the node is stopping")]
    Stopped,
}

/// Where commands enter. Shared by all request handlers.
pub struct Proposer {
    tracker: Arc<Tracker>,
    space: LogSpace,
    queue: Mutex<Queue>,
    wake: Notify,
    slots: Arc<Slots>,
    stopped: AtomicBool,
    sequence: AtomicU64,
    /// Commands taken and not yet answered. Counted up with the queue locked, so that whoever closes it misses none.
    pending: AtomicUsize,
    failed: AtomicU64,
}

#[derive(Default)]
struct Queue {
    batches: VecDeque<Building>,
    commands: usize,
    bytes: usize,
    /// Bytes of batches that were handed to openraft and are not answered.
    in_flight: usize,
    /// Bytes of the last batch that went.
    last: usize,
}

struct Building {
    buffer: BytesMut,
    waiters: Vec<Waiter>,
    /// One of the commands can make the store larger.
    grows_store: bool,
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
    pub(crate) fn new(tracker: Arc<Tracker>, space: LogSpace) -> Self {
        Self {
            tracker,
            space,
            queue: Mutex::default(),
            wake: Notify::new(),
            slots: Arc::new(Slots {
                free: AtomicUsize::new(BATCHES_IN_FLIGHT),
                freed: Notify::new(),
            }),
            stopped: AtomicBool::new(false),
            sequence: AtomicU64::new(1),
            pending: AtomicUsize::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// Takes a command. The receiver gets its outcome once it is applied here; dropping it changes nothing.
    pub fn propose(&self, command: &Command) -> Result<oneshot::Receiver<Result<Outcome, ProposeError>>, ProposeError> {
        let (tx, rx) = oneshot::channel();
        let grows_store = space::grows_store(command);
        {
            let mut queue = self.queue.lock();
            if self.stopped.load(Ordering::Acquire) {
                return Err(ProposeError::Stopped);
            }
            if let Err(refused) = self.admit(&queue, command, grows_store) {
                self.failed.fetch_add(1, Ordering::Relaxed);
                return Err(refused);
            }
            queue.push(command, grows_store, tx);
            self.pending.fetch_add(1, Ordering::Relaxed);
        }
        self.wake.notify_one();
        Ok(rx)
    }

    /// With the queue locked, so that many that come at once can't all have the same last room.
    fn admit(&self, queue: &Queue, command: &Command, grows_store: bool) -> Result<(), ProposeError> {
        if queue.commands >= QUEUED_COMMANDS_MAX || queue.bytes >= QUEUED_BYTES_MAX {
            return Err(ProposeError::TooManyRequests);
        }
        if !self
            .space
            .admits(grows_store, command.encoded_len(), queue.outstanding())
        {
            return Err(ProposeError::NoSpace);
        }
        Ok(())
    }

    /// The log has no room to spare and can't get more: what it still has is for what makes room.
    pub fn is_log_full(&self) -> bool {
        self.space.is_full(self.queue.lock().outstanding())
    }

    /// The log can get more space when it needs some.
    pub(crate) fn log_grows(&self) -> bool {
        self.space.grows()
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
            let Some(building) = self.queue.lock().pop() else {
                self.slots.give_back();
                continue;
            };
            let Building {
                buffer,
                waiters,
                grows_store,
            } = building;
            let bytes = Batch::commands_len(&buffer);
            let origin = self.tracker.origin(self.sequence.fetch_add(1, Ordering::Relaxed));
            self.tracker.register(origin.sequence, Waiting { waiters, bytes });
            if !self.finds_room(bytes, grows_store).await {
                self.fail(origin, ProposeError::NoSpace);
                continue;
            }
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

    /// What was taken in while the disk still had room may find none now. An entry that does not fit would end the node,
    /// and this batch is not handed over yet: it can wait, and it can be refused with certainty.
    async fn finds_room(&self, bytes: usize, grows_store: bool) -> bool {
        loop {
            let before = self.queue.lock().in_flight.saturating_sub(bytes);
            if self.space.has(grows_store, bytes, before) {
                return true;
            }
            // Nothing is being made (any more): the log has got its segment, or there is no space for one.
            if !self.space.is_preparing() || !self.space.grows() {
                return self.space.grows();
            }
            tokio::time::sleep(SEGMENT_POLL).await;
        }
    }

    /// Answers a batch that was applied here: one pass over its waiters.
    pub(crate) fn applied(&self, origin: Origin, outcomes: impl Iterator<Item = Outcome>) {
        let Some(waiting) = self.tracker.take(origin) else {
            return;
        };
        self.settled(&waiting);
        for (waiter, outcome) in waiting.waiters.into_iter().zip(outcomes) {
            let _ = waiter.send(Ok(outcome));
        }
    }

    /// The batch came up to be applied and was not, since a newer one had been, or this very one. Who waits here still
    /// may have been answered nowhere else.
    pub(crate) fn passed_over(&self, origin: Origin) {
        self.fail(origin, ProposeError::Unknown);
    }

    /// Ends every command that waits, after the raft core has ended.
    pub(crate) fn abandon(&self, error: ProposeError) {
        self.close();
        let queued = std::mem::take(&mut self.queue.lock().batches);
        let queued = queued.into_iter().map(|Building { waiters, .. }| waiters);
        let handed_over = self.tracker.take_all().into_iter().map(|waiting| waiting.waiters);
        for waiters in queued.chain(handed_over) {
            self.answered(waiters.len());
            for waiter in waiters {
                let _ = waiter.send(Err(error));
            }
        }
    }

    fn fail(&self, origin: Origin, error: ProposeError) {
        let Some(waiting) = self.tracker.take(origin) else {
            return;
        };
        self.failed.fetch_add(waiting.waiters.len() as u64, Ordering::Relaxed);
        self.settled(&waiting);
        for waiter in waiting.waiters {
            let _ = waiter.send(Err(error));
        }
    }

    fn settled(&self, waiting: &Waiting) {
        let mut queue = self.queue.lock();
        queue.in_flight = queue.in_flight.saturating_sub(waiting.bytes);
        drop(queue);
        self.answered(waiting.waiters.len());
        self.slots.give_back();
    }

    fn answered(&self, commands: usize) {
        let less = |pending: usize| Some(pending.saturating_sub(commands));
        let before = self.pending.fetch_update(Ordering::Release, Ordering::Relaxed, less);
        debug_assert!(before.is_ok_and(|before| before >= commands), "answered twice");
    }

    fn responder(self: &Arc<Self>, origin: Origin) -> FnResponder<ClientWriteResult<TypeConfig>> {
        let proposer = self.clone();
        FnResponder(Box::new(move |result| match result {
            Ok(_) => {} // answered by apply already
            // Of this openraft: refused before anything was appended. What was appended and dropped later comes as
            // `LogEntryDiscarded`.
            Err(ClientWriteError::ForwardToLeader(_)) => proposer.fail(origin, ProposeError::NotLeader),
            Err(_) => proposer.fail(origin, ProposeError::Unknown),
        }))
    }
}

impl Queue {
    /// Bytes on their way into the log.
    fn outstanding(&self) -> usize {
        self.bytes + self.in_flight
    }

    fn push(&mut self, command: &Command, grows_store: bool, waiter: Waiter) {
        let full = |building: &Building| Batch::commands_len(&building.buffer) >= BATCH_BYTES;
        if self.batches.back().is_none_or(full) {
            self.batches.push_back(Building {
                buffer: Batch::buffer(self.last.clamp(BATCH_BYTES_MIN, BATCH_BYTES)),
                waiters: Vec::new(),
                grows_store: false,
            });
        }
        if let Some(building) = self.batches.back_mut() {
            let before = building.buffer.len();
            command::encode_into(&mut building.buffer, command);
            building.waiters.push(waiter);
            building.grows_store |= grows_store;
            self.commands += 1;
            self.bytes += building.buffer.len() - before;
        }
    }

    /// The next batch, which is in flight from now on.
    fn pop(&mut self) -> Option<Building> {
        let building = self.batches.pop_front()?;
        let bytes = Batch::commands_len(&building.buffer);
        self.commands -= building.waiters.len();
        self.bytes -= bytes;
        self.in_flight += bytes;
        self.last = bytes;
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

    fn proposer(space: LogSpace) -> Proposer {
        Proposer::new(Arc::new(Tracker::new(1, 1)), space)
    }

    #[test]
    fn commands_share_a_batch_until_it_is_full() {
        let mut queue = Queue::default();
        for _ in 0..3 {
            queue.push(&put(600 << 10), true, oneshot::channel().0);
        }
        assert_eq!(
            queue.batches.iter().map(|b| b.waiters.len()).collect::<Vec<_>>(),
            [2, 1]
        );
        while queue.pop().is_some() {}
        assert_eq!((queue.commands, queue.bytes), (0, 0));
        assert_eq!(queue.outstanding(), queue.in_flight, "until they are answered");
    }

    #[test]
    fn a_full_queue_and_a_closed_one_refuse() {
        let proposer = proposer(LogSpace::endless());
        let mut taken = Vec::new();
        let refused = loop {
            match proposer.propose(&put(1 << 20)) {
                Ok(rx) => taken.push(rx),
                Err(error) => break error,
            }
        };
        assert_eq!(refused, ProposeError::TooManyRequests);
        assert_eq!(taken.len(), 256);
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

    /// D7, E5: commands that come at once don't all get the room that is there for one, and what makes room gets some
    /// when the others get none.
    #[test]
    fn a_full_disk_admits_what_fits_beside_what_waits() {
        let grows = Arc::new(AtomicBool::new(false));
        let proposer = proposer(LogSpace::new(grows.clone(), || 6 << 20));
        let mut taken = Vec::new();
        let mut take = |command: &Command| proposer.propose(command).map(|rx| taken.push(rx));
        let delete = Command::DeleteRange(quorate_api::proto::etcdserverpb::DeleteRangeRequest {
            key: vec![b'k'; 100 << 10].into(),
            ..Default::default()
        });
        let fitted = (0..1000).take_while(|_| take(&put(100 << 10)).is_ok()).count();
        assert_eq!(fitted, 20, "2 MiB above the reserve");
        assert_eq!(take(&put(1 << 20)), Err(ProposeError::NoSpace));
        let fitted = (0..1000).take_while(|_| take(&delete).is_ok()).count();
        assert_eq!(fitted, 20, "and as much above the floor");
        assert!(proposer.is_log_full());
        assert_eq!(take(&delete), Err(ProposeError::NoSpace));
        grows.store(true, Ordering::Release);
        assert!(!proposer.is_log_full());
        assert_eq!(take(&put(1 << 20)), Ok(()));
        assert_eq!((proposer.pending(), taken.len()), (41, 41));
    }

    /// However commands end, the count of those that wait comes back to nothing and not below.
    #[test]
    fn pending_is_exact_when_what_was_given_up_ends_late() {
        let proposer = proposer(LogSpace::endless());
        let _waiting: Vec<_> = (0..3).map(|_| proposer.propose(&put(1)).unwrap()).collect();
        let Building { waiters, buffer, .. } = proposer.queue.lock().pop().unwrap();
        let origin = proposer.tracker.origin(1);
        let bytes = Batch::commands_len(&buffer);
        proposer.tracker.register(1, Waiting { waiters, bytes });
        let _more = proposer.propose(&put(1)).unwrap();
        assert_eq!(proposer.pending(), 4);
        proposer.abandon(ProposeError::Unknown);
        assert!(proposer.is_idle());
        proposer.fail(origin, ProposeError::Stopped);
        assert_eq!(proposer.pending(), 0);
    }

    /// A batch keeps its buffer for as long as the log remembers it: one small command after a large batch must not
    /// keep as much.
    #[test]
    fn a_small_batch_after_a_large_one_keeps_little_memory() {
        let mut queue = Queue::default();
        queue.push(&put(900 << 10), true, oneshot::channel().0);
        queue.pop().unwrap();
        queue.push(&put(10), true, oneshot::channel().0);
        let small = queue.pop().unwrap();
        assert!(small.buffer.capacity() >= 900 << 10, "ready for another large one");
        let origin = Tracker::new(1, 1).origin(1);
        assert!(Batch::seal(small.buffer, origin).kept_bytes() < 8 << 10);
    }
}
