//! One HTTP/2 connection: a single task that reads requests, runs unary calls, and writes what all of them have to say.
//!
//! Each turn of the task reads everything that has arrived, starts the calls in it, polls the calls that can go on, lets
//! HTTP/2 frame their answers, and only then writes, once (see `cork`). Calls that stream run in tasks of their own and
//! hand their messages over through HTTP/2's own queues.
//!
//! Invariants: all unary calls of the connection are dropped with it. While more than [`Limits::unwritten_bytes_max`] of
//! replies wait for the client, no further calls are started; they stay in HTTP/2's queue, under its flow control. Their
//! headers are under none: once those are too many, calls are refused instead.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::CONTENT_TYPE;
use http::{Method as HttpMethod, Request, Response, StatusCode};
use quorate_api::error::transport;
use quorate_api::{Code, Status};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use super::cork::{Cork, cork};
use super::frames::FrameWatch;
use super::framing::ReadLimits;
use super::keepalive::{Keepalive, PingWatch, TOO_MANY_PINGS};
use super::memory::{MessageMemory, WAITING_MAX};
use super::pace::PaceLimits;
use super::payload::Payload;
use super::resets::Resets;
use super::{Api, CallContext, Kind, Limits, Method, PeerInfo, RpcObserver, call, stream, trailers, unary};
use crate::http::HttpService;
use crate::listen::Stop;
use crate::listen::parting::part;

/// Most bytes that a connection buffers for one call whose handler does not read.
const STREAM_WINDOW: u32 = 64 * 1024;
/// The same for all its calls: those whose messages wait for memory, and as much again for the others to get on with.
const CONNECTION_WINDOW: u32 = (WAITING_MAX as u32 + 16) * STREAM_WINDOW;
/// What HTTP/2 queues for one stream before it says that there is no room.
const SEND_BUFFER_BYTES: usize = 256 * 1024;
/// Bodies of one connection that may have a piece in memory at a time.
const BODIES_MAX: usize = 8;
/// Requests of one connection other than gRPC that are served at a time: their answers are whole in memory.
const HTTP_MAX: usize = 8;
/// How long a client may take to close what we have closed. Well below what the member's own end may take.
const PARTING: Duration = Duration::from_millis(200);
/// What small DATA frames may cost that no handler has read yet, at 256 bytes each less what they carry. The library's
/// default ends the connection of a client that opens two thousand watches at once.
const SMALL_FRAMES_BUDGET: usize = 8 * 1024 * 1024;

/// The handlers and limits that all connections share.
pub struct Rpc<A> {
    pub(crate) api: Arc<A>,
    observer: Arc<dyn RpcObserver>,
    limits: Limits,
    memory: MessageMemory,
}

impl<A: Api> Rpc<A> {
    pub fn new(api: Arc<A>, observer: Arc<dyn RpcObserver>, limits: Limits) -> Arc<Self> {
        let memory = MessageMemory::new(limits.partial_bytes_max);
        Arc::new(Self {
            api,
            observer,
            limits,
            memory,
        })
    }

    fn conn(&self, peer: Arc<PeerInfo>) -> Arc<Conn> {
        Arc::new(Conn {
            observer: Arc::clone(&self.observer),
            peer,
            read_limits: Arc::new(ReadLimits {
                message_bytes_max: self.limits.message_bytes_max,
                message_deadline: self.limits.message_deadline,
                memory: self.memory.share(),
            }),
            unwritten: Arc::new(Semaphore::new(self.limits.unwritten_bytes_max)),
            unwritten_max: self.limits.unwritten_bytes_max,
            bodies: Semaphore::new(BODIES_MAX),
            http: Semaphore::new(HTTP_MAX),
            pace: PaceLimits::of(&self.limits),
            blocked_bytes: AtomicUsize::new(0),
            header_bytes: AtomicUsize::new(0),
            header_bytes_max: self.limits.open_header_bytes_max,
            resets: Resets::new(),
        })
    }

    fn builder(&self) -> h2::server::Builder {
        let limits = &self.limits;
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(limits.header_bytes_max)
            .max_concurrent_streams(limits.concurrent_streams_max.min(Limits::STREAMS_MAX))
            .max_pending_accept_reset_streams(limits.pending_resets_max)
            .max_concurrent_reset_streams(limits.pending_resets_max)
            .max_local_error_reset_streams(Some(1024))
            .max_send_buffer_size(SEND_BUFFER_BYTES)
            .data_frame_budget(SMALL_FRAMES_BUDGET);
        builder
    }
}

/// What the calls of one connection share.
pub(crate) struct Conn {
    pub(crate) observer: Arc<dyn RpcObserver>,
    pub(crate) peer: Arc<PeerInfo>,
    pub(crate) read_limits: Arc<ReadLimits>,
    /// Bytes that may still be handed to HTTP/2; each goes back when it is written.
    unwritten: Arc<Semaphore>,
    unwritten_max: usize,
    /// Bodies of which a piece is in memory and not yet handed to HTTP/2.
    pub(crate) bodies: Semaphore,
    pub(crate) pace: PaceLimits,
    /// Turns of requests other than gRPC.
    pub(crate) http: Semaphore,
    /// Replies that wait for the client.
    pub(crate) blocked_bytes: AtomicUsize,
    /// Headers of open calls.
    header_bytes: AtomicUsize,
    header_bytes_max: usize,
    /// Calls that the client gave up.
    pub(crate) resets: Resets,
}

/// The headers of an open call, counted until this is dropped.
pub(crate) struct HeaderCharge {
    conn: Arc<Conn>,
    bytes: usize,
}

impl HeaderCharge {
    /// `None` when the open calls of this connection have too many.
    fn new(conn: &Arc<Conn>, request: &Request<RecvStream>) -> Option<Self> {
        /// HTTP/2's own idea of what an entry costs besides its text.
        const ENTRY_BYTES: usize = 32;
        let headers = request.headers().iter();
        let bytes = headers.fold(request.uri().path().len(), |sum, (name, value)| {
            sum + ENTRY_BYTES + name.as_str().len() + value.len()
        });
        let before = conn.header_bytes.fetch_add(bytes, Ordering::Relaxed);
        let charge = Self {
            conn: Arc::clone(conn),
            bytes,
        };
        (before + bytes <= conn.header_bytes_max).then_some(charge)
    }
}

impl Drop for HeaderCharge {
    fn drop(&mut self) {
        self.conn.header_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Conn {
    pub(crate) fn try_lease(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.unwritten)
            .try_acquire_many_owned(self.permits(bytes))
            .ok()
    }

    /// Waits until so many bytes may be handed over.
    pub(crate) async fn lease(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = self.permits(bytes);
        Arc::clone(&self.unwritten).acquire_many_owned(permits).await.ok()
    }

    /// A piece larger than the whole budget may go when nothing else is under way.
    fn permits(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.min(self.unwritten_max)).unwrap_or(u32::MAX)
    }
}

fn too_many_calls() -> Response<()> {
    let status = Status::new(
        Code::ResourceExhausted,
        "too many calls at a time on this connection, try again later",
    );
    trailers::only(StatusCode::OK, &status)
}

enum Route {
    Grpc(Method, CallContext),
    Http,
    Refuse(Box<Response<()>>),
}

/// Decides what a request is, in the order in which Go's server looks at it.
fn route(request: &mut Request<RecvStream>, conn: &Conn, has_http: bool) -> Route {
    let refuse = |http, status: &Status| Route::Refuse(Box::new(trailers::only(http, status)));
    let content_type = request
        .headers()
        .get(CONTENT_TYPE)
        .map_or(&b""[..], |value| value.as_bytes());
    if !is_grpc(content_type) {
        if has_http && !content_type.starts_with(b"application/grpc") {
            return Route::Http;
        }
        let shown = String::from_utf8_lossy(content_type);
        let status = Status::new(
            Code::InvalidArgument,
            format!("invalid gRPC request content-type {shown:?}"),
        );
        return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, &status);
    }
    if request.method() != HttpMethod::POST {
        let status = Status::new(
            Code::Internal,
            format!(
                "Received a HEADERS frame with :method {:?} which should be POST",
                request.method().as_str()
            ),
        );
        return refuse(StatusCode::METHOD_NOT_ALLOWED, &status);
    }
    let timeout = match call::parse_timeout(request.headers()) {
        Ok(timeout) => timeout,
        Err(status) => return refuse(StatusCode::BAD_REQUEST, &status),
    };
    let Some(method) = Method::from_path(request.uri().path()) else {
        return refuse(StatusCode::OK, &unknown(request.uri().path()));
    };
    // A deadline beyond what the clock can say is none.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let metadata = std::mem::take(request.headers_mut());
    Route::Grpc(method, CallContext::new(Arc::clone(&conn.peer), metadata, deadline))
}

/// `application/grpc`, alone or followed by a subtype or a parameter.
fn is_grpc(content_type: &[u8]) -> bool {
    match content_type.strip_prefix(b"application/grpc") {
        Some(rest) => matches!(rest.first(), None | Some(b'+' | b';')),
        None => false,
    }
}

fn unknown(path: &str) -> Status {
    let name = path.strip_prefix('/').unwrap_or(path);
    match name.rsplit_once('/') {
        None => Status::new(Code::Unimplemented, format!("malformed method name: {path:?}")),
        Some((service, method)) if Method::knows_service(service) => transport::unknown_method(service, method),
        Some((service, _)) => transport::unknown_service(service),
    }
}

/// Serves one connection until it ends, is told to stop, or is given up.
pub(crate) async fn serve<A, S>(
    rpc: Arc<Rpc<A>>,
    io: S,
    peer: Arc<PeerInfo>,
    http: Option<HttpService>,
    stop: Stop,
) -> Result<(), h2::Error>
where
    A: Api,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let conn = rpc.conn(peer);
    let pings = PingWatch::new(rpc.limits.ping_interval_min);
    let (io, cork) = cork(io, FrameWatch::new(pings));
    let mut h2 = rpc.builder().handshake::<_, Payload>(io).await?;
    cork.close();
    let mut keepalive = match (rpc.limits.keepalive_interval, h2.ping_pong()) {
        (Some(interval), Some(pings)) => Some(Keepalive::new(pings, interval, rpc.limits.keepalive_timeout)),
        _ => None,
    };
    let mut calls = FuturesUnordered::new();
    let mut drain = pin!(stop.drain.cancelled());
    let mut draining = false;
    let mut stall = Stall::new(rpc.limits.message_deadline);
    // Header bytes of which all calls have been taken up.
    let mut taken_up = 0;
    let ended = std::future::poll_fn(|cx| {
        if !draining && drain.as_mut().poll(cx).is_ready() {
            draining = true;
            h2.graceful_shutdown();
        }
        // Whether HTTP/2 may have something to read or to frame.
        let mut stirred = true;
        loop {
            // A call that was started is polled before the next one is taken, so that the gate below sees its reply.
            while let Poll::Ready(Some(())) = calls.poll_next_unpin(cx) {
                stirred = true;
            }
            if !std::mem::take(&mut stirred) {
                break;
            }
            let gated = conn.blocked_bytes.load(Ordering::Relaxed) > rpc.limits.unwritten_bytes_max;
            let crowded = || {
                let waiting = cork.with_frames(|frames| frames.header_bytes()) - taken_up;
                waiting > rpc.limits.open_header_bytes_max as u64
            };
            if gated && !crowded() {
                if let Poll::Ready(result) = h2.poll_closed(cx) {
                    return Poll::Ready(result);
                }
            } else {
                match h2.poll_accept(cx) {
                    Poll::Pending => taken_up = cork.with_frames(|frames| frames.header_bytes()),
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                    Poll::Ready(Some(Ok((mut request, respond)))) => {
                        stirred = true;
                        let headers = HeaderCharge::new(&conn, &request).filter(|_| !gated);
                        let Some(headers) = headers else {
                            refuse(respond, too_many_calls());
                            continue;
                        };
                        match route(&mut request, &conn, http.is_some()) {
                            Route::Grpc(method, call) => {
                                let (api, conn) = (Arc::clone(&rpc.api), Arc::clone(&conn));
                                let body = request.into_body();
                                match method.kind() {
                                    Kind::Unary => {
                                        calls.push(unary::serve(api, conn, method, call, body, respond, headers));
                                    }
                                    Kind::ServerStream | Kind::Bidi => {
                                        stop.tasks
                                            .spawn(stream::serve(api, conn, method, call, body, respond, headers));
                                    }
                                }
                            }
                            Route::Http => {
                                if let Some(http) = http.clone() {
                                    let conn = Arc::clone(&conn);
                                    stop.tasks
                                        .spawn(crate::http::over_h2::serve(http, conn, request, respond, headers));
                                }
                            }
                            Route::Refuse(response) => refuse(respond, *response),
                        }
                    }
                }
            }
        }
        let (pings_abused, unfinished) = cork.with_frames(|frames| {
            let abused = frames.pings.is_abused();
            frames.pings.update(h2.has_streams());
            (abused, frames.unfinished())
        });
        if pings_abused {
            tracing::debug!("client pings too often");
            return give_up(&cork, cx, TOO_MANY_PINGS);
        }
        if conn.resets.is_spent() {
            tracing::debug!("client gives up too many calls");
            return give_up(&cork, cx, "too_many_resets");
        }
        if stall.poll(cx, unfinished).is_ready() {
            tracing::debug!("a frame did not arrive in time");
            return Poll::Ready(Ok(()));
        }
        if let Some(keepalive) = &mut keepalive
            && keepalive.poll_dead(cx, cork.reads()).is_ready()
        {
            tracing::debug!("client did not answer a keepalive ping");
            return Poll::Ready(Ok(()));
        }
        match cork.poll_drain(cx) {
            Poll::Ready(Err(error)) => {
                tracing::debug!(%error, "write to client failed");
                Poll::Ready(Ok(()))
            }
            _ => Poll::Pending,
        }
    })
    .await;
    drop((calls, h2)); // nobody is left to answer
    if ended.is_ok() {
        // A client may be sending its next request. It should hear from what it is sent last that nothing was done.
        part(cork.io(), PARTING).await;
    }
    ended
}

fn refuse(mut respond: SendResponse<Payload>, response: Response<()>) {
    // An error means that the client has already given up.
    let _ = respond.send_response(response, true);
}

/// Sends a client away that does something too often. What does not fit into the socket at once is not waited for.
fn give_up<S: AsyncRead + AsyncWrite + Unpin>(
    cork: &Cork<S>,
    cx: &mut Context<'_>,
    why: &str,
) -> Poll<Result<(), h2::Error>> {
    cork.append(&enhance_your_calm(why));
    let _ = cork.poll_drain(cx);
    Poll::Ready(Ok(()))
}

/// The frame that ends the connection of a client which asks for too much.
fn enhance_your_calm(why: &str) -> Vec<u8> {
    const GOAWAY: u8 = 0x7;
    const LAST_STREAM: u32 = 0x7fff_ffff;
    let mut frame = vec![0, 0, 8 + why.len() as u8, GOAWAY, 0, 0, 0, 0, 0];
    frame.extend_from_slice(&LAST_STREAM.to_be_bytes());
    frame.extend_from_slice(&u32::from(Reason::ENHANCE_YOUR_CALM).to_be_bytes());
    frame.extend_from_slice(why.as_bytes());
    frame
}

/// The deadline of a frame that has arrived in part. Set once and moved only when it passes, since on a busy connection
/// nearly every turn ends inside another frame.
struct Stall {
    deadline: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    fn new(deadline: Duration) -> Self {
        Self { deadline, timer: None }
    }

    /// Ready when the frame that began at `unfinished` is overdue.
    fn poll(&mut self, cx: &mut Context<'_>, unfinished: Option<std::time::Instant>) -> Poll<()> {
        let due = unfinished.map(|since| Instant::from_std(since) + self.deadline);
        loop {
            let timer = match (&mut self.timer, due) {
                (Some(timer), _) => timer,
                (None, Some(due)) => self.timer.insert(Box::pin(tokio::time::sleep_until(due))),
                (None, None) => return Poll::Pending,
            };
            ready!(timer.as_mut().poll(cx));
            match due {
                Some(due) if due <= Instant::now() => return Poll::Ready(()),
                Some(due) => timer.as_mut().reset(due),
                None => self.timer = None,
            }
        }
    }
}
