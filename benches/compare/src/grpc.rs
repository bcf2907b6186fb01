//! A gRPC client of the cheapest kind: raw `h2`, heads made once, bodies framed by hand.
//!
//! Many logical clients ([`Caller`]) share a connection, as goroutines of one process share a client of etcd's. An
//! answer counts only with HTTP status 200, `grpc-status` 0 and a whole message, so a broken server can't look fast.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Method, Request};
use prost::Message;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::deframe::Deframer;

/// Large enough that the client never throttles the server between two of its reads.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 256 << 20;
/// h2 closes a connection that holds many small unread DATA frames. Thousands of watch events are just that.
const SMALL_FRAMES_BUDGET: usize = 1 << 30;

/// The calls that the workloads make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rpc {
    Range,
    RangeStream,
    Put,
    Txn,
    Watch,
    LeaseGrant,
    LeaseRevoke,
    LeaseKeepAlive,
    Status,
    MemberAdd,
    Compact,
    Defragment,
}

const PATHS: [(Rpc, &str); 12] = [
    (Rpc::Range, "/etcdserverpb.KV/Range"),
    (Rpc::RangeStream, "/etcdserverpb.KV/RangeStream"),
    (Rpc::Put, "/etcdserverpb.KV/Put"),
    (Rpc::Txn, "/etcdserverpb.KV/Txn"),
    (Rpc::Watch, "/etcdserverpb.Watch/Watch"),
    (Rpc::LeaseGrant, "/etcdserverpb.Lease/LeaseGrant"),
    (Rpc::LeaseRevoke, "/etcdserverpb.Lease/LeaseRevoke"),
    (Rpc::LeaseKeepAlive, "/etcdserverpb.Lease/LeaseKeepAlive"),
    (Rpc::Status, "/etcdserverpb.Maintenance/Status"),
    (Rpc::MemberAdd, "/etcdserverpb.Cluster/MemberAdd"),
    (Rpc::Compact, "/etcdserverpb.KV/Compact"),
    (Rpc::Defragment, "/etcdserverpb.Maintenance/Defragment"),
];

/// Where a server listens, and how to speak to it.
#[derive(Clone)]
pub struct Endpoint {
    pub addr: SocketAddr,
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

/// Connections that logical clients are spread over.
pub struct Pool {
    callers: Vec<Caller>,
}

impl Pool {
    /// Connections go round over the endpoints, as those of etcd's own benchmark do.
    pub async fn connect(endpoints: &[Endpoint], conns: usize) -> anyhow::Result<Self> {
        let mut callers = Vec::with_capacity(conns);
        for endpoint in endpoints.iter().cycle().take(conns.max(1)) {
            callers.push(Caller::connect(endpoint).await?);
        }
        Ok(Self { callers })
    }

    /// The connection of logical client `client`.
    pub fn caller(&self, client: usize) -> Caller {
        self.callers[client % self.callers.len()].clone()
    }
}

/// One logical client's hold on a connection.
#[derive(Clone)]
pub struct Caller {
    send: SendRequest<Bytes>,
    heads: Arc<Vec<Request<()>>>,
}

impl Caller {
    pub async fn connect(endpoint: &Endpoint) -> anyhow::Result<Self> {
        let (caller, _detached) = Self::connect_watched(endpoint).await?;
        Ok(caller)
    }

    /// Also gives the task that ends with the connection.
    pub async fn connect_watched(endpoint: &Endpoint) -> anyhow::Result<(Self, JoinHandle<()>)> {
        let tcp = TcpStream::connect(endpoint.addr)
            .await
            .with_context(|| format!("connect to {}", endpoint.addr))?;
        tcp.set_nodelay(true).context("set TCP_NODELAY")?;
        let (send, ends) = match &endpoint.tls {
            None => handshake(tcp).await?,
            Some(config) => {
                let name = ServerName::from(endpoint.addr.ip());
                let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
                handshake(connector.connect(name, tcp).await.context("TLS handshake")?).await?
            }
        };
        let scheme = if endpoint.tls.is_some() { "https" } else { "http" };
        let heads = Arc::new(heads(scheme, endpoint.addr)?);
        Ok((Self { send, heads }, ends))
    }

    /// Sends one message and waits for the one answer.
    pub async fn unary<A: Message + Default>(&mut self, rpc: Rpc, message: &impl Message) -> anyhow::Result<A> {
        let answer = self.unary_raw(rpc, frame(message)).await?;
        A::decode(answer).with_context(|| format!("decode the answer of {rpc:?}"))
    }

    /// As [`Self::unary`], with a body that is framed already and an answer left encoded.
    pub async fn unary_raw(&mut self, rpc: Rpc, body: Bytes) -> anyhow::Result<Bytes> {
        let (response, mut stream) = self.open(rpc).await?;
        stream.send_data(body, true).with_context(|| format!("send {rpc:?}"))?;
        let mut answers = Answers::new(rpc, response);
        let answer = answers
            .next()
            .await?
            .ok_or_else(|| anyhow!("{rpc:?}: status 0 but no answer"))?;
        ensure!(answers.next().await?.is_none(), "{rpc:?}: two answers to a unary call");
        Ok(answer)
    }

    /// Sends one message and gives the answers of a stream, to be read to its end.
    pub async fn server_stream(&mut self, rpc: Rpc, body: Bytes) -> anyhow::Result<Answers> {
        let (response, mut stream) = self.open(rpc).await?;
        stream.send_data(body, true).with_context(|| format!("send {rpc:?}"))?;
        Ok(Answers::new(rpc, response))
    }

    /// Opens a stream in both directions; the server's head is awaited with the first answer.
    pub async fn stream(&mut self, rpc: Rpc) -> anyhow::Result<(Questions, Answers)> {
        let (response, stream) = self.open(rpc).await?;
        Ok((Questions { stream }, Answers::new(rpc, response)))
    }

    async fn open(&mut self, rpc: Rpc) -> anyhow::Result<(ResponseFuture, SendStream<Bytes>)> {
        poll_fn(|cx| self.send.poll_ready(cx)).await.context(NotSent(rpc))?;
        let head = self.heads[rpc as usize].clone();
        self.send.send_request(head, false).context(NotSent(rpc))
    }
}

/// The sending half of a stream. Dropping it resets the stream.
pub struct Questions {
    stream: SendStream<Bytes>,
}

impl Questions {
    pub fn send(&mut self, body: Bytes) -> anyhow::Result<()> {
        self.stream.send_data(body, false).context("send on a stream")
    }
}

/// The answers of one call.
pub struct Answers {
    rpc: Rpc,
    head: Option<ResponseFuture>,
    body: Option<RecvStream>,
    deframer: Deframer,
}

impl Answers {
    fn new(rpc: Rpc, response: ResponseFuture) -> Self {
        Self {
            rpc,
            head: Some(response),
            body: None,
            deframer: Deframer::default(),
        }
    }

    /// The next message, or `None` once the server closed the call with status 0.
    pub async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        let rpc = self.rpc;
        if let Some(response) = self.head.take() {
            let (head, body) = response
                .await
                .with_context(|| format!("{rpc:?}: no answer"))?
                .into_parts();
            ensure!(head.status == 200, "{rpc:?}: HTTP status {}", head.status);
            if head.headers.contains_key("grpc-status") {
                check_status(rpc, &head.headers)?;
            }
            self.body = Some(body);
        }
        let Some(body) = &mut self.body else { return Ok(None) };
        loop {
            if let Some(message) = self
                .deframer
                .message()
                .map_err(|error| anyhow!("{rpc:?}: {error:?} message"))?
            {
                return Ok(Some(message));
            }
            let Some(chunk) = body.data().await else { break };
            let chunk = chunk.with_context(|| format!("{rpc:?}: read an answer"))?;
            body.flow_control()
                .release_capacity(chunk.len())
                .context("release flow-control window")?;
            self.deframer.push(chunk);
        }
        self.deframer
            .finish()
            .map_err(|error| anyhow!("{rpc:?}: {error:?} message"))?;
        let trailers = body
            .trailers()
            .await
            .with_context(|| format!("{rpc:?}: read trailers"))?;
        if let Some(trailers) = trailers {
            check_status(rpc, &trailers)?;
        } else {
            bail!("{rpc:?}: the call ended without a status");
        }
        self.body = None;
        Ok(None)
    }
}

/// The gRPC framing of one message.
pub fn frame(message: &impl Message) -> Bytes {
    let bytes = message.encoded_len();
    let mut out = BytesMut::with_capacity(5 + bytes);
    out.put_u8(0);
    out.put_u32(u32::try_from(bytes).expect("requests here are far below 4 GiB"));
    message.encode_raw(&mut out);
    out.freeze()
}

async fn handshake<T>(io: T) -> anyhow::Result<(SendRequest<Bytes>, JoinHandle<()>)>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (send, connection) = Builder::new()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .data_frame_budget(SMALL_FRAMES_BUDGET)
        .enable_push(false)
        .handshake::<_, Bytes>(io)
        .await
        .context("HTTP/2 handshake")?;
    let ends = tokio::spawn(async move {
        // Its error reaches every call that was open, with a better account of what was lost.
        let _ = connection.await;
    });
    Ok((send, ends))
}

/// Ready-made request heads, indexed by [`Rpc`].
fn heads(scheme: &str, addr: SocketAddr) -> anyhow::Result<Vec<Request<()>>> {
    let mut heads = Vec::with_capacity(PATHS.len());
    for (at, (rpc, path)) in PATHS.into_iter().enumerate() {
        debug_assert_eq!(rpc as usize, at, "PATHS follows the order of Rpc");
        let mut head = Request::new(());
        *head.method_mut() = Method::POST;
        *head.uri_mut() = format!("{scheme}://{addr}{path}")
            .parse()
            .context("build a request URI")?;
        head.headers_mut()
            .insert("content-type", HeaderValue::from_static("application/grpc"));
        head.headers_mut().insert("te", HeaderValue::from_static("trailers"));
        head.headers_mut()
            .insert("user-agent", HeaderValue::from_static("quorate-bench"));
        heads.push(head);
    }
    Ok(heads)
}

fn check_status(rpc: Rpc, headers: &HeaderMap) -> anyhow::Result<()> {
    let text = |name| {
        headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
            .unwrap_or("none")
    };
    let status = text("grpc-status");
    ensure!(status == "0", "{rpc:?}: grpc-status {status}: {}", text("grpc-message"));
    Ok(())
}

/// The connection was gone before the request went out.
#[derive(Clone, Copy, Debug)]
struct NotSent(Rpc);

impl std::fmt::Display for NotSent {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{:?}: the connection is gone", self.0)
    }
}

/// What became of a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It never left.
    NotSent,
    /// The server said that it did not look at it: it left the stream out as it closed the connection, or refused it.
    Unprocessed,
    /// It was answered with an error, or whether it was done is not known.
    Other,
}

pub fn fate(error: &anyhow::Error) -> Fate {
    if error.downcast_ref::<NotSent>().is_some() {
        return Fate::NotSent;
    }
    let cause = error.chain().find_map(|cause| cause.downcast_ref::<h2::Error>());
    match cause {
        // h2 gives a peer's GOAWAY as the error of those streams alone that lie above the last one it names.
        Some(cause) if cause.is_remote() && cause.is_go_away() => Fate::Unprocessed,
        Some(cause) if cause.is_remote() && cause.reason() == Some(h2::Reason::REFUSED_STREAM) => Fate::Unprocessed,
        _ => Fate::Other,
    }
}

#[cfg(test)]
mod tests {
    use quorate_api::proto::etcdserverpb::PutRequest;

    use super::*;
    use crate::made_up::{Manner, member};

    #[test]
    fn heads_follow_the_order_of_the_enum() {
        let heads = heads("http", "127.0.0.1:1".parse().unwrap()).unwrap();
        for (rpc, path) in PATHS {
            assert_eq!(heads[rpc as usize].uri().path(), path);
        }
    }

    #[test]
    fn a_frame_is_read_back_by_the_deframer() {
        let put = PutRequest {
            key: "k".into(),
            value: "v".into(),
            ..Default::default()
        };
        let mut deframer = Deframer::default();
        deframer.push(frame(&put));
        let message = deframer.message().unwrap().unwrap();
        assert_eq!(PutRequest::decode(message).unwrap(), put);
    }

    #[test]
    fn only_status_zero_is_success() {
        let mut headers = HeaderMap::new();
        assert!(check_status(Rpc::Put, &headers).is_err());
        headers.insert("grpc-status", HeaderValue::from_static("8"));
        headers.insert(
            "grpc-message",
            HeaderValue::from_static("etcdserver: too many requests"),
        );
        let error = check_status(Rpc::Put, &headers).unwrap_err().to_string();
        assert_eq!(error, "Put: grpc-status 8: etcdserver: too many requests");
        headers.insert("grpc-status", HeaderValue::from_static("0"));
        assert!(check_status(Rpc::Put, &headers).is_ok());
    }

    #[tokio::test]
    async fn the_fate_of_a_request_is_told_apart() {
        let put = || frame(&PutRequest::default());
        let addr = member(Manner::LeavesOutTheSecond).await;
        let mut caller = Caller::connect(&Endpoint { addr, tls: None }).await.unwrap();
        caller.unary_raw(Rpc::Put, put()).await.unwrap();
        let left_out = caller.unary_raw(Rpc::Put, put()).await.unwrap_err();
        assert_eq!(fate(&left_out), Fate::Unprocessed, "{left_out:#}");
        let late = caller.unary_raw(Rpc::Put, put()).await.unwrap_err();
        assert_eq!(fate(&late), Fate::NotSent, "{late:#}");

        let addr = member(Manner::DiesOfTheFirst).await;
        let mut caller = Caller::connect(&Endpoint { addr, tls: None }).await.unwrap();
        let unknown = caller.unary_raw(Rpc::Put, put()).await.unwrap_err();
        assert_eq!(fate(&unknown), Fate::Other, "{unknown:#}");
    }
}
