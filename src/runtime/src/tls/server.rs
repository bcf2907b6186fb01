//! The TLS of a listener, always by the newest files that work.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ServerSessionMemoryCache, WebPkiClientVerifier};
use tracing::{info, warn};

use super::address::{self, AddressError, SystemResolver};
use super::follow::Followed;
use super::suites::{self, TlsVersion};
use super::verify::{RuledClients, Rules};
use super::{Error, files};

/// Sessions that TLS 1.2 clients may resume by id.
const SESSIONS_MAX: usize = 1024;

/// What the TLS of a listener is made of. Field names follow etcd's flags.
#[derive(Clone, Debug, Default)]
pub struct ServerTlsOptions {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    /// Client certificates are required as soon as this or `client_cert_auth` is given; with only the latter, the
    /// system's roots decide.
    pub trusted_ca_file: Option<PathBuf>,
    pub client_cert_auth: bool,
    pub crl_file: Option<PathBuf>,
    /// A client certificate needs one of these as subject alternative name; empty allows all.
    pub allowed_hostnames: Vec<String>,
    /// A client certificate needs one of these as common name; empty allows all.
    pub allowed_cns: Vec<String>,
    /// A client certificate that names addresses or hosts is good from there only; see [`address`].
    pub check_addresses: bool,
    pub min_version: TlsVersion,
    pub max_version: Option<TlsVersion>,
    /// Suites of TLS 1.2 by their IANA names; empty allows all that are safe. Those of TLS 1.3 are always allowed.
    pub cipher_suites: Vec<String>,
}

impl ServerTlsOptions {
    /// Whether clients have to show a certificate.
    pub fn requires_client_certificates(&self) -> bool {
        self.client_cert_auth || self.trusted_ca_file.is_some()
    }

    fn watched(&self) -> Vec<PathBuf> {
        [
            Some(&self.cert_file),
            Some(&self.key_file),
            self.trusted_ca_file.as_ref(),
            self.crl_file.as_ref(),
        ]
        .into_iter()
        .flatten()
        .cloned()
        .collect()
    }
}

/// The configurations that one set of files gives. Both share tickets and sessions.
#[derive(Debug)]
pub struct Generation {
    /// For clients that offer HTTP/2 by ALPN.
    pub h2: Arc<ServerConfig>,
    /// For all others: no protocol is selected, and they speak HTTP/1.1.
    pub plain: Arc<ServerConfig>,
}

/// The TLS of a listener.
pub struct ServerTls {
    options: ServerTlsOptions,
    followed: Followed<Generation>,
}

impl ServerTls {
    /// Reads the files for the first time; here an error is final.
    pub fn load(options: ServerTlsOptions) -> Result<Self, Error> {
        let followed = Followed::load(options.watched(), || build(&options))?;
        Ok(Self { options, followed })
    }

    pub fn options(&self) -> &ServerTlsOptions {
        &self.options
    }

    pub fn current(&self) -> Arc<Generation> {
        self.followed.current()
    }

    /// Whether it is time for [`ServerTls::refresh`].
    pub fn is_due(&self) -> bool {
        self.followed.is_due()
    }

    /// Looks at the files and takes new ones into use. Reads files, so not for async threads. A set that does not work is
    /// reported once and leaves the last good one in place.
    pub fn refresh(&self) {
        let cert = self.options.cert_file.display();
        match self.followed.refresh(|| build(&self.options)) {
            None => {}
            Some(Ok(())) => info!(%cert, "tls files changed and were taken into use"),
            Some(Err(error)) => {
                warn!(%error, %cert, "tls files changed but cannot serve, the last good ones stay in use");
            }
        }
    }

    /// Whether a client that showed this verified certificate may come from this address; always, unless the options
    /// ask for the check. May ask DNS, which can take its time.
    pub async fn check_address(&self, certificate: &CertificateDer<'_>, from: IpAddr) -> Result<(), AddressError> {
        if !self.options.check_addresses {
            return Ok(());
        }
        address::check(certificate, from, &SystemResolver).await
    }
}

fn build(options: &ServerTlsOptions) -> Result<Generation, Error> {
    let chain = files::certificates(&options.cert_file)?;
    let key = files::private_key(&options.key_file)?;
    let provider = Arc::new(suites::provider(&options.cipher_suites)?);
    let versions = suites::versions(options.min_version, options.max_version);
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions)
        .map_err(Error::Protocol)?;
    let builder = match client_verifier(options, provider)? {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut plain = builder.with_single_cert(chain, key).map_err(|source| Error::Identity {
        cert: options.cert_file.clone(),
        key: options.key_file.clone(),
        source,
    })?;
    plain.ticketer = aws_lc_rs::Ticketer::new().map_err(Error::Protocol)?;
    plain.session_storage = ServerSessionMemoryCache::new(SESSIONS_MAX);
    plain.send_tls13_tickets = 1;
    let mut h2 = plain.clone();
    h2.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Generation {
        h2: Arc::new(h2),
        plain: Arc::new(plain),
    })
}

fn client_verifier(
    options: &ServerTlsOptions,
    provider: Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, Error> {
    if !options.requires_client_certificates() {
        return Ok(None);
    }
    let (roots, path) = match &options.trusted_ca_file {
        Some(path) => (files::roots(path)?, path.clone()),
        None => files::system_roots().ok_or(Error::NoRoots)?,
    };
    let chain = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| Error::Roots {
            path,
            why: error.to_string(),
        })?;
    let rules = Rules::new(
        options.crl_file.as_deref(),
        &options.allowed_hostnames,
        &options.allowed_cns,
    )?;
    Ok(Some(Arc::new(RuledClients::new(chain, rules))))
}
