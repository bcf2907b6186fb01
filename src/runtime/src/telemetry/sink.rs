//! One output of the log: a bounded buffer and the one thread that writes it.
//!
//! Loggers append whole lines under a short lock; the writer swaps the buffer for an empty one and writes it with the
//! lock released. While a write is stuck the buffer fills, then lines are dropped; when the output takes bytes again
//! the loss is told in a line of its own.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{Error, Format, Level, Record};

/// Unwritten bytes an output may hold; as much again can be on its way to the descriptor.
pub(super) const PENDING_BYTES_MAX: usize = 1 << 20;
/// Wait before another try when a non-blocking descriptor is full.
const WOULD_BLOCK_PAUSE: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(super) struct Sink {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    drained: Condvar,
    dropped: AtomicU64,
    format: Format,
}

#[derive(Debug, Default)]
struct State {
    pending: Vec<u8>,
    /// The writer is out of the lock with a batch in its hands.
    writing: bool,
    /// No [`Sink`] is left; the writer ends once the buffer is empty.
    closed: bool,
}

impl Sink {
    pub fn start(name: String, file: File, format: Format) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            drained: Condvar::new(),
            dropped: AtomicU64::new(0),
            format,
        });
        let writer = Writer {
            shared: shared.clone(),
            file,
            told: 0,
            torn: false,
        };
        // Never joined: it may be stuck in a write for as long as the process lives.
        let thread = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writer.run());
        match thread {
            Ok(_) => Ok(Self { shared }),
            Err(source) => Err(Error::Thread { name, source }),
        }
    }

    /// Takes the line or drops it; returns at once either way.
    pub fn push(&self, line: &[u8]) {
        let mut state = self.shared.state.lock();
        if state.pending.len() + line.len() > PENDING_BYTES_MAX {
            drop(state);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let wake = state.pending.is_empty() && !state.writing;
        state.pending.extend_from_slice(line);
        drop(state);
        if wake {
            self.shared.work.notify_one();
        }
    }

    pub fn wait_drained(&self, deadline: Instant) -> bool {
        let mut state = self.shared.state.lock();
        while state.writing || !state.pending.is_empty() {
            if self.shared.drained.wait_until(&mut state, deadline).timed_out() {
                return !state.writing && state.pending.is_empty();
            }
        }
        true
    }

    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.work.notify_one();
    }
}

struct Writer {
    shared: Arc<Shared>,
    file: File,
    /// How many of the dropped lines the output has been told about.
    told: u64,
    /// The last write stopped inside a line.
    torn: bool,
}

impl Writer {
    fn run(mut self) {
        let mut batch = Vec::new();
        while self.next_batch(&mut batch) {
            let ok = self.write_counted(&batch);
            batch.clear();
            if ok {
                self.tell_losses();
            }
        }
    }

    /// Hands in the finished batch and waits for the next. False: all written, nobody left to log.
    fn next_batch(&self, batch: &mut Vec<u8>) -> bool {
        let mut state = self.shared.state.lock();
        state.writing = false;
        while state.pending.is_empty() {
            self.shared.drained.notify_all();
            if state.closed {
                return false;
            }
            self.shared.work.wait(&mut state);
        }
        std::mem::swap(&mut state.pending, batch);
        state.writing = true;
        true
    }

    /// True if the whole batch was taken; lines that were not are counted as dropped.
    fn write_counted(&mut self, batch: &[u8]) -> bool {
        if self.torn {
            match write_all(&mut self.file, b"\n") {
                Ok(()) => self.torn = false,
                Err(_) => {
                    self.lost(batch);
                    return false;
                }
            }
        }
        match write_all(&mut self.file, batch) {
            Ok(()) => true,
            Err(written) => {
                let (done, rest) = batch.split_at(written);
                self.torn = done.last().is_some_and(|last| *last != b'\n');
                self.lost(rest);
                false
            }
        }
    }

    fn lost(&self, rest: &[u8]) {
        let lines = rest.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.shared.dropped.fetch_add(lines, Ordering::Relaxed);
    }

    fn tell_losses(&mut self) {
        let total = self.shared.dropped.load(Ordering::Relaxed);
        if total == self.told {
            return;
        }
        let mut line = Vec::new();
        Record::new(Level::Warn, "log records dropped")
            .field("dropped", total - self.told)
            .field("dropped-total", total)
            .encode(self.shared.format, &mut line);
        if write_all(&mut self.file, &line).is_ok() {
            self.told = total;
        }
    }
}

/// `Err` holds how many bytes were taken. Which error it was makes no difference here: a closed pipe, a full disk and a
/// vanished volume are all tried again with the next batch.
fn write_all(file: &mut File, bytes: &[u8]) -> Result<(), usize> {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return Err(written),
            Ok(taken) => written += taken,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(WOULD_BLOCK_PAUSE),
            Err(_) => return Err(written),
        }
    }
    Ok(())
}
