//! Lines of the log that reached nobody.

use quorate_runtime::metrics::{Kind, Page, Source};
use quorate_runtime::telemetry::Telemetry;

pub struct Log(pub Telemetry);

impl Source for Log {
    fn write(&self, page: &mut Page) {
        let losses = self.0.losses();
        page.single(
            "quorate_log_dropped_lines_total",
            "Lines lost because an output was blocked or failed, once for each output.",
            Kind::Counter,
            losses.dropped as f64,
        );
        page.single(
            "quorate_log_sampled_out_lines_total",
            "Lines left out of bursts of identical ones.",
            Kind::Counter,
            losses.sampled_out as f64,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_runtime::metrics::Registry;
    use quorate_runtime::telemetry::{Level, Options, Output, Record};
    use std::sync::Arc;
    use std::time::Duration;

    /// A10
    #[test]
    fn lines_that_an_output_refuses_are_counted() {
        let full = Output::File("/dev/full".into());
        let options = Options {
            outputs: vec![full],
            ..Options::default()
        };
        let telemetry = Telemetry::open(&options).unwrap();
        let registry = Registry::new();
        registry.add_source(Arc::new(Log(telemetry.clone())));
        let dropped = |count: u64| {
            let line = format!("quorate_log_dropped_lines_total {count}");
            registry.scrape().lines().any(|have| have == line)
        };
        assert!(dropped(0));
        telemetry.record(&Record::new(Level::Info, "nobody hears this"));
        telemetry.flush(Duration::from_secs(10));
        assert!(dropped(1), "{}", registry.scrape());
    }
}
