//! Batches between "left the queue" and "applied here", and who waits for them.
//!
//! A batch is answered once: by this member's apply, or by the news that its fate is unknown. Until then it is sent to
//! whoever leads. It may so get into the log twice; the state machine applies it once.

use crate::batch::{Batch, Origin};
use crate::leadership::Leadership;
use crate::proposer::ProposeError;
use quorate_store::command::Outcome;
use std::collections::BTreeMap;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// One request's place in a batch. The receiver may be gone (the client left); the command runs all the same.
pub type Waiter = oneshot::Sender<Result<Outcome, ProposeError>>;

/// A batch on its way.
pub struct Flight {
    pub batch: Batch,
    pub waiters: Vec<Waiter>,
    /// What it takes in the log.
    pub bytes: usize,
    pub grows_store: bool,
    /// To whom it was sent last. `None`: to nobody yet, or it came back.
    pub sent: Option<Leadership>,
    /// How often it may have been handed to consensus. 0: certainly never.
    pub handed_over: u32,
    /// Who sent it back last: it gets it again after a pause, and anybody else at once.
    pub back_from: Option<Leadership>,
    /// Not sent to the same again before.
    pub not_before: Instant,
}

impl Flight {
    /// Everybody who waited has given up.
    pub fn is_abandoned(&self) -> bool {
        self.waiters.iter().all(Waiter::is_closed)
    }
}

/// All batches on their way, by their sequence.
#[derive(Default)]
pub struct Flights {
    by_sequence: BTreeMap<u64, Flight>,
}

impl Flights {
    pub fn insert(&mut self, flight: Flight) {
        let sequence = flight.batch.origin().sequence;
        let before = self.by_sequence.insert(sequence, flight);
        debug_assert!(before.is_none(), "sequence {sequence} used twice");
    }

    pub fn contains(&self, sequence: u64) -> bool {
        self.by_sequence.contains_key(&sequence)
    }

    pub fn get_mut(&mut self, sequence: u64) -> Option<&mut Flight> {
        self.by_sequence.get_mut(&sequence)
    }

    pub fn take(&mut self, sequence: u64) -> Option<Flight> {
        self.by_sequence.remove(&sequence)
    }

    pub fn take_all(&mut self) -> Vec<Flight> {
        std::mem::take(&mut self.by_sequence).into_values().collect()
    }

    /// Those that are not with `now`, the leader, and may be sent; in order.
    pub fn strays(&self, now: Leadership, at: Instant) -> Vec<u64> {
        let stray = |(sequence, flight): (&u64, &Flight)| {
            let may_leave = flight.not_before <= at || flight.back_from != Some(now);
            (flight.sent != Some(now) && may_leave).then_some(*sequence)
        };
        self.by_sequence.iter().filter_map(stray).collect()
    }

    /// When the first of those that wait may be sent again.
    pub fn next_attempt(&self) -> Option<Instant> {
        let waiting = self.by_sequence.values().filter(|flight| flight.sent.is_none());
        waiting.map(|flight| flight.not_before).min()
    }

    /// Takes those for which `gone` holds.
    pub fn take_if(&mut self, mut gone: impl FnMut(Origin, &Flight) -> bool) -> Vec<Flight> {
        let taken = self
            .by_sequence
            .extract_if(.., |_, flight| gone(flight.batch.origin(), flight));
        taken.map(|(_, flight)| flight).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn who_sent_a_batch_back_gets_it_again_after_a_pause_and_another_at_once() {
        let led = |term, leader| Leadership {
            term,
            leader: Some(leader),
        };
        let (before, after) = (led(1, 1), led(2, 2));
        let now = Instant::now();
        let origin = Origin {
            member: 3,
            boot: 1,
            sequence: 7,
        };
        let mut flights = Flights::default();
        flights.insert(Flight {
            batch: Batch::seal(Batch::buffer(64), origin),
            waiters: Vec::new(),
            bytes: 0,
            grows_store: false,
            sent: Some(before),
            handed_over: 1,
            back_from: None,
            not_before: now,
        });
        assert!(flights.strays(before, now).is_empty(), "it is there");
        assert_eq!(flights.strays(after, now), [7]);
        let flight = flights.get_mut(7).unwrap();
        flight.sent = None;
        flight.back_from = Some(before);
        flight.not_before = now + Duration::from_millis(5);
        assert!(flights.strays(before, now).is_empty());
        assert_eq!(flights.strays(after, now), [7]);
        assert_eq!(flights.strays(before, now + Duration::from_millis(5)), [7]);
    }
}
