//! One dialler for everything that connects to a peer, so that who is believed cannot differ between uses.

use crate::config::Url;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// A peer that is there answers the handshakes of TCP and TLS within this time.
pub const DIAL_PATIENCE: Duration = Duration::from_secs(5);

/// A connection to a peer, of whatever kind its URL says.
pub trait PeerStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> PeerStream for S {}

/// Connects to peers. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Dialer {}

impl Dialer {
    /// Connects to where a peer URL points, its certificate checked if it is https. Fails within [`DIAL_PATIENCE`].
    pub async fn dial(&self, url: &Url) -> io::Result<Box<dyn PeerStream>> {
        tokio::time::timeout(DIAL_PATIENCE, self.connect(url))
            .await
            .unwrap_or_else(|_| {
                Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("dial {url}: timed out"),
                ))
            })
    }

    async fn connect(&self, url: &Url) -> io::Result<Box<dyn PeerStream>> {
        if url.is_tls() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("dial {url}: peer certificates are not supported yet"),
            ));
        }
        if url.scheme.is_unix() {
            return Ok(Box::new(UnixStream::connect(&url.host).await?));
        }
        let stream = TcpStream::connect((url.host.as_str(), url.port)).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}
