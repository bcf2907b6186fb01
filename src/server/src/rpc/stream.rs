//! Both directions of a streaming call, and the task that runs its handler.
//!
//! The sending half is shared between [`Outgoing`], which the handler owns, and the task around the handler, which
//! watches for the client's reset. HTTP/2 remembers one waker per stream for both questions ("is there room?", "is it
//! reset?"), so whoever waits last is the one that is woken; [`SendHalf`] passes the news on to the other.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::StatusCode;
use parking_lot::Mutex;
use quorate_api::{Code, Error, Status};
use tokio::time::Sleep;

pub use super::payload::Message;

use super::connection::{Conn, HeaderCharge};
use super::framing::MessageReader;
use super::gzip::Encoding;
use super::pace::Pace;
use super::payload::{PREFIX_LEN, Payload};
use super::unary::CallGuard;
use super::{Api, CallContext, Kind, Method, trailers};

/// Most bytes handed to HTTP/2 in one go.
pub(crate) const CHUNK_BYTES: usize = 64 * 1024;

/// The messages that the client sends.
pub struct Incoming {
    reader: MessageReader,
    method: Method,
    conn: Arc<Conn>,
    received: u64,
}

impl Incoming {
    /// The next message, or `None` once the client has closed its side. Safe to drop and call again.
    pub async fn message(&mut self) -> Result<Option<Bytes>, Status> {
        match std::future::poll_fn(|cx| self.reader.poll_message(cx)).await {
            Ok(Some(message)) => {
                self.received += 1;
                self.conn.observer.received(self.method, message.len());
                Ok(Some(message))
            }
            Ok(None) if self.received == 0 && self.method.kind() == Kind::ServerStream => Err(Status::new(
                Code::Internal,
                "cardinality violation: received no request message from non-client-streaming RPC",
            )),
            Ok(None) => Ok(None),
            Err(error) => Err(error.status()),
        }
    }
}

/// The messages that go to the client.
pub struct Outgoing {
    half: Arc<SendHalf>,
    conn: Arc<Conn>,
    method: Method,
}

impl Outgoing {
    /// Sends one message, waiting while the client has no room for it. An error means that the client is gone.
    ///
    /// Dropping the wait after part of the message has left spoils the call: it then ends by a reset.
    pub async fn send(&mut self, message: impl Into<Message>) -> Result<(), Status> {
        let message = message.into();
        let len = message.len();
        let payload = Payload::message(message).map_err(|_| Status::new(Code::Internal, "reply is too long"))?;
        self.send_payload(payload).await?;
        self.conn.observer.sent(self.method, 1, len);
        Ok(())
    }

    /// The same for `count` messages in one go, each behind its gRPC prefix: what a send costs is paid once for all.
    pub async fn send_framed(&mut self, segments: Vec<Bytes>, count: usize) -> Result<(), Status> {
        let payload = Payload::segments(segments);
        let len = payload.remaining() - count * PREFIX_LEN;
        self.send_payload(payload).await?;
        self.conn.observer.sent(self.method, count, len);
        Ok(())
    }

    async fn send_payload(&mut self, mut rest: Payload) -> Result<(), Status> {
        if self.half.state.lock().mid_message {
            return Err(Status::new(
                Code::Internal,
                "an earlier message of this call was sent in part only",
            ));
        }
        while rest.has_remaining() {
            let room = self.room(rest.remaining()).await?;
            let piece = room.min(rest.remaining()).min(CHUNK_BYTES);
            let mut unused = UnusedRoom(Some(&self.half));
            let lease = self.conn.lease(piece).await.ok_or(Error::CallerCanceled)?;
            unused.0 = None;
            let part = rest.split_front(piece).leased(lease);
            self.half.send(part, rest.has_remaining())?;
        }
        Ok(())
    }

    /// Waits until the client has room for something. Lets a handler gather what to send as late as possible.
    pub async fn ready(&mut self) -> Result<(), Status> {
        self.room(1).await?;
        // Whoever sends first may have it: this handler might have nothing to say for long.
        self.half.give_back_room();
        Ok(())
    }

    /// A clock for an answer of several messages that keeps something readable until it is sent.
    pub fn pace(&self) -> Pace {
        Pace::new(self.conn.pace)
    }

    /// Tells the client that the call was accepted, ahead of the first message.
    pub fn send_head(&mut self) -> Result<(), Status> {
        self.half
            .state
            .lock()
            .open()
            .map(|_| ())
            .map_err(|Gone| Error::CallerCanceled.into())
    }

    async fn room(&self, want: usize) -> Result<usize, Status> {
        let _waiting = Waiting(&self.half);
        std::future::poll_fn(|cx| self.half.poll_room(cx, want))
            .await
            .map_err(|Gone| Error::CallerCanceled.into())
    }
}

/// The client does not want this call any more, or its connection is gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gone;

enum Side {
    /// Nothing sent yet.
    Head(SendResponse<Payload>),
    /// The head is out.
    Body(SendStream<Payload>),
    Closed,
}

struct SendState {
    side: Side,
    /// [`Outgoing`] waits for room, so HTTP/2 holds its waker.
    room_wanted: bool,
    /// Part of a message, or of several that go together, has been sent.
    mid_message: bool,
    /// The task around the handler.
    owner: Option<Waker>,
}

struct SendHalf {
    state: Mutex<SendState>,
}

impl SendState {
    fn open(&mut self) -> Result<&mut SendStream<Payload>, Gone> {
        if let Side::Head(respond) = &mut self.side {
            match respond.send_response(trailers::head(), false) {
                Ok(stream) => self.side = Side::Body(stream),
                Err(_) => self.side = Side::Closed,
            }
        }
        match &mut self.side {
            Side::Body(stream) => Ok(stream),
            Side::Head(_) | Side::Closed => Err(Gone),
        }
    }
}

impl SendHalf {
    fn new(respond: SendResponse<Payload>) -> Self {
        Self {
            state: Mutex::new(SendState {
                side: Side::Head(respond),
                room_wanted: false,
                mid_message: false,
                owner: None,
            }),
        }
    }

    fn poll_room(&self, cx: &mut Context<'_>, want: usize) -> Poll<Result<usize, Gone>> {
        let mut state = self.state.lock();
        let room = match state.open() {
            Ok(stream) => poll_room(stream, cx, want),
            Err(gone) => Poll::Ready(Err(gone)),
        };
        let waited = std::mem::replace(&mut state.room_wanted, room.is_pending());
        // The owner has to act on a reset, and after a wait to watch for one again. Usually it is this very task.
        if (waited || matches!(room, Poll::Ready(Err(Gone))))
            && room.is_ready()
            && let Some(owner) = state.owner.as_ref().filter(|owner| !owner.will_wake(cx.waker()))
        {
            owner.wake_by_ref();
        }
        room
    }

    fn send(&self, part: Payload, more: bool) -> Result<(), Error> {
        let mut state = self.state.lock();
        state.mid_message = more;
        let stream = state.open().map_err(|Gone| Error::CallerCanceled)?;
        stream.send_data(part, false).map_err(|_| Error::CallerCanceled)
    }

    /// Lets other calls have the room that was reserved for this one and is not used.
    fn give_back_room(&self) {
        if let Side::Body(stream) = &mut self.state.lock().side {
            stream.reserve_capacity(0);
        }
    }

    /// Ready once the client has reset the call. Leaves HTTP/2's one waker alone while somebody waits for room.
    fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.owner.as_ref().is_none_or(|owner| !owner.will_wake(cx.waker())) {
            state.owner = Some(cx.waker().clone());
        }
        if state.room_wanted {
            return Poll::Pending;
        }
        match &mut state.side {
            Side::Head(respond) => respond.poll_reset(cx).map(|_| ()),
            Side::Body(stream) => stream.poll_reset(cx).map(|_| ()),
            Side::Closed => Poll::Ready(()),
        }
    }

    /// Ends the call with `status`.
    fn finish(&self, status: Result<(), &Status>) {
        let mut state = self.state.lock();
        let mid_message = state.mid_message;
        // Errors below mean that the client is gone, and then nobody is left to tell.
        match std::mem::replace(&mut state.side, Side::Closed) {
            Side::Body(mut stream) if mid_message => stream.send_reset(Reason::INTERNAL_ERROR),
            Side::Body(mut stream) => {
                let _ = stream.send_trailers(status.map_or_else(trailers::of, |()| trailers::ok()));
            }
            Side::Head(mut respond) => {
                let ok = Status::new(Code::Ok, "");
                let only = trailers::only(StatusCode::OK, status.err().unwrap_or(&ok));
                let _ = respond.send_response(only, true);
            }
            Side::Closed => {}
        }
    }

    fn close(&self) {
        self.state.lock().side = Side::Closed;
    }
}

/// When a wait for room is given up, gives the room back, and tells the task around the handler, so that it watches for
/// the reset again.
struct Waiting<'a>(&'a SendHalf);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        if !std::mem::take(&mut state.room_wanted) {
            return;
        }
        if let Side::Body(stream) = &mut state.side {
            stream.reserve_capacity(0);
        }
        if let Some(owner) = &state.owner {
            owner.wake_by_ref();
        }
    }
}

/// Room that goes to other calls if the wait for the rest of what a message needs is given up.
struct UnusedRoom<'a>(Option<&'a SendHalf>);

impl Drop for UnusedRoom<'_> {
    fn drop(&mut self) {
        if let Some(half) = self.0 {
            half.give_back_room();
        }
    }
}

/// Asks HTTP/2 for room for `want` bytes and waits for some of it.
pub(crate) fn poll_room(
    stream: &mut SendStream<Payload>,
    cx: &mut Context<'_>,
    want: usize,
) -> Poll<Result<usize, Gone>> {
    stream.reserve_capacity(want);
    loop {
        let room = stream.capacity();
        if room > 0 {
            return Poll::Ready(Ok(room));
        }
        match stream.poll_capacity(cx) {
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Err(Gone)),
            Poll::Pending => return Poll::Pending,
        }
    }
}

enum Outcome {
    Done(Result<(), Status>),
    Deadline,
    Gone,
}

/// Runs the handler of one streaming call to its end.
pub(crate) async fn serve<A: Api>(
    api: Arc<A>,
    conn: Arc<Conn>,
    method: Method,
    call: CallContext,
    body: RecvStream,
    respond: SendResponse<Payload>,
    _headers: HeaderCharge,
) {
    let guard = CallGuard::start(&conn, method, &call);
    let half = Arc::new(SendHalf::new(respond));
    let incoming = Incoming {
        reader: MessageReader::new(
            body,
            Arc::clone(&conn.read_limits),
            Encoding::of(call.metadata()),
            method.kind() == Kind::ServerStream,
        ),
        method,
        conn: Arc::clone(&conn),
        received: 0,
    };
    let outgoing = Outgoing {
        half: Arc::clone(&half),
        conn: Arc::clone(&conn),
        method,
    };
    let mut deadline: std::pin::Pin<&mut Option<Sleep>> = pin!(call.deadline.map(tokio::time::sleep_until));
    let mut work = pin!(api.stream(method, call, incoming, outgoing));
    let outcome = std::future::poll_fn(|cx| {
        if let Poll::Ready(result) = work.as_mut().poll(cx) {
            return Poll::Ready(Outcome::Done(result));
        }
        if half.poll_gone(cx).is_ready() {
            return Poll::Ready(Outcome::Gone);
        }
        match deadline.as_mut().as_pin_mut() {
            Some(sleep) => sleep.poll(cx).map(|()| Outcome::Deadline),
            None => Poll::Pending,
        }
    })
    .await;
    match outcome {
        Outcome::Done(Ok(())) => {
            half.finish(Ok(()));
            guard.done(Code::Ok);
        }
        Outcome::Done(Err(status)) => {
            half.finish(Err(&status));
            guard.done(status.code);
        }
        Outcome::Deadline => {
            half.finish(Err(&Error::DeadlineExceeded.into()));
            guard.done(Code::DeadlineExceeded);
        }
        Outcome::Gone => {
            half.close();
            guard.done(Code::Canceled);
        }
    }
}
