//! The side that is asked: one HTTP/2 connection of a peer.
//!
//! One task reads requests, hands them to consensus in their order, and writes answers as they are ready, all that one
//! turn has to say in one go. Snapshots have connections and tasks of their own.

use super::frames::{self, Reader};
use super::lane::{LINK, SNAPSHOT};
use super::receive_snapshot::{self, Receiving};
use crate::listen::Stop;
use crate::metrics::peers::{Peer, Peers};
use crate::rpc::PeerInfo;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, StreamExt};
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use prost::Message;
use quorate_api::proto::quorate::peer as pb;
use quorate_raft::peer::service::Service;
use quorate_raft::peer::{Answer, BoxFuture, PROTOCOL, Reason, Request};
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tracing::{debug, warn};

/// Who has opened a connection says what it wants within this time, and again when nothing is left of what it wanted.
const IDLE: Duration = Duration::from_secs(10);

/// Links of one connection. A peer opens one.
const LINKS_MAX: u32 = 4;

/// Requests of one link that are being worked on, and their bytes. More wait in HTTP/2's window.
const REQUESTS_MAX: usize = 256;
const REQUEST_BYTES_MAX: usize = 64 << 20;

/// What peers are served by, once consensus runs.
#[derive(Clone)]
pub struct PeerPort {
    service: Arc<OnceLock<Service>>,
    pub(super) metrics: Arc<Peers>,
    pub(super) receiving: Arc<Receiving>,
}

impl PeerPort {
    pub fn new(metrics: Arc<Peers>) -> Self {
        Self {
            service: Arc::default(),
            metrics,
            receiving: Arc::default(),
        }
    }

    pub fn ready(&self, service: Service) {
        let _ = self.service.set(service);
    }

    pub(super) fn service(&self) -> Result<&Service, pb::Refused> {
        self.service.get().ok_or_else(|| pb::Refused {
            reason: Reason::NotReady as i32,
            text: "this member is not ready yet".to_owned(),
        })
    }
}

pub(crate) async fn serve<S>(port: PeerPort, io: S, peer: Arc<PeerInfo>, stop: Stop) -> Result<(), h2::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let opening = h2::server::Builder::new()
        .initial_window_size(frames::STREAM_WINDOW)
        .initial_connection_window_size(frames::CONNECTION_WINDOW)
        .max_frame_size(frames::FRAME_BYTES)
        .max_concurrent_streams(LINKS_MAX)
        .max_header_list_size(16 << 10)
        .max_send_buffer_size(8 << 20)
        .handshake::<_, Bytes>(io);
    let Ok(opened) = tokio::time::timeout(IDLE, opening).await else {
        debug!("a peer did not begin to speak in time");
        return Ok(());
    };
    let mut h2 = opened?;
    let mut links: Vec<Link> = Vec::new();
    let mut drain = pin!(stop.drain.cancelled());
    let mut draining = false;
    let mut idle = pin!(tokio::time::sleep(IDLE));
    // Whoever takes in a snapshot holds one.
    let receiving = Arc::new(());
    std::future::poll_fn(|cx| {
        while idle.as_mut().poll(cx).is_ready() {
            if links.iter().all(|link| link.hello.is_none()) && Arc::strong_count(&receiving) == 1 {
                debug!("a peer wants nothing");
                return Poll::Ready(Ok(()));
            }
            idle.as_mut().reset(Instant::now() + IDLE);
        }
        if !draining && drain.as_mut().poll(cx).is_ready() {
            draining = true;
            h2.graceful_shutdown();
        }
        loop {
            let mut stirred = false;
            links.retain_mut(|link| match link.poll(cx) {
                Poll::Pending => true,
                Poll::Ready(Turn::Stirred) => {
                    stirred = true;
                    true
                }
                Poll::Ready(Turn::Ended) => false,
            });
            match h2.poll_accept(cx) {
                Poll::Pending => {}
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(Some(Ok((request, mut respond)))) => {
                    stirred = true;
                    let path = request.uri().path().to_owned();
                    let body = request.into_body();
                    match path.as_str() {
                        LINK => links.extend(Link::open(port.clone(), body, &mut respond)),
                        SNAPSHOT => {
                            let hold = receiving.clone();
                            let receiving = receive_snapshot::receive(port.clone(), body, respond, peer.addr);
                            stop.tasks.spawn(async move {
                                receiving.await;
                                drop(hold);
                            });
                        }
                        _ => {
                            let _ = respond.send_response(unknown(), true);
                        }
                    }
                }
            }
            // A link that is told to stop has nothing left that could not wait for the next leader.
            if draining && links.iter().all(Link::is_idle) {
                links.clear();
            }
            if !stirred {
                return Poll::Pending;
            }
        }
    })
    .await
}

pub(super) fn head() -> Response<()> {
    let mut response = Response::new(());
    let value = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(http::header::CONTENT_TYPE, value);
    response
}

fn unknown() -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

pub(super) fn trailers() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers
}

enum Turn {
    Stirred,
    Ended,
}

/// One stream of requests.
struct Link {
    port: PeerPort,
    reader: Reader,
    answers: h2::SendStream<Bytes>,
    /// `None` until the peer has said who it is.
    hello: Option<Arc<pb::Hello>>,
    /// Its counters, likewise.
    peer: Option<Arc<Peer>>,
    /// Each with the bytes of its request.
    working: FuturesUnordered<BoxFuture<(usize, pb::Answer)>>,
    working_bytes: usize,
    out: BytesMut,
    ending: bool,
}

impl Link {
    fn open(port: PeerPort, body: RecvStream, respond: &mut SendResponse<Bytes>) -> Option<Self> {
        Some(Self {
            port,
            reader: Reader::new(body),
            answers: respond.send_response(head(), false).ok()?,
            hello: None,
            peer: None,
            working: FuturesUnordered::new(),
            working_bytes: 0,
            out: BytesMut::new(),
            ending: false,
        })
    }

    fn is_idle(&self) -> bool {
        self.working.is_empty()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        let mut stirred = false;
        while !self.ending && self.working.len() < REQUESTS_MAX && self.working_bytes < REQUEST_BYTES_MAX {
            match self.reader.poll_next::<pb::Request>(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(request))) => {
                    stirred = true;
                    self.take(request);
                }
                Poll::Ready(Some(Err(error))) => {
                    warn!(%error, "a peer sends what can't be read");
                    match &self.peer {
                        Some(peer) => peer.receive_failed(),
                        None => self.port.metrics.receive_failed(),
                    }
                    self.answers.send_reset(h2::Reason::PROTOCOL_ERROR);
                    return Poll::Ready(Turn::Ended);
                }
                Poll::Ready(None) => self.ending = true,
            }
        }
        if stirred && let Some(peer) = &self.peer {
            peer.received(self.reader.count());
        }
        while let Poll::Ready(Some((bytes, answer))) = self.working.poll_next_unpin(cx) {
            stirred = true;
            self.working_bytes -= bytes;
            self.answer(&answer);
        }
        if !self.out.is_empty() {
            if let Some(peer) = &self.peer {
                peer.sent(self.out.len());
            }
            if self.answers.send_data(self.out.split().freeze(), false).is_err() {
                return Poll::Ready(Turn::Ended);
            }
        }
        if self.ending && self.working.is_empty() {
            let _ = self.answers.send_trailers(trailers());
            return Poll::Ready(Turn::Ended);
        }
        if self.answers.poll_reset(cx).is_ready() {
            return Poll::Ready(Turn::Ended);
        }
        if stirred {
            Poll::Ready(Turn::Stirred)
        } else {
            Poll::Pending
        }
    }

    fn answer(&mut self, answer: &pb::Answer) {
        if let Some(Answer::Refused(refused)) = &answer.body
            && !matches!(refused.reason(), Reason::NotReady | Reason::Malformed)
        {
            self.ending = true;
        }
        frames::put(&mut self.out, answer);
    }

    fn take(&mut self, request: pb::Request) {
        let number = request.number;
        let bytes = request.encoded_len();
        let answer = match (&self.hello, request.body) {
            (None, Some(Request::Hello(hello))) => self.greet(hello),
            (Some(hello), Some(request)) => {
                let (hello, port) = (hello.clone(), self.port.clone());
                self.working_bytes += bytes;
                self.working.push(Box::pin(async move {
                    let body = match port.service() {
                        Ok(service) => service.handle(&hello, request).await,
                        Err(refused) => Answer::Refused(refused),
                    };
                    let body = Some(body);
                    (bytes, pb::Answer { number, body })
                }));
                return;
            }
            (None, _) | (_, None) => Answer::Refused(pb::Refused {
                reason: Reason::Malformed as i32,
                text: "a hello comes first, and every request has a body".to_owned(),
            }),
        };
        self.ending |= matches!(answer, Answer::Refused(_));
        let answer = pb::Answer {
            number,
            body: Some(answer),
        };
        frames::put(&mut self.out, &answer);
    }

    fn greet(&mut self, hello: pb::Hello) -> Answer {
        let admit = |service: &Service| service.admit(&hello).map(|()| service.incarnation());
        match self.port.service().and_then(admit) {
            Ok(incarnation) => {
                self.peer = Some(self.port.metrics.peer(hello.from));
                self.hello = Some(Arc::new(hello));
                Answer::Welcome(pb::Welcome {
                    protocol: PROTOCOL,
                    incarnation,
                })
            }
            Err(refused) => {
                debug!(
                    from = format_args!("{:x}", hello.from),
                    reason = refused.text,
                    "refused a peer"
                );
                Answer::Refused(refused)
            }
        }
    }
}
