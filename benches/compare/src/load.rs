//! Closed-loop clients: each sends its next operation when the last was answered.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::task::JoinSet;

use crate::args::Limit;

/// Beyond its own end, a window may last this long until the last answers are in.
const GRACE: Duration = Duration::from_secs(60);

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// One operation, answered and checked.
    Done,
    /// Nothing is left to do; the client ends.
    Exhausted,
}

/// One logical client.
pub trait Worker: Send + 'static {
    /// Does one operation and checks its answer.
    fn step(&mut self) -> impl Future<Output = anyhow::Result<Step>> + Send;
}

/// Latencies in tenths of a microsecond: exact enough, and half the memory of nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Vec<u32>);

impl Latencies {
    pub fn record(&mut self, latency: Duration) {
        self.0.push(u32::try_from(latency.as_nanos() / 100).unwrap_or(u32::MAX));
    }

    pub fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sorts once; returns microseconds at the given fractions (0.5 is the median).
    pub fn quantiles<const N: usize>(mut self, fractions: [f64; N]) -> [f64; N] {
        self.0.sort_unstable();
        fractions.map(|fraction| {
            let at = (fraction * self.0.len() as f64).ceil() as usize;
            self.0
                .get(at.saturating_sub(1))
                .map_or(f64::NAN, |tenths| f64::from(*tenths) / 10.0)
        })
    }
}

/// What a window brought.
pub struct Outcome<W> {
    /// The clients, for another window.
    pub workers: Vec<W>,
    pub latencies: Latencies,
    /// From the first question to the last answer.
    pub elapsed: Duration,
}

impl<W> Outcome<W> {
    pub fn ops(&self) -> u64 {
        self.latencies.len() as u64
    }
}

/// Runs the clients until `limit` or until nothing is left; the first wrong answer ends everything.
pub async fn drive<W: Worker>(workers: Vec<W>, limit: Limit) -> anyhow::Result<Outcome<W>> {
    let began = Instant::now();
    let gate = Arc::new(Gate::new(limit, began));
    let mut clients = JoinSet::new();
    for mut worker in workers {
        let gate = Arc::clone(&gate);
        clients.spawn(async move {
            let mut latencies = Latencies::default();
            while gate.admits() {
                let asked = Instant::now();
                match worker.step().await? {
                    Step::Done => latencies.record(asked.elapsed()),
                    Step::Exhausted => break,
                }
            }
            anyhow::Ok((worker, latencies))
        });
    }
    let patience = match limit {
        Limit::Time(length) => length + GRACE,
        Limit::Ops(_) => Duration::from_secs(1800),
    };
    let mut outcome = Outcome {
        workers: Vec::new(),
        latencies: Latencies::default(),
        elapsed: Duration::ZERO,
    };
    let gather = async {
        while let Some(client) = clients.join_next().await {
            let (worker, latencies) = client.context("a client died")??;
            outcome.workers.push(worker);
            outcome.latencies.append(latencies);
        }
        anyhow::Ok(())
    };
    match tokio::time::timeout(patience, gather).await {
        Ok(result) => result?,
        Err(_) => bail!("clients still wait for answers after {patience:?}"),
    }
    outcome.elapsed = began.elapsed();
    Ok(outcome)
}

/// Lets operations begin until the window ends.
struct Gate {
    deadline: Option<Instant>,
    left: AtomicU64,
}

impl Gate {
    fn new(limit: Limit, began: Instant) -> Self {
        match limit {
            Limit::Time(length) => Self {
                deadline: Some(began + length),
                left: AtomicU64::new(u64::MAX),
            },
            Limit::Ops(ops) => Self {
                deadline: None,
                left: AtomicU64::new(ops),
            },
        }
    }

    fn admits(&self) -> bool {
        match self.deadline {
            Some(deadline) => Instant::now() < deadline,
            None => self
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                .is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counter {
        left: u64,
        fails: bool,
    }

    impl Worker for Counter {
        async fn step(&mut self) -> anyhow::Result<Step> {
            if self.left == 0 {
                return Ok(Step::Exhausted);
            }
            self.left -= 1;
            tokio::task::yield_now().await;
            if self.fails {
                bail!("wrong answer")
            } else {
                Ok(Step::Done)
            }
        }
    }

    fn counters(clients: usize, left: u64) -> Vec<Counter> {
        (0..clients).map(|_| Counter { left, fails: false }).collect()
    }

    #[tokio::test]
    async fn an_ops_limit_is_kept_exactly() {
        let outcome = drive(counters(7, u64::MAX), Limit::Ops(100)).await.unwrap();
        assert_eq!(outcome.ops(), 100);
        assert_eq!(outcome.workers.len(), 7);
    }

    #[tokio::test]
    async fn exhausted_clients_end_the_window() {
        let outcome = drive(counters(3, 5), Limit::Time(Duration::from_secs(600)))
            .await
            .unwrap();
        assert_eq!(outcome.ops(), 15);
    }

    #[tokio::test]
    async fn one_wrong_answer_fails_the_window() {
        let mut workers = counters(3, u64::MAX);
        workers.push(Counter { left: 10, fails: true });
        let error = drive(workers, Limit::Time(Duration::from_secs(600)))
            .await
            .err()
            .unwrap();
        assert_eq!(error.to_string(), "wrong answer");
    }

    #[test]
    fn quantiles_are_of_the_recorded_values() {
        let mut latencies = Latencies::default();
        for micros in (1..=100).rev() {
            latencies.record(Duration::from_micros(micros));
        }
        assert_eq!(latencies.clone().quantiles([0.5, 0.99, 1.0]), [50.0, 99.0, 100.0]);
        assert!(Latencies::default().quantiles([0.5])[0].is_nan());
    }
}
