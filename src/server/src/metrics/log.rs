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
