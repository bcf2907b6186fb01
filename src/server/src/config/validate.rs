//! Settings that parse and still can't be. Order and texts are etcd's: the first thing wrong is the one reported.

use std::path::PathBuf;
use std::time::Duration;

use quorate_runtime::telemetry::{Level, Record};
use quorate_runtime::tls::suites;

use super::build::Mode;
use super::{Config, Exit, Scheme, TlsFiles, Url};

const ELECTION_TIMEOUT_MAX: Duration = Duration::from_millis(50_000);

pub(super) fn check(config: &Config, mode: Mode) -> Result<(), Exit> {
    for urls in [
        &config.listen_peer_urls,
        &config.listen_client_urls,
        &config.listen_client_http_urls,
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
    if let Err(reason) = config.gates.check() {
        return Err(Exit::refused(reason));
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
    if let Err(error) = suites::check(&config.cipher_suites) {
        return Err(Exit::discovery_failed(error));
    }
    check_peer_listeners(config, notices)?;
    check_client_listeners(config, notices)
}

fn check_peer_listeners(config: &Config, notices: &mut Vec<Record>) -> Result<(), Exit> {
    let Config { peer_tls: tls, .. } = config;
    check_auto_tls("peer", tls, config, notices)?;
    let no_certificate = tls.is_empty() && !tls.auto_tls;
    for url in &config.listen_peer_urls {
        if url.is_tls() && no_certificate {
            let at = url.authority();
            return Err(Exit::discovery_failed(format_args!(
                "cannot listen on TLS for {at}: KeyFile and CertFile are not presented"
            )));
        }
        if url.scheme != Scheme::Http {
            continue;
        }
        let ignored = [
            (
                !no_certificate,
                "scheme is HTTP while key and cert files are present; ignoring key and cert files",
            ),
            (
                tls.client_cert_auth && !tls.is_self_made(),
                "scheme is HTTP while --peer-client-cert-auth is enabled; ignoring client cert auth for this URL",
            ),
        ];
        for (_, text) in ignored.iter().filter(|(applies, _)| *applies) {
            notices.push(Record::new(Level::Warn, *text).field("peer-url", url.to_string()));
        }
    }
    // Whatever the URLs: it is also what we connect to other members with.
    if tls.is_empty() {
        return Ok(());
    }
    check_pairs(tls)?;
    if !tls.allowed_cns.is_empty() && !tls.allowed_hostnames.is_empty() {
        let (cns, hostnames) = (quoted(&tls.allowed_cns), quoted(&tls.allowed_hostnames));
        return Err(Exit::discovery_failed(format_args!(
            "AllowedCNs and AllowedHostnames are mutually exclusive (cns={cns}, hostnames={hostnames})"
        )));
    }
    Ok(())
}

fn check_client_listeners(config: &Config, notices: &mut Vec<Record>) -> Result<(), Exit> {
    let Config { client_tls: tls, .. } = config;
    check_auto_tls("client", tls, config, notices)?;
    let no_certificate = tls.is_empty() && !tls.auto_tls;
    let of_grpc = |http: &&Url| {
        config
            .listen_client_urls
            .iter()
            .any(|url| url.authority() == http.authority())
    };
    if let Some(url) = config.listen_client_http_urls.iter().find(of_grpc) {
        return Err(Exit::discovery_failed(format_args!(
            "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url {url}"
        )));
    }
    for url in config.client_urls() {
        if url.is_tls() {
            if no_certificate {
                return Err(Exit::discovery_failed(format_args!(
                    "TLS key/cert (--cert-file, --key-file) must be provided for client url {url} with HTTPS scheme"
                )));
            }
            continue;
        }
        let ignored = [
            (
                !no_certificate,
                "scheme is http or unix while key and cert files are present; ignoring key and cert files",
            ),
            (
                tls.client_cert_auth && !tls.is_self_made(),
                "scheme is http or unix while --client-cert-auth is enabled; ignoring client cert auth for this URL",
            ),
        ];
        for (_, text) in ignored.iter().filter(|(applies, _)| *applies) {
            notices.push(Record::new(Level::Warn, *text).field("client-url", url.to_string()));
        }
    }
    if no_certificate && config.listen_metrics_urls.iter().any(Url::is_tls) {
        let text = "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url";
        return Err(Exit::discovery_failed(text));
    }
    let mut urls = config.client_urls().chain(&config.listen_metrics_urls);
    if !tls.is_empty() && urls.any(Url::is_tls) {
        check_pairs(tls)?;
    }
    Ok(())
}

/// A certificate without its key is none.
fn check_pairs(tls: &TlsFiles) -> Result<(), Exit> {
    let shown = |file: &Option<PathBuf>| file.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
    if tls.cert_file.is_some() != tls.key_file.is_some() {
        let (key, cert) = (shown(&tls.key_file), shown(&tls.cert_file));
        return Err(Exit::discovery_failed(format_args!(
            "KeyFile and CertFile must both be present[key: {key}, cert: {cert}]"
        )));
    }
    if tls.client_cert_file.is_some() != tls.client_key_file.is_some() {
        let (key, cert) = (shown(&tls.client_key_file), shown(&tls.client_cert_file));
        return Err(Exit::discovery_failed(format_args!(
            "ClientKeyFile and ClientCertFile must both be present or both absent: key: {key}, cert: {cert}]"
        )));
    }
    Ok(())
}

/// `whose`: client or peer, as the log has it.
fn check_auto_tls(whose: &'static str, tls: &TlsFiles, config: &Config, notices: &mut Vec<Record>) -> Result<(), Exit> {
    if !tls.auto_tls {
        return Ok(());
    }
    if !tls.is_empty() {
        let text = format!("ignoring {whose} auto TLS since certs given");
        notices.push(Record::new(Level::Warn, text));
        return Ok(());
    }
    if config.self_signed_cert_validity_years == 0 {
        let record = Record::new(Level::Fatal, format!("failed to get {whose} self-signed certs"));
        let error = "selfSignedCertValidity is invalid,it should be greater than 0";
        return Err(Exit::fatal(record.field("error", error)));
    }
    let TlsFiles {
        cert_file: _,
        key_file: _,
        client_cert_file,
        client_key_file,
        trusted_ca_file,
        client_cert_auth,
        crl_file,
        allowed_cns,
        allowed_hostnames,
        skip_client_san_verification: _,
        auto_tls: _,
    } = tls;
    let rules_given = *client_cert_auth
        || !allowed_cns.is_empty()
        || !allowed_hostnames.is_empty()
        || [client_cert_file, client_key_file, trusted_ca_file, crl_file]
            .iter()
            .any(|file| file.is_some());
    if rules_given {
        let text = "with a certificate of its own making, a member neither asks for certificates nor verifies them; \
                    settings about that have no effect";
        notices.push(Record::new(Level::Warn, text).field("of", whose));
    }
    Ok(())
}

/// A list as Go's `%q` shows it.
fn quoted(items: &[String]) -> String {
    let items: Vec<_> = items.iter().map(|item| format!("{item:?}")).collect();
    format!("[{}]", items.join(" "))
}
