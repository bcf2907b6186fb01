//! Many keys: what they cost in memory and on disk, and how soon a restarted server answers.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use quorate_api::proto::etcdserverpb::{RangeRequest, RangeResponse};

use crate::data;
use crate::grpc::{Caller, Rpc};
use crate::meter::{Sampler, mib, quiet};
use crate::node::Stop;
use crate::procfs;
use crate::workload::{Bench, Sample};

const VALUE_BYTES: usize = 1024;
const PREFIX: &str = "/registry/pods/";

pub async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let keys = bench.args.scale.memory_keys;
    let last_key = data::memory_key(data::scattered(keys - 1, keys)); // the youngest write: lost first, if any is

    let (cpu, began) = (procfs::cpu_time(bench.node.pid())?, Instant::now());
    let sampler = Sampler::start(bench.node.pid());
    bench.fill(keys, VALUE_BYTES, data::memory_key).await?;
    let elapsed = began.elapsed();
    quiet(bench.node.pid()).await?;
    let cpu = procfs::cpu_time(bench.node.pid())? - cpu;
    let peak = sampler.finish().await?;
    let loaded = procfs::memory(bench.node.pid())?;
    count(bench, keys).await?;
    let disk = disk_bytes(&bench.node.data_dir())?;

    let stopping = bench.node.stop(Stop::Terminate).await?;
    let after_stop = bench.node.restart(&last_key).await.context("restart after SIGTERM")?;
    quiet(bench.node.pid()).await?;
    let restarted = procfs::memory(bench.node.pid())?;
    count(bench, keys).await?;

    // A write right before the kill, so that there is something to recover.
    let mut caller = Caller::connect(&bench.node.endpoint()).await?;
    crate::workload::put(&mut caller, "/last".into(), "before the kill".into()).await?;
    bench.node.stop(Stop::Kill).await?;
    let after_kill = bench.node.restart(b"/last").await.context("restart after SIGKILL")?;
    count(bench, keys).await?;

    let metrics = vec![
        ("load ops/s", keys as f64 / elapsed.as_secs_f64()),
        ("load CPU µs/op", cpu.as_secs_f64() * 1e6 / keys as f64),
        ("peak MiB while loading", mib(peak.peak.max(peak.resident()))),
        ("… of it anonymous", mib(peak.anon)),
        ("… of it file", mib(peak.file)),
        ("MiB at rest after load", mib(loaded.resident())),
        ("data directory MiB", mib(disk)),
        ("SIGTERM to exit, ms", millis(stopping)),
        ("restart after SIGTERM, ms", millis(after_stop)),
        ("peak MiB of the restart", mib(restarted.peak)),
        ("MiB at rest after restart", mib(restarted.resident())),
        ("restart after SIGKILL, ms", millis(after_kill)),
    ];
    bench.samples.push(Sample {
        workload: bench.workload,
        clients: None,
        metrics,
    });
    Ok(())
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
    let mut caller = Caller::connect(&bench.node.endpoint()).await?;
    let response: RangeResponse = caller.unary(Rpc::Range, &request).await?;
    ensure!(
        response.count == keys as i64,
        "{} of {keys} acknowledged keys are there",
        response.count
    );
    Ok(())
}

/// Allocated blocks, not lengths: files are laid out ahead of use.
fn disk_bytes(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry.context("read a data directory")?;
        // A file may be removed while we look; then it takes no space.
        let Ok(meta) = entry.metadata() else { continue };
        bytes += if meta.is_dir() {
            disk_bytes(&entry.path())?
        } else {
            meta.blocks() * 512
        };
    }
    Ok(bytes)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
