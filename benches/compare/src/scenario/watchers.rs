//! Many idle watchers: what they cost in memory. Each watches a prefix of its own, as informers of many namespaces do.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use prost::Message;
use quorate_api::proto::etcdserverpb::WatchResponse;

use crate::grpc::{Caller, Rpc};
use crate::meter::{mib, quiet};
use crate::procfs;
use crate::workload::watch::open_watchers;
use crate::workload::{Bench, Sample, put};

/// The figure that a target is set for.
pub const OVER_IDLE: &str = "MiB over idle";

const WATCHERS_PER_STREAM: u64 = 100;
const VALUE_BYTES: usize = 256;
const DELIVERY_MAX: Duration = Duration::from_secs(30);

fn prefix(stream: u64, watcher: u64) -> String {
    format!("/watched/namespace-{stream:05}/resource-{watcher:05}/")
}

pub async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let streams = bench.args.scale.watchers.div_ceil(WATCHERS_PER_STREAM);
    let watchers = streams * WATCHERS_PER_STREAM;
    let pid = bench.node.pid();
    // Some traffic first: what a server allocates on its first calls is not the watchers' cost.
    let mut caller = Caller::connect(&bench.node.endpoint()).await?;
    for number in 0..200 {
        put(
            &mut caller,
            format!("/before/{number}").into(),
            vec![b'v'; VALUE_BYTES].into(),
        )
        .await?;
    }
    quiet(pid).await?;
    let (idle, cpu) = (procfs::memory(pid)?, procfs::cpu_time(pid)?);

    let pool = bench.pool(streams as usize).await?;
    let mut open = Vec::new();
    for stream in 0..streams {
        let (mut questions, mut answers) = pool.caller(stream as usize).stream(Rpc::Watch).await?;
        let prefixes = (0..WATCHERS_PER_STREAM).map(|watcher| prefix(stream, watcher));
        open_watchers(&mut questions, &mut answers, prefixes)
            .await
            .context("open watchers")?;
        open.push((questions, answers));
    }
    quiet(pid).await?;
    let (watching, cpu) = (procfs::memory(pid)?, procfs::cpu_time(pid)? - cpu);

    // One event on each stream, for a watcher that differs from stream to stream: they are alive, and each sees its own.
    for (stream, (_, answers)) in open.iter_mut().enumerate() {
        let stream = stream as u64;
        let key = Bytes::from(format!("{}object", prefix(stream, stream % WATCHERS_PER_STREAM)));
        put(&mut caller, key.clone(), vec![b'v'; VALUE_BYTES].into()).await?;
        let answer = tokio::time::timeout(DELIVERY_MAX, answers.next()).await;
        let Some(message) = answer.context("an event was not delivered")?? else {
            bail!("a watch stream ended")
        };
        let events = WatchResponse::decode(message)?.events;
        let keys: Vec<_> = events
            .iter()
            .filter_map(|event| Some(&event.kv.as_ref()?.key))
            .collect();
        ensure!(keys == [&key], "stream {stream} got events for {keys:?}");
    }
    quiet(pid).await?;
    let after = procfs::memory(pid)?;

    let over_idle = |memory: procfs::Memory| mib(memory.resident()) - mib(idle.resident());
    let metrics = vec![
        ("MiB idle", mib(idle.resident())),
        (OVER_IDLE, over_idle(watching)),
        ("MiB over idle after events", over_idle(after)),
        ("KiB per watcher", over_idle(watching) * 1024.0 / watchers as f64),
        ("peak MiB", mib(after.peak)),
        ("CPU µs per watcher", cpu.as_secs_f64() * 1e6 / watchers as f64),
    ];
    bench.samples.push(Sample {
        workload: bench.workload,
        clients: None,
        metrics,
    });
    Ok(())
}
