//! A new member joins a cluster that holds a good deal of data: how long from `member add` until it has caught up, and
//! what puts at a modest, fixed rate feel of it.
//!
//! It has caught up when its own revision is the one that the leader had a moment before and it answers a linearizable
//! read. That all the data is there is checked after the clock has stopped.

use std::time::Instant;

use anyhow::{Context, ensure};
use quorate_api::proto::etcdserverpb::{RangeRequest, RangeResponse};

use super::pace::Pace;
use crate::data;
use crate::grpc::{Caller, Rpc};
use crate::meter::{mib, quiet};
use crate::procfs;
use crate::workload::{Bench, Sample};

/// Figures that targets are set for.
pub const CAUGHT_UP: &str = "member add until caught up, s";
pub const P99_RATIO: &str = "put p99 meanwhile / before";

const KEY_BYTES: u64 = 64;
const VALUE_BYTES: u64 = 1024;
const PREFIX: &str = "/registry/pods/";

pub async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let keys = bench.args.scale.join_bytes.div_ceil(KEY_BYTES + VALUE_BYTES);
    let began = Instant::now();
    bench.fill(keys, VALUE_BYTES as usize, data::memory_key).await?;
    let loading = began.elapsed();
    quiet(&bench.cluster.pids()).await?;

    let (mut pace, before) = Pace::idle(bench).await?;

    let leader = bench.cluster.leadership().await?.leader;
    let (cpu, sent) = (bench.cluster.cpu_time()?, pace.sent());
    let (new, began) = bench.cluster.add_member().await?;
    bench.cluster.wait_until_caught_up(new, leader).await?;
    let equal = began.elapsed();
    bench.cluster.node_mut(new).wait_until_serving(None).await?;
    let caught_up = began.elapsed();
    let meanwhile = pace.cut().await?;
    let (cpu, sent) = (bench.cluster.cpu_time()? - cpu, pace.sent() - sent);
    let peak = procfs::memory(bench.cluster.nodes()[new].pid())?.high_water();
    count(bench, new, keys).await?;

    ensure!(
        !before.is_empty() && !meanwhile.is_empty(),
        "no put was answered: {} before, {} meanwhile",
        before.len(),
        meanwhile.len()
    );
    let answered = meanwhile.len();
    let ([p50, p99], [p50_then, p99_then]) = (before.quantiles([0.5, 0.99]), meanwhile.quantiles([0.5, 0.99]));
    let metrics = vec![
        (CAUGHT_UP, caught_up.as_secs_f64()),
        ("… until its revision was the leader's, s", equal.as_secs_f64()),
        ("put p50 before, µs", p50),
        ("put p50 meanwhile, µs", p50_then),
        ("put p99 before, µs", p99),
        ("put p99 meanwhile, µs", p99_then),
        (P99_RATIO, p99_then / p99),
        ("puts meanwhile, sent", sent as f64),
        ("puts meanwhile, answered", answered as f64),
        ("CPU of all meanwhile, s", cpu.as_secs_f64()),
        ("peak MiB of the new member", mib(peak)),
        ("loaded MiB", mib(keys * (KEY_BYTES + VALUE_BYTES))),
        ("load ops/s", keys as f64 / loading.as_secs_f64()),
    ];
    bench.samples.push(Sample {
        workload: bench.workload,
        clients: None,
        metrics,
    });
    Ok(())
}

/// Fails unless the new member itself has all keys.
async fn count(bench: &Bench<'_>, member: usize, keys: u64) -> anyhow::Result<()> {
    let request = RangeRequest {
        key: PREFIX.into(),
        range_end: data::prefix_end(PREFIX),
        count_only: true,
        serializable: true,
        ..Default::default()
    };
    let mut caller = Caller::connect(&bench.cluster.nodes()[member].endpoint()).await?;
    let response: RangeResponse = caller.unary(Rpc::Range, &request).await.context("count")?;
    ensure!(
        response.count == keys as i64,
        "the new member has {} of {keys} keys",
        response.count
    );
    Ok(())
}
