//! What a process has used, read from `/proc`: CPU time of all its threads and resident memory. A cluster's CPU time is
//! that of all its processes together.

use std::fs;
use std::io;
use std::time::Duration;

/// Resident memory in bytes. `anon + file` is what the process holds of its own and of mapped files.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    pub anon: u64,
    pub file: u64,
    /// Highest resident size (anonymous, file and shared) since the process began or [`reset_peak`].
    pub peak: u64,
}

impl Memory {
    pub fn resident(self) -> u64 {
        self.anon + self.file
    }

    /// The most that is known to have been resident.
    pub fn high_water(self) -> u64 {
        self.peak.max(self.resident())
    }
}

/// User plus system time of all threads, dead ones included. Its grain is the kernel's clock tick, mostly 10 ms.
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let ticks = stat_ticks(&text).ok_or_else(|| io::Error::other(format!("unexpected /proc/{pid}/stat: {text}")))?;
    Ok(Duration::from_secs_f64(
        ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
    ))
}

/// [`cpu_time`] of several processes together.
pub fn cpu_time_of(pids: &[u32]) -> io::Result<Duration> {
    pids.iter().map(|pid| cpu_time(*pid)).sum()
}

pub fn memory(pid: u32) -> io::Result<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    status_memory(&text).ok_or_else(|| io::Error::other(format!("no resident sizes in /proc/{pid}/status")))
}

/// Starts [`Memory::peak`] anew from the present size. The kernel may refuse; then peaks count from process start.
pub fn reset_peak(pid: u32) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5")
}

fn stat_ticks(text: &str) -> Option<u64> {
    // The command name may hold spaces and brackets, so fields count from its last bracket.
    let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn status_memory(text: &str) -> Option<Memory> {
    let bytes = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim()
            .strip_suffix("kB")?
            .trim()
            .parse::<u64>()
            .ok()
            .map(|kib| kib * 1024)
    };
    Some(Memory {
        anon: bytes("RssAnon")?,
        file: bytes("RssFile")?,
        peak: bytes("VmHWM")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_a_hostile_command_name() {
        let text = "42 (a) b) (c) S 1 2 3 4 5 6 7 8 9 10 31 11 0 0 20 0 9 0 1";
        assert_eq!(stat_ticks(text), Some(42));
        assert_eq!(stat_ticks("42 (etcd"), None);
    }

    #[test]
    fn own_memory_and_time_are_plausible() {
        let pid = std::process::id();
        let block = vec![1u8; 32 << 20];
        let memory = memory(pid).unwrap();
        assert!(memory.anon >= block.len() as u64, "{memory:?}");
        assert!(memory.peak >= memory.anon, "{memory:?}");
        let (once, twice) = (cpu_time(pid).unwrap(), cpu_time_of(&[pid, pid]).unwrap());
        assert!(twice >= once * 2, "{}", block.len());
    }

    #[test]
    fn status_without_sizes_is_not_zero_memory() {
        assert_eq!(status_memory("Name:\tx\nVmHWM:\t 1 kB\n"), None);
        let text = "VmHWM:\t  12 kB\nRssAnon:\t   4 kB\nRssFile:\t   8 kB\n";
        assert_eq!(
            status_memory(text),
            Some(Memory {
                anon: 4096,
                file: 8192,
                peak: 12288
            })
        );
    }
}
