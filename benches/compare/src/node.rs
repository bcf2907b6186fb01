//! A server process: started on a data directory, asked until it answers, restarted, and never left behind.
//!
//! Three things see to the last point. Dropping a [`Node`] kills its process; a panic kills all of them, since release
//! builds abort without dropping; and where `setpriv` exists the kernel kills them when we are killed ourselves.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use parking::ALIVE;
use quorate_api::proto::etcdserverpb::{RangeRequest, RangeResponse};
use rustix::process::{Pid, Signal, kill_process};

use crate::grpc::{Caller, Endpoint, Rpc};
use crate::tls::Material;

/// Time that a server may take to answer after its start. A member with a large file reads all of it first.
const START_MAX: Duration = Duration::from_secs(300);
const STOP_MAX: Duration = Duration::from_secs(60);
/// One attempt of the readiness probe. Servers accept connections before they serve, so an attempt may hang.
const PROBE_MAX: Duration = Duration::from_millis(500);
const PROBE_PAUSE: Duration = Duration::from_millis(2);

/// A program under test.
#[derive(Clone, Debug)]
pub struct Program {
    /// How tables name it.
    pub label: String,
    pub path: PathBuf,
    /// Major and minor version that it says it is.
    pub version: (u32, u32),
    pub extra_args: Vec<String>,
}

impl Program {
    /// Asks the program for its version, which also proves that it can be run.
    pub fn etcd(path: &Path, extra_args: &[String]) -> anyhow::Result<Self> {
        let version = version(path)?;
        Ok(Self {
            version: major_minor(&version),
            label: format!("etcd {version}"),
            path: path.to_owned(),
            extra_args: extra_args.to_vec(),
        })
    }

    pub fn ours(path: &Path, extra_args: &[String]) -> anyhow::Result<Self> {
        let version = version(path)?;
        Ok(Self {
            version: major_minor(&version),
            label: "ours".to_owned(),
            path: path.to_owned(),
            extra_args: extra_args.to_vec(),
        })
    }
}

fn major_minor(version: &str) -> (u32, u32) {
    let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// First line of `--version`: `etcd Version: 3.7.1`.
fn version(path: &Path) -> anyhow::Result<String> {
    let output = Command::new(path)
        .arg("--version")
        .output()
        .with_context(|| format!("run {} --version", path.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default();
    let version = line.rsplit(' ').next().unwrap_or_default();
    ensure!(
        output.status.success() && !version.is_empty(),
        "{} --version printed {line:?} and ended with {}; is it a server?",
        path.display(),
        output.status
    );
    Ok(version.to_owned())
}

/// How a node is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    Terminate,
    Kill,
}

/// A running server on its own data directory; both are gone when this is dropped.
pub struct Node {
    program: Program,
    tls: Option<Material>,
    dir: tempfile::TempDir,
    client_addr: SocketAddr,
    peer_addr: SocketAddr,
    process: Process,
}

impl Node {
    /// Starts on a fresh directory under `parent` and waits until a linearizable read succeeds.
    pub async fn start(program: &Program, parent: &Path, tls: Option<Material>) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("node-")
            .tempdir_in(parent)
            .context("make a data directory")?;
        let (client_addr, peer_addr) = free_addrs()?;
        let process = Process::spawn(
            &command(program, dir.path(), client_addr, peer_addr, tls.as_ref()),
            dir.path(),
        )?;
        let mut node = Self {
            program: program.clone(),
            tls,
            dir,
            client_addr,
            peer_addr,
            process,
        };
        node.wait_until_serving(b"none", false).await?;
        Ok(node)
    }

    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            addr: self.client_addr,
            tls: self.tls.as_ref().map(|tls| Arc::clone(&tls.client)),
        }
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Ends the process and waits for its end; returns how long that took.
    pub async fn stop(&mut self, how: Stop) -> anyhow::Result<Duration> {
        let began = Instant::now();
        self.process.signal(match how {
            Stop::Terminate => Signal::TERM,
            Stop::Kill => Signal::KILL,
        })?;
        while self.process.exited()?.is_none() {
            ensure!(
                began.elapsed() < STOP_MAX,
                "{} did not stop within {STOP_MAX:?}",
                self.program.label
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(began.elapsed())
    }

    /// Starts again on the same data; returns the time from spawn to the first linearizable read that finds `key`.
    pub async fn restart(&mut self, key: &[u8]) -> anyhow::Result<Duration> {
        let command = command(
            &self.program,
            self.dir.path(),
            self.client_addr,
            self.peer_addr,
            self.tls.as_ref(),
        );
        let began = Instant::now();
        self.process = Process::spawn(&command, self.dir.path())?;
        self.wait_until_serving(key, true).await?;
        Ok(began.elapsed())
    }

    /// Evicts the (stopped) server's files from the page cache, so that the next start reads them from the disk.
    pub fn drop_page_cache(&self) -> anyhow::Result<()> {
        let mut folders = vec![self.data_dir()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
                let path = entry.context("read a data directory")?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.is_file() {
                    let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
                    file.sync_all().context("sync before eviction")?; // dirty pages can't be dropped
                    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).context("evict a file")?;
                }
            }
        }
        Ok(())
    }

    /// Fails with the end of the log when the process has ended by itself.
    pub fn check_alive(&mut self) -> anyhow::Result<()> {
        match self.process.exited()? {
            None => Ok(()),
            Some(status) => bail!(
                "{} ended with {status}; its log ends:\n{}",
                self.program.label,
                self.log_tail()
            ),
        }
    }

    async fn wait_until_serving(&mut self, key: &[u8], must_exist: bool) -> anyhow::Result<()> {
        let began = Instant::now();
        let endpoint = self.endpoint();
        loop {
            self.check_alive()?;
            let last = match tokio::time::timeout(PROBE_MAX, probe(&endpoint, key, must_exist)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => anyhow!("no answer within {PROBE_MAX:?}"),
            };
            ensure!(
                began.elapsed() < START_MAX,
                "{} does not serve after {START_MAX:?} ({last:#}); its log ends:\n{}",
                self.program.label,
                self.log_tail()
            );
            tokio::time::sleep(PROBE_PAUSE).await;
        }
    }

    fn log_tail(&self) -> String {
        let log = fs::read(self.dir.path().join(LOG)).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(2000)..]).into_owned()
    }
}

const LOG: &str = "log";

async fn probe(endpoint: &Endpoint, key: &[u8], must_exist: bool) -> anyhow::Result<()> {
    let request = RangeRequest {
        key: key.to_vec().into(),
        ..Default::default()
    };
    let response: RangeResponse = Caller::connect(endpoint).await?.unary(Rpc::Range, &request).await?;
    ensure!(
        !must_exist || response.kvs.len() == 1,
        "a key that was acknowledged is missing after the restart"
    );
    Ok(())
}

/// The command line, the same for every server but for `extra_args`.
fn command(
    program: &Program,
    dir: &Path,
    client: SocketAddr,
    peer: SocketAddr,
    tls: Option<&Material>,
) -> Vec<std::ffi::OsString> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut words: Vec<std::ffi::OsString> = vec![program.path.clone().into(), "--name=bench".into()];
    let mut data = std::ffi::OsString::from("--data-dir=");
    data.push(dir.join("data"));
    words.push(data);
    for flag in [
        format!("--listen-client-urls={scheme}://{client}"),
        format!("--advertise-client-urls={scheme}://{client}"),
        format!("--listen-peer-urls=http://{peer}"),
        format!("--initial-advertise-peer-urls=http://{peer}"),
        format!("--initial-cluster=bench=http://{peer}"),
        format!("--quota-backend-bytes={}", 8_u64 << 30),
    ] {
        words.push(flag.into());
    }
    if let Some(tls) = tls {
        words.push("--client-cert-auth".into());
        for (flag, file) in [
            ("--cert-file=", &tls.cert_file),
            ("--key-file=", &tls.key_file),
            ("--trusted-ca-file=", &tls.ca_file),
        ] {
            let mut word = std::ffi::OsString::from(flag);
            word.push(file);
            words.push(word);
        }
    }
    words.extend(program.extra_args.iter().map(Into::into));
    words
}

/// Two free ports of the loopback interface. Nothing else here takes ports in between.
fn free_addrs() -> anyhow::Result<(SocketAddr, SocketAddr)> {
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port");
    let (one, two) = (listen()?, listen()?);
    Ok((
        one.local_addr().context("read a port")?,
        two.local_addr().context("read a port")?,
    ))
}

struct Process {
    child: Child,
    pid: Pid,
}

impl Process {
    fn spawn(words: &[std::ffi::OsString], dir: &Path) -> anyhow::Result<Self> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(dir.join(LOG))
            .context("open the server's log")?;
        let mut command = if Path::new(SETPRIV).exists() {
            let mut command = Command::new(SETPRIV);
            command.args(["--pdeathsig", "KILL", "--"]).args(words); // becomes the server by exec: same process id
            command
        } else {
            let mut command = Command::new(&words[0]);
            command.args(&words[1..]);
            command
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the server's log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", words[0].display()))?;
        let pid = Pid::from_child(&child);
        parking::add(pid);
        Ok(Self { child, pid })
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill_process(self.pid, signal).context("signal the server")
    }

    /// Also reaps it.
    fn exited(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        let status = self.child.try_wait().context("wait for the server")?;
        if status.is_some() {
            parking::remove(self.pid);
        }
        Ok(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        parking::remove(self.pid);
    }
}

const SETPRIV: &str = "/usr/bin/setpriv";

/// Kills every running server when any thread panics.
pub fn kill_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if let Ok(alive) = ALIVE.try_lock() {
            for pid in alive.iter() {
                let _ = kill_process(*pid, Signal::KILL);
            }
        }
        report(panic);
    }));
}

/// Processes that are running (or dead but not reaped, so that their ids can't belong to anyone else).
mod parking {
    use std::sync::Mutex;

    use rustix::process::Pid;

    pub static ALIVE: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

    pub fn add(pid: Pid) {
        ALIVE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(pid);
    }

    pub fn remove(pid: Pid) {
        ALIVE
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .retain(|alive| *alive != pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(dir: &Path) -> Process {
        Process::spawn(&["sleep".into(), "600".into()], dir).unwrap()
    }

    fn is_running(pid: Pid) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    }

    #[test]
    fn a_dropped_process_is_dead() {
        let dir = tempfile::tempdir().unwrap();
        let process = sleeper(dir.path());
        let pid = process.pid;
        assert!(is_running(pid));
        drop(process);
        assert!(!is_running(pid));
    }

    #[test]
    fn every_server_gets_the_flags_that_matter() {
        let program = Program {
            label: "x".into(),
            version: (0, 0),
            path: "/bin/x".into(),
            extra_args: vec!["--extra=1".into()],
        };
        let (client, peer) = ("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        let words = command(&program, Path::new("/d"), client, peer, None);
        let has = |word: &str| words.iter().any(|other| other == word);
        assert!(has("--quota-backend-bytes=8589934592") && has("--data-dir=/d/data") && has("--extra=1"));
        assert!(!words.iter().any(|word| word.to_string_lossy().contains("fsync")));
    }

    #[test]
    fn a_program_that_is_no_server_is_refused_by_name() {
        let error = Program::ours(Path::new("/nonexistent/server"), &[]).unwrap_err();
        assert!(format!("{error:#}").contains("/nonexistent/server --version"));
    }
}
