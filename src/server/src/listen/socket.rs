//! Bound sockets and accepted ones, TCP and unix alike.

use std::io::{self, IoSlice};
use std::net::{Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use quorate_runtime::telemetry::plain_io_error;
use socket2::{Domain, Protocol, SockRef, Socket as RawSocket, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::url::{ListenUrl, Place};

/// Connections that the kernel keeps for us while all slots are taken.
const BACKLOG: i32 = 4096;
/// Silence after which the kernel asks whether the peer is still there, and between its attempts.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// `--socket-reuse-port` and the like.
#[derive(Clone, Copy, Debug)]
pub struct SocketOptions {
    pub reuse_port: bool,
    /// On unless there is a reason: without it a restart has to wait for the old connections to time out.
    pub reuse_address: bool,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            reuse_port: false,
            reuse_address: true,
        }
    }
}

/// Worded as Go's programs word it, since people search for that.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("listen tcp: lookup {host}: no such host")]
    NoAddress { host: String },
    #[error("listen unix {}: the file exists and is no socket; remove it or choose another name", path.display())]
    NotASocket { path: PathBuf },
    /// `address` is the one that the host stands for.
    #[error("listen {network} {address}: {step}: {}", plain_io_error(cause))]
    Io {
        network: &'static str,
        address: String,
        step: &'static str,
        cause: io::Error,
    },
}

/// A bound place and the schemes that share it.
#[derive(Debug)]
pub struct Binding {
    address: String,
    plaintext: bool,
    tls: bool,
    listener: Listener,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: SocketFile },
}

/// Removes the file when the listener goes, unless it is another by then: the process that takes over may have bound
/// its own under the name.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and number. `None`: it was gone before it could be looked at.
    id: Option<(u64, u64)>,
}

impl SocketFile {
    fn bound(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            id: Self::id(path),
        }
    }

    fn id(path: &Path) -> Option<(u64, u64)> {
        let meta = std::fs::symlink_metadata(path).ok()?;
        Some((meta.dev(), meta.ino()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.id.is_some() && Self::id(&self.path) == self.id {
            // Gone already is as good.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Binds every place once; `http` and `https` URLs of the same place share it. Needs a tokio runtime around it.
pub fn bind(urls: &[ListenUrl], options: SocketOptions) -> Result<Vec<Binding>, BindError> {
    let mut places: Vec<(&Place, bool, bool)> = Vec::new();
    for url in urls {
        let tls = url.scheme().is_tls();
        match places.iter_mut().find(|(place, ..)| *place == url.place()) {
            Some(entry) => {
                entry.1 |= !tls;
                entry.2 |= tls;
            }
            None => places.push((url.place(), !tls, tls)),
        }
    }
    places
        .into_iter()
        .map(|(place, plaintext, tls)| {
            let listener = match place {
                Place::Tcp { host, port } => Listener::Tcp(bind_tcp(host, *port, options)?),
                Place::File(path) => bind_unix(path)?,
            };
            Ok(Binding {
                address: place.to_string(),
                plaintext,
                tls,
                listener,
            })
        })
        .collect()
}

fn bind_tcp(host: &str, port: u16, options: SocketOptions) -> Result<TcpListener, BindError> {
    if host.is_empty() {
        let shown = format!(":{port}");
        return match listen_tcp(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), &shown, options) {
            // No IPv6 on this machine.
            Err(BindError::Io { cause, .. })
                if cause.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) =>
            {
                listen_tcp(SocketAddr::from(([0, 0, 0, 0], port)), &shown, options)
            }
            other => other,
        };
    }
    let no_address = || BindError::NoAddress { host: host.to_owned() };
    let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs().map_err(|_| no_address())?.collect();
    // As Go does: the first IPv4 address of a name, another only when there is none.
    let address = addresses.iter().find(|address| address.is_ipv4());
    let address = *address.or_else(|| addresses.first()).ok_or_else(no_address)?;
    listen_tcp(address, &address.to_string(), options)
}

/// `shown` stands for the address in errors.
fn listen_tcp(address: SocketAddr, shown: &str, options: SocketOptions) -> Result<TcpListener, BindError> {
    let at = |step| {
        move |cause| BindError::Io {
            network: "tcp",
            address: shown.to_owned(),
            step,
            cause,
        }
    };
    let socket =
        RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).map_err(at("socket"))?;
    let set = || -> io::Result<()> {
        if address.ip() == Ipv6Addr::UNSPECIFIED {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(options.reuse_address)?;
        socket.set_reuse_port(options.reuse_port)?;
        socket.set_nonblocking(true)
    };
    set().map_err(at("setsockopt"))?;
    socket.bind(&address.into()).map_err(at("bind"))?;
    socket.listen(BACKLOG).map_err(at("listen"))?;
    TcpListener::from_std(socket.into()).map_err(at("register"))
}

/// What is there already was left behind: whoever binds holds the data directory's lock, so the process that served
/// the socket has ended.
fn bind_unix(path: &Path) -> Result<Listener, BindError> {
    let at = |step| {
        move |cause| BindError::Io {
            network: "unix",
            address: path.display().to_string(),
            step,
            cause,
        }
    };
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => std::fs::remove_file(path).map_err(at("unlink"))?,
        Ok(_) => return Err(BindError::NotASocket { path: path.to_owned() }),
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(at("bind"))?;
    Ok(Listener::Unix {
        listener,
        _file: SocketFile::bound(path),
    })
}

impl Binding {
    /// `host:port` or the file, as the URL had it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The address that was bound, with the port that was chosen for port 0. `None` for a unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.listener {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix { .. } => None,
        }
    }

    pub fn serves_plaintext(&self) -> bool {
        self.plaintext
    }

    pub fn serves_tls(&self) -> bool {
        self.tls
    }

    pub(crate) async fn accept(&self) -> io::Result<(Socket, Option<SocketAddr>)> {
        match &self.listener {
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Answers are written whole, so waiting for more to send only costs time. It fails only on a connection
                // that is already dead.
                let _ = stream.set_nodelay(true);
                let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive());
                Ok((Socket::Tcp(stream), Some(address)))
            }
            Listener::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                Ok((Socket::Unix(stream), None))
            }
        }
    }
}

/// Finds peers that vanished without a word, on connections where nothing else would.
fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE)
}

/// An accepted connection.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

macro_rules! each {
    ($self:ident, $io:ident => $call:expr) => {
        match $self.get_mut() {
            Socket::Tcp(io) => {
                let $io = Pin::new(io);
                $call
            }
            Socket::Unix(io) => {
                let $io = Pin::new(io);
                $call
            }
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, io => io.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, io => io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_shutdown(cx))
    }
}

/// A connection whose first bytes were looked at and are read again.
#[derive(Debug)]
pub(crate) struct Rewind<S> {
    head: Bytes,
    io: S,
}

impl<S> Rewind<S> {
    pub(crate) fn new(head: Bytes, io: S) -> Self {
        Self { head, io }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewind<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.head.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let n = self.head.len().min(buf.remaining());
        buf.put_slice(&self.head[..n]);
        self.head.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewind<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind_one(url: &str) -> Result<Binding, BindError> {
        let url: ListenUrl = url.parse().unwrap();
        Ok(bind(&[url], SocketOptions::default())?.remove(0))
    }

    #[tokio::test]
    async fn a_taken_port_is_told_in_gos_words() {
        let first = bind_one("http://127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        for host in ["127.0.0.1", "localhost"] {
            let error = bind_one(&format!("http://{host}:{port}")).unwrap_err();
            let wanted = format!("listen tcp 127.0.0.1:{port}: bind: address already in use");
            assert_eq!(error.to_string(), wanted);
        }
        let error = bind_one(&format!("http://:{port}")).unwrap_err();
        let wanted = format!("listen tcp :{port}: bind: address already in use");
        assert_eq!(error.to_string(), wanted);
    }

    #[tokio::test]
    async fn a_socket_file_is_removed_by_its_own_process_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let url = format!("unix://{}", path.display());
        let old = bind_one(&url).unwrap();
        let new = bind_one(&url).unwrap();
        drop(old);
        UnixStream::connect(&path).await.unwrap();
        drop(new);
        assert!(!path.exists());
    }
}
