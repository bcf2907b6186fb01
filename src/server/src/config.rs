//! The settings of a member: read once, checked whole, then plain values.
//!
//! ```text
//!  command line ─┐                                      ┌─ not yet supported? ─ validate ─ listeners ─► Config
//!  environment ──┼─► Settings (one slot per table row) ─┤
//!  file ─────────┘   (a file replaces the other two)    └─► notices, to be logged once logging is up
//! ```
//!
//! The rules are etcd 3.7.1's, down to exit codes and texts: a setting given by flag and by variable is an error, a
//! configuration file silences both, an unknown flag ends with code 2 and the usage. What etcd knows and this release
//! does not is refused by name unless it asks for the default. `table` is the one list of settings.
//!
//! Nothing here writes to disk or opens a socket, so that a refused start leaves no trace.

mod args;
mod build;
mod exit;
mod file;
mod gates;
mod go;
mod settings;
mod start_record;
mod table;
mod url;
mod usage;
mod validate;
mod value;
mod yaml;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use quorate_runtime::telemetry::{self, Level, Record};
use quorate_runtime::tls::TlsVersion;

pub use exit::Exit;
pub use gates::{Gates, INITIAL_CORRUPT_CHECK, STOP_GRPC_SERVICE_ON_DEFRAG};
pub use url::{Scheme, Url};
pub use usage::{ETCD_VERSION, GIT_SHA, GO_VERSION, QUORATE_VERSION, go_arch, go_os};

use settings::Settings;

/// A member's settings, checked. Holds no secret: it may be shown and logged.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `--name`
    pub name: String,
    /// `--data-dir`, or `<name>.etcd`
    pub data_dir: PathBuf,
    /// `--wal-dir`; none: inside `data_dir`
    pub wal_dir: Option<PathBuf>,

    /// `--listen-peer-urls`
    pub listen_peer_urls: Vec<Url>,
    /// `--listen-client-urls`
    pub listen_client_urls: Vec<Url>,
    /// `--listen-client-http-urls`; where there are any, the client URLs serve gRPC only
    pub listen_client_http_urls: Vec<Url>,
    /// `--listen-metrics-urls`
    pub listen_metrics_urls: Vec<Url>,
    /// `--initial-advertise-peer-urls`
    pub initial_advertise_peer_urls: Vec<Url>,
    /// `--advertise-client-urls`
    pub advertise_client_urls: Vec<Url>,

    /// `--initial-cluster`, unparsed: on a member with data it may hold anything. See [`crate::bootstrap`].
    pub initial_cluster: String,
    /// `--initial-cluster-state`
    pub initial_cluster_state: ClusterState,
    /// `--initial-cluster-token`
    pub initial_cluster_token: String,

    /// `--cert-file`, `--key-file` and what belongs to them
    pub client_tls: TlsFiles,
    /// `--peer-cert-file`, `--peer-key-file` and what belongs to them
    pub peer_tls: TlsFiles,
    /// `--tls-min-version`
    pub tls_min_version: TlsVersion,
    /// `--tls-max-version`; none: the highest there is
    pub tls_max_version: Option<TlsVersion>,
    /// `--cipher-suites`; none: those of TLS 1.2 that are safe
    pub cipher_suites: Vec<String>,
    /// `--self-signed-cert-validity`
    pub self_signed_cert_validity_years: u64,

    /// `--cors`: origins; none: any
    pub cors: Option<Vec<String>>,
    /// `--host-whitelist`: host names; none: any
    pub host_whitelist: Option<Vec<String>>,

    /// `--quota-backend-bytes`; none: no quota
    pub quota_backend: Option<ByteSize>,
    /// `--max-request-bytes`
    pub max_request: ByteSize,
    /// `--max-txn-ops`
    pub max_txn_ops: usize,
    /// `--max-concurrent-streams`
    pub max_concurrent_streams: u32,
    /// `--grpc-keepalive-min-time`
    pub grpc_keepalive_min_time: Duration,
    /// `--grpc-keepalive-interval`; none: the server does not ping
    pub grpc_keepalive_interval: Option<Duration>,
    /// `--grpc-keepalive-timeout`; none: it waits for ever
    pub grpc_keepalive_timeout: Option<Duration>,

    /// `--strict-reconfig-check`
    pub strict_reconfig_check: bool,
    /// `--max-learners`
    pub max_learners: u64,

    /// `--snapshot-count`: applied entries between two trims of the raft log
    pub snapshot_count: u64,
    /// `--snapshot-catchup-entries`
    pub snapshot_catchup_entries: u64,
    /// `--heartbeat-interval`
    pub heartbeat_interval: Duration,
    /// `--election-timeout`
    pub election_timeout: Duration,

    /// `--feature-gates`
    pub gates: Gates,

    /// `--watch-progress-notify-interval`
    pub watch_progress_notify_interval: Duration,
    /// `--warning-apply-duration`
    pub warning_apply_duration: Duration,
    /// `--warning-unary-request-duration`
    pub warning_unary_request_duration: Duration,

    /// `--metrics`
    pub metrics: MetricsLevel,
    /// `--log-level`, `--log-format`, `--log-outputs`
    pub log: telemetry::Options,
}

impl Config {
    /// Where clients are listened for, by whatever protocol.
    pub fn client_urls(&self) -> impl Iterator<Item = &Url> {
        self.listen_client_urls.iter().chain(&self.listen_client_http_urls)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterState {
    New,
    Existing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricsLevel {
    Basic,
    /// Times every gRPC method.
    Extensive,
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Where the TLS material for connections of clients, or of peers, lies, and who is let in by it. Names of files only,
/// never their content. What peers alone have is empty for clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// Shown when we connect, instead of the above. Peers only.
    pub client_cert_file: Option<PathBuf>,
    pub client_key_file: Option<PathBuf>,
    pub trusted_ca_file: Option<PathBuf>,
    pub client_cert_auth: bool,
    pub crl_file: Option<PathBuf>,
    /// Empty: all common names are allowed. Peers only.
    pub allowed_cns: Vec<String>,
    /// Empty: all host names are allowed.
    pub allowed_hostnames: Vec<String>,
    /// Whether a certificate is good from addresses that it does not name. Peers only.
    pub skip_client_san_verification: bool,
    /// Whether to make a certificate if none is given.
    pub auto_tls: bool,
}

impl TlsFiles {
    /// There is nothing to serve TLS with.
    pub fn is_empty(&self) -> bool {
        self.cert_file.is_none() && self.key_file.is_none()
    }

    /// The certificate is one of our own making.
    pub fn is_self_made(&self) -> bool {
        self.auto_tls && self.is_empty()
    }
}

/// What [`load`] gives: the settings, and what is to be said about them.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    pub config: Config,
    /// To be logged, in this order, once logging is up.
    pub notices: Vec<Record>,
}

/// Reads everything there is to read. `args` starts with the program's name.
///
/// `Err` is the end of the process: a mistake, but also `--help` and `--version`.
pub fn load(
    args: impl Iterator<Item = OsString>,
    env: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Loaded, Exit> {
    let words = args::texts(args)?;
    let env = args::etcd_variables(env);
    let mut settings = Settings::new();

    let positional = args::read_args(&mut settings, words.get(1..).unwrap_or_default())?;
    if let Some(word) = positional {
        let refused = Exit::refused(format_args!("{word:?} is not a valid flag"));
        return Err(refused.after(vec![running(&words)]));
    }
    if settings.bool("version") {
        return Err(Exit::success(usage::versions(), String::new()));
    }

    let mut notices = Vec::new();
    let loaded = match config_file(&settings, &env) {
        Some(path) => {
            // nothing that was given beside the file counts
            settings = Settings::new();
            let read = file::read_file(&mut settings, &path);
            let text = "loaded server configuration, other configuration command line flags and environment \
                        variables will be ignored if provided";
            notices.push(Record::new(Level::Info, text).field("path", path.display().to_string()));
            read.and_then(|()| build::config(&settings, build::Mode::File, &mut notices))
        }
        None => args::read_env(&mut settings, &env, &mut notices)
            .and_then(|()| build::config(&settings, build::Mode::Flags, &mut notices)),
    };
    notices.push(running(&words));
    match loaded {
        Ok(config) => Ok(Loaded { config, notices }),
        Err(exit) => Err(exit.after(notices)),
    }
}

fn config_file(settings: &Settings, env: &[(String, OsString)]) -> Option<PathBuf> {
    let flag = PathBuf::from(settings.text("config-file"));
    let variable = env
        .iter()
        .find(|(name, _)| name == "ETCD_CONFIG_FILE")
        .map(|(_, value)| PathBuf::from(value));
    // here, and only here, flag and variable may both be given
    let mut given = std::iter::once(flag).chain(variable);
    given.find(|path| !path.as_os_str().is_empty())
}

fn running(words: &[String]) -> Record {
    Record::new(Level::Info, "Running: ").field("args", args::loggable(words))
}

#[cfg(test)]
mod tests;
