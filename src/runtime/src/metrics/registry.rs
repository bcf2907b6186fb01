//! A node's registry, and the scrape.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::RwLock;
use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Result,
};

use super::process::ProcessSource;
use super::{Kind, Page};

/// Families that are read at scrape time instead of being kept as `prometheus` metrics.
pub trait Source: Send + Sync {
    /// Writes whole families, under names nobody else uses. Runs on the scraping thread and must not block.
    fn write(&self, page: &mut Page);
}

/// All metrics of a node. The process, `go_*` and scrape-handler families are there from the start.
pub struct Registry {
    inner: prometheus::Registry,
    sources: RwLock<Vec<Arc<dyn Source>>>,
    scrapes: Arc<Scrapes>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("sources", &self.sources.read().len())
            .finish_non_exhaustive()
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    pub fn new() -> Self {
        let scrapes = Arc::new(Scrapes::default());
        let registry = Self::bare();
        registry.add_source(scrapes.clone());
        registry.add_source(Arc::new(ProcessSource));
        Self { scrapes, ..registry }
    }

    /// Without the process's own families, whose values nobody can foresee.
    pub(super) fn bare() -> Self {
        Self {
            inner: prometheus::Registry::new(),
            sources: RwLock::default(),
            scrapes: Arc::default(),
        }
    }

    pub fn add_source(&self, source: Arc<dyn Source>) {
        self.sources.write().push(source);
    }

    /// Registers a metric made elsewhere. Fails on a name that is taken or malformed.
    pub fn register<M: Collector + Clone + 'static>(&self, metric: M) -> Result<M> {
        self.inner.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter> {
        self.register(IntCounter::new(name, help)?)
    }

    /// Every label combination that must be on the page from the start is to be touched once by the caller.
    pub fn counter_vec(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
        self.register(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    pub fn gauge(&self, name: &str, help: &str) -> Result<IntGauge> {
        self.register(IntGauge::new(name, help)?)
    }

    pub fn gauge_vec(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec> {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    /// `bounds` is one of [`super::buckets`].
    pub fn histogram(&self, name: &str, help: &str, bounds: &[f64]) -> Result<Histogram> {
        self.register(Histogram::with_opts(
            HistogramOpts::new(name, help).buckets(bounds.to_vec()),
        )?)
    }

    pub fn histogram_vec(&self, name: &str, help: &str, labels: &[&str], bounds: &[f64]) -> Result<HistogramVec> {
        self.register(HistogramVec::new(
            HistogramOpts::new(name, help).buckets(bounds.to_vec()),
            labels,
        )?)
    }

    /// The page, to be sent with [`super::CONTENT_TYPE`]. Families without a sample are left out.
    pub fn scrape(&self) -> String {
        self.scrapes.in_flight.fetch_add(1, Ordering::Relaxed);
        let mut page = Page::default();
        for family in self.inner.gather() {
            page.gathered(&family);
        }
        for source in self.sources.read().iter() {
            source.write(&mut page);
        }
        let text = page.finish();
        self.scrapes.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.scrapes.succeeded.fetch_add(1, Ordering::Relaxed);
        text
    }
}

#[derive(Default)]
struct Scrapes {
    in_flight: AtomicI64,
    succeeded: AtomicU64,
}

impl Source for Scrapes {
    fn write(&self, page: &mut Page) {
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        page.single(
            "promhttp_metric_handler_requests_in_flight",
            "Scrapes being answered.",
            Kind::Gauge,
            in_flight as f64,
        );
        let name = "promhttp_metric_handler_requests_total";
        let mut family = page.family(name, "Scrapes answered, by HTTP status code.", Kind::Counter);
        family.sample(r#"code="200""#, self.succeeded.load(Ordering::Relaxed) as f64);
        // a scrape can't fail here, but alerts expect the series
        family.sample(r#"code="500""#, 0.0);
        family.sample(r#"code="503""#, 0.0);
    }
}

#[cfg(test)]
mod tests;
