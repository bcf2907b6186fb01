//! The leader is stopped by SIGTERM under retrying clients: the longest time without a success, and requests that fail.

use std::time::{Duration, Instant};

use anyhow::Context;

use super::steady::Load;
use super::{election_timeout, millis, spread};
use crate::node::Stop;
use crate::workload::{Bench, Sample};

/// Figures that targets are set for.
pub const GAP_MEDIAN: &str = "longest gap, median, ms";
pub const FAILED: &str = "failed requests, all repetitions";

/// Beyond the end of the process, in election timeouts: what it set off has come to its end by then.
const AFTERMATH: u32 = 3;

pub async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let timeout = election_timeout(bench.args);
    let load = Load::start(bench).await?;
    let (mut gaps, mut slowest, mut exits) = (Vec::new(), Duration::ZERO, Vec::new());
    let (began, mut terms) = (Instant::now(), 0);
    for _ in 0..bench.args.scale.repeats {
        load.wait_for_success().await?;
        tokio::time::sleep(timeout).await;
        let before = bench.cluster.leadership().await?;
        let stopped = Instant::now();
        exits.push(bench.cluster.node_mut(before.leader).stop(Stop::Terminate).await?);
        tokio::time::sleep(timeout * AFTERMATH).await;
        load.wait_for_success().await?;
        let felt = load.felt_since(stopped);
        gaps.push(felt.gap);
        slowest = slowest.max(felt.slowest);
        let back = bench.cluster.bring_back(before.leader).await;
        back.context("bring back the stopped leader")?;
        terms += bench.cluster.leadership().await?.term - before.term;
    }
    let rate = load.succeeded() as f64 / began.elapsed().as_secs_f64();
    let failed = load.finish(bench).await?;

    let [median, p90, longest] = spread(gaps);
    let [exit, ..] = spread(exits);
    let repeats = bench.args.scale.repeats as f64;
    let metrics = vec![
        (GAP_MEDIAN, millis(median)),
        ("longest gap, p90, ms", millis(p90)),
        ("longest gap, worst, ms", millis(longest)),
        ("longest request, worst, ms", millis(slowest)),
        (FAILED, failed as f64),
        ("terms per repetition", terms as f64 / repeats),
        ("SIGTERM to exit, median, ms", millis(exit)),
        ("puts/s of the clients", rate),
        ("repetitions", repeats),
    ];
    bench.samples.push(Sample {
        workload: bench.workload,
        clients: None,
        metrics,
    });
    Ok(())
}
