//! One member: its directory and addresses, the command line it is started with, start, stop and restart.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use quorate_api::proto::etcdserverpb::{RangeRequest, RangeResponse, StatusRequest, StatusResponse};

use crate::grpc::{Caller, Endpoint, Rpc};
use crate::ports;
use crate::process::{Process, Signal};
use crate::program::Program;
use crate::tls::Material;

/// Time that a server may take to answer after its start. A member with a large file reads all of it first.
const START_MAX: Duration = Duration::from_secs(300);
const STOP_MAX: Duration = Duration::from_secs(60);
/// One attempt of the readiness probe. Servers accept connections before they serve, so an attempt may hang.
const PROBE_MAX: Duration = Duration::from_millis(500);
const PROBE_PAUSE: Duration = Duration::from_millis(2);

/// How every server of a run is set up.
#[derive(Clone, Default)]
pub struct Setting {
    /// TLS of the client ports, with client certificates.
    pub clients: Option<Material>,
    /// TLS between members, mutual.
    pub peers: Option<Material>,
    /// `None` leaves it to the server's default.
    pub election: Option<Duration>,
}

/// Where a member lives.
pub struct Site {
    name: String,
    dir: tempfile::TempDir,
    client_addr: SocketAddr,
    peer_addr: SocketAddr,
}

impl Site {
    /// A fresh directory under `parent`, and two free ports.
    pub fn prepare(parent: &Path, name: String) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("node-")
            .tempdir_in(parent)
            .context("make a data directory")?;
        Ok(Self {
            name,
            dir,
            client_addr: ports::free()?,
            peer_addr: ports::free()?,
        })
    }

    /// The member's part of `--initial-cluster`.
    pub fn founding_word(&self, setting: &Setting) -> String {
        format!("{}={}", self.name, self.peer_url(setting))
    }

    pub fn peer_url(&self, setting: &Setting) -> String {
        format!("{}://{}", scheme(setting.peers.as_ref()), self.peer_addr)
    }
}

/// What a member is told about its cluster at each start.
#[derive(Clone)]
pub struct Founding {
    /// `--initial-cluster`.
    pub members: String,
    /// It joins a cluster that is there already.
    pub existing: bool,
}

/// How a node is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    Terminate,
    Kill,
}

/// A member that was started. Its process and its data are gone when this is dropped.
pub struct Node {
    program: Program,
    setting: Setting,
    founding: Founding,
    // The process ends before its directory goes.
    process: Process,
    site: Site,
}

impl Node {
    /// Starts the process; [`Self::wait_until_serving`] tells when it answers.
    pub fn spawn(program: &Program, setting: &Setting, site: Site, founding: Founding) -> anyhow::Result<Self> {
        let process = Process::spawn(&command(program, setting, &site, &founding), &site.dir.path().join(LOG))?;
        Ok(Self {
            program: program.clone(),
            setting: setting.clone(),
            founding,
            process,
            site,
        })
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            addr: self.site.client_addr,
            tls: self.setting.clients.as_ref().map(|tls| Arc::clone(&tls.client)),
        }
    }

    pub fn data_dir(&self) -> PathBuf {
        self.site.dir.path().join("data")
    }

    /// Ends the process and waits for its end; returns how long that took.
    pub async fn stop(&mut self, how: Stop) -> anyhow::Result<Duration> {
        let began = Instant::now();
        self.signal(how)?;
        self.wait_for_exit().await?;
        Ok(began.elapsed())
    }

    pub fn signal(&self, how: Stop) -> anyhow::Result<()> {
        self.process.signal(match how {
            Stop::Terminate => Signal::TERM,
            Stop::Kill => Signal::KILL,
        })
    }

    pub async fn wait_for_exit(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        while self.process.exited()?.is_none() {
            ensure!(
                began.elapsed() < STOP_MAX,
                "{} of {} did not stop within {STOP_MAX:?}",
                self.site.name,
                self.program.label
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Starts the stopped member again on the same data, with the same command line.
    pub fn respawn(&mut self) -> anyhow::Result<()> {
        let command = command(&self.program, &self.setting, &self.site, &self.founding);
        self.process = Process::spawn(&command, &self.site.dir.path().join(LOG))?;
        Ok(())
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
                "{} of {} ended with {status}; its log ends:\n{}",
                self.site.name,
                self.program.label,
                self.log_tail()
            ),
        }
    }

    /// Waits until a linearizable read succeeds, and finds `key` if one is given.
    pub async fn wait_until_serving(&mut self, key: Option<&[u8]>) -> anyhow::Result<()> {
        let began = Instant::now();
        let endpoint = self.endpoint();
        loop {
            self.check_alive()?;
            let last = match tokio::time::timeout(PROBE_MAX, probe(&endpoint, key)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => anyhow!("no answer within {PROBE_MAX:?}"),
            };
            ensure!(
                began.elapsed() < START_MAX,
                "{} of {} does not serve after {START_MAX:?} ({last:#}); its log ends:\n{}",
                self.site.name,
                self.program.label,
                self.log_tail()
            );
            tokio::time::sleep(PROBE_PAUSE).await;
        }
    }

    /// It need not have a leader for that.
    pub async fn status(&self) -> anyhow::Result<StatusResponse> {
        let ask = async {
            let mut caller = Caller::connect(&self.endpoint()).await?;
            caller.unary(Rpc::Status, &StatusRequest::default()).await
        };
        tokio::time::timeout(PROBE_MAX, ask)
            .await
            .map_err(|_| anyhow!("no status within {PROBE_MAX:?}"))?
    }

    /// The revision that the member itself has come to.
    pub async fn own_revision(&self) -> anyhow::Result<i64> {
        let request = RangeRequest {
            key: "none".into(),
            serializable: true,
            ..Default::default()
        };
        let ask = async {
            let mut caller = Caller::connect(&self.endpoint()).await?;
            caller.unary::<RangeResponse>(Rpc::Range, &request).await
        };
        let response = tokio::time::timeout(PROBE_MAX, ask)
            .await
            .map_err(|_| anyhow!("no answer within {PROBE_MAX:?}"))??;
        Ok(response.header.context("an answer without a header")?.revision)
    }

    fn log_tail(&self) -> String {
        let log = fs::read(self.site.dir.path().join(LOG)).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(2000)..]).into_owned()
    }
}

const LOG: &str = "log";

async fn probe(endpoint: &Endpoint, key: Option<&[u8]>) -> anyhow::Result<()> {
    let request = RangeRequest {
        key: key.unwrap_or(b"none").to_vec().into(),
        ..Default::default()
    };
    let response: RangeResponse = Caller::connect(endpoint).await?.unary(Rpc::Range, &request).await?;
    ensure!(
        key.is_none() || response.kvs.len() == 1,
        "a key that was acknowledged is missing after the restart"
    );
    Ok(())
}

fn scheme(tls: Option<&Material>) -> &'static str {
    if tls.is_some() { "https" } else { "http" }
}

/// The command line, the same for every server but for `extra_args`.
fn command(program: &Program, setting: &Setting, site: &Site, founding: &Founding) -> Vec<OsString> {
    let (client, peer) = (site.client_addr, site.peer_url(setting));
    let scheme = scheme(setting.clients.as_ref());
    let mut words: Vec<OsString> = vec![program.path.clone().into(), format!("--name={}", site.name).into()];
    words.push(with_path("--data-dir=", &site.dir.path().join("data")));
    for flag in [
        format!("--listen-client-urls={scheme}://{client}"),
        format!("--advertise-client-urls={scheme}://{client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster={}", founding.members),
        format!("--quota-backend-bytes={}", 8_u64 << 30),
    ] {
        words.push(flag.into());
    }
    if founding.existing {
        words.push("--initial-cluster-state=existing".into());
    }
    if let Some(election) = setting.election {
        words.push(format!("--election-timeout={}", election.as_millis()).into());
        words.push(format!("--heartbeat-interval={}", (election.as_millis() / 10).max(1)).into());
    }
    if let Some(tls) = &setting.clients {
        words.push("--client-cert-auth".into());
        words.push(with_path("--cert-file=", &tls.cert_file));
        words.push(with_path("--key-file=", &tls.key_file));
        words.push(with_path("--trusted-ca-file=", &tls.ca_file));
    }
    if let Some(tls) = &setting.peers {
        words.push("--peer-client-cert-auth".into());
        words.push(with_path("--peer-cert-file=", &tls.cert_file));
        words.push(with_path("--peer-key-file=", &tls.key_file));
        words.push(with_path("--peer-trusted-ca-file=", &tls.ca_file));
    }
    words.extend(program.extra_args.iter().map(Into::into));
    words
}

fn with_path(flag: &str, path: &Path) -> OsString {
    let mut word = OsString::from(flag);
    word.push(path);
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(setting: &Setting, existing: bool) -> Vec<String> {
        let program = Program {
            label: "x".into(),
            version: (0, 0),
            path: "/bin/x".into(),
            extra_args: vec!["--extra=1".into()],
        };
        let parent = tempfile::tempdir().unwrap();
        let site = Site::prepare(parent.path(), "m2".into()).unwrap();
        let members = format!("m1=http://other,{}", site.founding_word(setting));
        let founding = Founding { members, existing };
        let words = command(&program, setting, &site, &founding);
        words.into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    #[test]
    fn every_server_gets_the_flags_that_matter() {
        let words = words(&Setting::default(), false);
        let value = |flag: &str| words.iter().find_map(|word| word.strip_prefix(flag)).unwrap();
        assert_eq!(value("--quota-backend-bytes="), "8589934592");
        assert_eq!(value("--extra="), "1");
        assert_eq!(value("--name="), "m2");
        let peer = value("--listen-peer-urls=");
        assert_eq!(value("--initial-cluster="), format!("m1=http://other,m2={peer}"));
        for absent in ["fsync", "election", "state", "cert"] {
            assert!(!words.iter().any(|word| word.contains(absent)), "{absent}: {words:?}");
        }
    }

    #[test]
    fn who_joins_is_told_that_the_cluster_exists() {
        assert!(words(&Setting::default(), true).contains(&"--initial-cluster-state=existing".into()));
    }

    #[test]
    fn members_show_each_other_certificates_where_asked() {
        let dir = tempfile::tempdir().unwrap();
        let setting = Setting {
            clients: None,
            peers: Some(crate::tls::generate(dir.path()).unwrap()),
            election: Some(Duration::from_millis(200)),
        };
        let words = words(&setting, false);
        let has = |part: &str| words.iter().any(|word| word.starts_with(part));
        assert!(has("--peer-client-cert-auth") && has("--peer-trusted-ca-file=") && has("--peer-cert-file="));
        assert!(has("--listen-peer-urls=https://") && has("--listen-client-urls=http://"));
        assert!(has("--election-timeout=200") && has("--heartbeat-interval=20"));
        assert!(!has("--client-cert-auth"));
    }
}
