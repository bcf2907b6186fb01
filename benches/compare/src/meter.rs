//! One measured window: what the clients saw, and what the server spent on it.
//!
//! The window opens on a quiet server and closes when it is quiet again, so work that a server puts off until after its
//! answers (background commits, collections) is charged to the operations that caused it.

use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::task::JoinHandle;

use crate::load::Latencies;
use crate::procfs::{self, Memory};

const SAMPLE_EVERY: Duration = Duration::from_millis(100);
const QUIET_LOOK: Duration = Duration::from_millis(250);
/// CPU within one look that still counts as quiet: two ticks.
const QUIET_CPU: Duration = Duration::from_millis(20);
const QUIET_MAX: Duration = Duration::from_secs(10);

/// Names of measured values; [`PERFORMANCE`] are the columns of the main table.
pub const OPS_PER_SECOND: &str = "ops/s";
pub const P50: &str = "p50 µs";
pub const P99: &str = "p99 µs";
pub const CPU: &str = "CPU µs/op";
pub const PEAK: &str = "peak MiB";
pub const CLIENT_CPU: &str = "client µs/op";
pub const PERFORMANCE: [&str; 6] = [OPS_PER_SECOND, P50, P99, CPU, PEAK, CLIENT_CPU];
/// Further values, in the JSON only.
pub const OPS: &str = "ops";
pub const SECONDS: &str = "seconds";
pub const PEAK_ANON: &str = "peak anon MiB";
pub const PEAK_FILE: &str = "peak file MiB";
/// Share of one core that the clients used; near the number of `--threads` they were the bottleneck.
pub const CLIENT_CORES: &str = "client cores";

pub type Metrics = Vec<(&'static str, f64)>;

/// An open window.
pub struct Meter {
    pid: u32,
    server_cpu: Duration,
    client_cpu: Duration,
    sampler: Sampler,
}

impl Meter {
    /// Waits for the server to be quiet, then opens.
    pub async fn open(pid: u32) -> anyhow::Result<Self> {
        quiet(pid).await?;
        // Where the kernel refuses, the peak counts from process start: an overstatement, the same for all servers.
        let _ = procfs::reset_peak(pid);
        Ok(Self {
            pid,
            server_cpu: procfs::cpu_time(pid).context("read the server's CPU time")?,
            client_cpu: procfs::cpu_time(std::process::id()).context("read our CPU time")?,
            sampler: Sampler::start(pid),
        })
    }

    /// Closes once the server is quiet again.
    pub async fn close(self, latencies: Latencies, elapsed: Duration) -> anyhow::Result<Metrics> {
        let client_cpu = procfs::cpu_time(std::process::id()).context("read our CPU time")? - self.client_cpu;
        quiet(self.pid).await?;
        let server_cpu = procfs::cpu_time(self.pid).context("read the server's CPU time")? - self.server_cpu;
        let memory = self.sampler.finish().await.context("read the server's memory")?;
        let ops = latencies.len() as f64;
        anyhow::ensure!(ops > 0.0, "no operation finished within the window");
        let [p50, p99] = latencies.quantiles([0.5, 0.99]);
        let seconds = elapsed.as_secs_f64();
        Ok(vec![
            (OPS_PER_SECOND, ops / seconds),
            (P50, p50),
            (P99, p99),
            (CPU, server_cpu.as_secs_f64() * 1e6 / ops),
            (PEAK, mib(memory.peak.max(memory.resident()))),
            (CLIENT_CPU, client_cpu.as_secs_f64() * 1e6 / ops),
            (OPS, ops),
            (SECONDS, seconds),
            (PEAK_ANON, mib(memory.anon)),
            (PEAK_FILE, mib(memory.file)),
            (CLIENT_CORES, client_cpu.as_secs_f64() / seconds),
        ])
    }
}

pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Waits until the server rests, but not for ever: a server that never rests is measured as it is.
pub async fn quiet(pid: u32) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut before = procfs::cpu_time(pid).context("read the server's CPU time")?;
    while began.elapsed() < QUIET_MAX {
        tokio::time::sleep(QUIET_LOOK).await;
        let now = procfs::cpu_time(pid).context("read the server's CPU time")?;
        if now - before <= QUIET_CPU {
            break;
        }
        before = now;
    }
    Ok(())
}

/// Follows a server's resident memory: `anon` and `file` of the moment when their sum was highest.
pub struct Sampler {
    pid: u32,
    task: JoinHandle<Memory>,
    stop: tokio::sync::oneshot::Sender<()>,
}

impl Sampler {
    pub fn start(pid: u32) -> Self {
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let mut highest = Memory::default();
            loop {
                // A restart in between makes single reads fail; the peak is over those that did not.
                if let Ok(memory) = procfs::memory(pid) {
                    if memory.resident() > highest.resident() {
                        highest = Memory {
                            peak: highest.peak,
                            ..memory
                        };
                    }
                    highest.peak = highest.peak.max(memory.peak);
                }
                tokio::select! {
                    _ = &mut stopped => return highest,
                    () = tokio::time::sleep(SAMPLE_EVERY) => {}
                }
            }
        });
        Self { pid, task, stop }
    }

    pub async fn finish(self) -> anyhow::Result<Memory> {
        let last = procfs::memory(self.pid)?;
        let _ = self.stop.send(());
        let mut highest = self.task.await.context("the sampler died")?;
        highest.peak = highest.peak.max(last.peak);
        Ok(highest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_window_on_ourselves_adds_up() {
        let meter = Meter::open(std::process::id()).await.unwrap();
        let mut latencies = Latencies::default();
        for _ in 0..10 {
            latencies.record(Duration::from_micros(3));
        }
        let metrics = meter.close(latencies, Duration::from_millis(100)).await.unwrap();
        let value = |name| metrics.iter().find(|(other, _)| *other == name).unwrap().1;
        assert!((value(OPS_PER_SECOND) - 100.0).abs() < 1e-6);
        assert_eq!(value(P50), 3.0);
        assert!(value(PEAK) > 1.0);
        assert!(value(PEAK_ANON) + value(PEAK_FILE) <= value(PEAK) * 1.2);
    }

    #[tokio::test]
    async fn an_empty_window_is_an_error() {
        let meter = Meter::open(std::process::id()).await.unwrap();
        assert!(meter.close(Latencies::default(), Duration::from_secs(1)).await.is_err());
    }
}
