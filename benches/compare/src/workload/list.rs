//! Lists of 500 pairs with 1 KB values, resident and cold.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{anyhow, ensure};
use quorate_api::proto::etcdserverpb::RangeRequest;

use super::{Bench, LIST_CLIENTS_MAX};
use crate::args::Limit;
use crate::data::{self, LIST_KEYS, Random};
use crate::grpc::{Caller, Rpc, frame};
use crate::load::{Step, Worker};
use crate::node::Stop;
use crate::wire;

const VALUE_BYTES: usize = 1024;

pub async fn resident(bench: &mut Bench<'_>) -> anyhow::Result<()> {
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
        bench.node.stop(Stop::Terminate).await?;
        if evict {
            bench.node.drop_page_cache()?;
        }
        bench.node.restart(&data::list_key(0)).await?;
        let pool = bench.pool(clients).await?;
        let next = Arc::new(AtomicU64::new(0));
        let workers = (0..clients)
            .map(|client| Lister {
                caller: pool.caller(client),
                choice: Choice::EachOnce {
                    next: Arc::clone(&next),
                    lists,
                },
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
        let answer = self.caller.unary_raw(Rpc::Range, frame(&request)).await?;
        let summary = wire::range_summary(&answer).map_err(|_| anyhow!("the answer to a list is malformed"))?;
        let whole = summary.kvs == LIST_KEYS && summary.count == LIST_KEYS && !summary.more;
        ensure!(
            whole && summary.smallest > VALUE_BYTES,
            "a list came incomplete: {summary:?}"
        );
        Ok(Step::Done)
    }
}
