//! One unary call, from its request message to its trailers. Runs as a future inside the task of its connection, so a
//! call that finishes without waiting costs neither a task nor a wake-up.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Instant;

use bytes::Buf;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::StatusCode;
use quorate_api::{Code, Error, Status};
use tokio::time::Sleep;

use super::connection::{Conn, HeaderCharge};
use super::framing::{MessageReader, ReadError};
use super::gzip::Encoding;
use super::pace::Pace;
use super::payload::Payload;
use super::reply::{Reply, ReplyBody};
use super::stream::{CHUNK_BYTES, Gone, poll_room};
use super::{Api, CallContext, Method, trailers};

/// Replies up to this size are handed to HTTP/2 in one go when there is room for them.
const SMALL_BYTES: usize = 16 * 1024;

/// What a body counts for while it waits, at the least: its call, and what it keeps for finding its bytes.
const BODY_BYTES: usize = 16 * 1024;

/// Reports a call to the observer, exactly once, however it ends.
pub(crate) struct CallGuard {
    conn: Arc<Conn>,
    method: Method,
    started: Instant,
    code: Code,
}

impl CallGuard {
    pub(crate) fn start(conn: &Arc<Conn>, method: Method, call: &CallContext) -> Self {
        conn.observer.started(method, call);
        Self {
            conn: Arc::clone(conn),
            method,
            started: Instant::now(),
            code: Code::Canceled,
        }
    }

    pub(crate) fn done(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        if self.code == Code::Canceled {
            self.conn.resets.note();
        }
        self.conn
            .observer
            .handled(self.method, self.code, self.started.elapsed());
    }
}

enum Outcome {
    Done(Result<Reply, Status>),
    Deadline,
    Gone,
}

pub(crate) async fn serve<A: Api>(
    api: Arc<A>,
    conn: Arc<Conn>,
    method: Method,
    call: CallContext,
    body: RecvStream,
    mut respond: SendResponse<Payload>,
    _headers: HeaderCharge,
) {
    let guard = CallGuard::start(&conn, method, &call);
    let outcome = {
        let mut work = pin!(async {
            let encoding = Encoding::of(call.metadata());
            let mut reader = MessageReader::new(body, Arc::clone(&conn.read_limits), encoding, true);
            let message = match std::future::poll_fn(|cx| reader.poll_message(cx)).await {
                Ok(Some(message)) => message,
                Ok(None) => return Err(Status::new(Code::Unknown, "EOF")),
                Err(error) => return Err(read_status(&error)),
            };
            conn.observer.received(method, message.len());
            api.unary(method, &call, message).await
        });
        // Set up only once the handler waits: most calls carry a deadline and few need it.
        let mut sleep: Pin<&mut Option<Sleep>> = pin!(None);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(result) = work.as_mut().poll(cx) {
                return Poll::Ready(Outcome::Done(result));
            }
            if respond.poll_reset(cx).is_ready() {
                return Poll::Ready(Outcome::Gone);
            }
            if let Some(deadline) = call.deadline {
                if sleep.is_none() {
                    sleep.set(Some(tokio::time::sleep_until(deadline)));
                }
                if let Some(sleep) = sleep.as_mut().as_pin_mut() {
                    return sleep.poll(cx).map(|()| Outcome::Deadline);
                }
            }
            Poll::Pending
        })
        .await
    };
    match outcome {
        Outcome::Done(Ok(reply)) => {
            let code = write(&conn, method, &call, &mut respond, reply).await;
            guard.done(code);
        }
        Outcome::Done(Err(status)) => {
            refuse(&mut respond, &status);
            guard.done(status.code);
        }
        Outcome::Deadline => {
            refuse(&mut respond, &Error::DeadlineExceeded.into());
            guard.done(Code::DeadlineExceeded);
        }
        Outcome::Gone => guard.done(Code::Canceled),
    }
}

/// Go's library reports a short request of a unary call by these texts and codes, unlike one of a stream.
fn read_status(error: &ReadError) -> Status {
    match error {
        ReadError::TruncatedPrefix => Status::new(Code::Unknown, "EOF"),
        ReadError::Truncated => Status::new(Code::Unknown, "unexpected EOF"),
        other => other.status(),
    }
}

fn refuse(respond: &mut SendResponse<Payload>, status: &Status) {
    // An error means that the client is gone, and then nobody is left to tell.
    let _ = respond.send_response(trailers::only(StatusCode::OK, status), true);
}

/// Counts reply bytes that wait for the client. While there are too many, the connection starts no further calls.
struct Blocked<'a> {
    conn: &'a Conn,
    bytes: usize,
}

impl<'a> Blocked<'a> {
    fn new(conn: &'a Conn, bytes: usize) -> Self {
        conn.blocked_bytes.fetch_add(bytes, Ordering::Relaxed);
        Self { conn, bytes }
    }
}

impl Drop for Blocked<'_> {
    fn drop(&mut self) {
        self.conn.blocked_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

async fn write(
    conn: &Conn,
    method: Method,
    call: &CallContext,
    respond: &mut SendResponse<Payload>,
    reply: Reply,
) -> Code {
    let (len, message) = match reply {
        Reply::Message(bytes) => (bytes.len(), Ok(Payload::message(bytes.into()))),
        Reply::Segments(segments) => {
            let payload = Payload::message(segments.into());
            let len = payload.as_ref().map_or(0, Buf::remaining);
            (len.saturating_sub(super::payload::PREFIX_LEN), Ok(payload))
        }
        Reply::Body(body) => (body.len(), Err(body)),
    };
    let payload = match message {
        Ok(Ok(payload)) => Ok(payload),
        Err(body) if super::payload::prefix(body.len()).is_ok() => Err(body),
        Ok(Err(_)) | Err(_) => {
            let status = Status::new(Code::ResourceExhausted, "reply is longer than a message can be");
            refuse(respond, &status);
            return status.code;
        }
    };
    let Ok(mut stream) = respond.send_response(trailers::head(), false) else {
        return Code::Canceled;
    };
    let payload = match payload {
        Ok(payload) => match send_at_once(conn, &mut stream, payload) {
            // The usual case: nothing to wait for.
            Ok(None) => {
                conn.observer.sent(method, 1, len);
                return match stream.send_trailers(trailers::ok()) {
                    Ok(()) => Code::Ok,
                    Err(_) => Code::Canceled,
                };
            }
            Ok(Some(payload)) => Ok(payload),
            Err(Gone) => return Code::Canceled,
        },
        Err(body) => Err(body),
    };
    let sending = async {
        match payload {
            Ok(payload) => {
                let _blocked = Blocked::new(conn, payload.remaining());
                send_pieces(conn, &mut stream, payload).await
            }
            // A body's bytes are not there before they are asked for.
            Err(body) => {
                let _blocked = Blocked::new(conn, body.held().max(BODY_BYTES));
                send_body(conn, &mut stream, body).await
            }
        }
    };
    let sent = match call.deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, sending)
            .await
            .unwrap_or(Err(SendError::Deadline)),
        None => sending.await,
    };
    match sent {
        Ok(()) => {
            conn.observer.sent(method, 1, len);
            match stream.send_trailers(trailers::ok()) {
                Ok(()) => Code::Ok,
                Err(_) => Code::Canceled,
            }
        }
        Err(SendError::Gone) => Code::Canceled,
        Err(SendError::Deadline) => {
            stream.send_reset(Reason::CANCEL);
            Code::DeadlineExceeded
        }
        Err(SendError::Body(code)) => {
            stream.send_reset(Reason::INTERNAL_ERROR);
            code
        }
    }
}

/// Hands over a small payload if the client and the connection have room for all of it now; otherwise gives it back.
///
/// The client's window comes first and the lease second, here and wherever replies are sent: what holds a lease then
/// never waits for the client, so leases come back as the socket drains. The other way round, replies without window
/// would hold the leases for which replies with window wait, and neither would move again.
fn send_at_once(conn: &Conn, stream: &mut SendStream<Payload>, payload: Payload) -> Result<Option<Payload>, Gone> {
    let len = payload.remaining();
    if len > SMALL_BYTES {
        return Ok(Some(payload));
    }
    stream.reserve_capacity(len);
    if stream.capacity() < len {
        return Ok(Some(payload));
    }
    let Some(lease) = conn.try_lease(len) else {
        return Ok(Some(payload));
    };
    stream.send_data(payload.leased(lease), false).map_err(|_| Gone)?;
    Ok(None)
}

pub(crate) enum SendError {
    Gone,
    Deadline,
    /// The body failed or was not as long as it said.
    Body(Code),
}

impl From<Gone> for SendError {
    fn from(_: Gone) -> Self {
        SendError::Gone
    }
}

/// Sends a payload as fast as the client and the connection have room for it. See [`send_at_once`] for the order.
pub(crate) async fn send_pieces(
    conn: &Conn,
    stream: &mut SendStream<Payload>,
    mut rest: Payload,
) -> Result<(), SendError> {
    while rest.has_remaining() {
        let want = rest.remaining();
        let room = std::future::poll_fn(|cx| poll_room(stream, cx, want)).await?;
        let piece = room.min(want).min(CHUNK_BYTES);
        let lease = conn.lease(piece).await.ok_or(Gone)?;
        stream
            .send_data(rest.split_front(piece).leased(lease), false)
            .map_err(|_| Gone)?;
    }
    Ok(())
}

async fn send_body(
    conn: &Conn,
    stream: &mut SendStream<Payload>,
    mut body: Box<dyn ReplyBody>,
) -> Result<(), SendError> {
    let total = body.len();
    let mut left = total;
    let mut pace = Pace::new(conn.pace);
    loop {
        let piece = send_piece(conn, stream, &mut *body, total, left);
        let after = pace.keep(piece).await;
        let after = after.map_err(|too_slow| SendError::Body(too_slow.code))??;
        pace.sent(left - after);
        left = after;
        if left == 0 {
            return Ok(());
        }
    }
}

/// Sends the next piece of a body of which `left` of `total` bytes are missing; returns what is missing then.
async fn send_piece(
    conn: &Conn,
    stream: &mut SendStream<Payload>,
    body: &mut dyn ReplyBody,
    total: usize,
    left: usize,
) -> Result<usize, SendError> {
    // Ask for a piece only once the client can take some of it, and let others have the room until it is there.
    std::future::poll_fn(|cx| poll_room(stream, cx, 1)).await?;
    stream.reserve_capacity(0);
    let _producing = conn.bodies.acquire().await.map_err(|_| Gone)?;
    let piece = match body.next().await {
        // An empty one would be taken for the first again.
        Some(Ok(piece)) if !piece.is_empty() => piece,
        Some(Err(status)) => return Err(SendError::Body(status.code)),
        None if left == 0 => bytes::Bytes::new(),
        Some(Ok(_)) | None => return Err(SendError::Body(Code::Internal)),
    };
    let after = left.checked_sub(piece.len()).ok_or(SendError::Body(Code::Internal))?;
    let payload = if left == total {
        Payload::first_piece(total, piece).map_err(|_| SendError::Body(Code::Internal))?
    } else {
        Payload::bytes(piece)
    };
    send_pieces(conn, stream, payload).await?;
    Ok(after)
}
