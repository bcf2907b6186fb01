//! One accepted connection, from its first byte to the protocol that serves it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use quorate_runtime::tls::{AddressError, CertificateIdentity, ServerTls, explain};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use super::accept::Listener;
use super::parting::part;
use super::socket::{Rewind, Socket};
use super::{Audience, Stop, Traffic};
use crate::rpc::{Api, PeerInfo, TlsPeer};
use crate::{http, rpc};

/// What an HTTP/2 client sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The first byte of a TLS handshake record.
const TLS_HANDSHAKE: u8 = 0x16;
/// So long somebody who is turned away gets to hear why.
const PARTING: Duration = Duration::from_millis(500);

/// Why a connection was not served.
#[derive(Debug, thiserror::Error)]
enum Rejected {
    #[error("closed before it said anything")]
    Silent,
    #[error("{0} did not arrive in time")]
    Late(&'static str),
    #[error("tls: first record does not look like a TLS handshake")]
    NotTls,
    #[error("TLS is not served here")]
    NoTls,
    #[error("this port does not serve {0}")]
    Protocol(&'static str),
    #[error("client certificate has expired")]
    Expired,
    #[error("{}", explain(source))]
    Handshake {
        source: io::Error,
        server_name: Option<String>,
    },
    #[error(transparent)]
    Address(AddressError),
    #[error("read: {0}")]
    Read(#[source] io::Error),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

pub(super) async fn run<A: Api>(listener: &Listener<A>, socket: Socket, address: Option<SocketAddr>) {
    let stop = listener.stop.child();
    let result = tokio::select! {
        biased;
        result = serve(listener, socket, address, &stop) => result,
        () = stop.kill.cancelled() => return,
    };
    let Err(rejected) = result else { return };
    let remote = address.map_or_else(|| "@".to_owned(), |address| address.to_string());
    let server_name = match &rejected {
        Rejected::Handshake { server_name, .. } => server_name.as_deref().unwrap_or_default(),
        _ => "",
    };
    match (&rejected, listener.service.audience) {
        // Load balancers probe ports like this all day.
        (Rejected::Silent, _) => debug!(remote_addr = %remote, "connection was closed before it said anything"),
        (_, Audience::Client) => warn!(
            "remote-addr" = %remote,
            "server-name" = server_name,
            error = %rejected,
            "rejected connection on client endpoint"
        ),
        (_, Audience::Peer) => warn!(
            "remote-addr" = %remote,
            "server-name" = server_name,
            error = %rejected,
            "rejected connection on peer endpoint"
        ),
        (_, Audience::Metrics) => warn!(
            "remote-addr" = %remote,
            "server-name" = server_name,
            error = %rejected,
            "rejected connection on metrics endpoint"
        ),
    }
}

async fn serve<A: Api>(
    listener: &Listener<A>,
    socket: Socket,
    address: Option<SocketAddr>,
    stop: &Stop,
) -> Result<(), Rejected> {
    let mut gate = listener.service.gate.clone();
    tokio::select! {
        biased;
        () = gate.pass() => {}
        () = stop.drain.cancelled() => return Ok(()),
    }
    let opened = tokio::select! {
        biased;
        opened = open(listener, socket, address) => opened?,
        // Who is told to stop does not begin.
        () = stop.drain.cancelled() => return Ok(()),
    };
    match opened {
        Opened::Plain(io, protocol) => {
            let peer = PeerInfo {
                addr: address,
                tls: None,
            };
            dispatch(listener, io, protocol, peer, stop.clone()).await
        }
        Opened::Tls(io, protocol, tls) => {
            let peer = PeerInfo {
                addr: address,
                tls: Some(tls),
            };
            dispatch(listener, io, protocol, peer, stop.clone()).await
        }
    }
}

enum Opened {
    Plain(Rewind<Socket>, Protocol),
    Tls(Box<Rewind<TlsStream<Rewind<Socket>>>>, Protocol, TlsPeer),
}

/// Everything that happens before we know who it is and what it speaks, under deadlines and counted as half-open.
async fn open<A: Api>(
    listener: &Listener<A>,
    mut socket: Socket,
    address: Option<SocketAddr>,
) -> Result<Opened, Rejected> {
    let limits = &listener.limits;
    let _turn = within(limits.handshake_deadline, "a turn", async {
        Ok(listener.half_open.enter(address.map(|address| address.ip())).await)
    })
    .await?;
    let first = within(limits.handshake_deadline, "the first byte", first_bytes(&mut socket)).await?;
    let starts_tls = first.first() == Some(&TLS_HANDSHAKE);
    match &listener.tls {
        Some(tls) if starts_tls => {
            let socket = Rewind::new(first, socket);
            let (mut io, offered_h2, peer) = within(
                limits.handshake_deadline,
                "the TLS handshake",
                handshake(tls, socket, listener.service.traffic(), address),
            )
            .await?;
            // Without ALPN it is HTTP/1.1. Other members know what they connect to, and show by their first bytes
            // what they want of it.
            let known = match (offered_h2, listener.service.audience) {
                (true, _) => Some(Protocol::Http2),
                (false, Audience::Peer) => None,
                (false, _) => Some(Protocol::Http1),
            };
            let (head, protocol) = within(
                limits.header_deadline,
                "the request's head",
                sniff(&mut io, Bytes::new(), known),
            )
            .await?;
            Ok(Opened::Tls(Box::new(Rewind::new(head, io)), protocol, peer))
        }
        Some(_) if !listener.plaintext => Err(Rejected::NotTls),
        None if !listener.plaintext => Err(Rejected::NoTls),
        _ => {
            let (head, protocol) = within(
                limits.header_deadline,
                "the request's head",
                sniff(&mut socket, first, None),
            )
            .await?;
            Ok(Opened::Plain(Rewind::new(head, socket), protocol))
        }
    }
}

async fn within<T>(
    deadline: Duration,
    what: &'static str,
    work: impl Future<Output = Result<T, Rejected>>,
) -> Result<T, Rejected> {
    timeout(deadline, work).await.unwrap_or(Err(Rejected::Late(what)))
}

async fn first_bytes(io: &mut Socket) -> Result<Bytes, Rejected> {
    let mut head = BytesMut::with_capacity(PREFACE.len());
    read_some(io, &mut head, 1).await?;
    Ok(head.freeze())
}

async fn read_some(io: &mut (impl AsyncRead + Unpin), head: &mut BytesMut, max: usize) -> Result<(), Rejected> {
    let mut buffer = [0; PREFACE.len()];
    let max = max.min(buffer.len());
    match io.read(&mut buffer[..max]).await {
        Ok(0) => Err(Rejected::Silent),
        Ok(n) => {
            head.extend_from_slice(&buffer[..n]);
            Ok(())
        }
        Err(error) => Err(Rejected::Read(error)),
    }
}

/// Reads until it is clear which protocol this is: all of HTTP/2's preface, or a first byte that differs from it.
/// `known` is what ALPN has settled; then only the deadline for the first bytes matters.
async fn sniff(
    io: &mut (impl AsyncRead + Unpin),
    first: Bytes,
    known: Option<Protocol>,
) -> Result<(Bytes, Protocol), Rejected> {
    let mut head = BytesMut::from(&first[..]);
    loop {
        let common = head.len().min(PREFACE.len());
        if head[..common] != PREFACE[..common] {
            return match known {
                Some(Protocol::Http2) => Err(Rejected::Protocol("HTTP/1 after agreeing on HTTP/2")),
                _ => Ok((head.freeze(), Protocol::Http1)),
            };
        }
        if known == Some(Protocol::Http1) && !head.is_empty() {
            return Ok((head.freeze(), Protocol::Http1));
        }
        if common == PREFACE.len() {
            return Ok((head.freeze(), Protocol::Http2));
        }
        let missing = PREFACE.len() - common;
        read_some(io, &mut head, missing).await?;
    }
}

async fn handshake(
    tls: &Arc<ServerTls>,
    socket: Rewind<Socket>,
    traffic: Traffic,
    address: Option<SocketAddr>,
) -> Result<(TlsStream<Rewind<Socket>>, bool, TlsPeer), Rejected> {
    if tls.is_due() {
        let tls = Arc::clone(tls);
        // A failed join means that the runtime is going down.
        let _ = tokio::task::spawn_blocking(move || tls.refresh()).await;
    }
    let failed = |server_name: Option<String>| {
        move |source: io::Error| match source.kind() {
            io::ErrorKind::UnexpectedEof if server_name.is_none() => Rejected::Silent,
            _ => Rejected::Handshake { source, server_name },
        }
    };
    let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), socket)
        .await
        .map_err(failed(None))?;
    let generation = tls.current();
    let (offers_h2, server_name) = {
        let hello = hello.client_hello();
        let offers_h2 = hello.alpn().is_some_and(|mut names| names.any(|name| name == b"h2"));
        (offers_h2, hello.server_name().unwrap_or_default().to_owned())
    };
    // Ports without gRPC speak HTTP/1.1 only; clients that offer both fall back to it.
    let use_h2 = offers_h2 && traffic != Traffic::Http;
    let config = if use_h2 { &generation.h2 } else { &generation.plain };
    let io = match hello.into_stream(Arc::clone(config)).into_fallible().await {
        Ok(io) => io,
        Err((source, socket)) => {
            part(socket, PARTING).await;
            return Err(failed(Some(server_name))(source));
        }
    };
    let peer = match io.get_ref().1.peer_certificates().and_then(|chain| chain.first()) {
        None => TlsPeer::default(),
        Some(certificate) => {
            let identity = CertificateIdentity::of(certificate);
            // A resumed session is not verified again, and time has passed since it was.
            if identity
                .as_ref()
                .is_some_and(|identity| identity.is_expired(SystemTime::now()))
            {
                return Err(Rejected::Expired);
            }
            if let Some(address) = address {
                let checked = tls.check_address(certificate, address.ip()).await;
                checked.map_err(Rejected::Address)?;
            }
            TlsPeer {
                has_certificate: true,
                common_name: identity.and_then(|identity| identity.common_name),
            }
        }
    };
    Ok((io, use_h2, peer))
}

async fn dispatch<A, S>(
    listener: &Listener<A>,
    io: S,
    protocol: Protocol,
    peer: PeerInfo,
    stop: Stop,
) -> Result<(), Rejected>
where
    A: Api,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = &listener.service;
    let is_tls = peer.tls.is_some();
    let peer = Arc::new(peer);
    match (protocol, &service.rpc, &service.http) {
        (Protocol::Http2, Some(api), http) => {
            // Plaintext HTTP/2 is for gRPC alone, as in etcd.
            let http = http.clone().filter(|_| is_tls);
            if let Err(error) = rpc::connection::serve(Arc::clone(api), io, peer, http, stop).await {
                debug!(%error, "http/2 connection ended");
            }
            Ok(())
        }
        (Protocol::Http2, None, _) => {
            let Some(peers) = service.peers.clone() else {
                return Err(Rejected::Protocol("HTTP/2"));
            };
            if let Err(error) = crate::peer::serve::serve(peers, io, peer, stop).await {
                debug!(%error, "connection of a peer ended");
            }
            Ok(())
        }
        (Protocol::Http1, _, Some(http)) => {
            let deadline = listener.limits.header_deadline;
            if let Err(error) = http::serve::serve(http.clone(), io, peer, deadline, stop).await {
                debug!(%error, "http/1 connection ended");
            }
            Ok(())
        }
        (Protocol::Http1, _, None) => Err(Rejected::Protocol("HTTP/1")),
    }
}
