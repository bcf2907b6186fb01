//! Settings that parse and still can't be. Order and texts are etcd's: the first thing wrong is the one reported.

use std::time::Duration;

use quorate_runtime::telemetry::{Level, Record};

use super::build::Mode;
use super::{Config, Exit, Url};

const ELECTION_TIMEOUT_MAX: Duration = Duration::from_millis(50_000);

pub(super) fn check(config: &Config, mode: Mode) -> Result<(), Exit> {
    for urls in [
        &config.listen_peer_urls,
        &config.listen_client_urls,
        &config.listen_metrics_urls,
    ] {
        check_bind(urls)?;
    }
    if let Some(url) = without_host(&config.initial_advertise_peer_urls) {
        let all = join(&config.initial_advertise_peer_urls);
        return Err(Exit::refused(format_args!(
            "--initial-advertise-peer-urls {all:?} must be \"host:port\" (unexpected empty host ({url}))"
        )));
    }
    if let Some(url) = without_host(&config.advertise_client_urls) {
        let all = join(&config.advertise_client_urls);
        return Err(Exit::refused(format_args!(
            "--advertise-client-urls {all:?} must be in the format \"host:port\", \"unix:/path/to/socket\" or \
             \"unixs:/path/to/socket\" (unexpected empty host ({url}))"
        )));
    }
    check_ticks(config.heartbeat_interval, config.election_timeout)?;
    if mode == Mode::Flags && config.advertise_client_urls.is_empty() {
        let text = "--advertise-client-urls is required when --listen-client-urls is set explicitly";
        let mut exit = Exit::refused(text);
        exit.records
            .push(Record::new(Level::Warn, "advertise client URLs are not set").field("error", text));
        return Err(exit);
    }
    Ok(())
}

/// Whoever binds must name an address of this machine, and a name may mean another tomorrow.
fn check_bind(urls: &[Url]) -> Result<(), Exit> {
    let bad = urls
        .iter()
        .find(|url| !url.scheme.is_unix() && url.host != "localhost" && url.ip().is_none());
    match bad {
        Some(url) => Err(Exit::refused(format_args!("expected IP in URL for binding ({url})"))),
        None => Ok(()),
    }
}

fn without_host(urls: &[Url]) -> Option<&Url> {
    urls.iter().find(|url| url.host.is_empty())
}

fn join(urls: &[Url]) -> String {
    urls.iter().map(Url::to_string).collect::<Vec<_>>().join(",")
}

fn check_ticks(heartbeat: Duration, election: Duration) -> Result<(), Exit> {
    let (beat, vote) = (heartbeat.as_millis(), election.as_millis());
    if beat == 0 {
        return Err(Exit::refused("--heartbeat-interval must be >0 (set to 0ms)"));
    }
    if vote == 0 {
        return Err(Exit::refused("--election-timeout must be >0 (set to 0ms)"));
    }
    if 5 * beat > vote {
        return Err(Exit::refused(format_args!(
            "--election-timeout[{vote}ms] should be at least as 5 times as --heartbeat-interval[{beat}ms]"
        )));
    }
    if election > ELECTION_TIMEOUT_MAX {
        return Err(Exit::refused(format_args!(
            "--election-timeout[{vote}ms] is too long, and should be set less than {}ms",
            ELECTION_TIMEOUT_MAX.as_millis()
        )));
    }
    Ok(())
}

/// What etcd finds out when it opens its listeners; we find out before there is a data folder.
pub(super) fn check_listeners(config: &Config, notices: &mut Vec<Record>) -> Result<(), Exit> {
    let Config { client_tls, .. } = config;
    if let Some(url) = config.listen_peer_urls.iter().find(|url| url.is_tls()) {
        let at = url.authority();
        return Err(Exit::discovery_failed(format_args!(
            "cannot listen on TLS for {at}: KeyFile and CertFile are not presented"
        )));
    }
    for url in &config.listen_client_urls {
        if url.is_tls() {
            if client_tls.is_empty() {
                return Err(Exit::discovery_failed(format_args!(
                    "TLS key/cert (--cert-file, --key-file) must be provided for client url {url} with HTTPS scheme"
                )));
            }
            continue;
        }
        let ignored = [
            (
                !client_tls.is_empty(),
                "scheme is http or unix while key and cert files are present; ignoring key and cert files",
            ),
            (
                client_tls.client_cert_auth,
                "scheme is http or unix while --client-cert-auth is enabled; ignoring client cert auth for this URL",
            ),
        ];
        for (_, text) in ignored.iter().filter(|(applies, _)| *applies) {
            notices.push(Record::new(Level::Warn, *text).field("client-url", url.to_string()));
        }
    }
    if client_tls.is_empty() && config.listen_metrics_urls.iter().any(Url::is_tls) {
        let text = "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url";
        return Err(Exit::discovery_failed(text));
    }
    if client_tls.cert_file.is_some() != client_tls.key_file.is_some() {
        let shown = |file: &Option<std::path::PathBuf>| {
            file.as_ref().map(|file| file.display().to_string()).unwrap_or_default()
        };
        let (key, cert) = (shown(&client_tls.key_file), shown(&client_tls.cert_file));
        let serves_tls = config
            .listen_client_urls
            .iter()
            .chain(&config.listen_metrics_urls)
            .any(Url::is_tls);
        if serves_tls {
            let text = format!("KeyFile and CertFile must both be present[key: {key}, cert: {cert}]");
            return Err(Exit::discovery_failed(text));
        }
    }
    Ok(())
}
