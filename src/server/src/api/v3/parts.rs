//! Answers that are sent piece by piece. The length of a gRPC message stands before its first byte; the store knows the
//! length of a range from its index alone, so its values are read only as the client takes them.

use super::mismatched;
use crate::budget::Reserved;
use crate::member::Member;
use crate::rpc::{PieceFuture, Reply, ReplyBody};
use bytes::{Bytes, BytesMut};
use quorate_api::{Error, Status};
use quorate_store::{Piece, RangeAnswer};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Answers up to this size are put together at once; larger ones are sent piece by piece. Those that keep a View are
/// among the former, whatever stands around their pairs.
pub const WHOLE_BYTES: usize = quorate_store::VIEW_BYTES_MAX + 1024;

/// Size of a piece: what a connection holds for a client that does not read.
pub const PIECE_BYTES: usize = 64 << 10;

/// Rows that a piece may read from the backend on the thread that serves its connection.
const INLINE_READS_MAX: usize = 8;

/// A message under construction: bytes that are there, and ranges whose pairs are still to be read.
pub struct Parts {
    parts: VecDeque<Part>,
    len: usize,
    /// Long reads take turns.
    slots: Arc<Semaphore>,
    held: Option<Reserved>,
}

enum Part {
    Bytes(Bytes),
    /// The answer and how many of its bytes are still to come.
    Pairs(Box<RangeAnswer>, usize),
}

impl Parts {
    /// `held` is what the answers take in memory.
    pub fn new(member: &Member, held: Option<Reserved>) -> Self {
        Self {
            parts: VecDeque::new(),
            len: 0,
            slots: Arc::clone(&member.large_reads),
            held,
        }
    }

    pub fn push(&mut self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        if !bytes.is_empty() {
            self.len += bytes.len();
            self.parts.push_back(Part::Bytes(bytes));
        }
    }

    pub fn push_pairs(&mut self, answer: RangeAnswer) {
        let len = answer.encoded_len();
        if len > 0 {
            self.len += len;
            self.parts.push_back(Part::Pairs(Box::new(answer), len));
        }
    }

    /// At once if it is small, otherwise as the client takes it.
    pub async fn reply(mut self) -> Result<Reply, Status> {
        if self.len > WHOLE_BYTES {
            return Ok(Reply::Body(Box::new(self)));
        }
        let mut message = BytesMut::with_capacity(self.len);
        while let Some(piece) = self.piece().await? {
            message.extend_from_slice(&piece);
        }
        Ok(Reply::Message(message.freeze()))
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, Status> {
        let (mut answer, left) = match self.parts.pop_front() {
            None => {
                self.held = None;
                return Ok(None);
            }
            Some(Part::Bytes(bytes)) => return Ok(Some(bytes)),
            Some(Part::Pairs(answer, left)) => (answer, left),
        };
        let piece = answer.next_piece(usize::MAX, PIECE_BYTES).ok_or_else(mismatched)?;
        let bytes = if piece.reads() <= INLINE_READS_MAX {
            answer.encode(&piece)?
        } else {
            let bytes;
            (answer, bytes) = self.off_thread(answer, piece).await?;
            bytes
        };
        let left = left.checked_sub(bytes.len()).ok_or_else(mismatched)?;
        if left > 0 {
            self.parts.push_front(Part::Pairs(answer, left));
        }
        Ok(Some(bytes))
    }

    /// A disk that is slow holds up this answer and no other call of its connection.
    async fn off_thread(&self, answer: Box<RangeAnswer>, piece: Piece) -> Result<(Box<RangeAnswer>, Bytes), Status> {
        let stopped = || Status::from(Error::Stopped);
        let slot = Arc::clone(&self.slots).acquire_owned().await.map_err(|_| stopped())?;
        let done = tokio::task::spawn_blocking(move || {
            let bytes = answer.encode(&piece);
            drop(slot);
            (answer, bytes)
        });
        let (answer, bytes) = done.await.map_err(|_| stopped())?;
        Ok((answer, bytes?))
    }
}

impl ReplyBody for Parts {
    fn len(&self) -> usize {
        self.len
    }

    fn held(&self) -> usize {
        let held = |part: &Part| match part {
            Part::Bytes(bytes) => bytes.len(),
            Part::Pairs(answer, _) => answer.memory(),
        };
        self.parts.iter().map(held).sum()
    }

    fn next(&mut self) -> PieceFuture<'_> {
        Box::pin(async { self.piece().await.transpose() })
    }
}
