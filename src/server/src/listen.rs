//! Everything that listens. One constructor builds every listener, so that client certificates, revocation lists,
//! deadlines and limits cannot differ between ports.
//!
//! ```text
//! accept ── slot ──► gate ──► half-open permit ──► first byte ─┬─ TLS handshake ─┐
//!  (one task a port)  (not ready yet: silence)                 └─ plaintext ─────┴─► preface or request line
//!                                                                                   ├─► rpc::connection (HTTP/2)
//!                                                                                   └─► http::serve (HTTP/1.1)
//! ```
//!
//! * [`url`] — where to listen, as etcd's flags say it;
//! * [`socket`] — bound sockets and accepted ones;
//! * [`parting`] — closed so that the other side hears why;
//! * [`limits`] — what a stranger may cost before we know who it is;
//! * `accept` — one task per listener;
//! * `slots` — how many connections there may be;
//! * `connection` — one accepted connection up to its protocol.
//!
//! Invariants: a connection that has not shown its protocol holds little more than its descriptor, and not for long.
//! Running out of descriptors never ends a listener. [`Server::shutdown`] returns within its deadline.

pub mod limits;
pub(crate) mod parting;
pub mod socket;
pub mod url;

mod accept;
mod connection;
mod slots;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_api::{Error as ApiError, Status};
use quorate_runtime::tls::ServerTls;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

pub use self::limits::ListenLimits;
pub use self::socket::{BindError, Binding, SocketOptions, bind};
pub use self::url::{ListenUrl, Scheme, UrlError};

use self::limits::HalfOpen;
use self::slots::Slots;
use crate::http::HttpService;
use crate::peer::serve::PeerPort;
use crate::rpc::{Api, CallContext, Incoming, Method, Outgoing, Reply, Rpc};

/// How long tasks get to notice that they were killed.
const KILL_GRACE: Duration = Duration::from_millis(200);

/// How the tasks of a server learn that it is over.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop {
    /// Finish what was begun, start nothing new.
    pub(crate) drain: CancellationToken,
    /// End now.
    pub(crate) kill: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

impl Stop {
    /// For one connection. It asks at every turn, and all asking the same token would meet at its lock.
    fn child(&self) -> Stop {
        Stop {
            drain: self.drain.child_token(),
            kill: self.kill.child_token(),
            tasks: self.tasks.clone(),
        }
    }
}

/// Holds connections back until the member can serve them. They are accepted and hear nothing.
#[derive(Clone, Debug)]
pub struct Gate(watch::Receiver<bool>);

/// Opens a [`Gate`], once and for ever.
#[derive(Debug)]
pub struct GateKey(watch::Sender<bool>);

impl Gate {
    pub fn closed() -> (GateKey, Gate) {
        let (key, gate) = watch::channel(false);
        (GateKey(key), Gate(gate))
    }

    /// For ports that answer from the start.
    pub fn open() -> Gate {
        Gate(watch::channel(true).1)
    }

    /// Waits for ever when the key was lost with the gate closed: then the server is on its way down.
    async fn pass(&mut self) {
        if self.0.wait_for(|open| *open).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl GateKey {
    pub fn open(&self) {
        self.0.send_replace(true);
    }
}

/// What a port serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    GrpcAndHttp,
    /// The gRPC half when HTTP has ports of its own.
    Grpc,
    Http,
}

impl Traffic {
    /// The value of the log field `traffic`.
    pub const fn name(self) -> &'static str {
        match self {
            Traffic::GrpcAndHttp => "grpc+http",
            Traffic::Grpc => "grpc",
            Traffic::Http => "http",
        }
    }
}

/// Who connects to a port; decides what its log records say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    Client,
    Peer,
    Metrics,
}

/// What stands behind a port.
pub struct Service<A> {
    pub audience: Audience,
    rpc: Option<Arc<Rpc<A>>>,
    http: Option<HttpService>,
    /// Other members, who speak a protocol of their own over HTTP/2.
    peers: Option<PeerPort>,
    pub tls: Option<Arc<ServerTls>>,
    pub gate: Gate,
}

impl<A: Api> Service<A> {
    /// A client port. Without `http` it serves gRPC only.
    pub fn client(rpc: Arc<Rpc<A>>, http: Option<HttpService>, tls: Option<Arc<ServerTls>>, gate: Gate) -> Self {
        Self {
            audience: Audience::Client,
            rpc: Some(rpc),
            http,
            peers: None,
            tls,
            gate,
        }
    }

    pub fn traffic(&self) -> Traffic {
        match (self.rpc.is_some() || self.peers.is_some(), &self.http) {
            (true, Some(_)) => Traffic::GrpcAndHttp,
            (true, None) => Traffic::Grpc,
            (false, _) => Traffic::Http,
        }
    }
}

impl Service<NoApi> {
    /// The HTTP half of split client ports.
    pub fn client_http(http: HttpService, tls: Option<Arc<ServerTls>>, gate: Gate) -> Self {
        Self {
            audience: Audience::Client,
            rpc: None,
            http: Some(http),
            peers: None,
            tls,
            gate,
        }
    }

    /// A peer port: answers from the start.
    pub fn peer(peers: PeerPort, http: HttpService, tls: Option<Arc<ServerTls>>) -> Self {
        Self {
            audience: Audience::Peer,
            rpc: None,
            http: Some(http),
            peers: Some(peers),
            tls,
            gate: Gate::open(),
        }
    }

    /// A metrics port: answers from the start.
    pub fn metrics(http: HttpService, tls: Option<Arc<ServerTls>>) -> Self {
        Self {
            audience: Audience::Metrics,
            rpc: None,
            http: Some(http),
            peers: None,
            tls,
            gate: Gate::open(),
        }
    }
}

/// The handlers of ports that have none.
#[derive(Clone, Copy, Debug)]
pub struct NoApi;

impl Api for NoApi {
    async fn unary(&self, _: Method, _: &CallContext, _: Bytes) -> Result<Reply, Status> {
        Err(ApiError::Stopped.into())
    }

    async fn stream(&self, _: Method, _: CallContext, _: Incoming, _: Outgoing) -> Result<(), Status> {
        Err(ApiError::Stopped.into())
    }
}

/// Ports that start and stop together.
pub struct Server {
    limits: ListenLimits,
    half_open: Arc<HalfOpen>,
    slots: Arc<Slots>,
    stop: Stop,
}

impl Server {
    pub fn new(limits: ListenLimits) -> Self {
        Self {
            half_open: Arc::new(HalfOpen::new(&limits)),
            slots: Arc::new(Slots::new(&limits)),
            limits,
            stop: Stop::default(),
        }
    }

    /// Other ports under the same limits, which stop by themselves.
    pub fn beside(&self) -> Self {
        Self {
            limits: self.limits.clone(),
            half_open: Arc::clone(&self.half_open),
            slots: Arc::clone(&self.slots),
            stop: Stop::default(),
        }
    }

    /// Serves a bound port until shutdown. Needs a tokio runtime around it.
    pub fn serve<A: Api>(&self, binding: Binding, service: Service<A>) {
        if binding.serves_tls() && service.tls.is_none() {
            warn!(address = %binding.address(), "no certificate is given for an https url, its TLS clients are refused");
        }
        let listener = Arc::new(accept::Listener {
            plaintext: binding.serves_plaintext(),
            tls: binding.serves_tls().then(|| service.tls.clone()).flatten(),
            limits: self.limits.clone(),
            half_open: Arc::clone(&self.half_open),
            slots: Arc::clone(&self.slots),
            stop: self.stop.clone(),
            service,
        });
        self.stop
            .tasks
            .spawn(announce(Arc::clone(&listener), binding.address().to_owned()));
        self.stop.tasks.spawn(accept::run(binding, listener));
    }

    /// Stops accepting, lets what was begun finish until `deadline`, and cuts off the rest. True when nothing had to be
    /// cut off.
    pub async fn shutdown(&self, deadline: Duration) -> bool {
        self.stop.drain.cancel();
        self.stop.tasks.close();
        if tokio::time::timeout(deadline, self.stop.tasks.wait()).await.is_ok() {
            return true;
        }
        self.stop.kill.cancel();
        if tokio::time::timeout(KILL_GRACE, self.stop.tasks.wait()).await.is_err() {
            warn!(tasks = self.stop.tasks.len(), "connections did not end in time");
        }
        false
    }
}

/// Logs what a port serves, once it does.
async fn announce<A: Api>(listener: Arc<accept::Listener<A>>, address: String) {
    let mut gate = listener.service.gate.clone();
    tokio::select! {
        () = gate.pass() => {}
        () = listener.stop.drain.cancelled() => return,
    }
    let traffic = listener.service.traffic().name();
    match listener.service.audience {
        Audience::Metrics => info!(%address, "serving metrics"),
        Audience::Peer => info!(%address, "serving peer traffic"),
        Audience::Client => {
            info!("ready to serve client requests");
            if listener.plaintext {
                warn!(traffic, %address, "serving client traffic insecurely; this is strongly discouraged!");
            }
            if listener.tls.is_some() {
                info!(traffic, %address, "serving client traffic securely");
            }
        }
    }
}
