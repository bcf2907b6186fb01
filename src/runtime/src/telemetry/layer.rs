//! From `tracing` events to encoded lines.

use std::cell::RefCell;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber, span};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::record::{Caller, Line};
use super::{Format, Level, Telemetry};

/// Identical records in one second that are all written; of those beyond, one in [`SAMPLE_EVERY`].
const SAMPLE_FIRST: u32 = 100;
const SAMPLE_EVERY: u32 = 100;
const SAMPLE_SLOTS: usize = 512;
/// A line buffer that grew past this is not kept for reuse.
const SCRATCH_BYTES_MAX: usize = 64 << 10;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Writes events of our own code at the configured level, those of libraries one level quieter: their debug chatter
/// helps nobody who runs the node, and at `info` only their warnings matter.
///
/// Spans of our own code lend their fields to the events inside them.
pub struct LogLayer {
    telemetry: Telemetry,
    sampler: Sampler,
}

impl fmt::Debug for LogLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogLayer")
            .field("telemetry", &self.telemetry)
            .finish_non_exhaustive()
    }
}

/// A span's fields, encoded when it was opened: `(name, JSON value)`.
struct SpanFields(Vec<(&'static str, Vec<u8>)>);

impl LogLayer {
    pub(super) fn new(telemetry: Telemetry) -> Self {
        Self {
            telemetry,
            sampler: Sampler::new(),
        }
    }

    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        let own = is_own(metadata.target());
        if metadata.is_span() {
            return own && metadata.level() <= &tracing::Level::INFO;
        }
        let level = *metadata.level();
        if level > tracing::Level::ERROR && self.telemetry.shared.level != Level::Debug && repeats(metadata.target()) {
            return false;
        }
        match (self.telemetry.shared.level, own) {
            (Level::Debug, true) => level <= tracing::Level::DEBUG,
            (Level::Info, true) | (Level::Debug, false) => level <= tracing::Level::INFO,
            (Level::Warn, _) | (Level::Info, false) => level <= tracing::Level::WARN,
            (Level::Error, _) => level <= tracing::Level::ERROR,
            (Level::Dpanic | Level::Panic | Level::Fatal, _) => false,
        }
    }
}

fn is_own(target: &str) -> bool {
    target.starts_with("quorate")
}

/// Where openraft warns of every attempt to reach a member, some twenty times a second while one is down. The link to it
/// says so once, when it is lost.
fn repeats(target: &str) -> bool {
    const PLACES: [&str; 3] = [
        "openraft::replication",
        "openraft::core::heartbeat",
        "openraft::engine::handler::replication_handler",
    ];
    PLACES.iter().any(|place| target.starts_with(place))
}

/// etcd names the component that speaks when it is not the server itself.
fn logger_of(target: &str) -> Option<&'static str> {
    let root = target.split("::").next().unwrap_or_default();
    match root {
        "openraft" | "quorate_raft" => Some("raft"),
        "quorate_wal" => Some("wal"),
        "h2" | "hyper" | "hyper_util" | "tonic" => Some("grpc"),
        "rustls" | "tokio_rustls" => Some("tls"),
        _ => None,
    }
}

impl<S> Layer<S> for LogLayer
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
{
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // the level never changes while we run, so a callsite that is off costs one load from now on
        if self.wants(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.wants(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match self.telemetry.shared.level {
            Level::Debug => LevelFilter::DEBUG,
            // spans are on at info, whatever is logged inside them
            Level::Info | Level::Warn | Level::Error => LevelFilter::INFO,
            Level::Dpanic | Level::Panic | Level::Fatal => LevelFilter::OFF,
        })
    }

    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = SpanFields(Vec::new());
        attributes.record(&mut fields);
        if !fields.0.is_empty() {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        if !self.sampler.admit(std::ptr::from_ref(metadata) as usize) {
            self.telemetry.shared.sampled_out.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // taken out of its cell, not borrowed: a value's Debug may log too
        let mut out = SCRATCH.try_with(RefCell::take).unwrap_or_default();
        out.clear();

        let level = match *metadata.level() {
            tracing::Level::TRACE | tracing::Level::DEBUG => Level::Debug,
            tracing::Level::INFO => Level::Info,
            tracing::Level::WARN => Level::Warn,
            tracing::Level::ERROR => Level::Error,
        };
        let format = self.telemetry.shared.format;
        let mut line = Line::begin(&mut out, format, level, logger_of(metadata.target()));
        let (file, at) = (
            metadata.file().unwrap_or("unknown"),
            metadata.line().unwrap_or_default(),
        );
        let mut head = HeadVisitor {
            line: &mut line,
            file,
            at,
            written: false,
        };
        event.record(&mut head);
        if !head.written {
            head.write(format_args!("{}", metadata.name()));
        }
        event.record(&mut FieldVisitor { line: &mut line });
        if let Some(scope) = context.event_scope(event) {
            for span in scope {
                if let Some(SpanFields(fields)) = span.extensions().get() {
                    for (name, value) in fields {
                        if metadata.fields().field(name).is_none() {
                            line.key(name);
                            line.out.extend_from_slice(value);
                        }
                    }
                }
            }
        }
        line.end();
        self.telemetry.push(&out);

        if out.capacity() <= SCRATCH_BYTES_MAX {
            let _ = SCRATCH.try_with(|cell| cell.replace(out));
        }
    }
}

/// First pass over an event: the message, which stands before the fields wherever it was written.
struct HeadVisitor<'line, 'out> {
    line: &'line mut Line<'out>,
    file: &'static str,
    at: u32,
    written: bool,
}

impl HeadVisitor<'_, '_> {
    fn write(&mut self, msg: fmt::Arguments<'_>) {
        self.line.head(format_args!("{}:{}", Caller(self.file), self.at), msg);
        self.written = true;
    }
}

impl Visit for HeadVisitor<'_, '_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" && !self.written {
            self.write(format_args!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" && !self.written {
            self.write(format_args!("{value}"));
        }
    }
}

/// Second pass: everything but the message.
struct FieldVisitor<'line, 'out> {
    line: &'line mut Line<'out>,
}

impl FieldVisitor<'_, '_> {
    fn bare(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        self.line.key(field.name());
        self.line.bare(value);
    }

    fn text(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        if field.name() != "message" {
            self.line.key(field.name());
            self.line.text(value);
        }
    }
}

impl Visit for FieldVisitor<'_, '_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.text(field, format_args!("{}", Chain(value)));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.bare(field, format_args!("{value}"));
        } else {
            self.text(field, format_args!("{value}")); // JSON has no word for it
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.bare(field, format_args!("{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.bare(field, format_args!("{value}"));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.bare(field, format_args!("{value}"));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.bare(field, format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.bare(field, format_args!("{value}"));
    }
}

impl Visit for SpanFields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut json = Vec::new();
        Line::begin(&mut json, Format::Json, Level::Info, None).text(format_args!("{value:?}"));
        self.0.push((field.name(), json));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.push((field.name(), value.to_string().into_bytes()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.push((field.name(), value.to_string().into_bytes()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.push((field.name(), value.to_string().into_bytes()));
    }
}

/// An error with everything that caused it: our error types do not repeat their source.
struct Chain<'a>(&'a (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

/// Counts records per call site and second. Two call sites may share a slot and then a count, which errs on the quiet
/// side and needs no lock.
struct Sampler {
    start: Instant,
    /// second since start in the upper half, records seen in it in the lower
    slots: Box<[AtomicU64]>,
}

impl Sampler {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            slots: (0..SAMPLE_SLOTS).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn admit(&self, callsite: usize) -> bool {
        // call sites lie at least a word apart
        let slot = &self.slots[(callsite >> 3) % SAMPLE_SLOTS];
        let second = self.start.elapsed().as_secs() & u64::from(u32::MAX);
        let mut seen = slot.load(Ordering::Relaxed);
        loop {
            let next = if seen >> 32 == second {
                seen.saturating_add(1)
            } else {
                second << 32 | 1
            };
            match slot.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    let count = (next & u64::from(u32::MAX)) as u32;
                    return count <= SAMPLE_FIRST || (count - SAMPLE_FIRST).is_multiple_of(SAMPLE_EVERY);
                }
                Err(actual) => seen = actual,
            }
        }
    }
}
