//! How many running calls a client may give up. HTTP/2's library bounds the resets of calls that it has not handed over
//! yet; one that lets each call start first would have handlers run at any rate, for the price of two small frames.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

/// Calls that may be given up in one go: all those of a large client whose request was cancelled.
const BURST: f64 = 1000.0;
/// And per second after that. A client whose calls run into their deadlines is not meant: we end those ourselves.
const PER_SEC: f64 = 200.0;

#[derive(Debug)]
pub(crate) struct Resets {
    bucket: Mutex<Bucket>,
    spent: AtomicBool,
}

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Resets {
    pub(crate) fn new() -> Self {
        Self {
            bucket: Mutex::new(Bucket {
                left: BURST,
                at: Instant::now(),
            }),
            spent: AtomicBool::new(false),
        }
    }

    /// A call ended because its client gave it up.
    pub(crate) fn note(&self) {
        if !self.bucket.lock().take(Instant::now()) {
            self.spent.store(true, Ordering::Relaxed);
        }
    }

    /// There were too many; the connection ends.
    pub(crate) fn is_spent(&self) -> bool {
        self.spent.load(Ordering::Relaxed)
    }
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + since * PER_SEC).min(BURST) - 1.0;
        self.left >= 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A39
    #[test]
    fn a_burst_is_forgiven_and_a_flood_is_not() {
        let start = Instant::now();
        let mut bucket = Bucket { left: BURST, at: start };
        assert!((0..1000).all(|_| bucket.take(start)));
        assert!(!bucket.take(start));
        // After a while at the rate that is allowed, and never more than one burst.
        let mut bucket = Bucket { left: BURST, at: start };
        assert!((0..10_000).all(|n| bucket.take(start + Duration::from_millis(5 * n))));
        let later = start + Duration::from_secs(3600);
        assert!((0..1000).all(|_| bucket.take(later)));
        assert!(!bucket.take(later));
    }
}
