//! Cuts a request stream into messages.
//!
//! A message that lies in one DATA frame is a slice of the receive buffer. One that spans frames is gathered in an exact
//! allocation, and a compressed one is inflated into another; both are charged to the connection's share of memory (see
//! `memory`). A message must be complete within a deadline: else a few clients that announce long messages and never
//! finish them would hold the node's memory.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use h2::RecvStream;
use quorate_api::error::transport;
use quorate_api::{Code, Error, Status};
use tokio::time::Sleep;

use super::gzip::{self, Encoding, InflateError};
use super::memory::{Asked, Charge, Charging, MemoryShare};
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
    #[error("compressed message in a call without compression")]
    Compressed,
    #[error("message in unknown compression {0:?}")]
    UnknownCompression(String),
    #[error("message cannot be inflated to {limit} bytes: {why:?}")]
    Inflate { why: InflateError, limit: usize },
    #[error("unknown flag {0} in a message prefix")]
    BadFlag(u8),
    #[error("no memory left for messages that arrive in parts")]
    Busy,
    #[error("message did not arrive in time")]
    Slow,
}

impl ReadError {
    /// The status that clients of etcd expect.
    pub(crate) fn status(&self) -> Status {
        match self {
            ReadError::Gone => Error::CallerCanceled.into(),
            ReadError::TruncatedPrefix | ReadError::Truncated => Status::new(Code::Internal, "unexpected EOF"),
            ReadError::TooLarge { got, limit } => transport::message_too_large(*got, *limit),
            ReadError::Compressed => Status::new(
                Code::Internal,
                "grpc: compressed flag set with identity or empty encoding",
            ),
            ReadError::UnknownCompression(name) => Status::new(
                Code::Unimplemented,
                format!("grpc: Decompressor is not installed for grpc-encoding {name:?}"),
            ),
            ReadError::Inflate { why, limit } => match why {
                InflateError::Header(text) => Status::new(
                    Code::Internal,
                    format!("grpc: failed to decompress the message: {text}"),
                ),
                InflateError::Data(text) => Status::new(
                    Code::Internal,
                    format!("grpc: failed to read decompressed data: {text}"),
                ),
                InflateError::TooLong => Status::new(
                    Code::ResourceExhausted,
                    format!("grpc: received message after decompression larger than max {limit}"),
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

/// What reading a message may cost, and whom.
#[derive(Debug)]
pub(crate) struct ReadLimits {
    pub message_bytes_max: usize,
    pub message_deadline: Duration,
    pub memory: MemoryShare,
}

/// Where the reader is.
enum State {
    /// At a prefix.
    Prefix,
    /// Waits for memory, and goes on with [`Step`].
    Charging(Charging, Step),
    /// A message whose bytes are still arriving.
    Gathering {
        message: BytesMut,
        len: usize,
        charge: Charge,
    },
}

/// What memory is asked for.
enum Step {
    /// A message of so many bytes.
    Gather(usize),
    /// What this message in one piece becomes.
    Inflate(Bytes),
}

/// Reads messages off one request stream. All progress is kept in here, so a wait may be dropped and taken up again.
pub(crate) struct MessageReader {
    body: RecvStream,
    limits: Arc<ReadLimits>,
    encoding: Encoding,
    chunk: Bytes,
    head: [u8; PREFIX_LEN],
    head_got: usize,
    is_compressed: bool,
    state: State,
    /// The next message has to come: it is the one of a call that has just one, or it has begun.
    is_due: bool,
    /// Set once something that is due is waited for.
    deadline: Option<Pin<Box<Sleep>>>,
    /// For the last message, if it was inflated: small bytes on the wire may be long ones here, so they are charged as
    /// long as the handler may have them.
    inflated: Option<Charge>,
}

impl MessageReader {
    /// `is_due`: the first message must come within its deadline, counted from now.
    pub(crate) fn new(body: RecvStream, limits: Arc<ReadLimits>, encoding: Encoding, is_due: bool) -> Self {
        Self {
            body,
            limits,
            encoding,
            chunk: Bytes::new(),
            head: [0; PREFIX_LEN],
            head_got: 0,
            is_compressed: false,
            state: State::Prefix,
            is_due,
            deadline: None,
            inflated: None,
        }
    }

    /// The next message; `None` when the client has closed its side.
    pub(crate) fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ReadError>> {
        let result = self.poll_advance(cx);
        if result.is_ready() {
            self.is_due = false;
            self.deadline = None;
            return result;
        }
        if !self.is_due && self.head_got == 0 && matches!(self.state, State::Prefix) {
            return Poll::Pending;
        }
        let limit = self.limits.message_deadline;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        deadline.as_mut().poll(cx).map(|()| Err(ReadError::Slow))
    }

    fn poll_advance(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ReadError>> {
        loop {
            match std::mem::replace(&mut self.state, State::Prefix) {
                State::Prefix => {
                    let part = self.chunk.len().min(PREFIX_LEN - self.head_got);
                    self.head[self.head_got..self.head_got + part].copy_from_slice(&self.chunk[..part]);
                    self.chunk.advance(part);
                    self.head_got += part;
                    if self.head_got == PREFIX_LEN {
                        self.head_got = 0;
                        if let Some(message) = self.open()? {
                            return Poll::Ready(Ok(Some(message)));
                        }
                        continue;
                    }
                }
                State::Charging(mut wait, step) => match wait.as_mut().poll(cx) {
                    Poll::Ready(Some(charge)) => {
                        if let Some(message) = self.go_on(step, charge)? {
                            return Poll::Ready(Ok(Some(message)));
                        }
                        continue;
                    }
                    // The budget is never closed.
                    Poll::Ready(None) => return Poll::Ready(Err(ReadError::Busy)),
                    Poll::Pending => {
                        self.state = State::Charging(wait, step);
                        return Poll::Pending;
                    }
                },
                State::Gathering {
                    mut message,
                    len,
                    charge,
                } => {
                    let part = self.chunk.split_to(self.chunk.len().min(len - message.len()));
                    message.extend_from_slice(&part);
                    if message.len() == len {
                        let message = message.freeze();
                        return Poll::Ready(match self.is_compressed {
                            true => self.inflate(&message, charge).map(Some),
                            false => Ok(Some(message)),
                        });
                    }
                    self.state = State::Gathering { message, len, charge };
                }
            }
            // All that has come is used up.
            match ready!(self.poll_chunk(cx)?) {
                Some(chunk) => self.chunk = chunk,
                None => {
                    return Poll::Ready(match self.state {
                        State::Prefix if self.head_got == 0 => Ok(None),
                        State::Prefix => Err(ReadError::TruncatedPrefix),
                        _ => Err(ReadError::Truncated),
                    });
                }
            }
        }
    }

    /// The prefix is complete: judge it, and return the message if all of it is here already.
    fn open(&mut self) -> Result<Option<Bytes>, ReadError> {
        self.inflated = None;
        let [flag, a, b, c, d] = self.head;
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        self.is_compressed = match (flag, &self.encoding) {
            (0, _) => false,
            (1, Encoding::Gzip) => true,
            (1, Encoding::Identity) => return Err(ReadError::Compressed),
            (1, Encoding::Unknown(name)) => return Err(ReadError::UnknownCompression(name.clone())),
            (other, _) => return Err(ReadError::BadFlag(other)),
        };
        if len > self.limits.message_bytes_max {
            return Err(ReadError::TooLarge {
                got: len,
                limit: self.limits.message_bytes_max,
            });
        }
        if self.chunk.len() < len {
            // With what it will be inflated to, all at once: who holds some memory must never wait for more.
            let inflated = if self.is_compressed {
                self.limits.message_bytes_max
            } else {
                0
            };
            return self.charge(len + inflated, Step::Gather(len));
        }
        let message = self.chunk.split_to(len);
        if self.is_compressed {
            let claimed = gzip::claimed_len(&message).min(self.limits.message_bytes_max);
            return self.charge(claimed, Step::Inflate(message));
        }
        Ok(Some(message))
    }

    fn charge(&mut self, bytes: usize, step: Step) -> Result<Option<Bytes>, ReadError> {
        match self.limits.memory.ask(bytes) {
            Asked::Granted(charge) => self.go_on(step, charge),
            Asked::Refused => Err(ReadError::Busy),
            Asked::Wait(wait) => {
                self.state = State::Charging(wait, step);
                Ok(None)
            }
        }
    }

    fn go_on(&mut self, step: Step, charge: Charge) -> Result<Option<Bytes>, ReadError> {
        match step {
            Step::Gather(len) => {
                let message = BytesMut::with_capacity(len);
                self.state = State::Gathering { message, len, charge };
                Ok(None)
            }
            Step::Inflate(message) => self.inflate(&message, charge).map(Some),
        }
    }

    fn inflate(&mut self, message: &[u8], charge: Charge) -> Result<Bytes, ReadError> {
        let limit = self.limits.message_bytes_max;
        let message = gzip::inflate(message, limit).map_err(|why| ReadError::Inflate { why, limit })?;
        self.inflated = Some(charge);
        Ok(message)
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ReadError>> {
        self.body.poll_data(cx).map(|next| match next {
            Some(Ok(chunk)) => {
                // Room for the client to send more; an error means that the stream is gone, which the next read tells.
                let _ = self.body.flow_control().release_capacity(chunk.len());
                Ok(Some(chunk))
            }
            Some(Err(_)) => Err(ReadError::Gone),
            None => Ok(None),
        })
    }
}
