//! Cuts a request stream into messages.
//!
//! A message that lies in one DATA frame is a slice of the receive buffer. One that spans frames is gathered in an exact
//! allocation that is charged to a budget which all connections share, and must be complete within a deadline: else a
//! few clients that announce long messages and never finish them would hold the node's memory.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use h2::RecvStream;
use quorate_api::error::transport;
use quorate_api::{Code, Error, Status};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

use super::payload::PREFIX_LEN;

/// Why a message could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("the client reset the call or its connection ended")]
    Gone,
    #[error("the stream ended inside the prefix of a message")]
    TruncatedPrefix,
    #[error("the stream ended inside a message")]
    Truncated,
    #[error("message of {got} bytes, limit {limit}")]
    TooLarge { got: usize, limit: usize },
    #[error("compressed message")]
    Compressed,
    #[error("unknown flag {0} in a message prefix")]
    BadFlag(u8),
    #[error("no memory left for messages that arrive in parts")]
    Busy,
    #[error("message did not arrive in time")]
    Slow,
}

impl ReadError {
    /// The status that clients of etcd expect. `encoding` is what the call's `grpc-encoding` header said.
    pub(crate) fn status(&self, encoding: Option<&str>) -> Status {
        match self {
            ReadError::Gone => Error::CallerCanceled.into(),
            ReadError::TruncatedPrefix | ReadError::Truncated => Status::new(Code::Internal, "unexpected EOF"),
            ReadError::TooLarge { got, limit } => transport::message_too_large(*got, *limit),
            ReadError::Compressed => match encoding {
                None | Some("identity") => Status::new(
                    Code::Internal,
                    "grpc: compressed flag set with identity or empty encoding",
                ),
                Some(name) => Status::new(
                    Code::Unimplemented,
                    format!("grpc: Decompressor is not installed for grpc-encoding {name:?}"),
                ),
            },
            ReadError::BadFlag(flag) => Status::new(
                Code::Internal,
                format!("grpc: received unexpected payload format {flag}"),
            ),
            ReadError::Busy => Status::new(
                Code::ResourceExhausted,
                "too many large requests at a time, try again later",
            ),
            ReadError::Slow => Error::DeadlineExceeded.into(),
        }
    }
}

/// What reading a message may cost.
#[derive(Clone, Debug)]
pub(crate) struct ReadLimits {
    pub message_bytes_max: usize,
    pub message_deadline: Duration,
    /// Bytes of partial messages, all connections together.
    pub partial: Arc<Semaphore>,
}

/// A message whose bytes are still arriving.
struct Partial {
    message: BytesMut,
    len: usize,
    _charge: OwnedSemaphorePermit,
    deadline: Pin<Box<Sleep>>,
}

/// Reads messages off one request stream. All progress is kept in here, so a wait may be dropped and taken up again.
pub(crate) struct MessageReader {
    body: RecvStream,
    limits: ReadLimits,
    chunk: Bytes,
    head: [u8; PREFIX_LEN],
    head_got: usize,
    partial: Option<Partial>,
}

impl MessageReader {
    pub(crate) fn new(body: RecvStream, limits: ReadLimits) -> Self {
        Self {
            body,
            limits,
            chunk: Bytes::new(),
            head: [0; PREFIX_LEN],
            head_got: 0,
            partial: None,
        }
    }

    /// The next message; `None` when the client has closed its side.
    pub(crate) fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ReadError>> {
        loop {
            if let Some(partial) = &mut self.partial {
                let missing = partial.len - partial.message.len();
                let part = self.chunk.split_to(missing.min(self.chunk.len()));
                partial.message.extend_from_slice(&part);
                if partial.message.len() == partial.len
                    && let Some(done) = self.partial.take()
                {
                    return Poll::Ready(Ok(Some(done.message.freeze())));
                }
            } else if self.head_got < PREFIX_LEN {
                let part = self.chunk.len().min(PREFIX_LEN - self.head_got);
                self.head[self.head_got..self.head_got + part].copy_from_slice(&self.chunk[..part]);
                self.chunk.advance(part);
                self.head_got += part;
                if self.head_got == PREFIX_LEN
                    && let Some(message) = self.open()?
                {
                    return Poll::Ready(Ok(Some(message)));
                }
            }
            if self.chunk.is_empty() {
                match ready!(self.poll_chunk(cx)?) {
                    Some(chunk) => self.chunk = chunk,
                    None if self.head_got == 0 && self.partial.is_none() => return Poll::Ready(Ok(None)),
                    None if self.partial.is_none() => return Poll::Ready(Err(ReadError::TruncatedPrefix)),
                    None => return Poll::Ready(Err(ReadError::Truncated)),
                }
            }
        }
    }

    /// The prefix is complete: judge it, and return the message if all of it is here already.
    fn open(&mut self) -> Result<Option<Bytes>, ReadError> {
        self.head_got = 0;
        let [flag, a, b, c, d] = self.head;
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        match flag {
            0 => {}
            1 => return Err(ReadError::Compressed),
            other => return Err(ReadError::BadFlag(other)),
        }
        if len > self.limits.message_bytes_max {
            return Err(ReadError::TooLarge {
                got: len,
                limit: self.limits.message_bytes_max,
            });
        }
        if self.chunk.len() >= len {
            return Ok(Some(self.chunk.split_to(len)));
        }
        let permits = u32::try_from(len).map_err(|_| ReadError::Busy)?;
        let charge = Arc::clone(&self.limits.partial)
            .try_acquire_many_owned(permits)
            .map_err(|_| ReadError::Busy)?;
        self.partial = Some(Partial {
            message: BytesMut::with_capacity(len),
            len,
            _charge: charge,
            deadline: Box::pin(tokio::time::sleep(self.limits.message_deadline)),
        });
        Ok(None)
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ReadError>> {
        match self.body.poll_data(cx) {
            Poll::Ready(Some(Ok(chunk))) => {
                // Room for the client to send more; an error means that the stream is gone, which the next read tells.
                let _ = self.body.flow_control().release_capacity(chunk.len());
                Poll::Ready(Ok(Some(chunk)))
            }
            Poll::Ready(Some(Err(_))) => Poll::Ready(Err(ReadError::Gone)),
            Poll::Ready(None) => Poll::Ready(Ok(None)),
            Poll::Pending => match &mut self.partial {
                Some(partial) => partial.deadline.as_mut().poll(cx).map(|()| Err(ReadError::Slow)),
                None => Poll::Pending,
            },
        }
    }
}
