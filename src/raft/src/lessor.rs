//! The leader's clock over leases.
//!
//! The replicated store knows which leases exist and never reads a clock. Here the leader keeps when each of them ends,
//! on a monotonic clock, and says which have ended; their revocation then goes through the log like any command. A
//! member that does not lead keeps nothing.
//!
//! ```text
//!   apply ── granted / revoked / remaining ──►┐
//!   keepalive ── renew ──────────────────────►│ deadlines ── expired() ──► revoke, in slices
//!   election won ── lead(term, extend) ──────►┘
//! ```
//!
//! Invariant: a lease never ends before its deadline as last renewed; it may live a little longer.
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
    /// Lives for its full TTL from now.
    Renewed { ttl_secs: i64 },
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

/// Deadlines of all leases, while this member leads.
pub struct Lessor {
    clock: Box<dyn Clock>,
    state: Mutex<Option<Leading>>,
}

struct Leading {
    term: u64,
    leases: HashMap<i64, Deadline>,
    /// Every lease that is not ending has one entry that counts, at [`Deadline::queued`]. A renewal mostly leaves it
    /// where it is: it is pushed back when it comes up. Others count for nothing and are dropped when they come up, or
    /// all together when there are too many.
    queue: BinaryHeap<Reverse<(Duration, i64)>>,
}

struct Deadline {
    ttl_secs: i64,
    at: Duration,
    /// Where the lease stands in the queue: at or before `at`.
    queued: Duration,
    ending: bool,
}

impl Lessor {
    pub fn new(clock: Box<dyn Clock>) -> Self {
        Self {
            clock,
            state: Mutex::new(None),
        }
    }

    /// Starts to keep time of the leases that `read` finds. `extend` is added to each deadline, since the last leader may
    /// have renewed leases shortly before it went.
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
            leases: HashMap::with_capacity(ends.len()),
            queue: BinaryHeap::with_capacity(ends.len()),
        };
        for (at, lease) in ends {
            leading.insert(lease.id, lease.ttl_secs, at);
        }
        *state = Some(leading);
    }

    /// Forgets all deadlines: somebody else leads.
    pub fn follow(&self) {
        *self.state.lock() = None;
    }

    /// A grant was applied.
    pub fn granted(&self, id: i64, ttl_secs: i64) {
        let now = self.clock.now();
        if let Some(leading) = self.state.lock().as_mut() {
            leading.insert(id, ttl_secs, now.saturating_add(secs(ttl_secs)));
        }
    }

    /// A revocation was applied.
    pub fn revoked(&self, id: i64) {
        if let Some(leading) = self.state.lock().as_mut() {
            leading.leases.remove(&id);
            leading.tidy();
        }
    }

    /// A client wants its lease to live on.
    pub fn renew(&self, id: i64) -> Renewal {
        let now = self.clock.now();
        let mut state = self.state.lock();
        let Some(leading) = state.as_mut() else {
            return Renewal::NotLeader;
        };
        match leading.leases.get_mut(&id) {
            None => Renewal::Unknown,
            Some(lease) if lease.ending || lease.at <= now => Renewal::Ending,
            Some(lease) => {
                let ttl_secs = lease.ttl_secs;
                lease.at = now.saturating_add(secs(ttl_secs));
                // Soon after an election even a full TTL can end before the deadline that the lease got there.
                if lease.at < lease.queued {
                    lease.queued = lease.at;
                    leading.queue.push(Reverse((lease.at, id)));
                    leading.tidy();
                }
                Renewal::Renewed { ttl_secs }
            }
        }
    }

    /// `None` when there is no such lease.
    pub fn time_to_live(&self, id: i64) -> Result<Option<TimeToLive>, NotLeading> {
        let now = self.clock.now();
        let state = self.state.lock();
        let leading = state.as_ref().ok_or(NotLeading)?;
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
            let leases = state.as_ref()?.leases.iter();
            leases.map(|(id, lease)| (lease.at, *id)).collect()
        };
        all.sort_unstable();
        Some(all.into_iter().map(|(_, id)| id).collect())
    }

    /// Up to `max` leases that have ended, with the term in which this member led when it saw that. Each is named once,
    /// until [`Lessor::retry`].
    pub fn expired(&self, max: usize) -> Option<(u64, Vec<i64>)> {
        let now = self.clock.now();
        let mut state = self.state.lock();
        let leading = state.as_mut()?;
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

impl Deadline {
    /// Whether an entry of the queue is this lease's.
    fn counts(&self, queued: Duration) -> bool {
        !self.ending && self.queued == queued
    }
}

impl Leading {
    fn insert(&mut self, id: i64, ttl_secs: i64, at: Duration) {
        self.leases.insert(
            id,
            Deadline {
                ttl_secs,
                at,
                queued: at,
                ending: false,
            },
        );
        self.queue.push(Reverse((at, id)));
        self.tidy();
    }

    /// Leases that are granted and revoked long before their end must not leave memory behind until then.
    fn tidy(&mut self) {
        if self.queue.len() <= 2 * self.leases.len() + QUEUE_SLACK {
            return;
        }
        let alive = self.leases.iter().filter(|(_, lease)| !lease.ending);
        self.queue = alive.map(|(id, lease)| Reverse((lease.queued, *id))).collect();
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
