//! Moves the bytes of one direction of one connection, as late and as slowly as its pair says.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Fault, Line, Pair};

const READ_BYTES: usize = 64 << 10;
/// How much may be on its way at once on a slow link. Beyond it the sender waits, as for a full window.
const UNDERWAY_BYTES: usize = 4 << 20;

/// Why the direction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The source closed, everything it sent was passed on, and so was the end.
    Finished,
    SourceFailed,
    SinkFailed,
    /// The link was told to close its connections.
    Reset,
}

#[derive(Default)]
struct Underway {
    parts: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    /// Nothing overtakes what was sent before it.
    last_due: Option<Instant>,
}

pub(super) async fn pump(
    source: &OwnedReadHalf,
    sink: &mut OwnedWriteHalf,
    pair: &Pair,
    mut line: watch::Receiver<Line>,
    resets: u64,
) -> End {
    let mut underway = Underway::default();
    let mut buffer = BytesMut::new();
    let mut ended = false;
    let mut not_before = Instant::now();
    loop {
        let now_line = *line.borrow_and_update();
        let fault = now_line.fault;
        if fault.refuse || now_line.resets != resets {
            return End::Reset;
        }
        if ended && underway.parts.is_empty() && !fault.cut {
            return match sink.shutdown().await {
                Ok(()) => End::Finished,
                Err(_) => End::SinkFailed,
            };
        }
        let due = underway.parts.front().map(|(due, _)| (*due).max(not_before));
        let now = Instant::now();
        let writes = !fault.cut && due.is_some_and(|due| due <= now);
        let reads = !fault.cut && !ended && underway.bytes < UNDERWAY_BYTES;
        tokio::select! {
            biased;
            changed = line.changed() => if changed.is_err() { return End::Reset },
            ready = sink.writable(), if writes => {
                if ready.is_err() {
                    return End::SinkFailed;
                }
                let Some((_, part)) = underway.parts.front_mut() else { continue };
                let allowed = match pair.admit(part.len(), fault.bytes_per_s) {
                    Ok(allowed) => allowed,
                    Err(later) => { not_before = later; continue }
                };
                match sink.try_write(&part[..allowed]) {
                    Ok(written) => {
                        pair.carried.fetch_add(written as u64, Ordering::Relaxed);
                        underway.passed(written);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return End::SinkFailed,
                }
            }
            ready = source.readable(), if reads => {
                if ready.is_err() {
                    return End::SourceFailed;
                }
                buffer.reserve(READ_BYTES);
                match source.try_read_buf(&mut buffer) {
                    Ok(0) => ended = true,
                    Ok(_) => {
                        // looked at after the bytes, which were perhaps sent because of what is set by now
                        let fault = line.borrow().fault;
                        let mut part = buffer.split();
                        if fault.flips_one_in.is_some_and(|parts| rand::random_ratio(1, parts)) {
                            let bit = rand::random_range(0..part.len() * 8);
                            part[bit / 8] ^= 1 << (bit % 8);
                        }
                        underway.sent(part.freeze(), fault);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return End::SourceFailed,
                }
            }
            () = tokio::time::sleep_until(due.unwrap_or(now)), if due.is_some() && !writes && !fault.cut => {}
        }
    }
}

impl Underway {
    fn sent(&mut self, part: Bytes, fault: Fault) {
        let jitter = fault.jitter.mul_f64(rand::random());
        let mut due = Instant::now();
        if fault.delay + jitter > Duration::ZERO {
            due += fault.delay + jitter;
        }
        let due = self.last_due.map_or(due, |last| last.max(due));
        self.last_due = Some(due);
        self.bytes += part.len();
        self.parts.push_back((due, part));
    }

    fn passed(&mut self, written: usize) {
        self.bytes -= written;
        if let Some((_, part)) = self.parts.front_mut() {
            part.advance(written);
            if part.is_empty() {
                self.parts.pop_front();
            }
        }
    }
}
