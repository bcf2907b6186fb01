//! One lane of a link, on the side that asks: a connection that is kept up, requests on it, answers back.
//!
//! ```text
//!   call ─► queue ─┐  one task: requests framed together ─► HTTP/2 stream ─► peer
//!   reply ◄────────┴─ answers by their number ◄──────────────────┘
//! ```
//!
//! While there is no connection calls are refused at once, so that their callers know that nothing was sent. When one
//! ends, whoever waits on it hears that the fate of the request is unknown.

use super::dial::{Dialer, PeerStream};
use super::frames::{self, Reader};
use super::link::Identity;
use crate::config::Url;
use crate::metrics::peers::Peer;
use bytes::{Bytes, BytesMut};
use h2::client::ResponseFuture;
use http::Request as HttpRequest;
use parking_lot::Mutex;
use quorate_api::proto::quorate::peer::{self as pb, Ping};
use quorate_raft::peer::{self, Answer, PeerError, Reason, Request};
use quorate_runtime::tls::Alpn;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep};
use tracing::{debug, info, warn};

pub const LINK: &str = "/quorate.peer.Peer/Link";
pub const SNAPSHOT: &str = "/quorate.peer.Peer/Snapshot";

/// A connection that failed is tried again after this time, and each time twice as long after, up to the last.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// Reasons why a peer can't be reached that are told until it is reached again.
const REASONS_TOLD_MAX: usize = 8;

/// A peer that is on the same protocol answers this fast.
const WELCOME_PATIENCE: Duration = Duration::from_secs(5);

/// How often a peer is asked whether it is there.
const PING_EVERY: Duration = Duration::from_millis(500);

/// Pings whose answers are waited for. One that answers other requests and no ping may get many.
const PINGS_MAX: usize = 32;

/// Requests framed into one write.
const WRITE_BYTES: usize = 256 << 10;

/// A request and who waits for its answer.
pub struct Call {
    pub request: Request,
    pub reply: oneshot::Sender<Result<Answer, PeerError>>,
}

/// Where calls enter.
pub struct Entrance {
    open: Mutex<Result<mpsc::UnboundedSender<Call>, String>>,
}

impl Default for Entrance {
    fn default() -> Self {
        Self {
            open: Mutex::new(Err("not connected yet".to_owned())),
        }
    }
}

impl Entrance {
    /// False: there is no connection, and the caller has been told so.
    pub fn call(&self, to: u64, call: Call) -> bool {
        let unsent = match &*self.open.lock() {
            Ok(calls) => match calls.send(call) {
                Ok(()) => return true,
                Err(mpsc::error::SendError(call)) => (call, "the connection has ended".to_owned()),
            },
            Err(reason) => (call, reason.clone()),
        };
        let (call, reason) = unsent;
        let _ = call.reply.send(Err(PeerError::Unreachable { to, reason }));
        false
    }

    fn close(&self, reason: String) {
        *self.open.lock() = Err(reason);
    }
}

/// What keeps a lane up.
pub struct Lane {
    pub to: u64,
    pub kind: peer::Lane,
    pub identity: Arc<Identity>,
    pub dialer: Dialer,
    pub urls: watch::Receiver<Vec<Url>>,
    pub entrance: Arc<Entrance>,
    /// Since when there is a connection.
    pub up_since: Arc<Mutex<Option<Instant>>>,
    pub metrics: Arc<Peer>,
    /// A peer that does not answer for so long is not there.
    pub patience: Duration,
}

/// Why a connection ended or did not come about.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Dial(#[from] std::io::Error),
    #[error("{0}")]
    Http(#[from] h2::Error),
    #[error("{0}")]
    Frames(#[from] frames::Error),
    #[error("it answers with HTTP status {0}")]
    Status(http::StatusCode),
    #[error("{}", .0.text)]
    Refused(pb::Refused),
    #[error(
        "it has come back with another data directory, without what it had acknowledged: remove the member and add it \
         again"
    )]
    OtherIncarnation,
    #[error("it sends what no peer sends")]
    Protocol,
    #[error("it has closed the connection")]
    Closed,
    #[error("no answer in time")]
    Silent,
    #[error("no peer URL of it is known")]
    NoUrl,
    #[error("no welcome from {url}: {reason}; is that the peer URL of a member, and the member no etcd?")]
    NoWelcome { url: String, reason: String },
}

impl Ended {
    /// What it means while nobody has been welcomed yet: whoever answers may be no member at all.
    fn before_welcome(self, url: &Url) -> Self {
        match self {
            Self::Http(_) | Self::Frames(_) | Self::Status(_) | Self::Protocol | Self::Closed | Self::Silent => {
                let (url, reason) = (url.to_string(), self.to_string());
                Self::NoWelcome { url, reason }
            }
            told => told,
        }
    }
}

impl Lane {
    /// Keeps the connection up until it is dropped.
    pub async fn run(mut self) {
        let mut pause = PAUSE_MIN;
        let mut told = BTreeSet::new();
        let mut turn = 0;
        loop {
            let ended = self.session(&mut turn).await;
            let was_up = self.up_since.lock().take().is_some();
            self.entrance.close(ended.to_string());
            if was_up {
                pause = PAUSE_MIN;
                told.clear();
            }
            self.tell(&ended, was_up, &mut told);
            if let Ended::Refused(refused) = &ended {
                (self.identity.on_refused)(refused.reason(), &refused.text);
            }
            tokio::select! {
                () = sleep(pause) => {}
                // Other URLs: now is the time. Its sender goes with this task.
                _ = self.urls.changed() => {}
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// One line for each reason why a peer can't be reached, not one for each try and each lane.
    fn tell(&self, ended: &Ended, was_up: bool, told: &mut BTreeSet<String>) {
        let to = format!("{:x}", self.to);
        let is_news = was_up || told.len() < REASONS_TOLD_MAX && told.insert(ended.to_string());
        if !is_news || self.kind == peer::Lane::Log {
            debug!(peer = %to, lane = ?self.kind, reason = %ended, "no connection to a peer");
        } else if was_up {
            info!(peer = %to, reason = %ended, "lost the connection to a peer");
        } else {
            warn!(peer = %to, reason = %ended, "no connection to a peer; it is tried again");
        }
    }

    /// One connection, from its beginning to its end. Its URLs take turns.
    async fn session(&mut self, turn: &mut usize) -> Ended {
        match self.connect(turn).await {
            Ok(session) => {
                let (calls, queue) = mpsc::unbounded_channel();
                *self.entrance.open.lock() = Ok(calls);
                *self.up_since.lock() = Some(Instant::now());
                // A peer is as active as its control lane, by which members judge each other elsewhere, too.
                let _up = (self.kind == peer::Lane::Control).then(|| {
                    info!(peer = format_args!("{:x}", self.to), "connected to a peer");
                    self.metrics.link_up(self.identity.member)
                });
                session.run(queue).await
            }
            Err(ended) => ended,
        }
    }

    async fn connect(&mut self, turn: &mut usize) -> Result<Session, Ended> {
        let url = {
            let urls = self.urls.borrow_and_update();
            *turn += 1;
            urls.get(*turn % urls.len().max(1)).cloned().ok_or(Ended::NoUrl)?
        };
        let io = self.dialer.dial_for(&url, Alpn::H2).await?;
        let welcomed = async {
            let mut session = Session::open(io, self.to, self.metrics.clone(), self.patience).await?;
            session.say(Request::Hello(self.identity.hello(self.to)));
            match session.first().await? {
                Answer::Welcome(welcome) if (self.identity.is_known)(self.to, welcome.incarnation) => Ok(session),
                Answer::Welcome(_) => Err(Ended::OtherIncarnation),
                Answer::Refused(refused) => Err(Ended::Refused(refused)),
                _ => Err(Ended::Protocol),
            }
        };
        let welcomed = tokio::time::timeout(WELCOME_PATIENCE, welcomed).await;
        welcomed
            .unwrap_or(Err(Ended::Silent))
            .map_err(|ended| ended.before_welcome(&url))
    }
}

/// Opens HTTP/2 on a connection and begins a call on it.
pub(super) async fn begin(
    io: Box<dyn PeerStream>,
    path: &'static str,
) -> Result<
    (
        h2::client::Connection<Box<dyn PeerStream>, Bytes>,
        ResponseFuture,
        h2::SendStream<Bytes>,
    ),
    h2::Error,
> {
    let (mut requests, connection) = h2::client::Builder::new()
        .initial_window_size(frames::STREAM_WINDOW)
        .initial_connection_window_size(frames::CONNECTION_WINDOW)
        .max_frame_size(frames::FRAME_BYTES)
        .max_send_buffer_size(8 << 20)
        .enable_push(false)
        .handshake(io)
        .await?;
    let request = HttpRequest::post(format!("http://peer{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .map_err(|_| h2::Error::from(h2::Reason::INTERNAL_ERROR))?;
    let (response, stream) = requests.send_request(request, false)?;
    Ok((connection, response, stream))
}

enum Answers {
    Waiting(ResponseFuture),
    Open(Reader),
}

/// A connection on which requests can be made.
struct Session {
    to: u64,
    connection: h2::client::Connection<Box<dyn PeerStream>, Bytes>,
    requests: h2::SendStream<Bytes>,
    answers: Answers,
    waiting: HashMap<u64, oneshot::Sender<Result<Answer, PeerError>>>,
    number: u64,
    out: BytesMut,
    heard: Instant,
    pings: Interval,
    /// Pings without an answer: their numbers and when they left.
    pinged: VecDeque<(u64, Instant)>,
    metrics: Arc<Peer>,
    patience: Duration,
}

impl Session {
    async fn open(io: Box<dyn PeerStream>, to: u64, metrics: Arc<Peer>, patience: Duration) -> Result<Self, Ended> {
        let (connection, response, requests) = begin(io, LINK).await?;
        let mut pings = interval(PING_EVERY);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            to,
            connection,
            requests,
            answers: Answers::Waiting(response),
            waiting: HashMap::new(),
            number: 0,
            out: BytesMut::new(),
            heard: Instant::now(),
            pings,
            pinged: VecDeque::new(),
            metrics,
            patience,
        })
    }

    fn say(&mut self, request: Request) -> u64 {
        self.number += 1;
        let request = pb::Request {
            number: self.number,
            body: Some(request),
        };
        frames::put(&mut self.out, &request);
        self.number
    }

    async fn first(&mut self) -> Result<Answer, Ended> {
        std::future::poll_fn(|cx| {
            self.flush()?;
            if let Poll::Ready(answer) = self.poll_answer(cx) {
                return Poll::Ready(answer.and_then(|answer| answer.body.ok_or(Ended::Protocol)));
            }
            self.poll_connection(cx)?;
            self.poll_answer(cx)
                .map(|answer| answer.and_then(|answer| answer.body.ok_or(Ended::Protocol)))
        })
        .await
    }

    fn flush(&mut self) -> Result<(), Ended> {
        if !self.out.is_empty() {
            // Taken whatever the window says: how much may be on its way is limited by those who call.
            self.metrics.sent(self.out.len());
            self.requests.send_data(self.out.split().freeze(), false)?;
        }
        Ok(())
    }

    /// Reads and writes. Pending is an `Ok`: there is nothing more to do at the moment.
    fn poll_connection(&mut self, cx: &mut Context<'_>) -> Result<(), Ended> {
        match Pin::new(&mut self.connection).poll(cx) {
            Poll::Ready(Ok(())) => Err(Ended::Closed),
            Poll::Ready(Err(error)) => Err(error.into()),
            Poll::Pending => Ok(()),
        }
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<pb::Answer, Ended>> {
        loop {
            match &mut self.answers {
                Answers::Waiting(response) => match std::task::ready!(Pin::new(response).poll(cx)) {
                    Ok(response) if response.status() == http::StatusCode::OK => {
                        self.answers = Answers::Open(Reader::new(response.into_body()));
                    }
                    Ok(response) => return Poll::Ready(Err(Ended::Status(response.status()))),
                    Err(error) => return Poll::Ready(Err(error.into())),
                },
                Answers::Open(reader) => {
                    return match std::task::ready!(reader.poll_next(cx)) {
                        Some(Ok(answer)) => Poll::Ready(Ok(answer)),
                        Some(Err(error)) => Poll::Ready(Err(error.into())),
                        None => Poll::Ready(Err(Ended::Closed)),
                    };
                }
            }
        }
    }

    async fn run(mut self, mut calls: mpsc::UnboundedReceiver<Call>) -> Ended {
        let ended = std::future::poll_fn(|cx| match self.poll(cx, &mut calls) {
            Ok(()) => Poll::Pending,
            Err(ended) => Poll::Ready(ended),
        })
        .await;
        let mut failed = self.waiting.len();
        let lost = || Err(PeerError::Lost { to: self.to });
        for (_, reply) in self.waiting.drain() {
            let _ = reply.send(lost());
        }
        // What was queued and not framed was certainly not sent.
        calls.close();
        while let Ok(call) = calls.try_recv() {
            failed += 1;
            let (to, reason) = (self.to, ended.to_string());
            let _ = call.reply.send(Err(PeerError::Unreachable { to, reason }));
        }
        self.metrics.send_failed(failed);
        if !matches!(ended, Ended::Refused(_) | Ended::Closed) {
            self.metrics.receive_failed();
        }
        ended
    }

    fn poll(&mut self, cx: &mut Context<'_>, calls: &mut mpsc::UnboundedReceiver<Call>) -> Result<(), Ended> {
        loop {
            let mut stirred = false;
            while self.out.len() < WRITE_BYTES
                && let Poll::Ready(Some(call)) = calls.poll_recv(cx)
            {
                stirred = true;
                let number = self.say(call.request);
                self.waiting.insert(number, call.reply);
            }
            while self.pings.poll_tick(cx).is_ready() {
                stirred = true;
                let number = self.say(Request::Ping(Ping {}));
                if self.pinged.len() < PINGS_MAX {
                    self.pinged.push_back((number, Instant::now()));
                }
                let oldest = self.pinged.front();
                if oldest.is_some_and(|(_, since)| (*since).max(self.heard).elapsed() > self.patience) {
                    return Err(Ended::Silent);
                }
            }
            self.flush()?;
            while let Poll::Ready(answer) = self.poll_answer(cx) {
                stirred = true;
                let answer = answer?;
                self.heard = Instant::now();
                self.answered(answer)?;
            }
            self.count_received();
            self.poll_connection(cx)?;
            if !stirred {
                return Ok(());
            }
        }
    }

    fn count_received(&mut self) {
        if let Answers::Open(reader) = &mut self.answers {
            let bytes = reader.count();
            if bytes > 0 {
                self.metrics.received(bytes);
            }
        }
    }

    /// Any answer to a ping tells that the peer is there; the ping's own tells how far away.
    fn ponged(&mut self, number: u64) {
        while let Some((of, left)) = self.pinged.front().copied() {
            if of > number {
                break;
            }
            self.pinged.pop_front();
            if of == number {
                self.metrics.round_trip(left.elapsed());
            }
        }
    }

    fn answered(&mut self, answer: pb::Answer) -> Result<(), Ended> {
        let body = answer.body.ok_or(Ended::Protocol)?;
        if matches!(body, Answer::Pong(_)) {
            self.ponged(answer.number);
            return Ok(());
        }
        let reply = self.waiting.remove(&answer.number);
        let Answer::Refused(refused) = body else {
            if let Some(reply) = reply {
                let _ = reply.send(Ok(body));
            }
            return Ok(());
        };
        let reason = refused.reason();
        if let Some(reply) = reply {
            let (to, text) = (self.to, refused.text.clone());
            let _ = reply.send(Err(PeerError::Refused { to, reason, text }));
        }
        // One that concerns the request is its caller's affair; any other ends the link.
        if matches!(reason, Reason::Malformed | Reason::NotReady) {
            return Ok(());
        }
        Err(Ended::Refused(refused))
    }
}
