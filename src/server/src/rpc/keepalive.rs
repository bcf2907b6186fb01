//! Keepalive in both directions: our pings find clients that vanished without a word, and clients that ping us too often
//! are sent away, by the rules and with the text that Go's clients know.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use h2::{Ping, PingPong};
use tokio::time::Sleep;

/// Bytes before the first frame.
const PREFACE_LEN: usize = 24;
const FRAME_HEAD_LEN: usize = 9;
const HEADERS: u8 = 0x1;
const PING: u8 = 0x6;
const ACK: u8 = 0x1;
/// Too frequent pings that are forgiven.
const STRIKES_MAX: u32 = 2;
/// Pings on a connection without calls are welcome this often.
const IDLE_PING_INTERVAL: Duration = Duration::from_secs(2 * 3600);

/// Watches the frames that a client sends and judges its pings.
#[derive(Debug)]
pub(crate) struct PingWatch {
    skip: usize,
    head: [u8; FRAME_HEAD_LEN],
    head_got: usize,
    interval_min: Duration,
    last_ping: Option<Instant>,
    strikes: u32,
    /// A call is open, or was begun since the last ping.
    active: bool,
    /// We sent something of a call since the last ping.
    sent: bool,
}

impl PingWatch {
    pub(crate) fn new(interval_min: Duration) -> Self {
        Self {
            skip: PREFACE_LEN,
            head: [0; FRAME_HEAD_LEN],
            head_got: 0,
            interval_min,
            last_ping: None,
            strikes: 0,
            active: false,
            sent: false,
        }
    }

    /// What the connection's task knows: whether calls are open, and whether something was sent.
    pub(crate) fn update(&mut self, calls_open: bool, sent: bool) {
        self.active = calls_open;
        self.sent |= sent;
    }

    pub(crate) fn is_abused(&self) -> bool {
        self.strikes > STRIKES_MAX
    }

    /// Follows the frames through bytes as they were read.
    pub(crate) fn read(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if self.skip > 0 {
                return;
            }
            let part = bytes.len().min(FRAME_HEAD_LEN - self.head_got);
            self.head[self.head_got..self.head_got + part].copy_from_slice(&bytes[..part]);
            self.head_got += part;
            bytes = &bytes[part..];
            if self.head_got == FRAME_HEAD_LEN {
                self.head_got = 0;
                let [a, b, c, kind, flags, ..] = self.head;
                self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
                match kind {
                    HEADERS => self.active = true,
                    PING if flags & ACK == 0 => self.ping(Instant::now()),
                    _ => {}
                }
            }
        }
    }

    fn ping(&mut self, now: Instant) {
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

/// The frame that ends the connection of a client that pings too often. Its text makes Go's clients slow down.
pub(crate) fn too_many_pings() -> Vec<u8> {
    const TEXT: &[u8] = b"too_many_pings";
    const ENHANCE_YOUR_CALM: u32 = 0xb;
    let mut frame = vec![0, 0, 8 + TEXT.len() as u8, 0x7, 0, 0, 0, 0, 0];
    frame.extend_from_slice(&0x7fff_ffff_u32.to_be_bytes());
    frame.extend_from_slice(&ENHANCE_YOUR_CALM.to_be_bytes());
    frame.extend_from_slice(TEXT);
    frame
}

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

    const PING_FRAME: [u8; 17] = [0, 0, 8, PING, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

    fn watch() -> PingWatch {
        let mut watch = PingWatch::new(Duration::from_secs(3600));
        watch.read(&[0; PREFACE_LEN]);
        watch
    }

    #[test]
    fn frequent_pings_are_abuse_after_two_strikes() {
        let mut watch = watch();
        watch.update(true, false);
        for _ in 0..3 {
            assert!(!watch.is_abused());
            watch.read(&PING_FRAME);
        }
        assert!(!watch.is_abused());
        watch.read(&PING_FRAME);
        assert!(watch.is_abused());
    }

    #[test]
    fn pings_are_counted_however_the_bytes_are_cut() {
        let mut bytes = vec![0; PREFACE_LEN];
        for _ in 0..4 {
            bytes.extend_from_slice(&[0, 0, 4, 0x8, 0, 0, 0, 0, 0, 0, 0, 0, 1]); // WINDOW_UPDATE
            bytes.extend_from_slice(&PING_FRAME);
        }
        for size in 1..bytes.len() {
            let mut watch = PingWatch::new(Duration::from_secs(3600));
            bytes.chunks(size).for_each(|chunk| watch.read(chunk));
            assert_eq!(watch.strikes, 3, "in pieces of {size}");
        }
    }

    #[test]
    fn answers_and_acks_are_no_strikes() {
        let mut watch = watch();
        let mut ack = PING_FRAME;
        ack[4] = ACK;
        for _ in 0..10 {
            watch.read(&ack);
            watch.update(true, true);
            watch.read(&PING_FRAME);
        }
        assert_eq!(watch.strikes, 0);
    }

    #[test]
    fn a_slow_pinger_with_calls_is_welcome_and_without_is_not() {
        let mut watch = PingWatch::new(Duration::ZERO);
        watch.read(&[0; PREFACE_LEN]);
        watch.update(true, false);
        (0..10).for_each(|_| watch.read(&PING_FRAME));
        assert_eq!(watch.strikes, 0);
        watch.update(false, false);
        (0..2).for_each(|_| watch.read(&PING_FRAME));
        assert_eq!(watch.strikes, 2);
    }
}
