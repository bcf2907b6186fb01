//! Writers that go on while members come and go: each puts to a key of its own, one request after the other, through the
//! one client that they share, and keeps book of what was answered when.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use quorate_api::proto::etcdserverpb::{PutRequest, PutResponse, RangeRequest, RangeResponse};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cluster::Via;
use crate::data::{Random, Values};
use crate::grpc::{Caller, Rpc};
use crate::retrying::Retrying;
use crate::workload::Bench;

const WRITERS: usize = 16;
const VALUE_BYTES: usize = 256;
/// After a failed request. A client that asks again at once would be counted once per microsecond of an outage.
const FAILED_PAUSE: Duration = Duration::from_millis(50);

pub struct Load {
    book: Arc<Mutex<Book>>,
    stop: watch::Sender<bool>,
    /// Each gives the number that its last acknowledged put carried.
    writers: JoinSet<u64>,
}

/// What was answered when.
#[derive(Default)]
pub struct Book {
    /// Beginning and end of requests that succeeded, in the order of their ends.
    done: Vec<(Instant, Instant)>,
    failed: Vec<String>,
}

/// What clients felt of one disturbance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Felt {
    /// The longest time without any success.
    pub gap: Duration,
    /// The longest that a request took which succeeded.
    pub slowest: Duration,
}

impl Load {
    /// Connects to all members, and writes.
    pub async fn start(bench: &Bench<'_>) -> anyhow::Result<Self> {
        let client = Arc::new(Retrying::connect(bench.cluster.endpoints(Via::All).await?).await?);
        let book = Arc::new(Mutex::new(Book::default()));
        let (stop, stopped) = watch::channel(false);
        let mut writers = JoinSet::new();
        for number in 0..WRITERS {
            let writer = Writer {
                client: Arc::clone(&client),
                values: bench.values.clone(),
                book: Arc::clone(&book),
                number,
            };
            writers.spawn(writer.run(stopped.clone()));
        }
        Ok(Self { book, stop, writers })
    }

    /// What was felt since `from`, up to now.
    pub fn felt_since(&self, from: Instant) -> Felt {
        lock(&self.book).felt(from, Instant::now())
    }

    pub fn succeeded(&self) -> usize {
        lock(&self.book).done.len()
    }

    /// Waits until something was written.
    pub async fn wait_for_success(&self) -> anyhow::Result<()> {
        let (began, before) = (Instant::now(), self.succeeded());
        while self.succeeded() == before {
            ensure!(
                began.elapsed() < Duration::from_secs(60),
                "no write succeeds: {:?}",
                self.complaints()
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Error texts, with how often each was seen.
    fn complaints(&self) -> BTreeMap<String, usize> {
        let mut texts = BTreeMap::new();
        for text in &lock(&self.book).failed {
            *texts.entry(text.clone()).or_insert(0) += 1;
        }
        texts
    }

    /// Ends the writers and waits for requests that still hang; returns how many failed since the beginning, and says on
    /// standard error how. Fails unless what each writer was told last is there, or something younger of its own.
    pub async fn finish(mut self, bench: &Bench<'_>) -> anyhow::Result<usize> {
        let _ = self.stop.send(true);
        let mut told = Vec::new();
        while let Some(writer) = self.writers.join_next().await {
            told.push(writer.context("a writer died")?);
        }
        ensure!(told.len() == WRITERS, "{} of {WRITERS} writers came back", told.len());
        let complaints = self.complaints();
        for (text, times) in &complaints {
            eprint!("\n  {times} x {text} ");
        }
        let mut caller = Caller::connect(&bench.cluster.any()).await?;
        let mut found = Vec::new();
        for number in 0..WRITERS {
            let request = RangeRequest {
                key: key(number),
                ..Default::default()
            };
            let response: RangeResponse = caller.unary(Rpc::Range, &request).await?;
            let value = response.kvs.first().and_then(|kv| kv.value.first_chunk());
            found.push(value.map_or(0, |number| u64::from_le_bytes(*number)));
        }
        // Writers come back in any order, so their numbers carry who they are.
        for told in told {
            let writer = (told % WRITERS as u64) as usize;
            ensure!(told >= WRITERS as u64, "writer {writer} never had a put acknowledged");
            ensure!(
                found[writer] >= told,
                "writer {writer} was told of put {told}, and {} is there",
                found[writer]
            );
        }
        Ok(complaints.values().sum())
    }
}

impl Book {
    fn felt(&self, from: Instant, until: Instant) -> Felt {
        let before = self.done.iter().rev().map(|(_, end)| *end).find(|end| *end <= from);
        let mut last = before.unwrap_or(from);
        let (mut gap, mut slowest) = (Duration::ZERO, Duration::ZERO);
        let within = self.done.iter().filter(|(_, end)| *end > from && *end <= until);
        for (begin, end) in within {
            gap = gap.max(end.saturating_duration_since(last));
            slowest = slowest.max(end.saturating_duration_since(*begin));
            last = *end;
        }
        Felt {
            gap: gap.max(until.saturating_duration_since(last)),
            slowest,
        }
    }
}

fn lock(book: &Mutex<Book>) -> std::sync::MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key(writer: usize) -> Bytes {
    format!("/steady/{writer:05}").into()
}

struct Writer {
    client: Arc<Retrying>,
    values: Values,
    book: Arc<Mutex<Book>>,
    number: usize,
}

impl Writer {
    async fn run(self, stopped: watch::Receiver<bool>) -> u64 {
        let mut random = Random::new(self.number as u64);
        let (mut next, mut told) = (self.number as u64, self.number as u64);
        while !*stopped.borrow() {
            next += WRITERS as u64;
            let mut value = self.values.cut(&mut random, VALUE_BYTES).to_vec();
            value[..8].copy_from_slice(&next.to_le_bytes());
            let request = PutRequest {
                key: key(self.number),
                value: value.into(),
                ..Default::default()
            };
            let began = Instant::now();
            let answer: anyhow::Result<PutResponse> = self.client.unary(Rpc::Put, &request).await;
            let ended = Instant::now();
            match answer {
                Ok(_) => {
                    lock(&self.book).done.push((began, ended));
                    told = next;
                }
                Err(error) => {
                    lock(&self.book).failed.push(format!("{error:#}"));
                    tokio::time::sleep(FAILED_PAUSE).await;
                }
            }
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_runs_from_the_last_success_before_to_the_first_after() {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let book = Book {
            done: vec![(at(0), at(10)), (at(10), at(20)), (at(15), at(320)), (at(320), at(330))],
            failed: Vec::new(),
        };
        let felt = book.felt(at(25), at(335));
        assert_eq!(felt.gap, Duration::from_millis(300));
        assert_eq!(felt.slowest, Duration::from_millis(305));
        // an outage that goes on counts up to now
        assert_eq!(book.felt(at(325), at(2000)).gap, Duration::from_millis(1670));
    }
}
