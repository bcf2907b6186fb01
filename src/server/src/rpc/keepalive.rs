//! Keepalive in both directions: our pings find clients that vanished without a word, and clients that ping us too often
//! are sent away, by the rules and with the text that Go's clients know.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use h2::{Ping, PingPong};
use tokio::time::Sleep;

/// Too frequent pings that are forgiven.
const STRIKES_MAX: u32 = 2;
/// Pings on a connection without calls are welcome this often.
const IDLE_PING_INTERVAL: Duration = Duration::from_secs(2 * 3600);

/// Judges a client's pings.
#[derive(Debug)]
pub(crate) struct PingWatch {
    interval_min: Duration,
    last_ping: Option<Instant>,
    strikes: u32,
    /// A call is open, or was begun since the last ping.
    active: bool,
    /// We sent something of a call since the last ping. Clients measure their line with pings while they receive: those
    /// come once a round trip, and answers are long.
    sent: bool,
}

impl PingWatch {
    pub(crate) fn new(interval_min: Duration) -> Self {
        Self {
            interval_min,
            last_ping: None,
            strikes: 0,
            active: false,
            sent: false,
        }
    }

    /// What the connection's task knows.
    pub(crate) fn update(&mut self, calls_open: bool) {
        self.active = calls_open;
    }

    /// Something of a call is on its way to the client.
    pub(crate) fn sent(&mut self) {
        self.sent = true;
    }

    pub(crate) fn is_abused(&self) -> bool {
        self.strikes > STRIKES_MAX
    }

    /// The client sent the headers of a call.
    pub(crate) fn call_began(&mut self) {
        self.active = true;
    }

    #[cfg(test)]
    pub(crate) fn strikes(&self) -> u32 {
        self.strikes
    }

    /// The client sent a ping.
    pub(crate) fn ping(&mut self, now: Instant) {
        let since = self.last_ping.map(|last| now.saturating_duration_since(last));
        self.last_ping = Some(now);
        if std::mem::take(&mut self.sent) {
            self.strikes = 0;
            return;
        }
        let welcome = if self.active {
            self.interval_min
        } else {
            IDLE_PING_INTERVAL
        };
        if since.is_some_and(|since| since < welcome) {
            self.strikes += 1;
        }
    }
}

/// What a client is told that pings too often. Go's clients know this text and slow down.
pub(crate) const TOO_MANY_PINGS: &str = "too_many_pings";

/// Our own pings on one connection.
pub(crate) struct Keepalive {
    pings: PingPong,
    interval: Duration,
    timeout: Option<Duration>,
    timer: Pin<Box<Sleep>>,
    /// Reads seen when the timer was set.
    reads: u64,
    waiting: bool,
}

impl Keepalive {
    pub(crate) fn new(pings: PingPong, interval: Duration, timeout: Option<Duration>) -> Self {
        Self {
            pings,
            interval,
            timeout,
            timer: Box::pin(tokio::time::sleep(interval)),
            reads: 0,
            waiting: false,
        }
    }

    /// Ready when the client has not answered a ping in time. `reads` counts what it has sent.
    pub(crate) fn poll_dead(&mut self, cx: &mut Context<'_>, reads: u64) -> Poll<()> {
        loop {
            // Any sign of life ends the wait for an answer.
            if self.waiting && (reads != self.reads || self.pings.poll_pong(cx).is_ready()) {
                self.waiting = false;
                self.reads = reads;
                self.set(self.interval);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if self.waiting {
                return Poll::Ready(());
            }
            if reads != self.reads {
                self.reads = reads;
                self.set(self.interval);
                continue;
            }
            // Clears an answer that came late. An error of the next line means that a ping is still under way, and its
            // answer does as well.
            let _ = self.pings.poll_pong(cx);
            let _ = self.pings.send_ping(Ping::opaque());
            self.waiting = true;
            match self.timeout {
                Some(timeout) => self.set(timeout),
                None => {
                    self.waiting = false;
                    self.set(self.interval);
                }
            }
        }
    }

    fn set(&mut self, after: Duration) {
        self.timer.as_mut().reset(tokio::time::Instant::now() + after);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequent_pings_are_abuse_after_two_strikes() {
        let mut watch = PingWatch::new(Duration::from_secs(3600));
        watch.update(true);
        for _ in 0..3 {
            assert!(!watch.is_abused());
            watch.ping(Instant::now());
        }
        assert!(!watch.is_abused());
        watch.ping(Instant::now());
        assert!(watch.is_abused());
    }

    #[test]
    fn a_slow_pinger_with_calls_is_welcome_and_without_is_not() {
        let mut watch = PingWatch::new(Duration::ZERO);
        watch.update(true);
        (0..10).for_each(|_| watch.ping(Instant::now()));
        assert_eq!(watch.strikes, 0);
        watch.update(false);
        (0..2).for_each(|_| watch.ping(Instant::now()));
        assert_eq!(watch.strikes, 2);
    }
}
