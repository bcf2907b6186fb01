//! gRPC messages out of DATA frames: a message may span frames, and a frame may hold several messages.
//!
//! A message that lies whole in one chunk is a slice of it; only one that was cut is copied together.

use bytes::{Buf, Bytes, BytesMut};

const HEAD_BYTES: usize = 5; // compressed flag, then a big-endian length

#[derive(Debug, PartialEq, Eq)]
pub enum Error {
    /// We never offer compression, so no answer may use it.
    Compressed,
    /// The stream ended within a message.
    CutShort,
}

#[derive(Default)]
pub struct Deframer {
    chunk: Bytes,
    /// The front of a message whose rest has not come yet; empty while messages lie whole in `chunk`.
    partial: BytesMut,
}

impl Deframer {
    /// Only valid once [`Self::message`] returned `None`.
    pub fn push(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.is_empty(), "an earlier chunk was not read to its end");
        self.chunk = chunk;
    }

    /// The next whole message, or `None` when another chunk is needed.
    pub fn message(&mut self) -> Result<Option<Bytes>, Error> {
        if self.partial.is_empty() {
            let Some(total) = message_bytes(&self.chunk)? else {
                return Ok(self.keep_rest());
            };
            if self.chunk.len() < total {
                self.partial.reserve(total);
                return Ok(self.keep_rest());
            }
            let mut message = self.chunk.split_to(total);
            message.advance(HEAD_BYTES);
            return Ok(Some(message));
        }
        while self.partial.len() < HEAD_BYTES && !self.chunk.is_empty() {
            self.take(HEAD_BYTES - self.partial.len());
        }
        let Some(total) = message_bytes(&self.partial)? else {
            return Ok(None);
        };
        self.partial.reserve(total - self.partial.len());
        self.take(total - self.partial.len());
        if self.partial.len() < total {
            return Ok(None);
        }
        let mut message = self.partial.split().freeze();
        message.advance(HEAD_BYTES);
        Ok(Some(message))
    }

    /// Call at the end of the stream.
    pub fn finish(&self) -> Result<(), Error> {
        if self.partial.is_empty() && self.chunk.is_empty() {
            Ok(())
        } else {
            Err(Error::CutShort)
        }
    }

    fn keep_rest(&mut self) -> Option<Bytes> {
        self.take(self.chunk.len());
        None
    }

    fn take(&mut self, at_most: usize) {
        let part = self.chunk.split_to(at_most.min(self.chunk.len()));
        self.partial.extend_from_slice(&part);
    }
}

/// Length of the message at the front, head included, once its head is there.
fn message_bytes(front: &[u8]) -> Result<Option<usize>, Error> {
    match front {
        [0, a, b, c, d, ..] => Ok(Some(HEAD_BYTES + u32::from_be_bytes([*a, *b, *c, *d]) as usize)),
        [flag, ..] if *flag != 0 => Err(Error::Compressed),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(messages: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for message in messages {
            out.push(0);
            out.extend_from_slice(&(message.len() as u32).to_be_bytes());
            out.extend_from_slice(message);
        }
        out
    }

    #[test]
    fn every_cut_of_the_stream_gives_the_same_messages() {
        let messages: [&[u8]; 4] = [b"one", b"", b"a longer message", b"x"];
        let stream = framed(&messages);
        for step in 1..=stream.len() {
            let mut deframer = Deframer::default();
            let mut got = Vec::new();
            for chunk in stream.chunks(step) {
                deframer.push(Bytes::copy_from_slice(chunk));
                while let Some(message) = deframer.message().unwrap() {
                    got.push(message.to_vec());
                }
            }
            assert_eq!(got, messages, "chunks of {step}");
            assert_eq!(deframer.finish(), Ok(()));
        }
    }

    #[test]
    fn a_cut_end_and_compression_are_errors() {
        let mut deframer = Deframer::default();
        deframer.push(Bytes::from_static(&[0, 0, 0, 0, 9, 1]));
        assert_eq!(deframer.message(), Ok(None));
        assert_eq!(deframer.finish(), Err(Error::CutShort));

        let mut deframer = Deframer::default();
        deframer.push(Bytes::from_static(&[1, 0, 0, 0, 0]));
        assert_eq!(deframer.message(), Err(Error::Compressed));
    }
}
