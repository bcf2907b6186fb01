//! One measured window: what the clients saw, and what the server spent on it, all members of it together.
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
/// CPU of one member within one look that still counts as quiet: two ticks.
const QUIET_CPU: Duration = Duration::from_millis(20);
const QUIET_MAX: Duration = Duration::from_secs(10);

/// Names of measured values; [`PERFORMANCE`] are the columns of the main table.
pub const OPS_PER_SECOND: &str = "ops/s";
pub const P50: &str = "p50 µs";
pub const P99: &str = "p99 µs";
pub const CPU: &str = "CPU µs/op";
pub const PEAK: &str = "peak MiB";
/// Of several members: each one's peak, added up. [`PEAK`] is that of the largest.
pub const PEAK_SUM: &str = "Σ peak MiB";
pub const CLIENT_CPU: &str = "client µs/op";
pub const PERFORMANCE: [&str; 7] = [OPS_PER_SECOND, P50, P99, CPU, PEAK, PEAK_SUM, CLIENT_CPU];
/// Further values, in the JSON only.
pub const OPS: &str = "ops";
pub const SECONDS: &str = "seconds";
pub const PEAK_ANON: &str = "peak anon MiB";
pub const PEAK_FILE: &str = "peak file MiB";
/// Share of one core that the clients used; near the number of `--threads` they were the bottleneck.
pub const CLIENT_CORES: &str = "client cores";

/// Terms that went by within the window: leadership was to have stayed where it was.
pub const ELECTIONS: &str = "elections";

pub type Metrics = Vec<(&'static str, f64)>;

/// An open window.
pub struct Meter {
    pids: Vec<u32>,
    server_cpu: Duration,
    client_cpu: Duration,
    sampler: Sampler,
}

impl Meter {
    /// Waits for the members to be quiet, then opens.
    pub async fn open(pids: Vec<u32>) -> anyhow::Result<Self> {
        quiet(&pids).await?;
        for pid in &pids {
            // Where the kernel refuses, peaks count from process start: an overstatement, the same for all servers.
            let _ = procfs::reset_peak(*pid);
        }
        Ok(Self {
            server_cpu: procfs::cpu_time_of(&pids).context("read the server's CPU time")?,
            client_cpu: procfs::cpu_time(std::process::id()).context("read our CPU time")?,
            sampler: Sampler::start(pids.clone()),
            pids,
        })
    }

    /// Closes once the server is quiet again.
    pub async fn close(self, latencies: Latencies, elapsed: Duration) -> anyhow::Result<Metrics> {
        let client_cpu = procfs::cpu_time(std::process::id()).context("read our CPU time")? - self.client_cpu;
        quiet(&self.pids).await?;
        let server_cpu = procfs::cpu_time_of(&self.pids).context("read the server's CPU time")? - self.server_cpu;
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
            (PEAK, mib(memory.largest().high_water())),
            (PEAK_SUM, mib(memory.sum())),
            (CLIENT_CPU, client_cpu.as_secs_f64() * 1e6 / ops),
            (OPS, ops),
            (SECONDS, seconds),
            (PEAK_ANON, mib(memory.largest().anon)),
            (PEAK_FILE, mib(memory.largest().file)),
            (CLIENT_CORES, client_cpu.as_secs_f64() / seconds),
        ])
    }
}

pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Waits until the members rest, but not for ever: a server that never rests is measured as it is.
pub async fn quiet(pids: &[u32]) -> anyhow::Result<()> {
    let began = Instant::now();
    let enough = QUIET_CPU * pids.len() as u32;
    let mut before = procfs::cpu_time_of(pids).context("read the server's CPU time")?;
    while began.elapsed() < QUIET_MAX {
        tokio::time::sleep(QUIET_LOOK).await;
        let now = procfs::cpu_time_of(pids).context("read the server's CPU time")?;
        if now - before <= enough {
            break;
        }
        before = now;
    }
    Ok(())
}

/// What each member held at its highest: `anon` and `file` of the moment when their sum was highest.
#[derive(Clone, Debug, PartialEq)]
pub struct Peaks(Vec<Memory>);

impl Peaks {
    pub fn largest(&self) -> Memory {
        let largest = self.0.iter().max_by_key(|memory| memory.high_water());
        largest.copied().unwrap_or_default()
    }

    /// The members need not have had their peaks at the same time.
    pub fn sum(&self) -> u64 {
        self.0.iter().map(|memory| memory.high_water()).sum()
    }

    fn look(&mut self, at: usize, memory: Memory) {
        let highest = &mut self.0[at];
        let peak = highest.peak.max(memory.peak);
        if memory.resident() > highest.resident() {
            *highest = memory;
        }
        highest.peak = peak;
    }
}

/// Follows the resident memory of servers.
pub struct Sampler {
    pids: Vec<u32>,
    task: JoinHandle<Peaks>,
    stop: tokio::sync::oneshot::Sender<()>,
}

impl Sampler {
    pub fn start(pids: Vec<u32>) -> Self {
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let watched = pids.clone();
        let task = tokio::spawn(async move {
            let mut peaks = Peaks(vec![Memory::default(); watched.len()]);
            loop {
                for (at, pid) in watched.iter().enumerate() {
                    // A restart in between makes single reads fail; the peak is over those that did not.
                    if let Ok(memory) = procfs::memory(*pid) {
                        peaks.look(at, memory);
                    }
                }
                tokio::select! {
                    _ = &mut stopped => return peaks,
                    () = tokio::time::sleep(SAMPLE_EVERY) => {}
                }
            }
        });
        Self { pids, task, stop }
    }

    pub async fn finish(self) -> anyhow::Result<Peaks> {
        let last = self
            .pids
            .iter()
            .map(|pid| procfs::memory(*pid))
            .collect::<std::io::Result<Vec<_>>>()?;
        let _ = self.stop.send(());
        let mut peaks = self.task.await.context("the sampler died")?;
        for (at, memory) in last.into_iter().enumerate() {
            peaks.look(at, memory);
        }
        Ok(peaks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_window_on_ourselves_adds_up() {
        let meter = Meter::open(vec![std::process::id()]).await.unwrap();
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

    #[test]
    fn of_several_members_the_largest_and_the_sum_are_told() {
        let memory = |anon, peak| Memory { anon, file: 1, peak };
        let mut peaks = Peaks(vec![Memory::default(); 2]);
        peaks.look(0, memory(10, 12));
        peaks.look(0, memory(5, 13));
        peaks.look(1, memory(20, 20));
        assert_eq!(peaks.largest(), memory(20, 20));
        assert_eq!(peaks.0[0], memory(10, 13));
        assert_eq!(peaks.sum(), 13 + 21);
    }

    #[tokio::test]
    async fn an_empty_window_is_an_error() {
        let meter = Meter::open(vec![std::process::id()]).await.unwrap();
        assert!(meter.close(Latencies::default(), Duration::from_secs(1)).await.is_err());
    }
}
