//! HTTP/1.1 connections.
//!
//! A request's head has to arrive within a deadline that starts with its first byte; between requests a connection may
//! idle. The library's own deadline also runs while the connection idles, which would cut off scrapers that keep theirs
//! open, hence the clock of our own.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::Request;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::HttpService;
use crate::listen::Stop;
use crate::rpc::PeerInfo;

/// Longest head of a request, all header lines together.
const HEAD_BYTES_MAX: usize = 64 * 1024;

const IDLE: u8 = 0;
const HEAD: u8 = 1;
const BUSY: u8 = 2;

/// Where a connection is between two requests.
#[derive(Debug)]
struct Phase(AtomicU8);

impl Phase {
    fn is_head(&self) -> bool {
        self.0.load(Ordering::Relaxed) == HEAD
    }

    fn bytes_arrived(&self) {
        // Bytes that arrive while a request is served are its body or the next request, whose turn comes later.
        let _ = self
            .0
            .compare_exchange(IDLE, HEAD, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn set(&self, phase: u8) {
        self.0.store(phase, Ordering::Relaxed);
    }
}

/// Serves one connection until it ends, breaks the header deadline, or is told to stop.
pub(crate) async fn serve<S>(
    service: HttpService,
    io: S,
    peer: Arc<PeerInfo>,
    header_deadline: Duration,
    stop: Stop,
) -> Result<(), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Its first bytes have been seen already.
    let phase = Arc::new(Phase(AtomicU8::new(HEAD)));
    let io = TokioIo::new(Watched {
        io,
        phase: Arc::clone(&phase),
    });
    let plaintext = peer.tls.is_none();
    let answer = service_fn(|mut request: Request<Incoming>| {
        phase.set(BUSY);
        let busy = Busy(Arc::clone(&phase));
        let service = service.clone();
        request.extensions_mut().insert(Arc::clone(&peer));
        async move {
            let response = service.call(request.map(Body::new), plaintext).await;
            Ok::<_, Infallible>(response.map(|body| TrackedBody { body, _busy: busy }))
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .title_case_headers(true)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(io, answer)
    );
    let mut drain = pin!(stop.drain.cancelled());
    let mut draining = false;
    let mut timer: Pin<&mut Option<Sleep>> = pin!(None);
    std::future::poll_fn(|cx| {
        if !draining && drain.as_mut().poll(cx).is_ready() {
            draining = true;
            connection.as_mut().graceful_shutdown();
        }
        if let Poll::Ready(result) = connection.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        if !phase.is_head() {
            timer.set(None);
            return Poll::Pending;
        }
        if timer.is_none() {
            timer.set(Some(tokio::time::sleep(header_deadline)));
        }
        match timer.as_mut().as_pin_mut() {
            Some(timer) => timer.poll(cx).map(|()| {
                tracing::debug!("request head did not arrive in time");
                Ok(())
            }),
            None => Poll::Pending,
        }
    })
    .await
}

/// Tells the phase that bytes have come.
struct Watched<S> {
    io: S,
    phase: Arc<Phase>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.phase.bytes_arrived();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
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

/// The request is served until this is dropped.
struct Busy(Arc<Phase>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.set(IDLE);
    }
}

/// A response body that ends the request's turn when it has been sent.
struct TrackedBody {
    body: Body,
    _busy: Busy,
}

impl HttpBody for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
