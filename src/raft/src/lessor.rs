//! The leader's clock over leases.
//!
//! The replicated store knows which leases exist and never reads a clock. Here the leader keeps when each of them ends,
//! on a monotonic clock, and says which have ended; their revocation then goes through the log like any command. A
//! member that does not lead keeps nothing.
//!
//! ```text
//!   apply ── granted / revoked / noted ──────►┐             ┌─ expired() ──────► revoke, in slices
//!   keepalive ── renew ──────────────────────►│  deadlines ─┤
//!   election won ── lead(term, extend) ──────►┘             └─ checkpoints() ──► what is left, into the log
//! ```
//!
//! What long leases have left goes into the log now and then, so that the next leader can go on from there: a *remainder*.
//!
//! Invariants:
//! * a lease never ends earlier than its TTL after a renewal that was answered, and without one not before its TTL is
//!   over, whoever leads. What is noted in the log is never less than that: a renewal of a lease with a remainder is
//!   answered when the log has taken the remainder back, and no sooner;
//! * without renewals it ends. Each new leader adds to it the election timeout, its place in the queue where ends are
//!   spread, and what has passed since its remainder was noted: the checkpoint period at most, or its TTL if that is
//!   shorter. Nothing else does.
//!
//! Apply changes the store first and tells the lessor afterwards. Who asks the lessor about a lease asks the store too:
//! between the two a lease may be known to one of them only.

use parking_lot::Mutex;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A new leader with at least so many leases spreads their ends, as etcd does: deadlines that the old leader had apart
/// come close together when all start afresh.
const SPREAD_FROM: usize = 1000;

/// Ends in any one second after that.
const SPREAD_PER_SEC: usize = 750;

/// Entries that the queue may hold on top of two a lease before those that count for nothing are dropped.
const QUEUE_SLACK: usize = 1024;

/// A lease's remainder is noted when it was not renewed for so long, and every such period after that; etcd's period.
/// Shorter leases cost nothing: starting anew with the next leader gives them no more than that. So do those that are
/// renewed more often.
pub const CHECKPOINT_PERIOD: Duration = Duration::from_secs(300);

/// Monotonic time. The real one or, in tests, one that is moved by hand.
pub trait Clock: Send + Sync + 'static {
    /// Time since a fixed point of this process.
    fn now(&self) -> Duration;
}

impl Clock for Arc<dyn Clock> {
    fn now(&self) -> Duration {
        (**self).now()
    }
}

/// The system's monotonic clock.
#[derive(Debug)]
pub struct Monotonic {
    start: Instant,
}

impl Default for Monotonic {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for Monotonic {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

/// What became of a keepalive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Lives for its full TTL from now, if this member still leads in this term.
    Renewed { ttl_secs: i64, term: u64 },
    /// The same, but the log has less: propose, in this term, that its remainder is taken back, and renew again. Named
    /// once, until that is applied or [`Lessor::unsettled`].
    Reset { term: u64 },
    /// The log may have less, and what it has is about to change: renew again after the next apply.
    Settling,
    /// Has ended and waits for its revocation to be applied: wait for that, then say it is gone.
    Ending,
    /// There is no such lease.
    Unknown,
    /// This member does not lead and keeps no deadlines.
    NotLeader,
}

/// This member keeps no deadlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this member does not lead and keeps no deadlines")]
pub struct NotLeading;

/// Time left on a lease, as the leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeToLive {
    pub granted_secs: i64,
    /// Whole seconds, rounded down; 0 when it has ended and is about to be revoked.
    pub remaining_secs: i64,
}

/// A lease as the store knows it.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    pub id: i64,
    pub ttl_secs: i64,
    /// Remaining seconds that an earlier leader had replicated; `None`: the full TTL.
    pub remaining_secs: Option<i64>,
}

/// What a lease has left, for the log. 0: its full TTL again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remainder {
    pub id: i64,
    pub remaining_secs: i64,
}

/// Deadlines of all leases, while this member leads.
pub struct Lessor {
    clock: Box<dyn Clock>,
    checkpoint_period: Duration,
    state: Mutex<Option<Leading>>,
}

struct Leading {
    term: u64,
    suspended: bool,
    leases: HashMap<i64, Deadline>,
    /// Every lease that is not ending has one entry that counts, at [`Deadline::queued`]. A renewal mostly leaves it
    /// where it is: it is pushed back when it comes up. Others count for nothing and are dropped when they come up, or
    /// all together when there are too many.
    queue: BinaryHeap<Reverse<(Duration, i64)>>,
    /// The same for remainders: long leases have one entry that counts, at [`Deadline::note_queued`].
    notes: BinaryHeap<Reverse<(Duration, i64)>>,
}

struct Deadline {
    ttl_secs: i64,
    at: Duration,
    /// Where the lease stands in the queue: at or before `at`.
    queued: Duration,
    ending: bool,
    log: InLog,
    /// When its remainder is to be noted next; [`NEVER`].
    note_at: Duration,
    /// Where it stands among the notes: at or before `note_at`; [`NEVER`].
    note_queued: Duration,
}

const NEVER: Duration = Duration::MAX;

/// What the log has of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InLog {
    /// Its TTL and no remainder.
    Full,
    /// A remainder or its taking back is on its way. Nothing else is proposed before it is applied, so that the order in
    /// which the two come cannot be wrong.
    Settling,
    Remainder,
}

impl Lessor {
    pub fn new(clock: Box<dyn Clock>) -> Self {
        Self::with_checkpoints(clock, CHECKPOINT_PERIOD)
    }

    /// Another period than [`CHECKPOINT_PERIOD`].
    pub fn with_checkpoints(clock: Box<dyn Clock>, period: Duration) -> Self {
        Self {
            clock,
            checkpoint_period: period,
            state: Mutex::new(None),
        }
    }

    /// Starts to keep time of the leases that `read` finds. `extend` is added to each deadline, since the last leader may
    /// have renewed leases shortly before it went.
    ///
    /// Where this member goes on in a term in which it was [suspended](Lessor::suspend), leases get that time as well:
    /// nobody could renew them. What is on its way into the log is still on its way, though, and leases that wait for
    /// their revocation go on waiting.
    ///
    /// `read` runs under the lessor's lock: apply changes the store first and tells the lessor afterwards, so whatever
    /// is applied meanwhile is either found by `read` or told right after it, and no lease is missed.
    pub fn lead(&self, term: u64, extend: Duration, read: impl FnOnce() -> Vec<Known>) {
        let mut state = self.state.lock();
        let now = self.clock.now();
        let start = now.saturating_add(extend);
        let mut ends: Vec<_> = read()
            .into_iter()
            .map(|lease| {
                let left = secs(lease.remaining_secs.unwrap_or(lease.ttl_secs));
                (start.saturating_add(left), lease)
            })
            .collect();
        spread(&mut ends);
        let mut leading = Leading {
            term,
            suspended: false,
            leases: HashMap::with_capacity(ends.len()),
            queue: BinaryHeap::with_capacity(ends.len()),
            notes: BinaryHeap::new(),
        };
        let before = state.take().filter(|before| before.term == term);
        for (at, lease) in ends {
            let log = lease.remaining_secs.map_or(InLog::Full, |_| InLog::Remainder);
            leading.insert(lease.id, lease.ttl_secs, at, log, self.note_at(now, at, lease.ttl_secs));
            let before = before.as_ref().and_then(|before| before.leases.get(&lease.id));
            if let (Some(before), Some(now)) = (before, leading.leases.get_mut(&lease.id)) {
                if before.ending {
                    (now.ending, now.at) = (true, before.at);
                }
                if before.log == InLog::Settling {
                    now.log = InLog::Settling;
                }
            }
        }
        *state = Some(leading);
    }

    /// This member does not know whether it still leads: nothing ends, nothing is renewed.
    pub fn suspend(&self) {
        if let Some(leading) = self.state.lock().as_mut() {
            leading.suspended = true;
        }
    }

    /// Forgets all deadlines: somebody else leads.
    pub fn follow(&self) {
        *self.state.lock() = None;
    }

    /// The term in which this member leads and keeps deadlines.
    pub fn term(&self) -> Option<u64> {
        lead(&self.state.lock()).map(|leading| leading.term)
    }

    /// A grant was applied.
    pub fn granted(&self, id: i64, ttl_secs: i64) {
        if let Some(leading) = self.state.lock().as_mut() {
            let now = self.clock.now();
            let at = now.saturating_add(secs(ttl_secs));
            leading.insert(id, ttl_secs, at, InLog::Full, self.note_at(now, at, ttl_secs));
        }
    }

    /// A revocation was applied.
    pub fn revoked(&self, id: i64) {
        if let Some(leading) = self.state.lock().as_mut() {
            leading.leases.remove(&id);
            leading.tidy();
        }
    }

    /// A remainder that the leader of `term` proposed was applied.
    pub fn noted(&self, term: u64, noted: Remainder) {
        let mut state = self.state.lock();
        let Some(leading) = state.as_mut().filter(|leading| leading.term == term) else {
            return;
        };
        if let Some(lease) = leading.leases.get_mut(&noted.id) {
            lease.log = match noted.remaining_secs {
                ..=0 => InLog::Full,
                _ => InLog::Remainder,
            };
        }
    }

    /// A remainder, or its taking back, got no outcome. It may have one yet, so the log may have less than the TTL.
    pub fn unsettled(&self, term: u64, id: i64) {
        let mut state = self.state.lock();
        let Some(leading) = state.as_mut().filter(|leading| leading.term == term) else {
            return;
        };
        if let Some(lease) = leading.leases.get_mut(&id) {
            lease.log = InLog::Remainder;
        }
    }

    /// A client wants its lease to live on.
    pub fn renew(&self, id: i64) -> Renewal {
        let mut state = self.state.lock();
        let Some(leading) = lead_mut(&mut state) else {
            return Renewal::NotLeader;
        };
        // Read with the lock held: a thread that was held up between the two would bring a deadline back in time.
        let now = self.clock.now();
        let term = leading.term;
        let Some(lease) = leading.leases.get_mut(&id) else {
            return Renewal::Unknown;
        };
        if lease.ending || lease.at <= now {
            return Renewal::Ending;
        }
        let ttl_secs = lease.ttl_secs;
        lease.at = now.saturating_add(secs(ttl_secs));
        lease.note_at = self.note_at(now, lease.at, ttl_secs);
        let renewal = match lease.log {
            InLog::Full => Renewal::Renewed { ttl_secs, term },
            InLog::Settling => Renewal::Settling,
            InLog::Remainder => {
                lease.log = InLog::Settling;
                Renewal::Reset { term }
            }
        };
        // Soon after an election even a full TTL can end before the deadline that the lease got there.
        let (at, note_at) = (lease.at, lease.note_at);
        let (sooner, note_sooner) = (at < lease.queued, note_at < lease.note_queued);
        if sooner {
            lease.queued = at;
            leading.queue.push(Reverse((at, id)));
        }
        if note_sooner {
            lease.note_queued = note_at;
            leading.notes.push(Reverse((note_at, id)));
        }
        if sooner || note_sooner {
            leading.tidy();
        }
        renewal
    }

    /// When the remainder of a lease is to be noted that was granted, renewed or noted now.
    fn note_at(&self, now: Duration, at: Duration, ttl_secs: i64) -> Duration {
        let next = now.saturating_add(self.checkpoint_period);
        if secs(ttl_secs) > self.checkpoint_period && at > next {
            next
        } else {
            NEVER
        }
    }

    /// Up to `max` remainders that are to be noted now, with the term in which this member leads. Each is named once,
    /// until it is applied or [`Lessor::unsettled`].
    pub fn checkpoints(&self, max: usize) -> Option<(u64, Vec<Remainder>)> {
        let mut state = self.state.lock();
        let leading = lead_mut(&mut state)?;
        let now = self.clock.now();
        let mut due = Vec::new();
        while due.len() < max {
            match leading.notes.peek() {
                Some(Reverse((at, _))) if *at <= now => {}
                _ => break,
            }
            let Some(Reverse((queued, id))) = leading.notes.pop() else {
                break;
            };
            let Some(lease) = leading.leases.get_mut(&id) else {
                continue;
            };
            if lease.note_queued != queued {
                continue;
            }
            if lease.note_at <= now {
                lease.note_at = self.note_at(now, lease.at, lease.ttl_secs);
                // Rounded up: never less than is left.
                let left = lease.at.saturating_sub(now);
                let remaining_secs =
                    i64::try_from(left.as_secs()).unwrap_or(i64::MAX - 1) + i64::from(left.subsec_nanos() > 0);
                // As much as the next leader would give it anyway, soon after an election.
                let is_less = remaining_secs < lease.ttl_secs;
                if is_less && remaining_secs > 0 && !lease.ending && lease.log != InLog::Settling {
                    lease.log = InLog::Settling;
                    due.push(Remainder { id, remaining_secs });
                }
            }
            lease.note_queued = lease.note_at;
            if lease.note_at != NEVER {
                leading.notes.push(Reverse((lease.note_at, id)));
            }
        }
        (!due.is_empty()).then_some((leading.term, due))
    }

    /// `None` when there is no such lease.
    pub fn time_to_live(&self, id: i64) -> Result<Option<TimeToLive>, NotLeading> {
        let state = self.state.lock();
        let leading = lead(&state).ok_or(NotLeading)?;
        let now = self.clock.now();
        Ok(leading.leases.get(&id).map(|lease| TimeToLive {
            granted_secs: lease.ttl_secs,
            remaining_secs: i64::try_from(lease.at.saturating_sub(now).as_secs()).unwrap_or(i64::MAX),
        }))
    }

    /// Ids of all leases that are kept, soonest end first; `None` when this member does not lead.
    pub fn by_deadline(&self) -> Option<Vec<i64>> {
        // Sorted when the lock is free again: apply and keepalives want it.
        let mut all: Vec<_> = {
            let state = self.state.lock();
            let leases = lead(&state)?.leases.iter();
            leases.map(|(id, lease)| (lease.at, *id)).collect()
        };
        all.sort_unstable();
        Some(all.into_iter().map(|(_, id)| id).collect())
    }

    /// The term in which this member leads, when a lease may have ended.
    pub fn is_due(&self) -> Option<u64> {
        let state = self.state.lock();
        let leading = lead(&state)?;
        let Reverse((at, _)) = leading.queue.peek()?;
        (*at <= self.clock.now()).then_some(leading.term)
    }

    /// Up to `max` leases that have ended, with the term in which this member led when it saw that. Each is named once,
    /// until [`Lessor::retry`].
    pub fn expired(&self, max: usize) -> Option<(u64, Vec<i64>)> {
        let mut state = self.state.lock();
        let leading = lead_mut(&mut state)?;
        let now = self.clock.now();
        let mut ended = Vec::new();
        while ended.len() < max {
            match leading.queue.peek() {
                Some(Reverse((at, _))) if *at <= now => {}
                _ => break,
            }
            let Some(Reverse((queued, id))) = leading.queue.pop() else {
                break;
            };
            match leading.leases.get_mut(&id) {
                Some(lease) if !lease.counts(queued) => {}
                Some(lease) if lease.at <= now => {
                    lease.ending = true;
                    ended.push(id);
                }
                Some(lease) => {
                    lease.queued = lease.at;
                    leading.queue.push(Reverse((lease.at, id)));
                }
                None => {}
            }
        }
        (!ended.is_empty()).then_some((leading.term, ended))
    }

    /// The revocation of an ended lease got no outcome: name it again.
    pub fn retry(&self, id: i64) {
        let mut state = self.state.lock();
        let Some(leading) = state.as_mut() else { return };
        // One that is not ending has its place in the queue: it was granted anew.
        if let Some(lease) = leading.leases.get_mut(&id).filter(|lease| lease.ending) {
            lease.ending = false;
            lease.queued = lease.at;
            leading.queue.push(Reverse((lease.at, id)));
        }
    }
}

/// What can be said and done while this member leads.
fn lead(state: &Option<Leading>) -> Option<&Leading> {
    state.as_ref().filter(|leading| !leading.suspended)
}

fn lead_mut(state: &mut Option<Leading>) -> Option<&mut Leading> {
    state.as_mut().filter(|leading| !leading.suspended)
}

impl Deadline {
    /// Whether an entry of the queue is this lease's.
    fn counts(&self, queued: Duration) -> bool {
        !self.ending && self.queued == queued
    }
}

impl Leading {
    fn insert(&mut self, id: i64, ttl_secs: i64, at: Duration, log: InLog, note_at: Duration) {
        self.leases.insert(
            id,
            Deadline {
                ttl_secs,
                at,
                queued: at,
                ending: false,
                log,
                note_at,
                note_queued: note_at,
            },
        );
        self.queue.push(Reverse((at, id)));
        if note_at != NEVER {
            self.notes.push(Reverse((note_at, id)));
        }
        self.tidy();
    }

    /// Leases that are granted and revoked long before their end must not leave memory behind until then.
    fn tidy(&mut self) {
        let enough = 2 * self.leases.len() + QUEUE_SLACK;
        if self.queue.len() > enough {
            let alive = self.leases.iter().filter(|(_, lease)| !lease.ending);
            self.queue = alive.map(|(id, lease)| Reverse((lease.queued, *id))).collect();
        }
        if self.notes.len() > enough {
            let noted = self.leases.iter().filter(|(_, lease)| lease.note_queued != NEVER);
            self.notes = noted.map(|(id, lease)| Reverse((lease.note_queued, *id))).collect();
        }
    }
}

/// Puts off the ends of leases where more than [`SPREAD_PER_SEC`] fall within a second.
fn spread(ends: &mut [(Duration, Known)]) {
    if ends.len() < SPREAD_FROM {
        return;
    }
    ends.sort_unstable_by_key(|(at, lease)| (*at, lease.id));
    for next in SPREAD_PER_SEC..ends.len() {
        let earliest = ends[next - SPREAD_PER_SEC].0.saturating_add(Duration::from_secs(1));
        ends[next].0 = ends[next].0.max(earliest);
    }
}

fn secs(secs: i64) -> Duration {
    Duration::from_secs(u64::try_from(secs).unwrap_or(0))
}

#[cfg(test)]
mod tests;
