//! Lists of 500 pairs with 1 KB values, resident and cold, in one answer and in a stream of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{anyhow, ensure};
use quorate_api::proto::etcdserverpb::RangeRequest;

use super::{Bench, LIST_CLIENTS_MAX};
use crate::args::Limit;
use crate::data::{self, LIST_KEYS, Random};
use crate::grpc::{Caller, Rpc, frame};
use crate::load::{Step, Worker};
use crate::node::{Node, Stop};
use crate::wire;

const VALUE_BYTES: usize = 1024;

pub async fn resident(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    seen_before(bench, false).await
}

pub async fn stream(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    seen_before(bench, true).await
}

async fn seen_before(bench: &mut Bench<'_>, streamed: bool) -> anyhow::Result<()> {
    let lists = bench.args.scale.list_prefixes;
    bench.load(lists * LIST_KEYS, VALUE_BYTES, data::list_key).await?;
    for clients in client_counts(bench) {
        let pool = bench.pool(clients).await?;
        let workers = (0..clients)
            .map(|client| Lister {
                caller: pool.caller(client),
                choice: Choice::Random {
                    random: Random::new(client as u64),
                    lists,
                },
                streamed,
            })
            .collect();
        bench.measure(workers).await?;
    }
    Ok(())
}

/// Each list is asked for once, so nothing that an earlier list left in a cache can help. There is no warm-up.
pub async fn cold(bench: &mut Bench<'_>, evict: bool) -> anyhow::Result<()> {
    let lists = bench.args.scale.cold_prefixes;
    bench.load(lists * LIST_KEYS, VALUE_BYTES, data::list_key).await?;
    for clients in client_counts(bench) {
        bench.cluster.stop_all(Stop::Terminate).await?;
        if evict {
            bench.cluster.nodes().iter().try_for_each(Node::drop_page_cache)?;
        }
        bench.cluster.restart_all(&data::list_key(0)).await?;
        let pool = bench.pool(clients).await?;
        let next = Arc::new(AtomicU64::new(0));
        let workers = (0..clients)
            .map(|client| Lister {
                caller: pool.caller(client),
                choice: Choice::EachOnce {
                    next: Arc::clone(&next),
                    lists,
                },
                streamed: false,
            })
            .collect();
        bench.window(workers, Limit::Ops(u64::MAX)).await?;
    }
    Ok(())
}

fn client_counts(bench: &Bench<'_>) -> Vec<usize> {
    let mut counts: Vec<usize> = bench
        .args
        .clients
        .iter()
        .map(|clients| (*clients).min(LIST_CLIENTS_MAX))
        .collect();
    counts.dedup();
    counts
}

struct Lister {
    caller: Caller,
    choice: Choice,
    /// By RangeStream.
    streamed: bool,
}

enum Choice {
    Random { random: Random, lists: u64 },
    EachOnce { next: Arc<AtomicU64>, lists: u64 },
}

impl Choice {
    fn next(&mut self) -> Option<u64> {
        match self {
            Self::Random { random, lists } => Some(random.below(*lists)),
            Self::EachOnce { next, lists } => {
                let list = next.fetch_add(1, Ordering::Relaxed);
                (list < *lists).then_some(list)
            }
        }
    }
}

impl Worker for Lister {
    async fn step(&mut self) -> anyhow::Result<Step> {
        let Some(list) = self.choice.next() else {
            return Ok(Step::Exhausted);
        };
        let prefix = data::list_prefix(list);
        let range_end = data::prefix_end(&prefix);
        let request = RangeRequest {
            key: prefix.into(),
            range_end,
            ..Default::default()
        };
        if self.streamed {
            self.read_stream(&request).await?;
            return Ok(Step::Done);
        }
        let answer = self.caller.unary_raw(Rpc::Range, frame(&request)).await?;
        let summary = wire::range_summary(&answer).map_err(|_| malformed())?;
        let whole = summary.kvs == LIST_KEYS && summary.count == LIST_KEYS && !summary.more;
        ensure!(
            whole && summary.smallest > VALUE_BYTES,
            "a list came incomplete: {summary:?}"
        );
        Ok(Step::Done)
    }
}

impl Lister {
    /// The parts have to add up; the count comes with one of them.
    async fn read_stream(&mut self, request: &RangeRequest) -> anyhow::Result<()> {
        let mut answers = self.caller.server_stream(Rpc::RangeStream, frame(request)).await?;
        let (mut kvs, mut count, mut smallest) = (0, 0, usize::MAX);
        while let Some(answer) = answers.next().await? {
            for field in wire::Fields::of(&answer) {
                let (1, wire::Field::Bytes(part)) = field.map_err(|_| malformed())? else {
                    continue;
                };
                let part = wire::range_summary(part).map_err(|_| malformed())?;
                kvs += part.kvs;
                count = count.max(part.count);
                smallest = smallest.min(part.smallest);
            }
        }
        ensure!(
            kvs == LIST_KEYS && count == LIST_KEYS && smallest > VALUE_BYTES,
            "a streamed list came incomplete: {kvs} pairs of {count}, the smallest {smallest} bytes"
        );
        Ok(())
    }
}

fn malformed() -> anyhow::Error {
    anyhow!("the answer to a list is malformed")
}
