//! TLS for everything that listens: what it is made of, who is let in, and how new files come into effect.
//!
//! ```text
//! cert, key, CA, CRL files ──build──► Generation { configs, ticketer, session store }
//!        ▲                                 │ swapped as a whole
//!        └── looked at again, at most ─────┴─► each accepted connection takes the current one
//!            every CHECK_INTERVAL
//! ```
//!
//! * [`files`] — reading PEM files, with errors that name the file;
//! * [`suites`] — cipher suites and versions by the names that etcd's flags use;
//! * [`verify`] — the rules for client certificates beyond their chain;
//! * [`identity`] — what a verified certificate says about its owner.
//!
//! Invariants: a set of files that cannot serve never replaces one that can. A new generation has new session tickets,
//! so that a certificate which the new rules refuse cannot come back by resumption. Only AEAD suites, TLS 1.2 or later.

pub mod files;
pub mod identity;
pub mod suites;
mod verify;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ServerSessionMemoryCache, WebPkiClientVerifier};
use tracing::{info, warn};

pub use files::FileError;
pub use identity::CertificateIdentity;
pub use suites::{TlsVersion, UnknownSuite};
use verify::RuledVerifier;

/// How often files are looked at again, at most.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// Sessions that TLS 1.2 clients may resume by id.
const SESSIONS_MAX: usize = 1024;

/// Why there is no usable TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("certificate {cert} and key {key} do not go together or are of no usable kind: {source}")]
    Identity {
        cert: PathBuf,
        key: PathBuf,
        source: rustls::Error,
    },
    #[error("trusted CA file {path} holds no usable certificate: {why}")]
    Roots { path: PathBuf, why: String },
    #[error("client certificates are required, but neither a trusted CA file nor a system root store was found")]
    NoRoots,
    #[error(transparent)]
    Suites(#[from] UnknownSuite),
    #[error("the TLS versions and cipher suites given leave nothing to agree on: {0}")]
    Protocol(rustls::Error),
    #[error("allowed host name {0:?} is no DNS name or IP address")]
    HostName(String),
}

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

    fn watched(&self) -> impl Iterator<Item = &Path> {
        [
            Some(&self.cert_file),
            Some(&self.key_file),
            self.trusted_ca_file.as_ref(),
            self.crl_file.as_ref(),
        ]
        .into_iter()
        .flatten()
        .map(PathBuf::as_path)
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

/// The TLS of a listener, always by the newest files that work.
pub struct ServerTls {
    options: ServerTlsOptions,
    current: ArcSwap<Generation>,
    check: Mutex<Check>,
}

struct Check {
    last: Instant,
    /// The files that were tried last, whether they worked or not.
    tried: Vec<Option<FileStamp>>,
}

impl ServerTls {
    /// Reads the files for the first time; here an error is final.
    pub fn load(options: ServerTlsOptions) -> Result<Self, Error> {
        // Stamps first: a change while we read is then seen as a change.
        let tried = stamps(&options);
        let generation = build(&options)?;
        Ok(Self {
            options,
            current: ArcSwap::from_pointee(generation),
            check: Mutex::new(Check {
                last: Instant::now(),
                tried,
            }),
        })
    }

    pub fn options(&self) -> &ServerTlsOptions {
        &self.options
    }

    pub fn current(&self) -> Arc<Generation> {
        self.current.load_full()
    }

    /// Whether it is time for [`ServerTls::refresh`].
    pub fn is_due(&self) -> bool {
        self.check
            .try_lock()
            .is_some_and(|check| check.last.elapsed() >= CHECK_INTERVAL)
    }

    /// Looks at the files and takes new ones into use. Reads files, so not for async threads. A set that does not work is
    /// reported once and leaves the last good one in place.
    pub fn refresh(&self) {
        // Whoever holds the lock is just doing this.
        let Some(mut check) = self.check.try_lock() else {
            return;
        };
        let stamps = stamps(&self.options);
        check.last = Instant::now();
        if stamps == check.tried {
            return;
        }
        check.tried = stamps;
        match build(&self.options) {
            Ok(generation) => {
                self.current.store(Arc::new(generation));
                info!(cert = %self.options.cert_file.display(), "tls files changed and were taken into use");
            }
            Err(error) => {
                warn!(%error, cert = %self.options.cert_file.display(), "tls files changed but cannot serve, the last good ones stay in use");
            }
        }
    }
}

/// What tells one content of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

fn stamps(options: &ServerTlsOptions) -> Vec<Option<FileStamp>> {
    options
        .watched()
        .map(|path| {
            let meta = std::fs::metadata(path).ok()?;
            Some(FileStamp {
                device: meta.dev(),
                inode: meta.ino(),
                len: meta.len(),
                modified: (meta.mtime(), meta.mtime_nsec()),
                changed: (meta.ctime(), meta.ctime_nsec()),
            })
        })
        .collect()
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
    provider: Arc<rustls::crypto::CryptoProvider>,
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
    let revoked = match &options.crl_file {
        Some(path) => files::revoked_serials(path)?,
        None => Default::default(),
    };
    let verifier = RuledVerifier::new(chain, revoked, &options.allowed_hostnames, &options.allowed_cns)?;
    Ok(Some(Arc::new(verifier)))
}
