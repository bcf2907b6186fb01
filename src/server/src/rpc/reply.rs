//! What a unary handler answers with.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use quorate_api::Status;

/// A future for the next piece of a [`ReplyBody`].
pub type PieceFuture<'a> = Pin<Box<dyn Future<Output = Option<Result<Bytes, Status>>> + Send + 'a>>;

/// The answer to a unary call.
pub enum Reply {
    /// One encoded message. Right for everything up to some tens of KiB.
    Message(Bytes),
    /// One encoded message that is laid out in several buffers, sent in order and without joining them.
    Segments(Vec<Bytes>),
    /// One encoded message that is produced while the client reads it.
    Body(Box<dyn ReplyBody>),
}

impl From<Bytes> for Reply {
    fn from(message: Bytes) -> Self {
        Reply::Message(message)
    }
}

/// An encoded message whose length is known before its bytes are there.
pub trait ReplyBody: Send {
    /// Length of the whole message; the pieces must add up to exactly this.
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that it has in memory meanwhile, roughly. They count as waiting for the client.
    fn held(&self) -> usize {
        0
    }

    /// The next piece, best between 16 and 256 KiB. Asked for only when the client has room for more. `None` after the
    /// last one. An error ends the call by a reset, since part of the message is already on its way.
    fn next(&mut self) -> PieceFuture<'_>;
}
