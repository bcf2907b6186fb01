//! Puts at a fixed rate, whether answers come or not: what clients of a modest service feel while something else goes on.
//! Latency runs from when a put was due, so a server that stalls does not get fewer questions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use crate::data::Random;
use crate::grpc::Pool;
use crate::load::Latencies;
use crate::workload::{Bench, put};

const VALUE_BYTES: usize = 256;
const CONNECTIONS_OF: usize = 10;
const IDLE: Duration = Duration::from_secs(10);
const IDLE_QUICK: Duration = Duration::from_secs(1);
const KEYS: u64 = 1_000;

pub struct Pace {
    cut: mpsc::Sender<oneshot::Sender<Latencies>>,
    task: JoinHandle<anyhow::Result<()>>,
    sent: Arc<AtomicU64>,
}

impl Pace {
    async fn start(bench: &Bench<'_>, per_second: u64) -> anyhow::Result<Self> {
        let pool = bench.pool(CONNECTIONS_OF).await?;
        let values = bench.values.clone();
        let mut random = Random::new(0xace);
        let values = move |number: u64| {
            let key = Bytes::from(format!("/pace/{:05}", number % KEYS));
            (key, values.cut(&mut random, VALUE_BYTES))
        };
        let (cut, cuts) = mpsc::channel(1);
        let sent = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(run(
            pool,
            Duration::from_secs(1) / per_second as u32,
            values,
            cuts,
            Arc::clone(&sent),
        ));
        Ok(Self { cut, task, sent })
    }

    /// Started, and what it felt for a while in which nothing else went on.
    pub async fn idle(bench: &Bench<'_>) -> anyhow::Result<(Self, Latencies)> {
        let mut pace = Self::start(bench, bench.args.scale.join_rate).await?;
        let idle = if bench.args.quick { IDLE_QUICK } else { IDLE };
        tokio::time::sleep(idle / 5).await;
        pace.cut().await?; // the first puts open things
        tokio::time::sleep(idle).await;
        let idle = pace.cut().await?;
        Ok((pace, idle))
    }

    /// Latencies of the puts that were answered since the last cut.
    pub async fn cut(&mut self) -> anyhow::Result<Latencies> {
        let (give, take) = oneshot::channel();
        if self.cut.send(give).await.is_ok()
            && let Ok(latencies) = take.await
        {
            return Ok(latencies);
        }
        match (&mut self.task).await.context("the paced writer died")? {
            Ok(()) => anyhow::bail!("the paced writer ended"),
            Err(error) => Err(error.context("a put at a fixed rate")),
        }
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    pool: Pool,
    every: Duration,
    mut pair: impl FnMut(u64) -> (Bytes, Bytes) + Send,
    mut cuts: mpsc::Receiver<oneshot::Sender<Latencies>>,
    sent: Arc<AtomicU64>,
) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(every); // bursts after a delay, so the rate holds
    let mut flying = JoinSet::new();
    let mut latencies = Latencies::default();
    loop {
        tokio::select! {
            due = ticks.tick() => {
                let number = sent.fetch_add(1, Ordering::Relaxed);
                let (key, value) = pair(number);
                let mut caller = pool.caller(number as usize);
                flying.spawn(async move {
                    put(&mut caller, key, value).await?;
                    anyhow::Ok(Instant::from(due).elapsed())
                });
            }
            Some(done) = flying.join_next() => latencies.record(done.context("a put died")??),
            cut = cuts.recv() => match cut {
                Some(give) => {
                    let _ = give.send(std::mem::take(&mut latencies)); // who asked may have given up
                }
                None => return Ok(()),
            },
        }
    }
}
