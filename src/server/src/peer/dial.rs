//! One dialler for everything that connects to a peer, so that who is believed cannot differ between uses.
//!
//! ```text
//! http, unix    ─► socket ───────────────────────────────────────────► plaintext
//! https, unixs  ─► socket ─► handshake: our certificate if asked for,
//!                            theirs for the URL's host, with all rules ─► TLS
//! ```
//!
//! A URL's scheme decides alone: a member that is said to speak TLS is never spoken to without.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use quorate_runtime::tls::explain::is_tls;
use quorate_runtime::tls::{Alpn, ClientTls, ClientTlsOptions, explain};
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::OnceCell;

use crate::config::{Config, Url};

/// A peer that is there answers the handshakes of TCP and TLS within this time.
pub const DIAL_PATIENCE: Duration = Duration::from_secs(5);
/// Silence after which the kernel asks whether the peer is still there, and between its attempts.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// A connection to a peer, of whatever kind its URL says.
pub trait PeerStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> PeerStream for S {}

/// Connects to peers. Cheap to clone.
#[derive(Clone)]
pub struct Dialer {
    /// Without settings for TLS it is made of the system's roots when a URL first asks for it.
    tls: Arc<OnceCell<Arc<ClientTls>>>,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer")
            .field("tls", &self.tls.get().map(|tls| tls.options()))
            .finish()
    }
}

impl Dialer {
    /// Reads certificates and the like, if the settings name any. Blocks.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let tls = match crate::tls::peer_dialler(config) {
            None => OnceCell::new(),
            Some(options) => {
                let tls = ClientTls::load(options).context("load TLS certificates for connections to peers")?;
                OnceCell::new_with(Some(Arc::new(tls)))
            }
        };
        Ok(Self { tls: Arc::new(tls) })
    }

    /// Connects to where a peer URL points, its certificate checked if it is https, to speak HTTP/1.1, or to a peer port
    /// of our own kind whatever it serves. Fails within [`DIAL_PATIENCE`].
    pub async fn dial(&self, url: &Url) -> io::Result<Box<dyn PeerStream>> {
        self.dial_for(url, Alpn::None).await
    }

    /// The same with a choice of what TLS announces: [`Alpn::H2`] for gRPC.
    pub async fn dial_for(&self, url: &Url, alpn: Alpn) -> io::Result<Box<dyn PeerStream>> {
        tokio::time::timeout(DIAL_PATIENCE, self.connect(url, alpn))
            .await
            .unwrap_or_else(|_| {
                Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("dial {url}: timed out"),
                ))
            })
    }

    async fn connect(&self, url: &Url, alpn: Alpn) -> io::Result<Box<dyn PeerStream>> {
        if url.scheme.is_unix() {
            let stream = UnixStream::connect(&url.host)
                .await
                .map_err(|error| failed(url, &error))?;
            return self.secure(url, alpn, stream).await;
        }
        let stream = TcpStream::connect((url.host.as_str(), url.port))
            .await
            .map_err(|error| failed(url, &error))?;
        // They fail only on a connection that is already dead.
        let _ = stream.set_nodelay(true);
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        self.secure(url, alpn, stream).await
    }

    async fn secure<S>(&self, url: &Url, alpn: Alpn, stream: S) -> io::Result<Box<dyn PeerStream>>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        if !url.is_tls() {
            return Ok(Box::new(stream));
        }
        let tls = self
            .tls
            .get_or_try_init(load_default)
            .await
            .map_err(|error| failed(url, &error))?;
        let name = server_name(url)?;
        let stream = tls
            .connect(name, alpn, stream)
            .await
            .map_err(|error| failed(url, &error))?;
        Ok(Box::new(Explained {
            url: url.clone(),
            stream,
        }))
    }
}

async fn load_default() -> io::Result<Arc<ClientTls>> {
    let load = || ClientTls::load(ClientTlsOptions::default());
    let loaded = tokio::task::spawn_blocking(load).await.map_err(io::Error::other)?;
    loaded.map(Arc::new).map_err(io::Error::other)
}

/// Whom the certificate has to be for. A unix socket's is for what its URL has in the place of a host, and for
/// `localhost` if that is nothing.
fn server_name(url: &Url) -> io::Result<ServerName<'static>> {
    let name = match url.scheme.is_unix() {
        false => url.host.as_str(),
        true => {
            let place = url.host.split('/').next().unwrap_or_default();
            let host = place.split(':').next().unwrap_or_default();
            if host.is_empty() { "localhost" } else { host }
        }
    };
    ServerName::try_from(name.to_owned()).map_err(|_| {
        let text = format!("dial {url}: no certificate can be for {name:?}, which is no DNS name and no IP address");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    })
}

fn failed(url: &Url, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("dial {url}: {}", explain(error)))
}

/// A connection that says in words why the peer has ended it: with TLS 1.3, a certificate of ours that it does not like
/// shows only after the handshake.
struct Explained<S> {
    url: Url,
    stream: S,
}

impl<S> Explained<S> {
    fn in_words<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        result.map_err(|error| match is_tls(&error) {
            true => io::Error::new(error.kind(), format!("{}: {}", self.url, explain(&error))),
            false => error,
        })
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Explained<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.in_words(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Explained<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.in_words(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.in_words(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.in_words(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.in_words(shut)
    }
}
