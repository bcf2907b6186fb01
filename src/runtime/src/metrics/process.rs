//! The process as the kernel sees it, read from `/proc` at scrape time; and the `go_*` families, which dashboards and
//! etcd's own tests ask for. We have no Go runtime, so those carry the nearest true figure (resident memory for the
//! heap, tasks for goroutines) or the value of an idle one.

use std::fs;

use super::{Kind, Page, Source};

/// Clock ticks per second in `/proc/*/stat`: fixed by the kernel's interface on all platforms we build for.
const USER_HZ: f64 = 100.0;
/// What Go shows for "no limit".
const UNLIMITED: f64 = u64::MAX as f64;

pub(super) struct ProcessSource;

impl Source for ProcessSource {
    fn write(&self, page: &mut Page) {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let status = Status::parse(&read("/proc/self/status"));
        let limits = Limits::parse(&read("/proc/self/limits"));
        let times = Times::parse(&read("/proc/self/stat"), &read("/proc/stat"));
        let octets = Octets::parse(&read("/proc/self/net/netstat"));
        let open_fds = open_fds();

        let mut gauge = |name, help, value| page.single(name, help, Kind::Gauge, value);
        gauge("os_fd_limit", "Descriptors this process may open.", limits.open_files);
        gauge("os_fd_used", "Descriptors this process has open.", open_fds);
        gauge(
            "process_max_fds",
            "Descriptors this process may open.",
            limits.open_files,
        );
        gauge("process_open_fds", "Descriptors this process has open.", open_fds);
        gauge("process_resident_memory_bytes", "Memory in RAM.", status.resident);
        gauge(
            "process_start_time_seconds",
            "Unix time at which the process started.",
            times.started,
        );
        gauge(
            "process_virtual_memory_bytes",
            "Address space in use.",
            status.virtual_size,
        );
        gauge(
            "process_virtual_memory_max_bytes",
            "Address space this process may use.",
            limits.address_space,
        );
        let mut counter = |name, help, value| page.single(name, help, Kind::Counter, value);
        counter(
            "process_cpu_seconds_total",
            "User and system CPU time spent.",
            times.cpu,
        );
        counter(
            "process_network_receive_bytes_total",
            "Bytes received in the network namespace.",
            octets.received,
        );
        counter(
            "process_network_transmit_bytes_total",
            "Bytes sent in the network namespace.",
            octets.sent,
        );

        write_go(page, &status);
    }
}

fn write_go(page: &mut Page, status: &Status) {
    let tasks = tokio::runtime::Handle::try_current().map_or(0, |handle| handle.metrics().num_alive_tasks());
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let heap = status.anonymous;

    let help = "Pauses for garbage collection: none.";
    page.family("go_gc_duration_seconds", help, Kind::Summary)
        .empty_summary(&[0.0, 0.25, 0.5, 0.75, 1.0]);
    let help = "Compatibility: the release etcd is built with.";
    page.family("go_info", help, Kind::Gauge)
        .sample(r#"version="go1.26""#, 1.0);
    let mut gauge = |name, help, value| page.single(name, help, Kind::Gauge, value);
    gauge("go_gc_gogc_percent", "Compatibility: Go's default.", 100.0);
    gauge("go_gc_gomemlimit_bytes", "Compatibility: no limit.", i64::MAX as f64);
    gauge(
        "go_goroutines",
        "Asynchronous tasks, plus one for the process.",
        (tasks + 1) as f64,
    );
    gauge("go_sched_gomaxprocs_threads", "CPUs this process may use.", cpus as f64);
    gauge("go_threads", "Threads of this process.", status.threads);

    const ANONYMOUS: &str = "Anonymous memory in RAM.";
    for name in ["alloc", "heap_alloc", "heap_inuse", "heap_sys"] {
        page.family(format!("go_memstats_{name}_bytes"), ANONYMOUS, Kind::Gauge)
            .sample("", heap);
    }
    page.single("go_memstats_sys_bytes", "Memory in RAM.", Kind::Gauge, status.resident);
    page.single(
        "go_memstats_stack_inuse_bytes",
        "Stack of the main thread.",
        Kind::Gauge,
        status.stack,
    );
    page.single(
        "go_memstats_stack_sys_bytes",
        "Stack of the main thread.",
        Kind::Gauge,
        status.stack,
    );
    // a counter may not fall, so the high-water mark stands for "ever allocated"
    let help = "High-water mark of memory in RAM.";
    page.single("go_memstats_alloc_bytes_total", help, Kind::Counter, status.peak);
    const NONE: &str = "Compatibility: not known here.";
    for name in ["frees_total", "mallocs_total"] {
        page.family(format!("go_memstats_{name}"), NONE, Kind::Counter)
            .sample("", 0.0);
    }
    for name in [
        "buck_hash_sys_bytes",
        "gc_sys_bytes",
        "heap_idle_bytes",
        "heap_objects",
        "heap_released_bytes",
        "last_gc_time_seconds",
        "mcache_inuse_bytes",
        "mcache_sys_bytes",
        "mspan_inuse_bytes",
        "mspan_sys_bytes",
        "next_gc_bytes",
        "other_sys_bytes",
    ] {
        page.family(format!("go_memstats_{name}"), NONE, Kind::Gauge)
            .sample("", 0.0);
    }
}

/// Since Linux 6.2 the folder's size is the number of descriptors; before, they are counted.
fn open_fds() -> f64 {
    let folder = "/proc/self/fd";
    match fs::metadata(folder) {
        Ok(metadata) if metadata.len() > 0 => metadata.len() as f64,
        // one of them is the folder itself, open for counting
        _ => fs::read_dir(folder).map_or(0.0, |entries| entries.count().saturating_sub(1) as f64),
    }
}

/// From `/proc/self/status`, in bytes. What is missing there is zero here.
#[derive(Debug, Default, PartialEq)]
struct Status {
    resident: f64,
    anonymous: f64,
    peak: f64,
    virtual_size: f64,
    stack: f64,
    threads: f64,
}

impl Status {
    fn parse(text: &str) -> Self {
        let mut status = Self::default();
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            let number = value
                .split_whitespace()
                .next()
                .and_then(|word| word.parse::<f64>().ok())
                .unwrap_or_default();
            match key {
                "VmRSS" => status.resident = number * 1024.0,
                "RssAnon" => status.anonymous = number * 1024.0,
                "VmHWM" => status.peak = number * 1024.0,
                "VmSize" => status.virtual_size = number * 1024.0,
                "VmStk" => status.stack = number * 1024.0,
                "Threads" => status.threads = number,
                _ => {}
            }
        }
        status
    }
}

#[derive(Debug, PartialEq)]
struct Limits {
    open_files: f64,
    address_space: f64,
}

impl Limits {
    fn parse(text: &str) -> Self {
        let soft = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let word = line.and_then(|rest| rest.split_whitespace().next());
            word.map_or(0.0, |word| word.parse().unwrap_or(UNLIMITED))
        };
        Self {
            open_files: soft("Max open files"),
            address_space: soft("Max address space"),
        }
    }
}

#[derive(Debug, PartialEq)]
struct Times {
    cpu: f64,
    started: f64,
}

impl Times {
    fn parse(own: &str, system: &str) -> Self {
        // the second field is the program's name in parentheses and may hold anything
        let after_name = own.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks = |field: usize| {
            let word = after_name.split_whitespace().nth(field - 3);
            word.and_then(|word| word.parse::<f64>().ok()).unwrap_or_default() / USER_HZ
        };
        let boot = system.lines().find_map(|line| line.strip_prefix("btime "));
        let boot = boot
            .and_then(|word| word.trim().parse::<f64>().ok())
            .unwrap_or_default();
        Self {
            cpu: ticks(14) + ticks(15),
            started: boot + ticks(22),
        }
    }
}

#[derive(Debug, Default, PartialEq)]
struct Octets {
    received: f64,
    sent: f64,
}

impl Octets {
    /// `netstat` has pairs of lines: names, then values.
    fn parse(text: &str) -> Self {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("IpExt:"));
        let (Some(names), Some(values)) = (lines.next(), lines.next()) else {
            return Self::default();
        };
        let mut octets = Self::default();
        for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
            let value = value.parse().unwrap_or_default();
            match name {
                "InOctets" => octets.received = value,
                "OutOctets" => octets.sent = value,
                _ => {}
            }
        }
        octets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_understood() {
        let status = Status::parse(
            "Name:\tx\nVmSize:\t   3060 kB\nVmHWM:\t 20 kB\nVmRSS:\t 16 kB\nRssAnon: 4 kB\nThreads:\t7\n",
        );
        assert_eq!(
            (status.virtual_size, status.resident, status.threads),
            (3_133_440.0, 16_384.0, 7.0)
        );
        let limits = Limits::parse(
            "Limit  Soft Limit  Hard Limit  Units\nMax open files   1024   524288   files\nMax address space  unlimited  unlimited  bytes\n",
        );
        assert_eq!(
            limits,
            Limits {
                open_files: 1024.0,
                address_space: UNLIMITED
            }
        );
        let own = "42 (a) b) S 1 1 1 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 7 0 12345 3133440 400";
        let times = Times::parse(own, "cpu 1 2\nbtime 1000\n");
        assert_eq!(
            times,
            Times {
                cpu: 2.0,
                started: 1123.45
            }
        );
        let octets = Octets::parse("TcpExt: A\nTcpExt: 1\nIpExt: InNoRoutes InOctets OutOctets\nIpExt: 0 12 34\n");
        assert_eq!(
            octets,
            Octets {
                received: 12.0,
                sent: 34.0
            }
        );
    }

    #[test]
    fn absent_proc_files_give_zeros() {
        assert_eq!(Status::parse(""), Status::default());
        assert_eq!(Limits::parse("").open_files, 0.0);
        assert_eq!(Times::parse("", ""), Times { cpu: 0.0, started: 0.0 });
        assert_eq!(Octets::parse(""), Octets::default());
    }
}
