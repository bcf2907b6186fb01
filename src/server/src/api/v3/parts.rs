//! Answers that are sent piece by piece. The length of a gRPC message stands before its first byte; the store knows the
//! length of a range from its index alone, so its values are read only as the client takes them.

use super::mismatched;
use crate::budget::Reserved;
use crate::rpc::{PieceFuture, Reply, ReplyBody};
use bytes::{Bytes, BytesMut};
use quorate_api::Status;
use quorate_store::RangeAnswer;
use std::collections::VecDeque;

/// Answers up to this size are put together at once; larger ones are sent piece by piece.
pub const WHOLE_BYTES: usize = 32 << 10;

/// Size of a piece: what a connection holds for a client that does not read.
pub const PIECE_BYTES: usize = 64 << 10;

/// A message under construction: bytes that are there, and ranges whose pairs are still to be read.
pub struct Parts {
    parts: VecDeque<Part>,
    len: usize,
    held: Vec<Reserved>,
}

enum Part {
    Bytes(Bytes),
    /// The answer and how many of its bytes are still to come.
    Pairs(Box<RangeAnswer>, usize),
}

impl Parts {
    pub fn new(held: Vec<Reserved>) -> Self {
        Self {
            parts: VecDeque::new(),
            len: 0,
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
    pub fn reply(mut self) -> Result<Reply, Status> {
        if self.len > WHOLE_BYTES {
            return Ok(Reply::Body(Box::new(self)));
        }
        let mut message = BytesMut::with_capacity(self.len);
        while let Some(piece) = self.piece()? {
            message.extend_from_slice(&piece);
        }
        Ok(Reply::Message(message.freeze()))
    }

    fn piece(&mut self) -> Result<Option<Bytes>, Status> {
        let piece = match self.parts.front_mut() {
            None => {
                self.held.clear();
                return Ok(None);
            }
            Some(Part::Bytes(bytes)) => std::mem::take(bytes),
            Some(Part::Pairs(answer, left)) => {
                let piece = answer.next_chunk(PIECE_BYTES)?.ok_or_else(mismatched)?;
                *left = left.checked_sub(piece.len()).ok_or_else(mismatched)?;
                if *left > 0 {
                    return Ok(Some(piece));
                }
                piece
            }
        };
        self.parts.pop_front();
        Ok(Some(piece))
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
        Box::pin(async { self.piece().transpose() })
    }
}
