//! From settings to TLS. Listeners and the dialler get theirs here and nowhere else, so that certificates, revocation
//! lists and rules are the same wherever they apply.
//!
//! ```text
//! --cert-file …      ─► client_listeners ─► client ports, metrics ports
//! --peer-cert-file … ─┬► peer_listeners  ─► peer ports
//!                     └► peer_dialler    ─► every connection to another member
//! ```
//!
//! With `--auto-tls` or `--peer-auto-tls` and no certificate, one is made in the data directory. As in etcd, certificates
//! of others are not asked for then and not verified.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use quorate_runtime::tls::{ClientTlsOptions, ServerTls, ServerTlsOptions, Trust, self_made};
use tracing::{info, warn};

use crate::config::{Config, TlsFiles, Url};

/// What client ports and metrics ports serve TLS with, if any of them does. Blocks.
pub fn client_listeners(config: &Config) -> anyhow::Result<Option<Arc<ServerTls>>> {
    let files = &config.client_tls;
    let urls: Vec<_> = config.client_urls().collect();
    make_certificate(files, config, "client", &urls)?;
    let Some((cert_file, key_file)) = served(files, &config.data_dir, "client") else {
        return Ok(None);
    };
    if !urls.into_iter().chain(&config.listen_metrics_urls).any(Url::is_tls) {
        if !files.is_self_made() {
            warn!("certificates are given and no URL to listen on is https: they are not used");
        }
        return Ok(None);
    }
    let options = ServerTlsOptions {
        cert_file,
        key_file,
        ..server_options(files, config)
    };
    let tls = ServerTls::load(options).context("load TLS certificates")?;
    Ok(Some(Arc::new(tls)))
}

/// What peer ports serve TLS with, if any of them does. Blocks.
pub fn peer_listeners(config: &Config) -> anyhow::Result<Option<Arc<ServerTls>>> {
    let files = &config.peer_tls;
    let urls: Vec<_> = config.listen_peer_urls.iter().collect();
    make_certificate(files, config, "peer", &urls)?;
    let Some((cert_file, key_file)) = served(files, &config.data_dir, "peer") else {
        return Ok(None);
    };
    if !urls.into_iter().any(Url::is_tls) {
        return Ok(None);
    }
    let options = ServerTlsOptions {
        cert_file,
        key_file,
        check_addresses: !files.skip_client_san_verification,
        ..server_options(files, config)
    };
    info!(
        "tls-info" = shown(&options),
        "cipher-suites" = options.cipher_suites.join(","),
        "starting with peer TLS"
    );
    let tls = ServerTls::load(options).context("load TLS certificates for peers")?;
    Ok(Some(Arc::new(tls)))
}

/// What connections to other members are opened with; `None` when no setting says anything about it.
pub fn peer_dialler(config: &Config) -> Option<ClientTlsOptions> {
    let files = &config.peer_tls;
    if *files == TlsFiles::default() {
        return None;
    }
    let served = served(files, &config.data_dir, "peer");
    let common = ClientTlsOptions {
        min_version: config.tls_min_version,
        max_version: config.tls_max_version,
        cipher_suites: config.cipher_suites.clone(),
        ..ClientTlsOptions::default()
    };
    if files.is_self_made() {
        return Some(ClientTlsOptions {
            identity: served,
            trust: Trust::Anyone,
            ..common
        });
    }
    let own = files.client_cert_file.clone().zip(files.client_key_file.clone());
    Some(ClientTlsOptions {
        identity: own.or(served),
        trusted_ca_file: files.trusted_ca_file.clone(),
        crl_file: files.crl_file.clone(),
        allowed_hostnames: files.allowed_hostnames.clone(),
        allowed_cns: files.allowed_cns.clone(),
        ..common
    })
}

/// What all listeners have in common. A certificate of our own making comes without rules for those of others.
fn server_options(files: &TlsFiles, config: &Config) -> ServerTlsOptions {
    let rules = if files.is_self_made() {
        TlsFiles::default()
    } else {
        files.clone()
    };
    ServerTlsOptions {
        trusted_ca_file: rules.trusted_ca_file,
        client_cert_auth: rules.client_cert_auth,
        crl_file: rules.crl_file,
        allowed_hostnames: rules.allowed_hostnames,
        allowed_cns: rules.allowed_cns,
        min_version: config.tls_min_version,
        max_version: config.tls_max_version,
        cipher_suites: config.cipher_suites.clone(),
        ..ServerTlsOptions::default()
    }
}

/// Certificate and key, if there are any. `whose`: the folder for those of our own making.
fn served(files: &TlsFiles, data_dir: &Path, whose: &str) -> Option<(PathBuf, PathBuf)> {
    if files.is_self_made() {
        return Some(self_made::files(&fixtures(data_dir, whose)));
    }
    files.cert_file.clone().zip(files.key_file.clone())
}

fn fixtures(data_dir: &Path, whose: &str) -> PathBuf {
    data_dir.join("fixtures").join(whose)
}

/// For the places that are listened on. A unix socket has no name that a certificate could hold.
fn make_certificate(files: &TlsFiles, config: &Config, whose: &str, urls: &[&Url]) -> anyhow::Result<()> {
    if !files.is_self_made() {
        return Ok(());
    }
    let mut hosts: Vec<String> = Vec::new();
    for url in urls.iter().filter(|url| !url.scheme.is_unix()) {
        if !hosts.contains(&url.host) {
            hosts.push(url.host.clone());
        }
    }
    let dir = fixtures(&config.data_dir, whose);
    self_made::ensure(&dir, &hosts, config.self_signed_cert_validity_years)
        .with_context(|| format!("failed to get {whose} self-signed certs"))
}

/// In etcd's form. Names of files only.
fn shown(options: &ServerTlsOptions) -> String {
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    format!(
        "cert = {}, key = {}, trusted-ca = {}, client-cert-auth = {}, crl-file = {}",
        options.cert_file.display(),
        options.key_file.display(),
        path(&options.trusted_ca_file),
        options.client_cert_auth,
        path(&options.crl_file),
    )
}
