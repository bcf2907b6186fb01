//! Many keys: what they cost in memory and on disk, and how soon a restarted server answers, after a stop in order and
//! after a kill in the middle of writes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use quorate_api::proto::etcdserverpb::{RangeRequest, RangeResponse};

use crate::args::Limit;
use crate::data::{self, Random, Values};
use crate::grpc::{Caller, Rpc};
use crate::load::{Step, Worker, drive};
use crate::meter::{Sampler, mib, quiet};
use crate::node::Stop;
use crate::procfs;
use crate::workload::{Bench, Revisions, Sample};

/// Names of figures that targets are set for.
pub const PEAK_LOADING: &str = "peak MiB while loading";
pub const RESTART_TERM: &str = "restart after SIGTERM, ms";
pub const RESTART_KILL: &str = "restart after SIGKILL under load, ms";

const VALUE_BYTES: usize = 1024;
const PREFIX: &str = "/registry/pods/";
/// Who writes when the server is killed, and for how long by then: long enough that a server which writes its file in the
/// background has done so, and has newer writes in its log alone.
const WRITERS: usize = 100;
const KILLED_AFTER: Duration = Duration::from_millis(2_500);

pub async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let keys = bench.args.scale.memory_keys;
    let last_key = data::memory_key(data::scattered(keys - 1, keys)); // the youngest write: lost first, if any is

    let (cpu, began) = (bench.cluster.cpu_time()?, Instant::now());
    let sampler = Sampler::start(bench.cluster.pids());
    bench.fill(keys, VALUE_BYTES, data::memory_key).await?;
    let elapsed = began.elapsed();
    quiet(&bench.cluster.pids()).await?;
    let cpu = bench.cluster.cpu_time()? - cpu;
    let peaks = sampler.finish().await?;
    let loaded = largest(bench)?;
    count(bench, keys).await?;
    let disk = disk_bytes(bench)?;

    let stopping = bench.cluster.stop_all(Stop::Terminate).await?;
    let after_stop = bench
        .cluster
        .restart_all(&last_key)
        .await
        .context("restart after SIGTERM")?;
    quiet(&bench.cluster.pids()).await?;
    let restarted = largest(bench)?;
    count(bench, keys).await?;

    let acknowledged = kill_under_load(bench).await?;
    let after_kill = bench
        .cluster
        .restart_all(&under_load_key(0))
        .await
        .context("restart after SIGKILL")?;
    count(bench, keys).await?;
    check_acknowledged(bench, &acknowledged).await?;

    let peak = peaks.largest();
    let metrics = vec![
        ("load ops/s", keys as f64 / elapsed.as_secs_f64()),
        ("load CPU µs/op", cpu.as_secs_f64() * 1e6 / keys as f64),
        (PEAK_LOADING, mib(peak.high_water())),
        ("… of it anonymous", mib(peak.anon)),
        ("… of it file", mib(peak.file)),
        ("Σ of the members' peaks, MiB", mib(peaks.sum())),
        ("MiB at rest after load", mib(loaded.resident())),
        ("data directories, MiB", mib(disk)),
        ("SIGTERM to exit, ms", millis(stopping)),
        (RESTART_TERM, millis(after_stop)),
        ("peak MiB of the restart", mib(restarted.peak)),
        ("MiB at rest after restart", mib(restarted.resident())),
        (RESTART_KILL, millis(after_kill)),
    ];
    bench.samples.push(Sample {
        workload: bench.workload,
        clients: None,
        metrics,
    });
    Ok(())
}

/// Memory of the member that holds most now.
fn largest(bench: &Bench<'_>) -> anyhow::Result<procfs::Memory> {
    let memories = bench.cluster.pids().into_iter().map(procfs::memory);
    let memories = memories
        .collect::<std::io::Result<Vec<_>>>()
        .context("read the servers' memory")?;
    let largest = memories.into_iter().max_by_key(|memory| memory.resident());
    largest.context("no member")
}

fn under_load_key(writer: usize) -> Bytes {
    format!("/under-load/{writer:05}").into()
}

/// Kills the server under writers; gives the last revision that each of them was told.
async fn kill_under_load(bench: &mut Bench<'_>) -> anyhow::Result<Revisions> {
    let acknowledged: Revisions = (0..WRITERS).map(|_| AtomicI64::new(0)).collect();
    let pool = bench.pool(WRITERS).await?;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| UnderLoad {
            caller: pool.caller(writer),
            values: bench.values.clone(),
            random: Random::new(writer as u64),
            writer,
            acknowledged: Arc::clone(&acknowledged),
        })
        .collect();
    let load = tokio::spawn(drive(writers, Limit::Time(KILLED_AFTER * 4)));
    tokio::time::sleep(KILLED_AFTER).await;
    ensure!(!load.is_finished(), "the clients ended before the kill");
    bench.cluster.stop_all(Stop::Kill).await?;
    let cut_off = load.await.context("the clients died")?;
    ensure!(cut_off.is_err(), "the clients did not notice the kill");
    ensure!(
        acknowledged.iter().all(|revision| revision.load(Ordering::Relaxed) > 0),
        "a client had no write acknowledged in {KILLED_AFTER:?}"
    );
    Ok(acknowledged)
}

/// Fails unless each writer's last acknowledged write, or the one that was under way, is there.
async fn check_acknowledged(bench: &Bench<'_>, acknowledged: &Revisions) -> anyhow::Result<()> {
    let mut caller = Caller::connect(&bench.cluster.any()).await?;
    for (writer, told) in acknowledged.iter().enumerate() {
        let request = RangeRequest {
            key: under_load_key(writer),
            ..Default::default()
        };
        let response: RangeResponse = caller.unary(Rpc::Range, &request).await?;
        let found = response.kvs.first().map_or(0, |kv| kv.mod_revision);
        let told = told.load(Ordering::Relaxed);
        ensure!(
            found >= told,
            "writer {writer} was told revision {told}, and {found} is there after the kill"
        );
    }
    Ok(())
}

struct UnderLoad {
    caller: Caller,
    values: Values,
    random: Random,
    writer: usize,
    acknowledged: Revisions,
}

impl Worker for UnderLoad {
    async fn step(&mut self) -> anyhow::Result<Step> {
        let value = self.values.cut(&mut self.random, VALUE_BYTES);
        let revision = crate::workload::put(&mut self.caller, under_load_key(self.writer), value).await?;
        self.acknowledged[self.writer].store(revision, Ordering::Relaxed);
        Ok(Step::Done)
    }
}

/// Fails unless all keys are there.
async fn count(bench: &Bench<'_>, keys: u64) -> anyhow::Result<()> {
    let range_end = data::prefix_end(PREFIX);
    let request = RangeRequest {
        key: PREFIX.into(),
        range_end,
        count_only: true,
        ..Default::default()
    };
    let mut caller = Caller::connect(&bench.cluster.any()).await?;
    let response: RangeResponse = caller.unary(Rpc::Range, &request).await?;
    ensure!(
        response.count == keys as i64,
        "{} of {keys} acknowledged keys are there",
        response.count
    );
    Ok(())
}

/// Of all members together.
fn disk_bytes(bench: &Bench<'_>) -> anyhow::Result<u64> {
    let folders = bench.cluster.nodes().iter();
    folders.map(|node| folder_bytes(&node.data_dir())).sum()
}

/// Allocated blocks, not lengths: files are laid out ahead of use.
fn folder_bytes(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry.context("read a data directory")?;
        // A file may be removed while we look; then it takes no space.
        let Ok(meta) = entry.metadata() else { continue };
        bytes += if meta.is_dir() {
            folder_bytes(&entry.path())?
        } else {
            meta.blocks() * 512
        };
    }
    Ok(bytes)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
