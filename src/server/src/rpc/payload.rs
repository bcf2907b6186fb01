//! The bytes of a reply on their way into HTTP/2: the gRPC prefix and the segments of the message side by side, so that
//! nothing is copied to join them, and a lease on the connection's budget that ends when the bytes have been written.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};
use tokio::sync::OwnedSemaphorePermit;

/// Length of the prefix of every gRPC message: a flag and a 32-bit length.
pub(crate) const PREFIX_LEN: usize = 5;

/// One message to send, in one buffer or in several.
#[derive(Clone, Debug)]
pub enum Message {
    One(Bytes),
    Segments(Vec<Bytes>),
}

impl Message {
    /// Length of the encoded message, without its prefix.
    pub fn len(&self) -> usize {
        match self {
            Message::One(bytes) => bytes.len(),
            Message::Segments(segments) => segments.iter().map(Bytes::len).sum(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Bytes> for Message {
    fn from(bytes: Bytes) -> Self {
        Message::One(bytes)
    }
}

impl From<Vec<u8>> for Message {
    fn from(bytes: Vec<u8>) -> Self {
        Message::One(bytes.into())
    }
}

impl From<Vec<Bytes>> for Message {
    fn from(segments: Vec<Bytes>) -> Self {
        Message::Segments(segments)
    }
}

/// A length beyond what the prefix can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

/// The prefix of an uncompressed message of `len` bytes.
pub(crate) fn prefix(len: usize) -> Result<[u8; PREFIX_LEN], TooLong> {
    let [a, b, c, d] = u32::try_from(len).map_err(|_| TooLong)?.to_be_bytes();
    Ok([0, a, b, c, d])
}

/// Bytes handed to HTTP/2. Dropped by it once they are written or the stream is gone, which returns the lease.
#[derive(Debug)]
pub(crate) struct Payload {
    prefix: [u8; PREFIX_LEN],
    prefix_left: u8,
    first: Bytes,
    rest: VecDeque<Bytes>,
    rest_len: usize,
    /// Held for its `Drop`.
    _lease: Option<OwnedSemaphorePermit>,
}

impl Payload {
    /// A whole message with its prefix.
    pub(crate) fn message(message: Message) -> Result<Self, TooLong> {
        let prefix = prefix(message.len())?;
        let mut payload = match message {
            Message::One(bytes) => Self::bytes(bytes),
            Message::Segments(segments) => Self::segments(segments),
        };
        payload.prefix = prefix;
        payload.prefix_left = PREFIX_LEN as u8;
        Ok(payload)
    }

    /// The same without a prefix: messages that have theirs already.
    pub(crate) fn segments(segments: Vec<Bytes>) -> Self {
        let mut rest: VecDeque<Bytes> = segments.into();
        rest.retain(|segment| !segment.is_empty());
        let first = rest.pop_front().unwrap_or_default();
        let rest_len = rest.iter().map(Bytes::len).sum();
        Self {
            rest,
            rest_len,
            ..Self::bytes(first)
        }
    }

    /// Bytes as they are: a prefix or a part of a message.
    pub(crate) fn bytes(first: Bytes) -> Self {
        Self {
            prefix: [0; PREFIX_LEN],
            prefix_left: 0,
            first,
            rest: VecDeque::new(),
            rest_len: 0,
            _lease: None,
        }
    }

    /// The first piece of a message of `len` bytes whose other pieces follow as [`Payload::bytes`].
    pub(crate) fn first_piece(len: usize, piece: Bytes) -> Result<Self, TooLong> {
        Ok(Self {
            prefix: prefix(len)?,
            prefix_left: PREFIX_LEN as u8,
            ..Self::bytes(piece)
        })
    }

    pub(crate) fn leased(mut self, lease: OwnedSemaphorePermit) -> Self {
        self._lease = Some(lease);
        self
    }

    /// Splits off the first `n` bytes, or all when there are fewer.
    pub(crate) fn split_front(&mut self, n: usize) -> Payload {
        if n >= self.remaining() {
            return std::mem::replace(self, Payload::bytes(Bytes::new()));
        }
        let mut head = Payload::bytes(Bytes::new());
        let mut left = n;
        // The head keeps the prefix in the same place; what it does not take stays here.
        let of_prefix = left.min(usize::from(self.prefix_left));
        if of_prefix > 0 {
            let start = PREFIX_LEN - usize::from(self.prefix_left);
            let taken = Bytes::copy_from_slice(&self.prefix[start..start + of_prefix]);
            self.prefix_left -= of_prefix as u8;
            left -= of_prefix;
            head.first = taken;
        }
        while left > 0 {
            let part = self.first.split_to(left.min(self.first.len()));
            left -= part.len();
            if head.first.is_empty() {
                head.first = part;
            } else {
                head.rest_len += part.len();
                head.rest.push_back(part);
            }
            self.refill();
        }
        head
    }

    fn refill(&mut self) {
        if self.first.is_empty()
            && let Some(next) = self.rest.pop_front()
        {
            self.rest_len -= next.len();
            self.first = next;
        }
    }
}

impl Buf for Payload {
    fn remaining(&self) -> usize {
        usize::from(self.prefix_left) + self.first.len() + self.rest_len
    }

    fn chunk(&self) -> &[u8] {
        if self.prefix_left > 0 {
            &self.prefix[PREFIX_LEN - usize::from(self.prefix_left)..]
        } else {
            &self.first
        }
    }

    fn advance(&mut self, mut n: usize) {
        let of_prefix = n.min(usize::from(self.prefix_left));
        self.prefix_left -= of_prefix as u8;
        n -= of_prefix;
        while n > 0 {
            assert!(!self.first.is_empty(), "advanced past the end of a payload");
            let step = n.min(self.first.len());
            self.first.advance(step);
            n -= step;
            self.refill();
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let prefix = &self.prefix[PREFIX_LEN - usize::from(self.prefix_left)..];
        let parts = [prefix, &self.first[..]]
            .into_iter()
            .chain(self.rest.iter().map(|segment| &segment[..]))
            .filter(|part| !part.is_empty());
        let mut used = 0;
        for (slot, part) in slices.iter_mut().zip(parts) {
            *slot = IoSlice::new(part);
            used += 1;
        }
        used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Payload {
        let segments = vec![
            Bytes::from_static(b"abc"),
            Bytes::new(),
            Bytes::from_static(b"defgh"),
            Bytes::from_static(b"i"),
        ];
        Payload::message(Message::Segments(segments)).unwrap()
    }

    fn drain(mut payload: Payload) -> Vec<u8> {
        let mut out = Vec::new();
        while payload.has_remaining() {
            let n = payload.chunk().len();
            out.extend_from_slice(payload.chunk());
            payload.advance(n);
        }
        out
    }

    #[test]
    fn segments_read_as_one_message_with_prefix() {
        assert_eq!(drain(sample()), b"\0\0\0\0\x09abcdefghi");
        assert_eq!(drain(Payload::message(Bytes::new().into()).unwrap()), b"\0\0\0\0\0");
    }

    #[test]
    fn segments_alone_get_no_prefix() {
        let segments = ["", "ab", "", "c"].map(Bytes::from).to_vec();
        assert_eq!(drain(Payload::segments(segments)), b"abc");
        assert!(!Payload::segments(Vec::new()).has_remaining());
    }

    #[test]
    fn a_payload_can_be_cut_anywhere() {
        let whole = drain(sample());
        for at in 0..=whole.len() + 1 {
            let mut tail = sample();
            let head = tail.split_front(at);
            assert_eq!(head.remaining(), at.min(whole.len()));
            assert_eq!([drain(head), drain(tail)].concat(), whole, "cut at {at}");
        }
    }

    #[test]
    fn advancing_agrees_with_vectored_reading() {
        for at in 0..14 {
            let mut payload = sample();
            payload.advance(at);
            let mut slices = [IoSlice::new(&[]); 8];
            let used = payload.chunks_vectored(&mut slices);
            let joined: Vec<u8> = slices[..used].iter().flat_map(|slice| slice.to_vec()).collect();
            assert_eq!(joined.len(), payload.remaining());
            assert_eq!(joined, drain(payload));
        }
    }
}
