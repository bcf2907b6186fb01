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
    let pids = bench.cluster.pids();
    // Some traffic first: what a server allocates on its first calls is not the watchers' cost.
    let mut caller = Caller::connect(&bench.cluster.any()).await?;
    for number in 0..200 {
        put(
            &mut caller,
            format!("/before/{number}").into(),
            vec![b'v'; VALUE_BYTES].into(),
        )
        .await?;
    }
    quiet(&pids).await?;
    let (idle, cpu) = (resident(&pids)?, bench.cluster.cpu_time()?);

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
    quiet(&pids).await?;
    let (watching, cpu) = (resident(&pids)?, bench.cluster.cpu_time()? - cpu);

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
    quiet(&pids).await?;
    let after = resident(&pids)?;

    let over_idle = |resident: u64| mib(resident) - mib(idle);
    let metrics = vec![
        ("MiB idle", mib(idle)),
        (OVER_IDLE, over_idle(watching)),
        ("MiB over idle after events", over_idle(after)),
        ("KiB per watcher", over_idle(watching) * 1024.0 / watchers as f64),
        ("peak MiB", mib(peak(&pids)?)),
        ("CPU µs per watcher", cpu.as_secs_f64() * 1e6 / watchers as f64),
    ];
    bench.samples.push(Sample {
        workload: bench.workload,
        clients: None,
        metrics,
    });
    Ok(())
}

/// Of all members together: watchers may be spread over them.
fn resident(pids: &[u32]) -> anyhow::Result<u64> {
    let sizes = pids.iter().map(|pid| Ok(procfs::memory(*pid)?.resident()));
    sizes.sum::<std::io::Result<u64>>().context("read the servers' memory")
}

fn peak(pids: &[u32]) -> anyhow::Result<u64> {
    let sizes = pids.iter().map(|pid| Ok(procfs::memory(*pid)?.peak));
    sizes.sum::<std::io::Result<u64>>().context("read the servers' memory")
}
