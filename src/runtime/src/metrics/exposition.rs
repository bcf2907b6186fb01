//! The Prometheus text format, written family by family in any order and sorted once at the end.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::ops::Range;

use prometheus::proto::{MetricFamily, MetricType};

use super::GoFloat;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
    Summary,
    Untyped,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
            Kind::Summary => "summary",
            Kind::Untyped => "untyped",
        }
    }
}

/// A page being written.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
    families: Vec<(Cow<'static, str>, Range<usize>)>,
}

impl Page {
    /// Opens a family; its samples follow through the returned handle. A name is opened once per page.
    pub fn family(&mut self, name: impl Into<Cow<'static, str>>, help: &str, kind: Kind) -> Family<'_> {
        let name = name.into();
        let start = self.text.len();
        let _ = write!(self.text, "# HELP {name} ");
        escape(&mut self.text, help, false);
        let _ = write!(self.text, "\n# TYPE {name} {}\n", kind.name());
        self.families.push((name, start..start));
        Family { page: self }
    }

    /// A family with a single sample that has no labels.
    pub fn single(&mut self, name: &'static str, help: &str, kind: Kind, value: f64) {
        self.family(name, help, kind).sample("", value);
    }

    pub(super) fn gathered(&mut self, family: &MetricFamily) {
        let kind = match family.get_field_type() {
            MetricType::COUNTER => Kind::Counter,
            MetricType::GAUGE => Kind::Gauge,
            MetricType::HISTOGRAM => Kind::Histogram,
            MetricType::SUMMARY => Kind::Summary,
            MetricType::UNTYPED => Kind::Untyped,
        };
        let mut written = self.family(family.name().to_owned(), family.help(), kind);
        let mut label_text = String::new();
        for metric in family.get_metric() {
            label_text.clear();
            // the library keeps them sorted by name
            for pair in metric.get_label() {
                push_label(&mut label_text, pair.name(), pair.value());
            }
            match kind {
                Kind::Counter => written.sample(&label_text, metric.get_counter().get_value()),
                Kind::Gauge => written.sample(&label_text, metric.get_gauge().get_value()),
                Kind::Histogram => {
                    let histogram = metric.get_histogram();
                    let buckets = histogram.get_bucket().iter();
                    let buckets = buckets.map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()));
                    let (sum, count) = (histogram.get_sample_sum(), histogram.get_sample_count());
                    written.histogram(&label_text, buckets, sum, count);
                }
                // the library can't make these two
                Kind::Summary | Kind::Untyped => {}
            }
        }
    }

    /// The finished page: families by name, each with its samples in the order they were written.
    pub fn finish(mut self) -> String {
        let end = self.text.len();
        let mut next = end;
        for (_, range) in self.families.iter_mut().rev() {
            range.end = next;
            next = range.start;
        }
        self.families.sort_by(|(a, _), (b, _)| a.cmp(b));
        debug_assert!(
            self.families.windows(2).all(|pair| pair[0].0 != pair[1].0),
            "a family is written twice"
        );
        let mut sorted = String::with_capacity(end);
        for (_, range) in self.families {
            sorted.push_str(&self.text[range]);
        }
        sorted
    }
}

/// The open family of a [`Page`].
#[derive(Debug)]
pub struct Family<'a> {
    page: &'a mut Page,
}

impl Family<'_> {
    /// `labels` as made by [`labels`], or empty.
    pub fn sample(&mut self, labels: &str, value: f64) {
        self.line("", &[labels], value);
    }

    /// Labels in several pieces, to be joined with commas; empty ones are left out.
    pub fn sample_parts(&mut self, labels: &[&str], value: f64) {
        self.line("", labels, value);
    }

    /// `buckets` are upper bounds with cumulative counts, `+Inf` excluded.
    pub fn histogram(&mut self, labels: &str, buckets: impl Iterator<Item = (f64, u64)>, sum: f64, count: u64) {
        let mut bound = String::new();
        for (upper, cumulative) in buckets.filter(|(upper, _)| upper.is_finite()) {
            bound.clear();
            let _ = write!(bound, "le=\"{}\"", GoFloat(upper));
            self.line("_bucket", &[labels, &bound], cumulative as f64);
        }
        self.line("_bucket", &[labels, "le=\"+Inf\""], count as f64);
        self.line("_sum", &[labels], sum);
        self.line("_count", &[labels], count as f64);
    }

    /// A summary that has seen nothing.
    pub fn empty_summary(&mut self, quantiles: &[f64]) {
        for quantile in quantiles {
            self.line("", &[&format!("quantile=\"{}\"", GoFloat(*quantile))], 0.0);
        }
        self.line("_sum", &[], 0.0);
        self.line("_count", &[], 0.0);
    }

    fn line(&mut self, suffix: &str, labels: &[&str], value: f64) {
        let Page { text, families } = &mut *self.page;
        let Some((name, _)) = families.last() else {
            return;
        }; // a family is open as long as `self` lives
        text.push_str(name);
        text.push_str(suffix);
        let mut open = '{';
        for part in labels.iter().filter(|part| !part.is_empty()) {
            text.push(open);
            text.push_str(part);
            open = ',';
        }
        if open == ',' {
            text.push('}');
        }
        let _ = writeln!(text, " {}", GoFloat(value));
    }
}

/// Label text for [`Family::sample`]: sorted by name, values escaped, no braces.
pub fn labels(pairs: &[(&str, &str)]) -> String {
    let mut pairs = pairs.to_vec();
    pairs.sort_unstable();
    let mut text = String::new();
    for (name, value) in pairs {
        push_label(&mut text, name, value);
    }
    text
}

fn push_label(text: &mut String, name: &str, value: &str) {
    if !text.is_empty() {
        text.push(',');
    }
    text.push_str(name);
    text.push_str("=\"");
    escape(text, value, true);
    text.push('"');
}

fn escape(text: &mut String, raw: &str, quotes: bool) {
    for letter in raw.chars() {
        match letter {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '"' if quotes => text.push_str("\\\""),
            other => text.push(other),
        }
    }
}
