//! How slowly a client may take an answer that is produced while it is read. Such an answer keeps its revision readable,
//! so compaction waits for it: one piece every few minutes must not do that for days.

use std::future::Future;
use std::time::Duration;

use quorate_api::{Code, Status};
use tokio::time::Instant;

use super::Limits;

/// What the limits say of one answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PaceLimits {
    pub stall: Duration,
    pub bytes_per_sec_min: u64,
}

impl PaceLimits {
    pub(crate) fn of(limits: &Limits) -> Self {
        Self {
            stall: limits.stall_deadline,
            bytes_per_sec_min: limits.body_bytes_per_sec_min.max(1),
        }
    }
}

/// The clock of one answer.
pub struct Pace {
    limits: PaceLimits,
    started: Instant,
    sent: u64,
}

impl Pace {
    pub(crate) fn new(limits: PaceLimits) -> Self {
        Self {
            limits,
            started: Instant::now(),
            sent: 0,
        }
    }

    /// So much more has been taken.
    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// Runs a step of the sending, unless the client is too slow in it or has been too slow in all.
    pub async fn keep<T>(&self, step: impl Future<Output = T>) -> Result<T, Status> {
        let too_slow = |_| Status::new(Code::DeadlineExceeded, "the answer was read too slowly");
        tokio::time::timeout_at(self.until(), step).await.map_err(too_slow)
    }

    fn until(&self) -> Instant {
        let PaceLimits {
            stall,
            bytes_per_sec_min,
        } = self.limits;
        let earned = Duration::from_secs_f64(self.sent as f64 / bytes_per_sec_min as f64);
        (Instant::now() + stall).min(self.started + stall + earned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_and_all_of_them_have_their_time() {
        let stall = Duration::from_secs(300);
        let mut pace = Pace::new(PaceLimits {
            stall,
            bytes_per_sec_min: 100,
        });
        pace.sent(20_000);
        assert!(pace.until() > pace.started + stall && pace.until() <= Instant::now() + stall);
        // Later on, what was sent is the measure.
        pace.started -= Duration::from_secs(400);
        assert_eq!(pace.until(), pace.started + stall + Duration::from_secs(200));
    }
}
