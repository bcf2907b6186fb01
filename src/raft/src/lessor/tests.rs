mod model;
mod promise;

use super::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Milliseconds.
#[derive(Clone, Default)]
struct Manual(Arc<AtomicU64>);

impl Manual {
    fn advance(&self, secs: u64) {
        self.advance_ms(secs * 1000);
    }

    fn advance_ms(&self, millis: u64) {
        self.0.fetch_add(millis, Ordering::Relaxed);
    }
}

impl Clock for Manual {
    fn now(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
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
        Ok(Some(TimeToLive {
            granted_secs: 5,
            remaining_secs: 1
        }))
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
        assert_eq!(lessor.renew(7), Renewal::Renewed { ttl_secs: 5, term: 3 });
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
    assert_eq!(
        lessor.time_to_live(7),
        Err(NotLeading),
        "which is not the same as no lease"
    );
}

/// A revocation that was proposed before is as good as one that is proposed now: in the same term it does its work.
#[test]
fn a_leader_that_goes_on_in_its_term_knows_what_is_on_its_way() {
    let known = |id, ttl_secs| Known {
        id,
        ttl_secs,
        remaining_secs: None,
    };
    let (lessor, clock) = leading(&[known(7, 5), known(8, 50)]);
    clock.advance(6);
    assert_eq!(lessor.expired(10), Some((3, vec![7])));
    lessor.suspend();
    assert_eq!(
        (lessor.renew(8), lessor.term(), lessor.is_due()),
        (Renewal::NotLeader, None, None)
    );
    clock.advance(60);
    let second = Duration::from_secs(1);
    lessor.lead(3, second, || vec![known(7, 5), known(8, 50)]);
    assert_eq!(lessor.renew(7), Renewal::Ending);
    let left = lessor.time_to_live(7).unwrap().unwrap();
    assert_eq!(left.remaining_secs, 0, "it has ended");
    assert_eq!(
        lessor.renew(8),
        Renewal::Renewed { ttl_secs: 50, term: 3 },
        "nobody could renew it meanwhile"
    );
    assert_eq!(lessor.expired(10), None, "named once");
    lessor.retry(7);
    assert_eq!(lessor.expired(10), Some((3, vec![7])));
    // In another term it does nothing.
    lessor.suspend();
    lessor.lead(4, second, || vec![known(7, 5)]);
    assert_eq!(lessor.renew(7), Renewal::Renewed { ttl_secs: 5, term: 4 });
}

#[test]
fn the_longest_ttl_does_not_overflow() {
    let (lessor, clock) = leading(&[]);
    clock.advance(1 << 30);
    lessor.granted(1, i64::MAX);
    assert_eq!(lessor.expired(10), None);
    assert_eq!(
        lessor.renew(1),
        Renewal::Renewed {
            ttl_secs: i64::MAX,
            term: 3
        }
    );
}

/// Sessions that come and go leave nothing behind until the deadline they never see.
#[test]
fn revoked_leases_leave_no_memory_behind() {
    let (lessor, clock) = leading(&[]);
    let queued = || lessor.state.lock().as_ref().unwrap().queue.len();
    (0..10).for_each(|id| lessor.granted(id, 1000));
    for id in 10..20_000 {
        lessor.granted(id, 1_000_000);
        lessor.revoked(id);
        assert!(queued() <= 2 * 11 + QUEUE_SLACK, "{} entries for 10 leases", queued());
    }
    for _ in 0..20_000 {
        lessor.granted(3, 1000);
    }
    assert!(queued() <= 2 * 10 + QUEUE_SLACK, "{} entries for 10 leases", queued());
    clock.advance(1000);
    assert_eq!(lessor.expired(100).unwrap().1.len(), 10, "and none is lost with them");
}

/// B31: what a new leader finds must not end all at once, however many renewals their owners owe.
#[test]
fn a_new_leader_spreads_the_ends_of_many_leases() {
    let lease = |id| Known {
        id,
        ttl_secs: 10 + id % 2,
        remaining_secs: None,
    };
    let leases: Vec<_> = (0..3000).map(lease).collect();
    let (lessor, clock) = leading(&leases);
    let mut ended = Vec::new();
    for step in 0..200 {
        if let Some((_, ids)) = lessor.expired(usize::MAX) {
            ended.extend(ids.into_iter().map(|id| (step * 100, id)));
        }
        clock.advance_ms(100);
    }
    assert_eq!(ended.len(), 3000);
    for (at, id) in &ended {
        assert!(*at >= 1000 * (1 + 10 + id % 2), "lease {id} ended early, after {at} ms");
        let within = ended
            .iter()
            .filter(|(other, _)| (*at..at + 1000).contains(other))
            .count();
        assert!(within <= SPREAD_PER_SEC, "{within} ends in the second from {at} ms on");
    }
    let (few, clock) = leading(&leases[..SPREAD_FROM - 1]);
    clock.advance(12);
    assert_eq!(few.expired(usize::MAX).unwrap().1.len(), SPREAD_FROM - 1);
}

const PERIOD: u64 = CHECKPOINT_PERIOD.as_secs();

/// The third of the three has 1000 s, and was left with 900.
fn with_long_ones() -> (Lessor, Manual) {
    let known = |id, ttl_secs, remaining_secs| Known {
        id,
        ttl_secs,
        remaining_secs,
    };
    leading(&[
        known(1, PERIOD as i64, None),
        known(2, 1000, None),
        known(3, 1000, Some(900)),
    ])
}

/// B30: what long leases have left is noted every period, rounded up; short ones and those that are renewed never.
#[test]
fn remainders_of_long_leases_are_noted() {
    let (lessor, clock) = with_long_ones();
    let left = |id, remaining_secs| Remainder { id, remaining_secs };
    lessor.granted(4, 1000);
    clock.advance_ms(1000 * PERIOD - 1);
    assert_eq!(lessor.checkpoints(10), None);
    assert_eq!(
        lessor.renew(4),
        Renewal::Renewed {
            ttl_secs: 1000,
            term: 3
        }
    );
    clock.advance_ms(500);
    // The election added a second to each, and what is left is rounded up.
    assert_eq!(lessor.checkpoints(10), Some((3, vec![left(2, 701), left(3, 601)])));
    assert_eq!(lessor.checkpoints(10), None, "each is named once");
    lessor.noted(3, left(2, 701));
    lessor.noted(3, left(3, 601));
    clock.advance_ms(1000 * PERIOD - 1);
    assert_eq!(lessor.checkpoints(10), Some((3, vec![left(4, 700)])));
    lessor.noted(3, left(4, 700));
    clock.advance_ms(1);
    assert_eq!(lessor.checkpoints(1), Some((3, vec![left(2, 401)])), "in slices");
    assert_eq!(lessor.checkpoints(1), Some((3, vec![left(3, 301)])));
    [left(2, 401), left(3, 301)]
        .into_iter()
        .for_each(|left| lessor.noted(3, left));
    clock.advance(PERIOD);
    let ids = |noted: Option<(u64, Vec<Remainder>)>| noted.map(|(_, noted)| noted.iter().map(|left| left.id).collect());
    assert_eq!(ids(lessor.checkpoints(10)), Some(vec![4, 2, 3]));
    clock.advance(PERIOD);
    assert_eq!(
        ids(lessor.checkpoints(10)),
        None,
        "one is on its way, the others are over"
    );
}

/// A renewal of a lease with a remainder counts when the log has taken that back, and not before. One that has none costs
/// nothing.
#[test]
fn a_remainder_is_taken_back_before_a_renewal_counts() {
    let (lessor, clock) = with_long_ones();
    let left = |id, remaining_secs| Remainder { id, remaining_secs };
    assert_eq!(
        lessor.renew(2),
        Renewal::Renewed {
            ttl_secs: 1000,
            term: 3
        }
    );
    assert_eq!(lessor.renew(3), Renewal::Reset { term: 3 });
    assert_eq!(lessor.renew(3), Renewal::Settling, "once is enough");
    lessor.noted(2, left(3, 0));
    assert_eq!(lessor.renew(3), Renewal::Settling, "of another term: it did nothing");
    lessor.noted(3, left(3, 0));
    assert_eq!(
        lessor.renew(3),
        Renewal::Renewed {
            ttl_secs: 1000,
            term: 3
        }
    );
    clock.advance(PERIOD);
    assert_eq!(lessor.checkpoints(10).unwrap().1.len(), 2);
    assert_eq!(
        lessor.renew(3),
        Renewal::Settling,
        "its order with a reset would be left to chance"
    );
    lessor.unsettled(3, 3);
    assert_eq!(
        lessor.renew(3),
        Renewal::Reset { term: 3 },
        "nobody knows what the log has"
    );
    lessor.unsettled(3, 3);
    assert_eq!(lessor.renew(3), Renewal::Reset { term: 3 });
}

/// Also of remainders, revoked leases leave nothing behind.
#[test]
fn revoked_leases_leave_no_notes_behind() {
    let (lessor, _) = leading(&[]);
    for id in 0..20_000 {
        lessor.granted(id, 1000);
        lessor.revoked(id);
        let queued = lessor.state.lock().as_ref().unwrap().notes.len();
        assert!(queued <= QUEUE_SLACK + 2, "{queued} entries for no lease");
    }
}

/// D12: no wall clock, whose jumps would end leases, is read where their time is kept.
#[test]
fn clock_faults_never_expire_early() {
    let sources = [
        ("lessor.rs", include_str!("../lessor.rs")),
        ("node/lead.rs", include_str!("../node/lead.rs")),
        ("node/leases.rs", include_str!("../node/leases.rs")),
        ("node/expiry.rs", include_str!("../node/expiry.rs")),
        ("node/checkpoints.rs", include_str!("../node/checkpoints.rs")),
        ("node/observe.rs", include_str!("../node/observe.rs")),
    ];
    for (file, text) in sources {
        for clock in ["SystemTime", "UNIX_EPOCH", "chrono"] {
            assert!(!text.contains(clock), "{file} names {clock}");
        }
    }
    // A freeze that the monotonic clock does not see makes leases live longer, one that it sees ends them when they are
    // over and no sooner.
    let (lessor, clock) = leading(&[]);
    lessor.granted(7, 5);
    assert_eq!((lessor.is_due(), lessor.expired(10)), (None, None));
    clock.advance_ms(4999);
    assert_eq!((lessor.is_due(), lessor.expired(10)), (None, None));
    clock.advance(1 << 30);
    assert_eq!((lessor.is_due(), lessor.expired(10)), (Some(3), Some((3, vec![7]))));
}
