//! Logging that can't stop the node.
//!
//! ```text
//!  tracing macros ─► LogLayer ─ one encoded line ─┬─► Sink: bounded buffer ─► its thread ─► stderr
//!  Record (start-up, fatal) ──────────────────────┴─► Sink: bounded buffer ─► its thread ─► file
//! ```
//!
//! A line is encoded once, on the thread that logs, and copied into the buffer of each output. Only the output's own
//! thread ever touches the file descriptor, so a pipe that nobody reads, a full disk or a closed pipe costs log lines
//! and never time.
//!
//! Invariants:
//! - logging takes no lock that is held across a system call;
//! - an output holds at most [`sink::PENDING_BYTES_MAX`] of unwritten lines, what exceeds it is dropped and counted;
//! - a line is written whole or, after a failed write, followed by a line break, so that a reader finds its way back;
//! - outputs are independent: one that hangs does not silence the others.
//!
//! The shape of a line is etcd's: `level`, `ts`, optional `logger`, `caller`, `msg`, then fields.

mod go_duration;
mod layer;
mod record;
mod sink;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tracing_subscriber::layer::SubscriberExt;

pub use go_duration::GoDuration;
pub use layer::LogLayer;
pub use record::Record;
use sink::Sink;

/// How long a process that ends waits for its last lines to be written.
pub const FLUSH_PATIENCE: Duration = Duration::from_millis(200);

/// Severity, in etcd's words. The last three are only ever written by [`Record`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Level {
    Debug,
    #[default]
    Info,
    Warn,
    Error,
    Dpanic,
    Panic,
    Fatal,
}

impl Level {
    /// What `--log-level` accepts, in any case; empty means `info`.
    pub fn parse(text: &str) -> Option<Self> {
        const ALL: [Level; 7] = [
            Level::Debug,
            Level::Info,
            Level::Warn,
            Level::Error,
            Level::Dpanic,
            Level::Panic,
            Level::Fatal,
        ];
        if text.is_empty() {
            return Some(Level::Info);
        }
        ALL.into_iter().find(|level| level.name().eq_ignore_ascii_case(text))
    }

    pub fn name(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
            Level::Dpanic => "dpanic",
            Level::Panic => "panic",
            Level::Fatal => "fatal",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// One JSON object per line.
    #[default]
    Json,
    /// Tab-separated columns, fields as a JSON object in the last one.
    Console,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Stderr,
    Stdout,
    /// Appended to; created with mode 0600.
    File(PathBuf),
}

/// What to log, how, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub level: Level,
    pub format: Format,
    pub outputs: Vec<Output>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            level: Level::Info,
            format: Format::Json,
            outputs: vec![Output::Stderr],
        }
    }
}

/// An output that can't be opened. The text is etcd's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("open sink {name:?}: open {name}: {}", plain_io_error(source))]
    Open {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("start the thread that writes the log to {name}")]
    Thread {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("logging was already started in this process")]
    AlreadyStarted,
}

/// An I/O error as Go's programs print it: lower case, without the number.
pub fn plain_io_error(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => String::new(),
    }
}

/// The running log. Clones share the same outputs.
#[derive(Clone, Debug)]
pub struct Telemetry {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    level: Level,
    format: Format,
    sinks: Vec<Sink>,
    sampled_out: AtomicU64,
}

/// Lines that never reached an output since the process started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Losses {
    /// Per line and output: the output was blocked and its buffer full, or writing failed.
    pub dropped: u64,
    /// Left out on purpose: identical records in a burst.
    pub sampled_out: u64,
}

impl Telemetry {
    /// Opens the outputs and starts a writer for each. Nothing is logged through `tracing` yet, see [`Self::install`].
    pub fn open(options: &Options) -> Result<Self, Error> {
        let mut sinks = Vec::with_capacity(options.outputs.len());
        for output in &options.outputs {
            let (name, file) = open_output(output)?;
            sinks.push(Sink::start(name, file, options.format)?);
        }
        Ok(Self::with_sinks(options, sinks))
    }

    fn with_sinks(options: &Options, sinks: Vec<Sink>) -> Self {
        let Options {
            level,
            format,
            outputs: _,
        } = *options;
        Self {
            shared: Arc::new(Shared {
                level,
                format,
                sinks,
                sampled_out: AtomicU64::new(0),
            }),
        }
    }

    /// Makes this the destination of all `tracing` events of the process, and of panics.
    pub fn install(&self) -> Result<(), Error> {
        let subscriber = tracing_subscriber::registry().with(self.layer());
        tracing::subscriber::set_global_default(subscriber).map_err(|_| Error::AlreadyStarted)?;
        let telemetry = self.clone();
        std::panic::set_hook(Box::new(move |panic| telemetry.record_panic(panic)));
        Ok(())
    }

    /// The layer for a subscriber of one's own; [`Self::install`] is the usual way.
    pub fn layer(&self) -> LogLayer {
        LogLayer::new(self.clone())
    }

    /// Writes a record that did not come through `tracing`: it is not sampled, and may be `fatal`.
    pub fn record(&self, record: &Record) {
        if record.level >= self.shared.level {
            self.record_always(record);
        }
    }

    /// The same whatever the level: a process that ends says why.
    pub fn record_always(&self, record: &Record) {
        let mut line = Vec::with_capacity(256);
        record.encode(self.shared.format, &mut line);
        self.push(&line);
    }

    /// Waits until everything logged so far is written, or `patience` has passed. True if all was written.
    pub fn flush(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        // they drain in parallel: one that is late has used up the time of all
        self.shared.sinks.iter().all(|sink| sink.wait_drained(deadline))
    }

    pub fn losses(&self) -> Losses {
        Losses {
            dropped: self.shared.sinks.iter().map(Sink::dropped).sum(),
            sampled_out: self.shared.sampled_out.load(Ordering::Relaxed),
        }
    }

    fn push(&self, line: &[u8]) {
        for sink in &self.shared.sinks {
            sink.push(line);
        }
    }

    fn record_panic(&self, panic: &std::panic::PanicHookInfo<'_>) {
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("unknown payload");
        let mut record = Record::new(Level::Panic, "panicked")
            .field("error", text)
            .field("thread", std::thread::current().name().unwrap_or("unnamed"));
        if let Some(place) = panic.location() {
            record = record.at(place.file(), place.line());
        }
        self.record(&record);
        // a release build aborts when this returns, so the line must be out by then
        self.flush(FLUSH_PATIENCE);
    }
}

fn open_output(output: &Output) -> Result<(String, File), Error> {
    // Copies of the descriptors, so that the standard library's locks around them stay free: a panic message or a
    // usage text must not wait behind a blocked log line.
    let (name, file) = match output {
        Output::Stderr => (
            "stderr".to_owned(),
            io::stderr().as_fd().try_clone_to_owned().map(File::from),
        ),
        Output::Stdout => (
            "stdout".to_owned(),
            io::stdout().as_fd().try_clone_to_owned().map(File::from),
        ),
        Output::File(path) => (
            path.display().to_string(),
            OpenOptions::new().append(true).create(true).mode(0o600).open(path),
        ),
    };
    match file {
        Ok(file) => Ok((name, file)),
        Err(source) => Err(Error::Open { name, source }),
    }
}

#[cfg(test)]
mod tests;
