//! Stands in for the crate of that name, which openraft's runtime statistics are built on.
//!
//! The original precomputes the bucket tables of all sixteen precisions on first use: 26 MiB that stay resident in
//! every node and some milliseconds of each start, for statistics that this project does not show. This one counts by
//! powers of two and has what openraft calls, no more. `[patch.crates-io]` in the workspace's manifest names it; when
//! openraft's version changes, look here again.

use std::fmt;
use std::marker::PhantomData;

/// One for zero and one for each power of two.
const BUCKETS: usize = 1 + u64::BITS as usize;

/// How often values of each order of magnitude were seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: [u64; BUCKETS],
    /// The original keeps something of the caller's per time slot; there are no slots here.
    slots: PhantomData<T>,
}

impl<T> Histogram<T> {
    pub fn new() -> Self {
        Self {
            counts: [0; BUCKETS],
            slots: PhantomData,
        }
    }

    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    pub fn record_n(&mut self, value: u64, count: u64) {
        self.counts[(u64::BITS - value.leading_zeros()) as usize] += count;
    }

    /// Each percentile as the least value of its bucket: the value itself, rounded down to a power of two.
    pub fn percentile_stats(&self) -> PercentileStats {
        let samples = self.counts.iter().sum();
        PercentileStats {
            samples,
            p0_1: self.percentile(samples, 1),
            p1: self.percentile(samples, 10),
            p5: self.percentile(samples, 50),
            p10: self.percentile(samples, 100),
            p50: self.percentile(samples, 500),
            p90: self.percentile(samples, 900),
            p99: self.percentile(samples, 990),
            p99_9: self.percentile(samples, 999),
        }
    }

    fn percentile(&self, samples: u64, thousandths: u64) -> u64 {
        let rank = (u128::from(samples) * u128::from(thousandths)).div_ceil(1000);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if *count > 0 && seen >= rank {
                return if bucket == 0 { 0 } else { 1 << (bucket - 1) };
            }
        }
        0
    }
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// All zero when nothing was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            samples,
            p50,
            p90,
            p99,
            p99_9,
            ..
        } = self;
        write!(
            f,
            "[samples: {samples}, P50: {p50}, P90: {p90}, P99: {p99}, P99.9: {p99_9}]"
        )
    }
}

/// Histograms side by side; here as one line each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AsciiChart {
    series: Vec<(String, Histogram)>,
}

impl AsciiChart {
    pub fn new() -> Self {
        Self::default()
    }

    #[allow(clippy::should_implement_trait, reason = "the name that openraft calls")]
    pub fn add(mut self, name: impl Into<String>, histogram: Histogram) -> Self {
        self.series.push((name.into(), histogram));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, histogram) in &self.series {
            writeln!(f, "{name}: {}", histogram.percentile_stats())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_rounded_down_to_powers_of_two() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile_stats().p99, 0);
        (0..100).for_each(|value| histogram.record(value));
        histogram.record(u64::MAX);
        let stats = histogram.percentile_stats();
        assert_eq!(
            (stats.samples, stats.p0_1, stats.p50, stats.p99, stats.p99_9),
            (101, 0, 32, 64, 1 << 63)
        );
    }
}
