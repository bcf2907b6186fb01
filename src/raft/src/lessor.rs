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

use parking_lot::Mutex;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::{Duration, Instant};

/// Monotonic time. The real one or, in tests, one that is moved by hand.
pub trait Clock: Send + Sync + 'static {
    /// Time since a fixed point of this process.
    fn now(&self) -> Duration;
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
    /// Every lease that is not ending has at least one entry, at or before its deadline; entries that a renewal or
    /// revocation has made stale are dropped or pushed back when they come up.
    queue: BinaryHeap<Reverse<(Duration, i64)>>,
}

struct Deadline {
    ttl_secs: i64,
    at: Duration,
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
        let mut leading = Leading {
            term,
            leases: HashMap::new(),
            queue: BinaryHeap::new(),
        };
        for lease in read() {
            let left = secs(lease.remaining_secs.unwrap_or(lease.ttl_secs));
            leading.insert(
                lease.id,
                lease.ttl_secs,
                now.saturating_add(extend).saturating_add(left),
            );
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
                lease.at = now.saturating_add(secs(lease.ttl_secs));
                Renewal::Renewed {
                    ttl_secs: lease.ttl_secs,
                }
            }
        }
    }

    /// `None` when there is no such lease or this member does not lead.
    pub fn time_to_live(&self, id: i64) -> Option<TimeToLive> {
        let now = self.clock.now();
        let state = self.state.lock();
        let lease = state.as_ref()?.leases.get(&id)?;
        let remaining_secs = i64::try_from(lease.at.saturating_sub(now).as_secs()).unwrap_or(i64::MAX);
        Some(TimeToLive {
            granted_secs: lease.ttl_secs,
            remaining_secs,
        })
    }

    /// Ids of all leases that are kept, soonest end first; `None` when this member does not lead.
    pub fn by_deadline(&self) -> Option<Vec<i64>> {
        let state = self.state.lock();
        let mut all: Vec<_> = state
            .as_ref()?
            .leases
            .iter()
            .map(|(id, lease)| (lease.at, *id))
            .collect();
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
            let Some(Reverse((_, id))) = leading.queue.pop() else {
                break;
            };
            match leading.leases.get_mut(&id) {
                Some(lease) if lease.ending => {}
                Some(lease) if lease.at <= now => {
                    lease.ending = true;
                    ended.push(id);
                }
                Some(lease) => leading.queue.push(Reverse((lease.at, id))),
                None => {}
            }
        }
        (!ended.is_empty()).then_some((leading.term, ended))
    }

    /// The revocation of an ended lease got no outcome: name it again.
    pub fn retry(&self, id: i64) {
        let mut state = self.state.lock();
        let Some(leading) = state.as_mut() else { return };
        if let Some(lease) = leading.leases.get_mut(&id) {
            lease.ending = false;
            leading.queue.push(Reverse((lease.at, id)));
        }
    }
}

impl Leading {
    fn insert(&mut self, id: i64, ttl_secs: i64, at: Duration) {
        self.leases.insert(
            id,
            Deadline {
                ttl_secs,
                at,
                ending: false,
            },
        );
        self.queue.push(Reverse((at, id)));
    }
}

fn secs(secs: i64) -> Duration {
    Duration::from_secs(u64::try_from(secs).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[derive(Clone, Default)]
    struct Manual(Arc<AtomicU64>);

    impl Manual {
        fn advance(&self, secs: u64) {
            self.0.fetch_add(secs, Ordering::Relaxed);
        }
    }

    impl Clock for Manual {
        fn now(&self) -> Duration {
            Duration::from_secs(self.0.load(Ordering::Relaxed))
        }
    }

    fn leading(leases: &[Known]) -> (Lessor, Manual) {
        let clock = Manual::default();
        let lessor = Lessor::new(Box::new(clock.clone()));
        lessor.lead(3, Duration::from_secs(1), || leases.to_vec());
        (lessor, clock)
    }

    #[test]
    fn a_lease_ends_after_its_ttl_and_is_named_once() {
        let (lessor, clock) = leading(&[]);
        lessor.granted(7, 5);
        clock.advance(4);
        assert_eq!(lessor.expired(10), None);
        assert_eq!(
            lessor.time_to_live(7),
            Some(TimeToLive {
                granted_secs: 5,
                remaining_secs: 1
            })
        );
        clock.advance(1);
        assert_eq!(
            lessor.renew(7),
            Renewal::Ending,
            "too late, even before the scan saw it"
        );
        assert_eq!(lessor.expired(10), Some((3, vec![7])));
        assert_eq!(lessor.expired(10), None);
        lessor.retry(7);
        assert_eq!(lessor.expired(10), Some((3, vec![7])));
        lessor.revoked(7);
        assert_eq!(lessor.renew(7), Renewal::Unknown);
    }

    #[test]
    fn renewal_gives_the_full_ttl_again() {
        let (lessor, clock) = leading(&[]);
        lessor.granted(7, 5);
        for _ in 0..10 {
            clock.advance(4);
            assert_eq!(lessor.renew(7), Renewal::Renewed { ttl_secs: 5 });
            assert_eq!(lessor.expired(10), None);
        }
        clock.advance(5);
        assert_eq!(lessor.expired(10), Some((3, vec![7])));
    }

    /// B30: a new leader neither shortens a lease nor gives it more than what was replicated and the extension.
    #[test]
    fn a_new_leader_starts_from_what_was_replicated() {
        let (lessor, clock) = leading(&[
            Known {
                id: 1,
                ttl_secs: 10,
                remaining_secs: None,
            },
            Known {
                id: 2,
                ttl_secs: 1000,
                remaining_secs: Some(4),
            },
        ]);
        assert_eq!(lessor.by_deadline(), Some(vec![2, 1]));
        clock.advance(5);
        assert_eq!(lessor.expired(10), Some((3, vec![2])));
        clock.advance(5);
        assert_eq!(lessor.expired(10), None);
        clock.advance(1);
        assert_eq!(lessor.expired(10), Some((3, vec![1])));
    }

    /// B31, D19, at this level: many that end together come in slices.
    #[test]
    fn expiry_comes_in_slices() {
        let (lessor, clock) = leading(&[]);
        (0..1000).for_each(|id| lessor.granted(id, 2));
        clock.advance(2);
        let mut seen = 0;
        while let Some((_, slice)) = lessor.expired(300) {
            assert!(slice.len() <= 300);
            seen += slice.len();
        }
        assert_eq!(seen, 1000);
    }

    #[test]
    fn a_member_that_does_not_lead_keeps_nothing() {
        let (lessor, clock) = leading(&[]);
        lessor.granted(7, 5);
        lessor.follow();
        clock.advance(100);
        assert_eq!(
            (lessor.expired(10), lessor.renew(7), lessor.by_deadline()),
            (None, Renewal::NotLeader, None)
        );
    }

    #[test]
    fn the_longest_ttl_does_not_overflow() {
        let (lessor, clock) = leading(&[]);
        clock.advance(1 << 40);
        lessor.granted(1, i64::MAX);
        assert_eq!(lessor.expired(10), None);
        assert_eq!(lessor.renew(1), Renewal::Renewed { ttl_secs: i64::MAX });
    }
}
