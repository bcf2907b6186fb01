//! From settings to [`Config`]: computed defaults, units, and the zeros that mean something else.

use std::path::PathBuf;
use std::time::Duration;

use quorate_runtime::telemetry::{self, Format, Level, Output, Record};
use quorate_runtime::tls::TlsVersion;

use super::settings::{Origin, Settings};
use super::table::{TABLE, find};
use super::{ByteSize, ClusterState, Config, Exit, MetricsLevel, TlsFiles, Url, usage, validate};

const DEFAULT_NAME: &str = "default";
const DEFAULT_QUOTA: u64 = 2 << 30;
/// Above these, etcd warns that nobody has tried.
const QUOTA_ADVISED: u64 = 8 << 30;
const REQUEST_ADVISED: u64 = 10 << 20;
const DEFAULT_SNAPSHOT_COUNT: u64 = 10_000;
const DEFAULT_PROGRESS_INTERVAL: Duration = Duration::from_secs(600);
const DEFAULT_SLOW_REQUEST: Duration = Duration::from_millis(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Command line and environment.
    Flags,
    File,
}

pub(super) fn config(settings: &Settings, mode: Mode, notices: &mut Vec<Record>) -> Result<Config, Exit> {
    if let Some(name) = settings.first_not_yet() {
        return Err(Exit::refused(format_args!(
            "{name} is not yet supported by Quorate {}; leave it out or at its default",
            usage::QUORATE_VERSION
        )));
    }
    notices.append(&mut settings.deprecations());

    // Reported after everything else that may be wrong, as in etcd.
    let versions = tls_versions(settings);
    let (tls_min_version, tls_max_version) = versions.clone().unwrap_or_default();
    let config = Config {
        name: settings.text("name"),
        data_dir: data_dir(settings, notices),
        wal_dir: path(settings, "wal-dir"),
        listen_peer_urls: settings.urls("listen-peer-urls"),
        listen_client_urls: settings.urls("listen-client-urls"),
        listen_client_http_urls: settings.urls("listen-client-http-urls"),
        listen_metrics_urls: settings.urls("listen-metrics-urls"),
        initial_advertise_peer_urls: settings.urls("initial-advertise-peer-urls"),
        advertise_client_urls: advertise_client_urls(settings, mode),
        initial_cluster: initial_cluster(settings),
        initial_cluster_state: cluster_state(settings)?,
        initial_cluster_token: settings.text("initial-cluster-token"),
        client_tls: client_tls(settings),
        peer_tls: peer_tls(settings),
        tls_min_version,
        tls_max_version,
        cipher_suites: given_list(settings, "cipher-suites"),
        self_signed_cert_validity_years: match (settings.uint("self-signed-cert-validity"), mode) {
            // by flag it is an error once a certificate is to be made
            (0, Mode::File) => 1,
            (years, _) => years,
        },
        cors: only(&settings.text("cors")),
        host_whitelist: only(&settings.text("host-whitelist")),
        quota_backend: quota(settings.int("quota-backend-bytes"), notices),
        max_request: max_request(settings.uint("max-request-bytes"), notices),
        max_txn_ops: usize::try_from(settings.uint("max-txn-ops")).unwrap_or(usize::MAX),
        // the table's kind has 32 bits
        max_concurrent_streams: u32::try_from(settings.uint("max-concurrent-streams")).unwrap_or(u32::MAX),
        grpc_keepalive_min_time: duration(settings, "grpc-keepalive-min-time").unwrap_or_default(),
        grpc_keepalive_interval: duration(settings, "grpc-keepalive-interval"),
        grpc_keepalive_timeout: duration(settings, "grpc-keepalive-timeout"),
        strict_reconfig_check: settings.bool("strict-reconfig-check"),
        // a number below zero allows as many as zero does
        max_learners: u64::try_from(settings.int("max-learners")).unwrap_or(0),
        snapshot_count: match settings.uint("snapshot-count") {
            0 => DEFAULT_SNAPSHOT_COUNT,
            count => count,
        },
        snapshot_catchup_entries: settings.uint("snapshot-catchup-entries"),
        heartbeat_interval: Duration::from_millis(settings.uint("heartbeat-interval")),
        election_timeout: Duration::from_millis(settings.uint("election-timeout")),
        gates: settings.gates("feature-gates"),
        watch_progress_notify_interval: duration(settings, "watch-progress-notify-interval")
            .unwrap_or(DEFAULT_PROGRESS_INTERVAL),
        warning_apply_duration: duration(settings, "warning-apply-duration").unwrap_or_default(),
        warning_unary_request_duration: duration(settings, "warning-unary-request-duration")
            .unwrap_or(DEFAULT_SLOW_REQUEST),
        metrics: if settings.text("metrics") == "extensive" {
            MetricsLevel::Extensive
        } else {
            MetricsLevel::Basic
        },
        log: log_options(settings)?,
    };
    let logged = |exit: Exit| exit.logged_with(&config.log);
    validate::check(&config, mode).map_err(logged)?;
    if let Err(reason) = versions {
        return Err(logged(Exit::refused(reason)));
    }
    validate::check_listeners(&config, notices).map_err(logged)?;
    if config.name == DEFAULT_NAME {
        let text = "it isn't recommended to use default name, please set a value for --name. Note that etcd might run \
                    into issue when multiple members have the same default name";
        notices.push(Record::new(Level::Warn, text).field("name", DEFAULT_NAME));
    }
    Ok(config)
}

fn client_tls(settings: &Settings) -> TlsFiles {
    TlsFiles {
        cert_file: path(settings, "cert-file"),
        key_file: path(settings, "key-file"),
        trusted_ca_file: path(settings, "trusted-ca-file"),
        client_cert_auth: settings.bool("client-cert-auth"),
        crl_file: path(settings, "client-crl-file"),
        allowed_hostnames: given_list(settings, "client-cert-allowed-hostname"),
        auto_tls: settings.bool("auto-tls"),
        ..TlsFiles::default()
    }
}

fn peer_tls(settings: &Settings) -> TlsFiles {
    TlsFiles {
        cert_file: path(settings, "peer-cert-file"),
        key_file: path(settings, "peer-key-file"),
        client_cert_file: path(settings, "peer-client-cert-file"),
        client_key_file: path(settings, "peer-client-key-file"),
        trusted_ca_file: path(settings, "peer-trusted-ca-file"),
        client_cert_auth: settings.bool("peer-client-cert-auth"),
        crl_file: path(settings, "peer-crl-file"),
        allowed_cns: given_list(settings, "peer-cert-allowed-cn"),
        allowed_hostnames: given_list(settings, "peer-cert-allowed-hostname"),
        skip_client_san_verification: settings.bool("peer-skip-client-san-verification"),
        auto_tls: settings.bool("peer-auto-tls"),
    }
}

/// An empty text names no version, which leaves the choice to us.
fn tls_versions(settings: &Settings) -> Result<(TlsVersion, Option<TlsVersion>), String> {
    let parse = |name| match settings.text(name).as_str() {
        "" => Ok(None),
        text => text.parse::<TlsVersion>().map(Some).map_err(|error| error.to_string()),
    };
    let (min, max) = (parse("tls-min-version")?.unwrap_or_default(), parse("tls-max-version")?);
    if max.is_some_and(|max| min > max) {
        let (min, max) = (settings.text("tls-min-version"), settings.text("tls-max-version"));
        return Err(format!("min version ({min}) is greater than max version ({max})"));
    }
    if min == TlsVersion::Tls13 && !given_list(settings, "cipher-suites").is_empty() {
        return Err("cipher suites cannot be configured when only TLS1.3 is enabled".to_owned());
    }
    Ok((min, max))
}

/// Empty if it is not given. One that is given as nothing holds an empty item, which is a mistake for some and a choice
/// for others.
fn given_list(settings: &Settings, name: &str) -> Vec<String> {
    match settings.is_given(name) {
        true => settings.list(name),
        false => Vec::new(),
    }
}

/// An empty path is none.
fn path(settings: &Settings, name: &str) -> Option<PathBuf> {
    Some(settings.text(name))
        .filter(|text| !text.is_empty())
        .map(PathBuf::from)
}

/// None for zero, and for negative ones, which mean no more than zero anywhere.
fn duration(settings: &Settings, name: &str) -> Option<Duration> {
    let nanos = u64::try_from(settings.duration(name)).ok().filter(|nanos| *nanos > 0)?;
    Some(Duration::from_nanos(nanos))
}

fn data_dir(settings: &Settings, notices: &mut Vec<Record>) -> PathBuf {
    path(settings, "data-dir").unwrap_or_else(|| {
        let default = format!("{}.etcd", settings.text("name"));
        let record = Record::new(Level::Warn, "'data-dir' was empty; using default");
        notices.push(record.field("data-dir", default.as_str()));
        PathBuf::from(default)
    })
}

/// By flag, whoever says where to listen must say where to be found; a file may leave it at the default.
fn advertise_client_urls(settings: &Settings, mode: Mode) -> Vec<Url> {
    let must_be_given = mode == Mode::Flags && settings.is_given("listen-client-urls");
    if must_be_given && !settings.is_given("advertise-client-urls") {
        return Vec::new();
    }
    settings.urls("advertise-client-urls")
}

/// A member that has a name of its own and no cluster is alone in its cluster.
fn initial_cluster(settings: &Settings) -> String {
    let given = settings.text("initial-cluster");
    let is_default = find("initial-cluster").is_some_and(|index| given == TABLE[index].default);
    let name = settings.text("name");
    if !is_default || name == DEFAULT_NAME {
        return given;
    }
    let name = if name.is_empty() { DEFAULT_NAME } else { &name };
    let urls = settings.urls("initial-advertise-peer-urls");
    urls.iter()
        .map(|url| format!("{name}={url}"))
        .collect::<Vec<_>>()
        .join(",")
}

fn cluster_state(settings: &Settings) -> Result<ClusterState, Exit> {
    // only a file gets this far with another word
    match settings.text("initial-cluster-state").as_str() {
        "new" | "" => Ok(ClusterState::New),
        "existing" => Ok(ClusterState::Existing),
        other => Err(Exit::refused(format_args!("unexpected clusterState {other:?}"))),
    }
}

fn quota(given: i64, notices: &mut Vec<Record>) -> Option<ByteSize> {
    let bytes = match u64::try_from(given) {
        Ok(0) => DEFAULT_QUOTA,
        Ok(bytes) => bytes,
        Err(_) => return None,
    };
    if bytes > QUOTA_ADVISED {
        let record = Record::new(Level::Warn, "quota exceeds the maximum value")
            .field("quota-size-bytes", bytes)
            .field("quota-maximum-size-bytes", QUOTA_ADVISED);
        notices.push(record);
    }
    Some(ByteSize(bytes))
}

fn max_request(bytes: u64, notices: &mut Vec<Record>) -> ByteSize {
    if bytes > REQUEST_ADVISED {
        let record = Record::new(Level::Warn, "exceeded recommended request limit")
            .field("max-request-bytes", bytes)
            .field("recommended-request-bytes", REQUEST_ADVISED);
        notices.push(record);
    }
    ByteSize(bytes)
}

fn log_options(settings: &Settings) -> Result<telemetry::Options, Exit> {
    match settings.text("logger").as_str() {
        "zap" => {}
        "capnslog" => return Err(Exit::refused("--logger=capnslog is removed in v3.5")),
        other => {
            return Err(Exit::refused(format_args!("unknown logger option {other:?}")));
        }
    }
    let outputs = settings.list("log-outputs");
    if outputs.len() > 1 && outputs.iter().any(|output| output == "default") {
        return Err(Exit::refused("multi logoutput for \"default\" is not supported yet"));
    }
    if outputs.iter().any(|output| output == "systemd/journal") {
        return Err(Exit::refused(format_args!(
            "--log-outputs=systemd/journal is not yet supported by Quorate {}; under systemd, stderr reaches the journal",
            usage::QUORATE_VERSION
        )));
    }
    let output = |output: String| match output.as_str() {
        "default" | "stderr" => Output::Stderr,
        "stdout" => Output::Stdout,
        _ => Output::File(PathBuf::from(output)),
    };
    let outputs: Vec<_> = outputs.into_iter().map(output).collect();
    let level = settings.text("log-level");
    let Some(level) = Level::parse(&level) else {
        return Err(bad_log_level(settings, &level));
    };
    let format = match settings.text("log-format").as_str() {
        "json" => Format::Json,
        "console" => Format::Console,
        other => {
            let text = format!("unknown log format: {other}, supported values json, console");
            return Err(Exit::refused(text));
        }
    };
    Ok(telemetry::Options {
        level,
        format,
        // a file may give an empty list; nobody wants a node that says nothing
        outputs: if outputs.is_empty() {
            vec![Output::Stderr]
        } else {
            outputs
        },
    })
}

/// etcd panics, so the code is 2 wherever the level came from.
fn bad_log_level(settings: &Settings, level: &str) -> Exit {
    let owner = match find("log-level").and_then(|index| settings.origin(index)) {
        Some(Origin::Environment) => "ETCD_LOG_LEVEL",
        Some(Origin::File) => "log-level in the configuration file",
        Some(Origin::CommandLine) | None => "flag -log-level",
    };
    Exit::usage(&format!(
        "invalid value {level:?} for {owner}: unrecognized level: {level:?}, use debug, info, warn, error, dpanic, panic or fatal"
    ))
}

/// A comma-separated list of what is allowed; `*` and nothing at all allow everything.
fn only(text: &str) -> Option<Vec<String>> {
    let listed: Vec<String> = text
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect();
    (!listed.is_empty() && !listed.iter().any(|item| item == "*")).then_some(listed)
}
