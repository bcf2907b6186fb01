//! Reasons to end before serving, as data: what to print, what to log, which code to leave with.

use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

use quorate_runtime::telemetry::{FLUSH_PATIENCE, Level, Options, Record, Telemetry};

/// An end of the process that was decided, not suffered. Also `--help` and `--version`, with code 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Exit {
    pub code: u8,
    pub stdout: String,
    pub stderr: String,
    /// In the order they happened; the last one tells why.
    pub records: Vec<Record>,
    /// How to log the records: as configured, once that is known.
    pub log: Options,
}

impl Exit {
    fn with_code(code: u8) -> Self {
        Self {
            code,
            stdout: String::new(),
            stderr: String::new(),
            records: Vec::new(),
            log: Options::default(),
        }
    }

    pub(super) fn success(stdout: String, stderr: String) -> Self {
        Self {
            stdout,
            stderr,
            ..Self::with_code(0)
        }
    }

    /// A command line that can't be understood: the reason, then the usage.
    pub(super) fn usage(reason: &str) -> Self {
        Self {
            stderr: format!("{reason}\n{}", super::usage::synopsis()),
            ..Self::with_code(2)
        }
    }

    /// Ends with one plain line.
    pub(super) fn plain(line: &str) -> Self {
        Self {
            stderr: format!("{line}\n"),
            ..Self::with_code(1)
        }
    }

    /// A setting that is understood and can't be accepted.
    #[track_caller]
    pub fn refused(reason: impl fmt::Display) -> Self {
        let record = Record::new(Level::Warn, "failed to verify flags").field("error", reason.to_string());
        Self {
            records: vec![record],
            ..Self::with_code(1)
        }
    }

    /// Settings that are acceptable one by one and don't let the member start. etcd says "discovery" to all of them.
    #[track_caller]
    pub fn discovery_failed(reason: impl fmt::Display) -> Self {
        Self::fatal(Record::new(Level::Fatal, "discovery failed").field("error", reason.to_string()))
    }

    pub fn fatal(record: Record) -> Self {
        Self {
            records: vec![record],
            ..Self::with_code(1)
        }
    }

    /// The text in the last record's `error`, if that is how it ended.
    pub fn error(&self) -> Option<&str> {
        self.records.last()?.get("error")?.as_str()
    }

    pub(super) fn after(mut self, mut earlier: Vec<Record>) -> Self {
        earlier.append(&mut self.records);
        self.records = earlier;
        self
    }

    /// Logs the way `options` say instead of as JSON on standard error.
    #[must_use]
    pub fn logged_with(mut self, options: &Options) -> Self {
        self.log = options.clone();
        self
    }

    /// Prints and logs everything. Takes at most a moment, whatever became of the outputs.
    pub fn emit(&self) -> ExitCode {
        // an output that went away must not keep us from ending with the right code
        let _ = std::io::stdout().write_all(self.stdout.as_bytes());
        let _ = std::io::stdout().flush();
        let _ = std::io::stderr().write_all(self.stderr.as_bytes());
        if !self.records.is_empty() {
            let telemetry = Telemetry::open(&self.log).or_else(|_| Telemetry::open(&Options::default()));
            if let (Ok(telemetry), Some((reason, before))) = (telemetry, self.records.split_last()) {
                before.iter().for_each(|record| telemetry.record(record));
                telemetry.record_always(reason);
                telemetry.flush(FLUSH_PATIENCE);
            }
        }
        ExitCode::from(self.code)
    }
}
