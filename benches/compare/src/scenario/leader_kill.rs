//! The leader is killed: how long until a write succeeds again, on whichever member, in units of the election timeout.
//!
//! Attempts begin every few milliseconds on each member that is left, and do not wait for one another: one that was
//! forwarded to the dead leader may hang for seconds while another on the same member would have succeeded long since.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use quorate_api::proto::etcdserverpb::{RangeRequest, RangeResponse};
use tokio::task::JoinSet;

use super::{election_timeout, millis, spread};
use crate::grpc::{Caller, Endpoint, Rpc};
use crate::node::Stop;
use crate::workload::{Bench, Sample, put};

/// The figure that a target is set for.
pub const MEDIAN: &str = "until a write succeeds, median, in election timeouts";

const ATTEMPT_EVERY: Duration = Duration::from_millis(5);
const RECOVERY_MAX: Duration = Duration::from_secs(60);
const WRITES_BETWEEN: usize = 100;

pub async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let timeout = election_timeout(bench.args);
    let mut times = Vec::new();
    let mut revision = 0;
    for repetition in 0..bench.args.scale.repeats {
        let leader = bench.cluster.leadership().await?.leader;
        let mut caller = Caller::connect(&bench.cluster.nodes()[leader].endpoint()).await?;
        for number in 0..WRITES_BETWEEN {
            revision = put(&mut caller, format!("/between/{number}").into(), "v".into()).await?;
        }
        // Kills come at all times of a heartbeat's period, not right after a write.
        tokio::time::sleep(timeout + timeout.mul_f64(0.1 * (repetition as f64 * 0.37).fract())).await;

        let nodes = bench.cluster.nodes().iter().enumerate();
        let left: Vec<_> = nodes
            .filter(|(at, _)| *at != leader)
            .map(|(_, node)| node.endpoint())
            .collect();
        let mut callers = Vec::new();
        for endpoint in &left {
            callers.push(Caller::connect(endpoint).await?);
        }
        let killed = Instant::now();
        bench.cluster.node_mut(leader).stop(Stop::Kill).await?;
        let (time, key, acknowledged) = first_success(callers, killed, repetition).await?;
        times.push(time);
        ensure!(
            acknowledged > revision,
            "revision {acknowledged} after {revision}: a write was lost with the leader"
        );
        for endpoint in &left {
            find(endpoint, &key, acknowledged).await?;
        }
        bench
            .cluster
            .bring_back(leader)
            .await
            .context("bring back the killed leader")?;
    }

    let [median, p90, longest] = spread(times);
    let in_timeouts = |time: Duration| time.as_secs_f64() / timeout.as_secs_f64();
    let metrics = vec![
        (MEDIAN, in_timeouts(median)),
        ("… p90, in election timeouts", in_timeouts(p90)),
        ("… median, ms", millis(median)),
        ("… p90, ms", millis(p90)),
        ("… longest, ms", millis(longest)),
        ("election timeout, ms", millis(timeout)),
        ("repetitions", bench.args.scale.repeats as f64),
    ];
    bench.samples.push(Sample {
        workload: bench.workload,
        clients: None,
        metrics,
    });
    Ok(())
}

/// Time from `killed` to the first answer; with the key that was written and its revision.
async fn first_success(
    callers: Vec<Caller>,
    killed: Instant,
    repetition: usize,
) -> anyhow::Result<(Duration, Bytes, i64)> {
    let mut attempts = JoinSet::new();
    let mut ticks = tokio::time::interval(ATTEMPT_EVERY);
    let mut last = None;
    for number in 0.. {
        if killed.elapsed() > RECOVERY_MAX {
            bail!("no write succeeds {RECOVERY_MAX:?} after the leader was killed; the last said: {last:?}");
        }
        tokio::select! {
            _ = ticks.tick() => for (at, caller) in callers.iter().enumerate() {
                let mut caller = caller.clone();
                let key = Bytes::from(format!("/after-kill/{repetition:03}/{at}/{number:06}"));
                attempts.spawn(async move {
                    let revision = put(&mut caller, key.clone(), "alive".into()).await?;
                    anyhow::Ok((Instant::now(), key, revision))
                });
            },
            Some(attempt) = attempts.join_next() => match attempt.context("an attempt died")? {
                Ok((at, key, revision)) => return Ok((at - killed, key, revision)),
                Err(error) => last = Some(format!("{error:#}")),
            },
        }
    }
    bail!("ran out of attempts")
}

/// Fails unless the member has the write.
async fn find(endpoint: &Endpoint, key: &Bytes, revision: i64) -> anyhow::Result<()> {
    let request = RangeRequest {
        key: key.clone(),
        ..Default::default()
    };
    let response: RangeResponse = Caller::connect(endpoint).await?.unary(Rpc::Range, &request).await?;
    let found = response.kvs.first().map_or(0, |kv| kv.mod_revision);
    ensure!(
        found == revision,
        "a write acknowledged at {revision} is at {found} on another member"
    );
    Ok(())
}
