//! Toy handlers, a server around them, and small clients.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use quorate_api::{Code, Error, Status};
use quorate_runtime::metrics::Registry;
use quorate_runtime::tls::ServerTls;
use quorate_server::http::{
    Alarm, Check, Cors, HostWhitelist, HttpService, Membership, NodeState, Ops, Probe, ProbeFuture,
};
use quorate_server::listen::{Gate, ListenLimits, Server, Service, bind};
use quorate_server::peer::serve::PeerPort;
use quorate_server::rpc::{
    Api, CallContext, Incoming, Limits, Method, Outgoing, PieceFuture, Reply, ReplyBody, Rpc, RpcObserver,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

pub const PUT: &str = "/etcdserverpb.KV/Put";
pub const RANGE: &str = "/etcdserverpb.KV/Range";
pub const WATCH: &str = "/etcdserverpb.Watch/Watch";
pub const SNAPSHOT: &str = "/etcdserverpb.Maintenance/Snapshot";

/// What the toys have seen.
#[derive(Default)]
pub struct Seen {
    pub running: AtomicUsize,
    pub dropped: AtomicUsize,
    pub pieces: AtomicUsize,
    pub started: AtomicUsize,
    /// Messages, and their bytes.
    pub sent: [AtomicUsize; 2],
    pub handled: [AtomicUsize; 17],
}

impl Seen {
    pub fn handled(&self, code: Code) -> usize {
        self.handled[usize::from(code.number())].load(Ordering::SeqCst)
    }
}

impl RpcObserver for Seen {
    fn started(&self, _: Method, _: &CallContext) {
        self.started.fetch_add(1, Ordering::SeqCst);
    }

    fn sent(&self, _: Method, messages: usize, bytes: usize) {
        self.sent[0].fetch_add(messages, Ordering::SeqCst);
        self.sent[1].fetch_add(bytes, Ordering::SeqCst);
    }

    fn handled(&self, _: Method, code: Code, _: Duration) {
        self.handled[usize::from(code.number())].fetch_add(1, Ordering::SeqCst);
    }
}

/// Counts a handler that runs, and one that was dropped before its end.
struct Running<'a>(&'a Seen, bool);

impl<'a> Running<'a> {
    fn new(seen: &'a Seen) -> Self {
        seen.running.fetch_add(1, Ordering::SeqCst);
        Self(seen, false)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
        if !self.1 {
            self.0.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Handlers by the first byte of the message: `e`cho the rest, `h`ang, `f`ail with the rest as text, a reply of so many
/// bytes as one `m`essage or a `b`ody in pieces, the caller's common `n`ame, a deadline that is `d` away, `w`ait a little.
pub struct Toy(pub Arc<Seen>);

fn number(text: &[u8]) -> usize {
    std::str::from_utf8(text).unwrap().parse().unwrap()
}

struct Pieces {
    seen: Arc<Seen>,
    total: usize,
    left: usize,
    broken: bool,
}

impl ReplyBody for Pieces {
    fn len(&self) -> usize {
        self.total
    }

    fn next(&mut self) -> PieceFuture<'_> {
        Box::pin(async move {
            if self.left == 0 {
                return None;
            }
            if self.broken && self.left < self.total {
                return Some(Err(Status::new(Code::Internal, "broken")));
            }
            self.seen.pieces.fetch_add(1, Ordering::SeqCst);
            let n = self.left.min(16 * 1024);
            self.left -= n;
            Some(Ok(Bytes::from(vec![b'p'; n])))
        })
    }
}

impl Api for Toy {
    async fn unary(&self, _: Method, call: &CallContext, message: Bytes) -> Result<Reply, Status> {
        let mut running = Running::new(&self.0);
        let (op, rest) = message.split_first().map_or((b'e', &b""[..]), |(op, rest)| (*op, rest));
        let reply = match op {
            b'e' => Ok(Reply::Message(message.slice(message.len() - rest.len()..))),
            b'h' => std::future::pending().await,
            b'f' => Err(Status::new(Code::Unknown, String::from_utf8_lossy(rest).into_owned())),
            b'm' => Ok(Reply::Message(Bytes::from(vec![b'm'; number(rest)]))),
            b's' => Ok(Reply::Segments(rest.chunks(3).map(Bytes::copy_from_slice).collect())),
            b'b' | b'B' => Ok(Reply::Body(Box::new(Pieces {
                seen: Arc::clone(&self.0),
                total: number(rest),
                left: number(rest),
                broken: op == b'B',
            }))),
            b'n' => Ok(Reply::Message(call.common_name().unwrap_or_default().to_owned().into())),
            b'v' => call
                .client_api_version()
                .map(|version| Reply::Message(version.unwrap_or("unknown").to_owned().into())),
            b'w' => {
                tokio::time::sleep(Duration::from_millis(number(rest) as u64)).await;
                Ok(Reply::Message(Bytes::from_static(b"waited")))
            }
            _ => Err(Error::EmptyKey.into()),
        };
        running.1 = true;
        reply
    }

    async fn stream(
        &self,
        method: Method,
        _: CallContext,
        mut incoming: Incoming,
        mut outgoing: Outgoing,
    ) -> Result<(), Status> {
        let mut running = Running::new(&self.0);
        let result = async {
            match method {
                // `count size`: so many messages of that size.
                Method::MaintenanceSnapshot => {
                    let Some(ask) = incoming.message().await? else {
                        return Ok(());
                    };
                    let text = String::from_utf8_lossy(&ask).into_owned();
                    let (count, size) = text.split_once(' ').unwrap();
                    for _ in 0..number(count.as_bytes()) {
                        outgoing.send(vec![b'x'; number(size.as_bytes())]).await?;
                        self.0.pieces.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(())
                }
                _ => {
                    while let Some(message) = incoming.message().await? {
                        match &message[..] {
                            b"end" => return Ok(()),
                            b"fail" => return Err(Error::NoLeader.into()),
                            b"hang" => std::future::pending().await,
                            // Three messages in one go: empty, small, larger than a window.
                            b"batch" => {
                                let frames = [&b""[..], b"small", &[b'x'; 100_000]].map(frame);
                                outgoing.send_framed(frames.to_vec(), 3).await?;
                            }
                            _ => {
                                let half = message.len() / 2;
                                outgoing
                                    .send(vec![message.slice(..half), message.slice(half..)])
                                    .await?;
                            }
                        }
                    }
                    Ok(())
                }
            }
        }
        .await;
        running.1 = true;
        result
    }
}

/// A node in whatever state a test wants.
#[derive(Default)]
pub struct Node {
    pub alarms: parking_lot::Mutex<Vec<Alarm>>,
    pub no_leader: AtomicBool,
    pub learner: AtomicBool,
    pub read_fails: AtomicBool,
    pub read_hangs: AtomicBool,
    pub health: [AtomicUsize; 2],
    pub checks: [AtomicUsize; 2],
    pub membership: parking_lot::Mutex<Option<Membership>>,
}

impl NodeState for Node {
    fn alarms(&self) -> Vec<Alarm> {
        self.alarms.lock().clone()
    }

    fn has_leader(&self) -> bool {
        !self.no_leader.load(Ordering::SeqCst)
    }

    fn is_learner(&self) -> bool {
        self.learner.load(Ordering::SeqCst)
    }

    fn probe_linearizable(&self) -> ProbeFuture<'_> {
        Box::pin(async {
            if self.read_hangs.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            if self.read_fails.load(Ordering::SeqCst) {
                return Err(Error::Timeout.into());
            }
            Ok(())
        })
    }

    fn probe_serializable(&self) -> ProbeFuture<'_> {
        Box::pin(async { Ok(()) })
    }

    fn cluster_version(&self) -> Option<String> {
        self.has_leader().then(|| "3.7.0".to_owned())
    }

    fn membership(&self) -> Option<Membership> {
        self.membership.lock().clone()
    }

    fn observe_health(&self, ok: bool) {
        self.health[usize::from(ok)].fetch_add(1, Ordering::SeqCst);
    }

    fn observe_check(&self, _: Probe, _: Check, ok: bool) {
        self.checks[usize::from(ok)].fetch_add(1, Ordering::SeqCst);
    }
}

/// What a test may change about the server.
pub struct Setup {
    pub rpc: Limits,
    pub listen: ListenLimits,
    pub schemes: Vec<&'static str>,
    pub tls: Option<Arc<ServerTls>>,
    pub gate: Gate,
    pub http: bool,
    pub cors: Cors,
    pub hosts: HostWhitelist,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            rpc: Limits::default(),
            listen: ListenLimits::default(),
            schemes: vec!["http"],
            tls: None,
            gate: Gate::open(),
            http: true,
            cors: Cors::Any,
            hosts: HostWhitelist::Any,
        }
    }
}

pub struct Edge {
    pub server: Server,
    pub addr: SocketAddr,
    pub seen: Arc<Seen>,
    pub node: Arc<Node>,
}

pub fn ops(node: &Arc<Node>) -> Ops {
    Ops {
        node: Arc::clone(node) as Arc<dyn NodeState>,
        metrics: Arc::new(|| ("text/plain; version=0.0.4".to_owned(), Bytes::from_static(b"up 1\n"))),
        probe_deadline: Duration::from_millis(300),
        fd_limit: 1024,
    }
}

impl Setup {
    pub fn start(self) -> Edge {
        let seen = Arc::new(Seen::default());
        let node = Arc::new(Node::default());
        // Port 0 gives each URL a port of its own, so a shared port is found first.
        let port = match self.schemes.len() {
            1 => 0,
            _ => std::net::TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port(),
        };
        let urls: Vec<_> = self
            .schemes
            .iter()
            .map(|scheme| format!("{scheme}://127.0.0.1:{port}").parse().unwrap())
            .collect();
        let mut bindings = bind(&urls, Default::default()).unwrap();
        assert_eq!(bindings.len(), 1);
        let binding = bindings.remove(0);
        let addr = binding.local_addr().unwrap();
        let rpc = Rpc::new(Arc::new(Toy(Arc::clone(&seen))), Arc::clone(&seen) as _, self.rpc);
        let http = self
            .http
            .then(|| HttpService::client(ops(&node), more(&seen), self.cors, self.hosts, 64 * 1024));
        let server = Server::new(self.listen);
        server.serve(binding, Service::client(rpc, http, self.tls, self.gate));
        Edge {
            server,
            addr,
            seen,
            node,
        }
    }
}

/// A route that reads its body, as the gateway's do, and one with a large answer that counts how often it is asked.
fn more(seen: &Arc<Seen>) -> axum::Router {
    let seen = Arc::clone(seen);
    let large = async move || {
        seen.started.fetch_add(1, Ordering::SeqCst);
        vec![b'x'; 60_000]
    };
    axum::Router::new()
        .route("/echo", axum::routing::post(|body: Bytes| async move { body }))
        .route("/large", axum::routing::get(large))
}

pub fn start() -> Edge {
    Setup::default().start()
}

/// A bound on everything a test waits for.
pub async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), work)
        .await
        .expect("it did not happen within 20 s")
}

/// Waits for a condition.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited 20 s for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub type H2 = h2::client::SendRequest<Bytes>;

pub async fn h2_over(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> H2 {
    // The library's client ends connections that bring many small frames at once; hyper's does not.
    h2_with(io, h2::client::Builder::new().data_frame_budget(1 << 30)).await
}

pub async fn h2_with(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, builder: &h2::client::Builder) -> H2 {
    let (client, connection) = builder.handshake(io).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    client
}

pub async fn h2(addr: SocketAddr) -> H2 {
    let io = TcpStream::connect(addr).await.unwrap();
    // As all gRPC clients do; otherwise each window that a long request fills costs a delayed acknowledgement.
    io.set_nodelay(true).unwrap();
    h2_over(io).await
}

pub fn request(path: &str) -> Request<()> {
    Request::post(format!("http://edge{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

pub fn frame(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + message.len());
    out.put_u8(0);
    out.put_u32(message.len() as u32);
    out.put_slice(message);
    out.freeze()
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub http: StatusCode,
    pub headers: HeaderMap,
    pub data: Bytes,
    pub trailers: HeaderMap,
}

impl Answer {
    /// The status, wherever it was sent.
    pub fn status(&self) -> (u8, String) {
        let from = if self.trailers.is_empty() {
            &self.headers
        } else {
            &self.trailers
        };
        let code = from
            .get("grpc-status")
            .expect("a grpc-status")
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        let message = from.get("grpc-message").map_or("", |value| value.to_str().unwrap());
        (code, message.to_owned())
    }

    /// The one message of a good answer.
    pub fn message(&self) -> Bytes {
        assert_eq!(self.status(), (0, String::new()));
        assert_eq!(self.data[0], 0);
        let len = u32::from_be_bytes(self.data[1..5].try_into().unwrap()) as usize;
        assert_eq!(self.data.len(), 5 + len);
        self.data.slice(5..)
    }
}

pub async fn collect(response: Response<h2::RecvStream>) -> Result<Answer, h2::Error> {
    let (parts, mut body) = response.into_parts();
    let mut data = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        data.extend_from_slice(&chunk);
    }
    Ok(Answer {
        http: parts.status,
        headers: parts.headers,
        data: data.freeze(),
        trailers: body.trailers().await?.unwrap_or_default(),
    })
}

pub async fn try_send(client: &H2, request: Request<()>, body: Bytes) -> Result<Answer, h2::Error> {
    let mut client = client.clone().ready().await?;
    let (response, mut stream) = client.send_request(request, body.is_empty())?;
    if !body.is_empty() {
        stream.send_data(body, true)?;
    }
    collect(response.await?).await
}

pub async fn send(client: &H2, request: Request<()>, body: Bytes) -> Answer {
    soon(try_send(client, request, body)).await.unwrap()
}

/// A unary call with `message`.
pub async fn call(client: &H2, path: &str, message: &[u8]) -> Answer {
    send(client, request(path), frame(message)).await
}

pub fn with_header(mut request: Request<()>, name: &'static str, value: &[u8]) -> Request<()> {
    request
        .headers_mut()
        .insert(name, HeaderValue::from_bytes(value).unwrap());
    request
}

/// Sends bytes and reads until the server closes or `wait` has passed.
pub async fn raw(addr: SocketAddr, bytes: &[u8], wait: Duration) -> Vec<u8> {
    let mut io = TcpStream::connect(addr).await.unwrap();
    io.write_all(bytes).await.unwrap();
    read_until_closed(&mut io, wait).await.0
}

/// What came, and whether the server closed.
pub async fn read_until_closed(io: &mut (impl AsyncRead + Unpin), wait: Duration) -> (Vec<u8>, bool) {
    let mut out = Vec::new();
    let mut buffer = [0; 4096];
    let end = tokio::time::timeout(wait, async {
        loop {
            match io.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(n) => out.extend_from_slice(&buffer[..n]),
            }
        }
    })
    .await;
    (out, end.is_ok())
}

/// An HTTP/1 exchange on a connection of its own; the server closes because it is asked to.
pub async fn http1(addr: SocketAddr, method: &str, target: &str, headers: &str) -> String {
    let text = format!("{method} {target} HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n{headers}\r\n");
    let answer = soon(raw(addr, text.as_bytes(), Duration::from_secs(10))).await;
    String::from_utf8(answer).unwrap()
}

/// Splits an HTTP/1 answer into head and body.
pub fn split(answer: &str) -> (&str, &str) {
    answer.split_once("\r\n\r\n").expect("a whole head")
}

/// A peer port whose member is never ready.
pub fn peer_port() -> PeerPort {
    let metrics = quorate_server::metrics::peers::Peers::new(&Registry::new(), Duration::from_millis(100));
    PeerPort::new(Arc::new(metrics.unwrap()))
}

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// The header block of a gRPC request to Put, by HPACK's static table and literals.
pub fn put_headers() -> Vec<u8> {
    let mut block = vec![0x83, 0x86, 0x04, PUT.len() as u8];
    block.extend_from_slice(PUT.as_bytes());
    block.extend_from_slice(b"\x0f\x10\x10application/grpc");
    block
}

pub fn h2_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}
