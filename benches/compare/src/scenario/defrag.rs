//! Defragmentation of a member half of whose file is free: how long it takes, and what puts at a modest, fixed rate feel
//! of it.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use quorate_api::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DefragmentRequest, DefragmentResponse, StatusRequest, StatusResponse,
};

use super::pace::Pace;
use crate::data;
use crate::grpc::{Caller, Rpc};
use crate::meter::{mib, quiet};
use crate::workload::{Bench, Sample};

const KEY_BYTES: u64 = 64;
const VALUE_BYTES: u64 = 1024;
/// Puts that wait for its end are answered by then.
const BEHIND: Duration = Duration::from_millis(500);

pub async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let keys = bench.args.scale.join_bytes.div_ceil(KEY_BYTES + VALUE_BYTES);
    for _ in 0..2 {
        bench.fill(keys, VALUE_BYTES as usize, data::memory_key).await?;
    }
    let leader = bench.cluster.leadership().await?.leader;
    let mut caller = Caller::connect(&bench.cluster.nodes()[leader].endpoint()).await?;
    let revision = status(&mut caller).await?.header.context("no header")?.revision;
    let physical = true;
    let _: CompactionResponse = caller
        .unary(Rpc::Compact, &CompactionRequest { revision, physical })
        .await?;
    quiet(&bench.cluster.pids()).await?;

    let (mut pace, before) = Pace::idle(bench).await?;
    let (was, cpu) = (status(&mut caller).await?, bench.cluster.cpu_time()?);
    let began = Instant::now();
    let _: DefragmentResponse = caller.unary(Rpc::Defragment, &DefragmentRequest {}).await?;
    let took = began.elapsed();
    tokio::time::sleep(BEHIND).await;
    let meanwhile = pace.cut().await?;
    let (is, cpu) = (status(&mut caller).await?, bench.cluster.cpu_time()? - cpu);
    ensure!(!before.is_empty() && !meanwhile.is_empty(), "no put was answered");
    ensure!(
        is.db_size < was.db_size,
        "it is no smaller: {} MiB",
        mib(is.db_size as u64)
    );
    let ([p50, p99], [p50_then, p99_then, max_then]) =
        (before.quantiles([0.5, 0.99]), meanwhile.quantiles([0.5, 0.99, 1.0]));
    let metrics = vec![
        ("defragmentation, s", took.as_secs_f64()),
        ("file before, MiB", mib(was.db_size as u64)),
        ("file after, MiB", mib(is.db_size as u64)),
        ("put p50 before, µs", p50),
        ("put p50 meanwhile, µs", p50_then),
        ("put p99 before, µs", p99),
        ("put p99 meanwhile, µs", p99_then),
        ("put max meanwhile, µs", max_then),
        ("put p99 meanwhile / before", p99_then / p99),
        ("CPU of all meanwhile, s", cpu.as_secs_f64()),
    ];
    bench.samples.push(Sample {
        workload: bench.workload,
        clients: None,
        metrics,
    });
    Ok(())
}

async fn status(caller: &mut Caller) -> anyhow::Result<StatusResponse> {
    caller.unary(Rpc::Status, &StatusRequest::default()).await
}
