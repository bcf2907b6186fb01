//! The TLS of connections that we open to other members, always by the newest files that work.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::{info, warn};

use super::follow::Followed;
use super::suites::{self, TlsVersion};
use super::unverified::AnyServer;
use super::verify::{RuledServers, Rules};
use super::{Error, files};

/// Which servers are believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Those with a certificate of a trusted authority, for the name that was dialled.
    #[default]
    Verified,
    /// All. For `--peer-auto-tls` alone, where every member signs its own certificate and knows nobody else's: keeps
    /// out who only listens, not who stands in between.
    Anyone,
}

/// What is to be spoken over the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// HTTP/2 is offered, for gRPC.
    H2,
    /// Nothing is offered, for HTTP/1.1.
    None,
}

/// What the TLS of dialled connections is made of. Field names follow etcd's flags.
#[derive(Clone, Debug, Default)]
pub struct ClientTlsOptions {
    /// Certificate and key that are shown to servers that ask.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Who signs the servers' certificates. `None`: the system's roots.
    pub trusted_ca_file: Option<PathBuf>,
    pub crl_file: Option<PathBuf>,
    /// The server's certificate needs one of these as subject alternative name, besides the name that was dialled;
    /// empty allows all.
    pub allowed_hostnames: Vec<String>,
    /// The server's certificate needs one of these as common name; empty allows all.
    pub allowed_cns: Vec<String>,
    pub trust: Trust,
    pub min_version: TlsVersion,
    pub max_version: Option<TlsVersion>,
    /// Suites of TLS 1.2 by their IANA names; empty allows all that are safe. Those of TLS 1.3 are always allowed.
    pub cipher_suites: Vec<String>,
}

impl ClientTlsOptions {
    fn watched(&self) -> Vec<PathBuf> {
        let (cert, key) = self.identity.clone().unzip();
        [cert, key, self.trusted_ca_file.clone(), self.crl_file.clone()]
            .into_iter()
            .flatten()
            .collect()
    }
}

/// The configurations that one set of files gives.
#[derive(Debug)]
struct Generation {
    h2: Arc<ClientConfig>,
    plain: Arc<ClientConfig>,
}

/// The TLS of dialled connections.
pub struct ClientTls {
    options: ClientTlsOptions,
    followed: Followed<Generation>,
}

impl ClientTls {
    /// Reads the files for the first time; here an error is final.
    pub fn load(options: ClientTlsOptions) -> Result<Self, Error> {
        let followed = Followed::load(options.watched(), || build(&options))?;
        if options.trust == Trust::Anyone {
            warn!(
                "certificates of other members are not verified, because peers make their own: anybody can pose as one"
            );
        }
        Ok(Self { options, followed })
    }

    pub fn options(&self) -> &ClientTlsOptions {
        &self.options
    }

    /// Looks at the files and takes new ones into use. Reads files, so not for async threads. A set that does not work is
    /// reported once and leaves the last good one in place.
    pub fn refresh(&self) {
        let cert = self
            .options
            .identity
            .as_ref()
            .map(|(cert, _)| cert.display().to_string());
        let cert = cert.unwrap_or_default();
        match self.followed.refresh(|| build(&self.options)) {
            None => {}
            Some(Ok(())) => info!(
                cert,
                "tls files changed and were taken into use for connections to peers"
            ),
            Some(Err(error)) => {
                warn!(%error, cert, "tls files changed but cannot be used to connect, the last good ones stay in use");
            }
        }
    }

    /// Shakes hands over `io` with a server that must be `name`. No deadline of its own.
    ///
    /// With TLS 1.3 this succeeds before the server has looked at our certificate; a refusal comes with the first read.
    /// [`super::explain`] puts either error into words.
    pub async fn connect<IO>(
        self: &Arc<Self>,
        name: ServerName<'static>,
        alpn: Alpn,
        io: IO,
    ) -> io::Result<TlsStream<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        if self.followed.is_due() {
            let tls = Arc::clone(self);
            // A failed join means that the runtime is going down.
            let _ = tokio::task::spawn_blocking(move || tls.refresh()).await;
        }
        let generation = self.followed.current();
        let config = match alpn {
            Alpn::H2 => &generation.h2,
            Alpn::None => &generation.plain,
        };
        TlsConnector::from(Arc::clone(config)).connect(name, io).await
    }
}

fn build(options: &ClientTlsOptions) -> Result<Generation, Error> {
    let provider = Arc::new(suites::provider(&options.cipher_suites)?);
    let versions = suites::versions(options.min_version, options.max_version);
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions)
        .map_err(Error::Protocol)?
        .dangerous() // as the library calls verifiers that are not its own; ours ask its own first
        .with_custom_certificate_verifier(server_verifier(options, provider)?);
    let mut plain = match &options.identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => builder
            .with_client_auth_cert(files::certificates(cert)?, files::private_key(key)?)
            .map_err(|source| Error::Identity {
                cert: cert.clone(),
                key: key.clone(),
                source,
            })?,
    };
    // A resumed session is not verified again. Peers connect seldom, so there is nothing to win by it.
    plain.resumption = Resumption::disabled();
    let mut h2 = plain.clone();
    h2.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Generation {
        h2: Arc::new(h2),
        plain: Arc::new(plain),
    })
}

fn server_verifier(
    options: &ClientTlsOptions,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, Error> {
    if options.trust == Trust::Anyone {
        return Ok(Arc::new(AnyServer::new(provider)));
    }
    let (roots, path) = match &options.trusted_ca_file {
        Some(path) => (files::roots(path)?, path.clone()),
        None => files::system_roots().ok_or(Error::NoServerRoots)?,
    };
    let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
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
    Ok(Arc::new(RuledServers::new(chain, rules)))
}
