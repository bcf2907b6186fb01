//! One server process: its flags, data directory and log.
//!
//! Started the way etcd's own suites start a member (`--flag=value`, no `HOME`, `ETCD_…` only), so that what passes
//! here has seen the same command line. The log is a file that the process writes itself: nothing is lost when it is
//! killed, and nobody has to drain a pipe.

use std::ffi::OsString;
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::binary::Binary;
use crate::tls::Material;
use crate::wait::until;
use crate::{Etcdctl, Rpc, http, ports, reaper};

/// A start, election included, is far quicker; this only bounds a test that would hang.
const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(20);
const TAIL_BYTES: u64 = 6_000;
/// 3.7's line, then what 3.4 says with its JSON and its text logger.
const READY: [&str; 3] = [
    "ready to serve client requests",
    "serving client traffic",
    "serving insecure client requests",
];
/// What a panic leaves in the log: the record of our hook, or the standard library's line where no hook is set yet.
const PANICS: [&str; 2] = [r#""level":"panic""#, "panicked at"];

/// How to start a node. Addresses stay the same over restarts.
#[derive(Clone, Debug)]
pub struct Config {
    pub binary: Binary,
    pub name: String,
    /// Holds the data directory, the log and whatever else the node writes.
    pub dir: PathBuf,
    pub client_port: u16,
    pub peer_port: u16,
    /// Set to give `/health`, `/metrics` and the like a plaintext port of their own.
    pub metrics_port: Option<u16>,
    /// Where the other members are told to dial, when that is not the peer port itself (see [`crate::links`]).
    pub advertised_peer_port: Option<u16>,
    /// Client TLS with client certificates required.
    pub tls: Option<Material>,
    /// The same between members.
    pub peer_tls: Option<Material>,
    /// `name=peer URL` of every founding member; empty means: this one alone.
    pub initial_cluster: String,
    /// `new` or `existing`.
    pub initial_cluster_state: String,
    /// More flags, after ours; a repeated flag wins.
    pub extra: Vec<String>,
    pub env: Vec<(String, String)>,
    pub stderr: Stderr,
    /// Words put before the program, e.g. `prlimit --fsize=…`.
    pub wrapper: Vec<OsString>,
}

/// Where the process writes its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stderr {
    File,
    /// A pipe that is held open and never read: what a stuck log collector looks like. [`Node::stuff_log_pipe`]
    /// fills it, [`Node::close_log_pipe`] takes the reader away.
    UnreadPipe,
}

impl Config {
    /// A single member on free ports, everything under `dir`.
    pub fn new(binary: Binary, dir: &Path) -> Self {
        Self {
            binary,
            name: "default".to_owned(),
            dir: dir.to_owned(),
            client_port: ports::free(),
            peer_port: ports::free(),
            metrics_port: None,
            advertised_peer_port: None,
            tls: None,
            peer_tls: None,
            initial_cluster: String::new(),
            initial_cluster_state: "new".to_owned(),
            extra: Vec::new(),
            env: Vec::new(),
            stderr: Stderr::File,
            wrapper: Vec::new(),
        }
    }

    pub fn flag(mut self, flag: &str) -> Self {
        self.extra.push(flag.to_owned());
        self
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.join(format!("{}.data", self.name))
    }

    pub fn log_file(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.name))
    }

    pub fn client_url(&self) -> String {
        url(self.tls.as_ref(), self.client_port)
    }

    /// A new connection, with the client's certificate where clients need one.
    pub fn rpc(&self) -> Rpc {
        match &self.tls {
            Some(material) => Rpc::with_tls(&self.client_url(), material),
            None => Rpc::new(&self.client_url()),
        }
    }

    /// Where it listens for peers.
    pub fn peer_url(&self) -> String {
        url(self.peer_tls.as_ref(), self.peer_port)
    }

    /// Where peers are told to dial it.
    pub fn advertised_peer_url(&self) -> String {
        url(
            self.peer_tls.as_ref(),
            self.advertised_peer_port.unwrap_or(self.peer_port),
        )
    }

    /// The flags, in the order etcd's suites give them.
    pub fn arguments(&self) -> Vec<String> {
        let initial_cluster = match self.initial_cluster.as_str() {
            "" => format!("{}={}", self.name, self.advertised_peer_url()),
            given => given.to_owned(),
        };
        let mut arguments = vec![
            format!("--name={}", self.name),
            format!("--listen-client-urls={}", self.client_url()),
            format!("--advertise-client-urls={}", self.client_url()),
            format!("--listen-peer-urls={}", self.peer_url()),
            format!("--initial-advertise-peer-urls={}", self.advertised_peer_url()),
            "--initial-cluster-token=new".to_owned(),
            format!("--data-dir={}", self.data_dir().display()),
            "--snapshot-count=10000".to_owned(),
            format!("--initial-cluster={initial_cluster}"),
            format!("--initial-cluster-state={}", self.initial_cluster_state),
        ];
        if let Some(port) = self.metrics_port {
            arguments.push(format!("--listen-metrics-urls=http://127.0.0.1:{port}"));
        }
        if let Some(tls) = &self.tls {
            arguments.push(format!("--cert-file={}", tls.server.cert.display()));
            arguments.push(format!("--key-file={}", tls.server.key.display()));
            arguments.push(format!("--trusted-ca-file={}", tls.ca.display()));
            arguments.push("--client-cert-auth".to_owned());
        }
        if let Some(tls) = &self.peer_tls {
            arguments.push(format!("--peer-cert-file={}", tls.server.cert.display()));
            arguments.push(format!("--peer-key-file={}", tls.server.key.display()));
            arguments.push(format!("--peer-trusted-ca-file={}", tls.ca.display()));
            arguments.push("--peer-client-cert-auth".to_owned());
        }
        if self.binary.is_34() {
            arguments.push("--logger=zap".to_owned()); // the default of later versions
        }
        arguments.extend(self.extra.iter().cloned());
        arguments
    }
}

/// The process id of a node while it runs, for those who tell processes apart; zero while it does not.
#[derive(Clone, Debug, Default)]
pub struct RunningPid(Arc<AtomicI32>);

impl RunningPid {
    pub fn get(&self) -> Option<i32> {
        Some(self.0.load(Ordering::Acquire)).filter(|pid| *pid != 0)
    }

    /// A process that no node runs, this one for instance.
    #[cfg(test)]
    pub(crate) fn of(pid: u32) -> Self {
        Self(Arc::new(AtomicI32::new(pid.cast_signed())))
    }

    fn began(&self, pid: i32) {
        self.0.store(pid, Ordering::Release);
        reaper::runs(pid);
    }

    fn ended(&self) {
        let pid = self.0.swap(0, Ordering::AcqRel);
        if pid != 0 {
            reaper::ended(pid);
        }
    }
}

/// A node, running or not. Killed when dropped.
#[derive(Debug)]
pub struct Node {
    pub config: Config,
    child: Option<Child>,
    running_pid: RunningPid,
    /// Stopped by SIGSTOP.
    paused: AtomicBool,
    /// Where this start's part of the log begins.
    log_start: u64,
    /// How far the log was searched for panics.
    searched: AtomicU64,
    /// A panic was found and told; once is enough.
    told: AtomicBool,
    pipe: Option<(PipeReader, PipeWriter)>,
}

impl Node {
    /// Starts and waits until it serves.
    pub fn start(config: Config) -> Self {
        let mut node = Self::launch(config);
        node.wait_ready();
        node
    }

    /// Starts without waiting.
    pub fn launch(config: Config) -> Self {
        let mut node = Self::prepare(config);
        node.spawn();
        node
    }

    /// Does not start it: [`Self::restart`] or [`Self::relaunch`] does.
    pub fn prepare(config: Config) -> Self {
        std::fs::create_dir_all(&config.dir).unwrap();
        Self {
            config,
            child: None,
            running_pid: RunningPid::default(),
            paused: AtomicBool::new(false),
            log_start: 0,
            searched: AtomicU64::new(0),
            told: AtomicBool::new(false),
            pipe: None,
        }
    }

    /// Starts a stopped node again on the same data and addresses, and waits until it serves.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "still running: {}", self.config.name);
        self.spawn();
        self.wait_ready();
    }

    /// Starts a stopped node again without waiting.
    pub fn relaunch(&mut self) {
        assert!(self.child.is_none(), "still running: {}", self.config.name);
        self.spawn();
    }

    fn spawn(&mut self) {
        let config = &self.config;
        let log = File::options()
            .create(true)
            .append(true)
            .open(config.log_file())
            .unwrap();
        self.log_start = log.metadata().unwrap().len();
        *self.searched.get_mut() = self.log_start;
        let mut words = config.wrapper.clone();
        words.push(config.binary.path.clone().into_os_string());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .args(config.arguments())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(config.env.iter().cloned())
            .current_dir(&config.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap());
        match config.stderr {
            Stderr::File => command.stderr(log),
            Stderr::UnreadPipe => {
                let (reader, writer) = std::io::pipe().unwrap();
                let stderr = writer.try_clone().unwrap();
                self.pipe = Some((reader, writer));
                command.stderr(stderr)
            }
        };
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("start {:?}: {error}", words[0]));
        self.running_pid.began(Pid::from_child(&child).as_raw_nonzero().get());
        self.child = Some(child);
    }

    /// Waits for the ready record and for `/health` to say yes.
    pub fn wait_ready(&mut self) {
        let name = self.config.name.clone();
        if self.config.stderr == Stderr::File {
            until(&format!("{name} to log that it is ready"), START_LIMIT, || {
                self.assert_alive();
                let log = self.log();
                READY.iter().any(|line| log.contains(line)).then_some(())
            });
        }
        self.wait_healthy(START_LIMIT);
    }

    /// Waits for `/health` to say yes, where there is a plaintext port that serves it.
    pub fn wait_healthy(&mut self, limit: Duration) {
        let address = match (self.config.metrics_port, &self.config.tls) {
            (Some(port), _) => loopback(port),
            (None, None) => self.address(),
            (None, Some(_)) => return,
        };
        until(&format!("{} to be healthy", self.config.name), limit, || {
            self.assert_alive();
            http::get(address, "/health")
                .ok()
                .filter(|answer| answer.status == 200)
                .map(|_| ())
        });
    }

    /// # Panics
    /// When the process has ended, or one of its threads or tasks has panicked.
    pub fn assert_alive(&mut self) {
        self.assert_no_panic();
        if let Some(status) = self.poll() {
            panic!("{} ended with {status}; log:\n{}", self.config.name, self.tail());
        }
    }

    /// A build that unwinds survives a panic in one connection or task, and clients on others see nothing of it: the
    /// log does.
    ///
    /// # Panics
    /// When this start has logged a panic.
    pub fn assert_no_panic(&self) {
        let log = self.log_from(self.searched.load(Ordering::Relaxed));
        // a line may be half written: it is searched again when it is whole
        let whole = log.rfind('\n').map_or(0, |end| end + 1);
        if let Some(line) = log.lines().find(|line| PANICS.iter().any(|panic| line.contains(panic))) {
            if !self.told.swap(true, Ordering::Relaxed) {
                panic!("{} logged a panic: {line}", self.config.name);
            }
        } else {
            self.searched.fetch_add(whole as u64, Ordering::Relaxed);
        }
    }

    /// How the process ended, if it did by itself.
    pub fn poll(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().unwrap())
    }

    pub fn is_running(&mut self) -> bool {
        self.child.is_some() && self.poll().is_none()
    }

    /// kill -9.
    ///
    /// # Panics
    /// When the process has logged a panic.
    pub fn kill(&mut self) {
        self.end();
        self.assert_no_panic();
    }

    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill(); // gone already is as good
            child.wait().unwrap();
            self.is_gone();
        }
    }

    fn is_gone(&mut self) {
        self.running_pid.ended();
        self.paused.store(false, Ordering::Relaxed);
    }

    /// SIGTERM, and how it ended. Fails the test when it does not end.
    pub fn terminate(&mut self) -> (ExitStatus, Duration) {
        self.stop_with(Signal::TERM)
    }

    /// Sends `signal` and waits for the end: how, and after how long.
    pub fn stop_with(&mut self, signal: Signal) -> (ExitStatus, Duration) {
        let asked = Instant::now();
        self.signal(signal);
        let status = self.wait_end(STOP_LIMIT);
        (status, asked.elapsed())
    }

    /// Waits until the process ends by itself.
    ///
    /// # Panics
    /// When it does not, or has logged a panic.
    pub fn wait_end(&mut self, limit: Duration) -> ExitStatus {
        let status = until(&format!("{} to end", self.config.name), limit, || self.poll());
        self.child = None;
        self.is_gone();
        self.assert_no_panic();
        status
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// SIGSTOP.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
        self.paused.store(true, Ordering::Relaxed);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
        self.paused.store(false, Ordering::Relaxed);
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Removes all that the member has stored, as a lost disk does. It must not be running.
    pub fn wipe(&mut self) {
        assert!(self.child.is_none(), "still running: {}", self.config.name);
        match std::fs::remove_dir_all(self.config.data_dir()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                panic!("wipe {}: {error}", self.config.data_dir().display())
            }
            _ => {}
        }
    }

    /// Follows this node over its restarts.
    pub fn running_pid(&self) -> RunningPid {
        self.running_pid.clone()
    }

    /// # Panics
    /// When the node is not running.
    pub fn pid(&self) -> Pid {
        Pid::from_child(
            self.child
                .as_ref()
                .unwrap_or_else(|| panic!("{} is not running", self.config.name)),
        )
    }

    /// Fills the unread log pipe to the brim, so that whoever writes to it next waits for ever.
    pub fn stuff_log_pipe(&mut self) {
        let (_, writer) = self.pipe.as_mut().unwrap_or_else(|| panic!("the log is no pipe"));
        // the flag belongs to the pipe's end and so to the node's as well: only while filling
        let flags = rustix::fs::fcntl_getfl(&*writer).unwrap();
        rustix::fs::fcntl_setfl(&*writer, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
        for size in [4096, 64, 1] {
            while writer.write(&vec![b'.'; size]).is_ok() {}
        }
        rustix::fs::fcntl_setfl(&*writer, flags).unwrap();
    }

    /// Takes the pipe's reader away: the next write to the log fails.
    pub fn close_log_pipe(&mut self) {
        self.pipe = None;
    }

    /// Peak resident size in bytes since the process started.
    pub fn peak_resident_bytes(&self) -> u64 {
        self.memory_line("VmHWM:")
    }

    pub fn resident_bytes(&self) -> u64 {
        self.memory_line("VmRSS:")
    }

    fn memory_line(&self, label: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid().as_raw_nonzero())).unwrap();
        let line = status.lines().find(|line| line.starts_with(label)).unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024
    }

    /// Where clients reach it.
    pub fn address(&self) -> SocketAddr {
        loopback(self.config.client_port)
    }

    /// Where the plaintext metrics port is, if one was asked for.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.config.metrics_port.map(loopback)
    }

    pub fn rpc(&self) -> Rpc {
        self.config.rpc()
    }

    pub fn etcdctl(&self) -> Etcdctl {
        let plain = Etcdctl::new(&self.config.client_url());
        match &self.config.tls {
            Some(material) => plain.with_tls(material),
            None => plain,
        }
    }

    /// What this start has logged so far.
    pub fn log(&self) -> String {
        self.log_from(self.log_start)
    }

    /// The end of the log, for messages.
    pub fn tail(&self) -> String {
        let length = std::fs::metadata(self.config.log_file()).map_or(0, |meta| meta.len());
        self.log_from(length.saturating_sub(TAIL_BYTES))
    }

    fn log_from(&self, offset: u64) -> String {
        let Ok(mut file) = File::open(self.config.log_file()) else {
            return String::new();
        };
        let mut bytes = Vec::new();
        let read = file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| file.read_to_end(&mut bytes));
        read.map(|_| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let ended = self.poll();
        if let Some(child) = &self.child {
            // a stopped process takes SIGKILL too, but not before it is continued on some kernels
            let _ = kill_process(Pid::from_child(child), Signal::CONT);
        }
        self.end();
        if !std::thread::panicking() {
            // not in the middle of another failure: a second panic would leave processes behind
            self.assert_no_panic();
        } else {
            let state = match ended {
                Some(status) if status.signal().is_some() => format!("killed: {status}"),
                Some(status) => format!("ended: {status}"),
                None => "was running or stopped by the test".to_owned(),
            };
            // not with `eprintln`: a closed stderr would make this a second panic, and that leaves processes behind
            let _ = writeln!(
                std::io::stderr(),
                "--- {} ({state}), end of its log:\n{}---",
                self.config.name,
                self.tail()
            );
        }
    }
}

fn url(tls: Option<&Material>, port: u16) -> String {
    let scheme = if tls.is_some() { "https" } else { "http" };
    format!("{scheme}://127.0.0.1:{port}")
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::binary::Version;

    /// A program that logs `line` and goes on, as a server does when a panic took only one of its tasks.
    fn logging(line: &str) -> (Node, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server");
        std::fs::write(&path, format!("#!/bin/sh\necho '{line}' >&2\nexec sleep 60\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
        let binary = Binary {
            path,
            version: Version(3, 7, 1),
        };
        let node = Node::launch(Config::new(binary, dir.path()));
        until("the line", Duration::from_secs(10), || {
            node.log().ends_with('\n').then_some(())
        });
        (node, dir)
    }

    #[test]
    fn a_logged_panic_fails_whatever_is_asked_next() {
        let asks: [fn(Node); 4] = [
            |mut node| node.assert_alive(),
            |mut node| node.kill(),
            |mut node| {
                node.terminate();
            },
            drop,
        ];
        for line in [
            r#"{"level":"panic","msg":"panicked","error":"index out of bounds"}"#,
            "thread main panicked at src/bin/quorate.rs:5:9:",
        ] {
            for (which, ask) in asks.into_iter().enumerate() {
                let (node, _dir) = logging(line);
                let failed = catch_unwind(AssertUnwindSafe(|| ask(node))).unwrap_err();
                let text = failed.downcast_ref::<String>().map_or("", String::as_str);
                assert!(text.contains("logged a panic"), "{which}: {text:?}");
            }
        }
    }

    #[test]
    fn other_lines_fail_nothing() {
        let (mut node, _dir) = logging(r#"{"level":"error","msg":"a panic button was pressed"}"#);
        node.assert_alive();
        node.kill();
    }
}
