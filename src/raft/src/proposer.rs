//! Commands in, batches out.
//!
//! A command is encoded into the open batch by the thread that brings it. The batcher takes what is there as soon as a
//! slot is free, so what arrives while the last batches are being written joins the next: one client sees the latency
//! of one sync, a thousand share one. There is no timer.
//!
//! ```text
//!   propose ─► open batch ─► flight ──┬─ this member leads ──► openraft
//!                              ▲      └─ another does ───────► Forward to it
//!                              └── came back, or the leader changed: sent again
//!   applied here ─► its waiters are answered
//! ```
//!
//! A batch may be sent more often than once, to this leader and the next, since nobody can tell whether an entry that was
//! appended somewhere will commit. It is applied once: its origin says which batch it is, and the state machine passes
//! over what it has had. So the fate of a batch is known when this member applies it, and not before.

mod queue;

use crate::batch::{Batch, Origin};
use crate::flights::{Flight, Flights};
use crate::leadership::{Leadership, Led};
use crate::peer::{Answer, BoxFuture, Lane, Network, PeerError, Request};
use crate::space::{self, LogSpace};
use crate::types::{FnResponder, RaftHandle, TypeConfig};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::error::ClientWriteError;
use openraft::raft::ClientWriteResult;
use parking_lot::Mutex;
use queue::{Building, Queue, Slots};
use quorate_api::proto::quorate::peer::{Forward, forward_answer::Fate};
use quorate_store::command::{Command, Outcome};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// How often the log is asked about its next segment, where it has no room without.
const SEGMENT_POLL: Duration = Duration::from_millis(1);

/// A batch that came back is sent again after this time, or at once when another leads.
const RETRY: Duration = Duration::from_millis(5);

/// How often batches are looked for that nobody waits for any more.
const GIVE_UP_EVERY: Duration = Duration::from_secs(1);

/// Commands and bytes that may wait for a batch. A client has no use for an answer that is a minute away.
///
/// etcd refuses when 5000 entries are committed and not applied. Here thousands of commands share an entry and apply is
/// never more than [`queue::BATCHES_IN_FLIGHT`] behind, so what waits is not yet in the log and its measure is memory.
const QUEUED_COMMANDS_MAX: usize = 100_000;
const QUEUED_BYTES_MAX: usize = 256 << 20;

/// Why a command has no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error("too many commands wait to be written")]
    TooManyRequests,
    #[error("no disk space left for the log; nothing was proposed")]
    NoSpace,
    /// It may have been executed or may still be.
    #[error("the command's fate is unknown")]
    Unknown,
    #[error("the node is stopping")]
    Stopped,
}

/// What a proposer is told about this member.
#[derive(Clone, Copy, Debug, Default)]
pub struct Whose {
    pub member: u64,
    pub boot: u64,
}

/// Where commands enter. Shared by all request handlers.
pub struct Proposer {
    whose: Whose,
    flights: Mutex<Flights>,
    space: LogSpace,
    queue: Mutex<Queue>,
    wake: Notify,
    slots: Slots,
    stopped: AtomicBool,
    /// Nothing is handed to consensus: leadership is about to be given away.
    held: AtomicBool,
    sequence: AtomicU64,
    /// Commands taken and not yet answered. Counted up with the queue locked, so that whoever closes it misses none.
    pending: AtomicUsize,
    failed: AtomicU64,
    /// Bytes of other members' batches that were handed to openraft here and have no end yet.
    forwarded: AtomicUsize,
}

/// Where batches go.
pub(crate) struct Ways {
    pub raft: RaftHandle,
    pub network: Arc<dyn Network>,
    pub led: Led,
}

/// How a forwarded batch ended: its sequence, to whom it was sent, what came back.
type Forwarded = BoxFuture<(u64, Leadership, Result<Answer, PeerError>)>;

impl Proposer {
    pub(crate) fn new(whose: Whose, space: LogSpace) -> Self {
        Self {
            whose,
            flights: Mutex::default(),
            space,
            queue: Mutex::default(),
            wake: Notify::new(),
            slots: Slots::default(),
            stopped: AtomicBool::new(false),
            held: AtomicBool::new(false),
            sequence: AtomicU64::new(1),
            pending: AtomicUsize::new(0),
            failed: AtomicU64::new(0),
            forwarded: AtomicUsize::new(0),
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

    /// While leadership is given away, what comes waits for the next leader.
    pub(crate) fn hold(&self, held: bool) {
        if self.held.swap(held, Ordering::AcqRel) != held {
            self.wake.notify_one();
        }
    }

    /// Sends batches to whoever leads, until closed and empty.
    pub(crate) async fn run(self: Arc<Self>, mut ways: Ways) {
        let mut forwarded = FuturesUnordered::<Forwarded>::new();
        let mut give_up = tokio::time::interval(GIVE_UP_EVERY);
        loop {
            let led = *ways.led.borrow_and_update();
            let open = led.leader.is_some() && !self.held.load(Ordering::Acquire);
            if open {
                // What the last leader has not brought to an end, and what came back.
                let strays = self.flights.lock().strays(led, Instant::now());
                for sequence in strays {
                    self.send(sequence, led, &ways, &mut forwarded).await;
                }
                while let Some(sequence) = self.next_batch() {
                    self.send(sequence, led, &ways, &mut forwarded).await;
                }
            }
            if self.stopped.load(Ordering::Acquire) && self.is_idle() {
                return;
            }
            let retry = self.flights.lock().next_attempt().filter(|_| open);
            tokio::select! {
                biased;
                () = self.wake.notified() => {}
                Some((sequence, to, answer)) = forwarded.next() => self.forwarded(sequence, to, answer),
                changed = ways.led.changed() => if changed.is_err() {
                    // Consensus has ended, and so has everybody's hope.
                    return;
                },
                () = sleep_until(retry) => {}
                _ = give_up.tick() => self.give_up(),
            }
        }
    }

    /// Takes the next batch out of the queue if it may leave.
    fn next_batch(&self) -> Option<u64> {
        loop {
            if self.queue.lock().batches.is_empty() || !self.slots.try_take() {
                return None;
            }
            let Some(building) = self.queue.lock().pop() else {
                self.slots.give_back();
                return None;
            };
            let Building {
                buffer,
                waiters,
                grows_store,
            } = building;
            let bytes = Batch::commands_len(&buffer);
            let origin = Origin {
                member: self.whose.member,
                boot: self.whose.boot,
                sequence: self.sequence.fetch_add(1, Ordering::Relaxed),
            };
            let flight = Flight {
                batch: Batch::seal(buffer, origin),
                waiters,
                bytes,
                grows_store,
                sent: None,
                handed_over: 0,
                back_from: None,
                not_before: Instant::now(),
            };
            // While nobody led, those who asked may have gone.
            if flight.is_abandoned() {
                self.end(flight, ProposeError::Unknown);
                continue;
            }
            self.flights.lock().insert(flight);
            return Some(origin.sequence);
        }
    }

    /// Sends a batch to the leader.
    async fn send(
        self: &Arc<Self>,
        sequence: u64,
        led: Leadership,
        ways: &Ways,
        forwarded: &mut FuturesUnordered<Forwarded>,
    ) {
        let here = led.leader == Some(self.whose.member);
        let Some((batch, bytes, grows_store)) = self.depart(sequence, led, !here) else {
            return;
        };
        if !here {
            let (Some(leader), request) = (led.leader, forward(&batch, grows_store)) else {
                return;
            };
            let reply = ways.network.call(leader, Lane::Log, request);
            forwarded.push(Box::pin(async move {
                let answer = reply.await.unwrap_or(Err(PeerError::Lost { to: leader }));
                (sequence, led, answer)
            }));
            return;
        }
        if !self.finds_room(bytes, grows_store).await {
            self.refused_for_space(sequence);
            return;
        }
        if let Some(flight) = self.flights.lock().get_mut(sequence) {
            flight.handed_over += 1;
        }
        let respond = self.responder(sequence, led);
        if ways.raft.client_write_ff(batch, Some(respond)).await.is_err() {
            self.fail(sequence, ProposeError::Stopped);
        }
    }

    /// Notes to whom a batch goes. `None`: it has come to its end meanwhile.
    fn depart(&self, sequence: u64, led: Leadership, handed_over: bool) -> Option<(Batch, usize, bool)> {
        let mut flights = self.flights.lock();
        let flight = flights.get_mut(sequence)?;
        flight.sent = Some(led);
        flight.handed_over += u32::from(handed_over);
        Some((flight.batch.clone(), flight.bytes, flight.grows_store))
    }

    /// What the leader said about a batch that was forwarded to it.
    fn forwarded(&self, sequence: u64, to: Leadership, answer: Result<Answer, PeerError>) {
        let fate = match answer {
            Ok(Answer::Forward(answer)) => answer.fate(),
            // Certainly not sent.
            Err(PeerError::Unreachable { .. } | PeerError::Refused { .. }) => Fate::NotLeader,
            Ok(_) | Err(PeerError::Lost { .. }) => Fate::Unknown,
        };
        match fate {
            // Answered by apply, here.
            Fate::Applied => {}
            Fate::Unknown => self.came_back(sequence, to, true),
            Fate::NotLeader => self.came_back(sequence, to, false),
            Fate::NoSpace => {
                self.came_back(sequence, to, false);
                self.refused_for_space(sequence);
            }
        }
    }

    /// A batch is sent again, unless it has been already.
    fn came_back(&self, sequence: u64, from: Leadership, handed_over: bool) {
        {
            let mut flights = self.flights.lock();
            let Some(flight) = flights.get_mut(sequence) else {
                return;
            };
            if !handed_over {
                flight.handed_over = flight.handed_over.saturating_sub(1);
            }
            if flight.sent != Some(from) {
                return;
            }
            flight.sent = None;
            flight.back_from = Some(from);
            flight.not_before = Instant::now() + RETRY;
        }
        self.wake.notify_one();
    }

    /// The log has no room for a batch. Only one that was never handed over can be refused with certainty.
    fn refused_for_space(&self, sequence: u64) {
        let certain = {
            let mut flights = self.flights.lock();
            let Some(flight) = flights.get_mut(sequence) else {
                return;
            };
            flight.back_from = flight.sent.take().or(flight.back_from);
            flight.not_before = Instant::now() + RETRY;
            flight.handed_over == 0
        };
        if certain {
            self.fail(sequence, ProposeError::NoSpace);
        }
    }

    /// Lets go of batches whose callers have all gone: sending them on would do what nobody waits for.
    fn give_up(&self) {
        let gone = self
            .flights
            .lock()
            .take_if(|_, flight| flight.sent.is_none() && flight.is_abandoned());
        for flight in gone {
            self.end(flight, ProposeError::Unknown);
        }
    }

    /// Whether the outcomes of a batch are waited for here. When it is committed and nobody does, nobody will.
    pub(crate) fn awaits(&self, origin: Origin) -> bool {
        self.is_own(origin) && self.flights.lock().contains(origin.sequence)
    }

    fn is_own(&self, origin: Origin) -> bool {
        origin.member == self.whose.member && origin.boot == self.whose.boot
    }

    /// What was taken in while the disk still had room may find none now. An entry that does not fit would end the node,
    /// and this batch is not handed over yet: it can wait, and it can be refused with certainty.
    async fn finds_room(&self, bytes: usize, grows_store: bool) -> bool {
        loop {
            let before = self.queue.lock().in_flight.saturating_sub(bytes);
            let before = before.saturating_add(self.forwarded.load(Ordering::Acquire));
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

    /// Takes in another member's batch, if this member leads. Its fate is told when it is applied here or lost.
    pub(crate) async fn accept(self: Arc<Self>, raft: RaftHandle, batch: Batch, grows_store: bool) -> Fate {
        let bytes = batch.len();
        if self.stopped.load(Ordering::Acquire) || self.held.load(Ordering::Acquire) {
            return Fate::NotLeader;
        }
        if !self.finds_room(bytes, grows_store).await {
            return Fate::NoSpace;
        }
        self.forwarded.fetch_add(bytes, Ordering::AcqRel);
        let (tell, told) = oneshot::channel();
        let proposer = self.clone();
        let respond = FnResponder(Box::new(move |result: ClientWriteResult<TypeConfig>| {
            proposer.forwarded.fetch_sub(bytes, Ordering::AcqRel);
            let _ = tell.send(match result {
                Ok(_) => Fate::Applied,
                // Of this openraft: refused before anything was appended.
                Err(ClientWriteError::ForwardToLeader(_)) => Fate::NotLeader,
                Err(_) => Fate::Unknown,
            });
        }));
        match raft.client_write_ff(batch, Some(respond)).await {
            Ok(()) => told.await.unwrap_or(Fate::Unknown),
            Err(_) => Fate::Unknown,
        }
    }

    /// Answers a batch that was applied here: one pass over its waiters.
    pub(crate) fn applied(&self, origin: Origin, outcomes: impl Iterator<Item = Outcome>) {
        if !self.is_own(origin) {
            return;
        }
        let Some(flight) = self.flights.lock().take(origin.sequence) else {
            return;
        };
        self.settled(&flight);
        for (waiter, outcome) in flight.waiters.into_iter().zip(outcomes) {
            let _ = waiter.send(Ok(outcome));
        }
    }

    /// A batch came up to be applied and was not: it had its turn before. Whoever still waits here was not told.
    pub(crate) fn passed_over(&self, origin: Origin) {
        if self.is_own(origin) {
            self.fail(origin.sequence, ProposeError::Unknown);
        }
    }

    /// A snapshot has jumped over entries: batches that were among them have been executed, and what came of them is not
    /// to be had any more.
    pub(crate) fn jumped(&self, was_applied: impl Fn(Origin) -> bool) {
        let passed = self.flights.lock().take_if(|origin, _| was_applied(origin));
        for flight in passed {
            self.end(flight, ProposeError::Unknown);
        }
    }

    /// Ends every command that waits, after the raft core has ended.
    pub(crate) fn abandon(&self, error: ProposeError) {
        self.close();
        let queued = std::mem::take(&mut self.queue.lock().batches);
        let queued = queued.into_iter().map(|Building { waiters, .. }| waiters);
        let on_their_way = self.flights.lock().take_all();
        for waiters in queued.chain(on_their_way.into_iter().map(|flight| flight.waiters)) {
            self.answered(waiters.len());
            for waiter in waiters {
                let _ = waiter.send(Err(error));
            }
        }
    }

    fn fail(&self, sequence: u64, error: ProposeError) {
        let flight = self.flights.lock().take(sequence);
        if let Some(flight) = flight {
            self.end(flight, error);
        }
    }

    fn end(&self, flight: Flight, error: ProposeError) {
        self.failed.fetch_add(flight.waiters.len() as u64, Ordering::Relaxed);
        self.settled(&flight);
        for waiter in flight.waiters {
            let _ = waiter.send(Err(error));
        }
    }

    fn settled(&self, flight: &Flight) {
        let more = {
            let mut queue = self.queue.lock();
            queue.in_flight = queue.in_flight.saturating_sub(flight.bytes);
            !queue.batches.is_empty()
        };
        self.answered(flight.waiters.len());
        self.slots.give_back();
        if more || self.stopped.load(Ordering::Acquire) {
            self.wake.notify_one();
        }
    }

    fn answered(&self, commands: usize) {
        let less = |pending: usize| Some(pending.saturating_sub(commands));
        let before = self.pending.fetch_update(Ordering::Release, Ordering::Relaxed, less);
        debug_assert!(before.is_ok_and(|before| before >= commands), "answered twice");
    }

    fn responder(self: &Arc<Self>, sequence: u64, led: Leadership) -> FnResponder<ClientWriteResult<TypeConfig>> {
        let proposer = self.clone();
        FnResponder(Box::new(move |result| match result {
            Ok(_) => {} // answered by apply already
            // Of this openraft: refused before anything was appended. What was appended and dropped later comes as
            // `LogEntryDiscarded`.
            Err(ClientWriteError::ForwardToLeader(_)) => proposer.came_back(sequence, led, false),
            Err(_) => proposer.came_back(sequence, led, true),
        }))
    }
}

fn forward(batch: &Batch, grows_store: bool) -> Request {
    Request::Forward(Forward {
        batch: batch.payload(),
        grows_store,
    })
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::queue::tests::put;
    use super::*;

    fn proposer(space: LogSpace) -> Proposer {
        Proposer::new(Whose { member: 1, boot: 1 }, space)
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
        let sequence = proposer.next_batch().unwrap();
        let _more = proposer.propose(&put(1)).unwrap();
        assert_eq!(proposer.pending(), 4);
        proposer.abandon(ProposeError::Unknown);
        assert!(proposer.is_idle());
        proposer.fail(sequence, ProposeError::Stopped);
        assert_eq!(proposer.pending(), 0);
    }
}
