//! Each member is restarted in turn, as an upgrade does it, under retrying clients: leader changes and failed requests.
//!
//! The next one goes down when the last one serves, has caught up, and two election timeouts have passed.

use std::time::{Duration, Instant};

use anyhow::Context;

use super::steady::Load;
use super::terms::Terms;
use super::{election_timeout, millis};
use crate::cluster::Via;
use crate::node::Stop;
use crate::workload::{Bench, Sample};

/// Figures that targets are set for.
pub const LEADERS: &str = "leader changes per restart, most";
pub const FAILED: &str = "failed requests";

const SETTLE: u32 = 2;

pub async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let timeout = election_timeout(bench.args);
    let terms = Terms::watch(bench.cluster.endpoints(Via::All).await?);
    let load = Load::start(bench).await?;
    load.wait_for_success().await?;
    tokio::time::sleep(timeout * SETTLE).await;

    let members = bench.cluster.nodes().len();
    let (mut changes, mut most_changes, mut most_terms) = (0, 0, 0);
    let (mut gap, mut slowest, mut back) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let (began, before) = (Instant::now(), load.succeeded());
    let leader = bench.cluster.leadership().await?.leader;
    // The leader in the middle: one goes down before it that has to come back as its follower, one after it that may
    // have taken over.
    for at in (0..members).map(|step| (leader + members - 1 + step) % members) {
        let (leaders, term) = (terms.leaders(), terms.highest());
        let stopped = Instant::now();
        bench.cluster.node_mut(at).stop(Stop::Terminate).await?;
        let down = Instant::now();
        bench.cluster.bring_back(at).await.context("bring back a member")?;
        back = back.max(down.elapsed());
        load.wait_for_success().await?;
        tokio::time::sleep(timeout * SETTLE).await;
        let felt = load.felt_since(stopped);
        (gap, slowest) = (gap.max(felt.gap), slowest.max(felt.slowest));
        let new_leaders = terms.leaders() - leaders;
        changes += new_leaders;
        most_changes = most_changes.max(new_leaders);
        most_terms = most_terms.max(terms.highest() - term);
    }
    let rate = (load.succeeded() - before) as f64 / began.elapsed().as_secs_f64();
    let failed = load.finish(bench).await?;

    let metrics = vec![
        (LEADERS, most_changes as f64),
        ("leader changes in all", changes as f64),
        ("terms per restart, most", most_terms as f64),
        (FAILED, failed as f64),
        ("longest gap, ms", millis(gap)),
        ("longest request, ms", millis(slowest)),
        ("longest restart until caught up, ms", millis(back)),
        ("puts/s of the clients", rate),
        ("restarts", members as f64),
    ];
    bench.samples.push(Sample {
        workload: bench.workload,
        clients: None,
        metrics,
    });
    Ok(())
}
