//! The router on HTTP/2 connections, for requests that came by TLS and are no gRPC.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Request, Response};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt;

use super::HttpService;
use crate::rpc::connection::{Conn, HeaderCharge};
use crate::rpc::payload::Payload;
use crate::rpc::unary::send_pieces;

/// Answers one request, when it is its turn. Errors on the way mean that the client is gone, and then nobody is left to tell.
pub(crate) async fn serve(
    service: HttpService,
    conn: Arc<Conn>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Payload>,
    _headers: HeaderCharge,
) {
    let mut request = request.map(|stream| Body::new(RequestBody { stream }));
    request.extensions_mut().insert(Arc::clone(&conn.peer));
    // Held until the answer is sent, since that is whole in memory until then.
    let mut turn = None;
    let response = {
        let mut answer = pin!(async {
            turn = conn.http.acquire().await.ok();
            service.call(request, false).await
        });
        std::future::poll_fn(|cx| {
            if let Poll::Ready(response) = answer.as_mut().poll(cx) {
                return Poll::Ready(Some(response));
            }
            respond.poll_reset(cx).map(|_| None)
        })
        .await
    };
    let Some(response) = response else { return };
    let (mut parts, mut body) = response.into_parts();
    if let Some(len) = body.size_hint().exact()
        && !parts.headers.contains_key(CONTENT_LENGTH)
    {
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
    }
    let empty = body.is_end_stream();
    let Ok(mut stream) = respond.send_response(Response::from_parts(parts, ()), empty) else {
        return;
    };
    if empty {
        return;
    }
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return stream.send_reset(Reason::INTERNAL_ERROR);
        };
        let Ok(data) = frame.into_data() else { continue };
        let sending = send_pieces(&conn, &mut stream, Payload::bytes(data));
        match tokio::time::timeout(conn.pace.stall, sending).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => return stream.send_reset(Reason::CANCEL),
        }
    }
    let _ = stream.send_data(Payload::bytes(Bytes::new()), true);
    drop(turn);
}

/// A request body that gives the client room for more as it is read.
struct RequestBody {
    stream: RecvStream,
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        self.stream.poll_data(cx).map(|next| {
            next.map(|data| {
                let data = data?;
                self.stream.flow_control().release_capacity(data.len())?;
                Ok(Frame::data(data))
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}
