//! One log line: how it is put together and how it is encoded.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::panic::Location;

use serde_json::Value;
use time::OffsetDateTime;

use super::{Format, Level};

/// A record built at run time: what happens before logging is up, and what ends the process.
///
/// Everything else goes through the `tracing` macros, which cost less.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub level: Level,
    pub msg: Cow<'static, str>,
    pub fields: Vec<(Cow<'static, str>, Value)>,
    file: &'static str,
    line: u32,
    /// Set when the place is not a `'static` one (panics).
    caller: Option<String>,
}

impl Record {
    /// The caller shown is the place that calls this.
    #[track_caller]
    pub fn new(level: Level, msg: impl Into<Cow<'static, str>>) -> Self {
        let place = Location::caller();
        Self {
            level,
            msg: msg.into(),
            fields: Vec::new(),
            file: place.file(),
            line: place.line(),
            caller: None,
        }
    }

    #[must_use]
    pub fn field(mut self, key: impl Into<Cow<'static, str>>, value: impl Into<Value>) -> Self {
        self.fields.push((key.into(), value.into()));
        self
    }

    /// The value of a field, for those that look before they log.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.fields.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    #[must_use]
    pub(super) fn at(mut self, file: &str, line: u32) -> Self {
        self.caller = Some(format!("{}:{line}", Caller(file)));
        self
    }

    /// Appends the line, with its line break.
    pub(super) fn encode(&self, format: Format, out: &mut Vec<u8>) {
        let mut line = Line::begin(out, format, self.level, None);
        match &self.caller {
            Some(caller) => line.head(format_args!("{caller}"), format_args!("{}", self.msg)),
            None => line.head(
                format_args!("{}:{}", Caller(self.file), self.line),
                format_args!("{}", self.msg),
            ),
        }
        for (key, value) in &self.fields {
            line.key(key);
            // writing JSON into a Vec cannot fail: all map keys of a Value are strings
            let _ = serde_json::to_writer(&mut *line.out, value);
        }
        line.end();
    }
}

/// The last folder and the file name of a source path; `src` gives way to the package's folder.
pub(super) struct Caller<'a>(pub &'a str);

impl fmt::Display for Caller<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = self.0.rsplit(['/', '\\']);
        let file = parts.next().unwrap_or_default();
        match parts.find(|part| *part != "src") {
            Some(folder) if !folder.is_empty() => write!(f, "{folder}/{file}"),
            _ => f.write_str(file),
        }
    }
}

/// A line being written. Calls come in the order `begin`, `head`, any number of `key` plus value, `end`.
pub(super) struct Line<'a> {
    pub out: &'a mut Vec<u8>,
    format: Format,
    level: Level,
    logger: Option<&'static str>,
    fields: usize,
}

impl<'a> Line<'a> {
    pub fn begin(out: &'a mut Vec<u8>, format: Format, level: Level, logger: Option<&'static str>) -> Self {
        Self {
            out,
            format,
            level,
            logger,
            fields: 0,
        }
    }

    pub fn head(&mut self, caller: fmt::Arguments<'_>, msg: fmt::Arguments<'_>) {
        let now = OffsetDateTime::now_utc();
        match self.format {
            Format::Json => {
                let _ = write!(
                    self.out,
                    r#"{{"level":"{}","ts":"{}""#,
                    self.level.name(),
                    Timestamp(now)
                );
                if let Some(logger) = self.logger {
                    let _ = write!(self.out, r#","logger":"{logger}""#);
                }
                self.out.extend_from_slice(br#","caller":"#);
                self.text(caller);
                self.out.extend_from_slice(br#","msg":"#);
                self.text(msg);
            }
            Format::Console => {
                let _ = write!(self.out, "{}\t{}\t", Timestamp(now), self.level.name());
                if let Some(logger) = self.logger {
                    let _ = write!(self.out, "{logger}\t");
                }
                let mut escaped = Escaped(self.out);
                let _ = write!(escaped, "{caller}");
                self.out.push(b'\t');
                let _ = write!(Escaped(self.out), "{msg}");
            }
        }
    }

    /// Names the next field; its value must follow at once.
    pub fn key(&mut self, key: &str) {
        let taken = matches!(key, "level" | "ts" | "caller" | "msg" | "logger");
        let suffix = if taken { "_" } else { "" }; // a second `msg` would make two answers out of one question
        let (separator, colon): (&[u8], &[u8]) = match (self.format, self.fields) {
            (Format::Json, _) => (b",", b":"),
            (Format::Console, 0) => (b"\t{", b": "),
            (Format::Console, _) => (b", ", b": "),
        };
        self.fields += 1;
        self.out.extend_from_slice(separator);
        self.text(format_args!("{key}{suffix}"));
        self.out.extend_from_slice(colon);
    }

    /// A JSON string, escaped as it is formatted.
    pub fn text(&mut self, value: fmt::Arguments<'_>) {
        self.out.push(b'"');
        // a Display that fails leaves a shorter text, never a broken line
        let _ = write!(Escaped(self.out), "{value}");
        self.out.push(b'"');
    }

    /// A number or boolean, as it stands.
    pub fn bare(&mut self, value: fmt::Arguments<'_>) {
        let _ = self.out.write_fmt(value);
    }

    pub fn end(self) {
        match self.format {
            Format::Json => self.out.extend_from_slice(b"}\n"),
            Format::Console if self.fields > 0 => self.out.extend_from_slice(b"}\n"),
            Format::Console => self.out.push(b'\n'),
        }
    }
}

/// JSON string escapes, so that a value can hold neither a quote nor a line break that a reader would see.
struct Escaped<'a>(&'a mut Vec<u8>);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut clean_from = 0;
        let bytes = text.as_bytes();
        for (at, byte) in bytes.iter().enumerate() {
            let escape: &[u8] = match byte {
                b'"' => b"\\\"",
                b'\\' => b"\\\\",
                b'\n' => b"\\n",
                b'\r' => b"\\r",
                b'\t' => b"\\t",
                0..0x20 | 0x7f => b"",
                _ => continue,
            };
            self.0.extend_from_slice(&bytes[clean_from..at]);
            if escape.is_empty() {
                let _ = std::io::Write::write_fmt(self.0, format_args!("\\u{byte:04x}"));
            } else {
                self.0.extend_from_slice(escape);
            }
            clean_from = at + 1;
        }
        self.0.extend_from_slice(&bytes[clean_from..]);
        Ok(())
    }
}

/// UTC with microseconds: `2026-11-20T21:27:00.082868Z`.
struct Timestamp(OffsetDateTime);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.0;
        let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
        let (hour, minute, second, micro) = (at.hour(), at.minute(), at.second(), at.microsecond());
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micro:06}Z"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_a_folder_and_a_file() {
        for (path, shown) in [
            ("src/server/src/config/load.rs", "config/load.rs"),
            ("src/server/src/listen.rs", "server/listen.rs"),
            ("/home/u/registry/src/h2-0.4.1/src/proto/mod.rs", "proto/mod.rs"),
            ("main.rs", "main.rs"),
            ("src/main.rs", "main.rs"),
        ] {
            assert_eq!(Caller(path).to_string(), shown);
        }
    }

    #[test]
    fn console_lines_are_tab_separated() {
        let mut out = Vec::new();
        let record = Record::new(Level::Warn, "two\tlines\n").field("n", 5).field("s", "a b");
        record.encode(Format::Console, &mut out);
        let line = String::from_utf8(out).unwrap();
        let columns: Vec<_> = line.trim_end().split('\t').collect();
        assert_eq!(columns.len(), 5, "{line}");
        assert_eq!(columns[1], "warn");
        assert!(columns[2].starts_with("telemetry/record.rs:"), "{line}");
        assert_eq!(columns[3], r"two\tlines\n");
        assert_eq!(columns[4], r#"{"n": 5, "s": "a b"}"#);

        let mut out = Vec::new();
        Record::new(Level::Info, "bare").encode(Format::Console, &mut out);
        assert!(out.ends_with(b"\tbare\n"));
    }

    #[test]
    fn timestamps_are_utc_microseconds() {
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_795_210_020_082_868_999).unwrap();
        assert_eq!(Timestamp(at).to_string(), "2026-11-20T21:27:00.082868Z");
    }
}
