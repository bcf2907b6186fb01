//! gRPC's framing, as little of it as members need among themselves: a prefix of five bytes and a message, which ends with
//! its checksum.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::RecvStream;
use prost::Message;
use std::task::{Context, Poll, ready};

/// Messages that are longer are refused by their prefix, before anything of them is kept. A batch is about 1 MiB, but a
/// single command may be as long as clients are allowed to send.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Received bytes that may wait to be read, of one stream and of all of a connection.
pub const STREAM_WINDOW: u32 = 4 << 20;
pub const CONNECTION_WINDOW: u32 = 8 << 20;
pub const FRAME_BYTES: u32 = 256 << 10;

/// Room made ahead for a message that has been announced.
const AHEAD_BYTES: usize = 1 << 20;

const PREFIX: usize = 5;

/// At the end of every message: the field number 14 as protobuf has it, so that the whole is a message, too.
const CHECK: usize = 1 + size_of::<u32>();
const CHECK_TAG: u8 = 14 << 3 | 5;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Http(#[from] h2::Error),
    #[error("a message of {0} bytes is longer than any that members send")]
    TooLong(usize),
    #[error("a message is compressed, which was not agreed on")]
    Compressed,
    #[error("a message was cut off")]
    CutOff,
    #[error("a message does not end with a checksum")]
    Unchecked,
    #[error("a message is not as it was sent: its checksum is wrong")]
    Corrupt,
    #[error("a message can't be read: {0}")]
    Decode(#[from] prost::DecodeError),
}

/// Appends a message behind its prefix.
pub fn put(out: &mut BytesMut, message: &impl Message) {
    let len = message.encoded_len() + CHECK;
    out.reserve(PREFIX + len);
    out.put_u8(0);
    out.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    let begin = out.len();
    // There is room: it was reserved.
    let _ = message.encode(out);
    let sum = crc32c::crc32c(&out[begin..]);
    out.put_u8(CHECK_TAG);
    out.put_u32_le(sum);
}

/// A message without its checksum.
fn checked(mut message: Bytes) -> Result<Bytes, Error> {
    let at = message.len().checked_sub(CHECK).ok_or(Error::Unchecked)?;
    let mut check = message.split_off(at);
    if check.get_u8() != CHECK_TAG {
        return Err(Error::Unchecked);
    }
    if check.get_u32_le() != crc32c::crc32c(&message) {
        return Err(Error::Corrupt);
    }
    Ok(message)
}

/// A message behind its prefix.
pub fn frame(message: &impl Message) -> Bytes {
    let mut out = BytesMut::new();
    put(&mut out, message);
    out.freeze()
}

/// Takes messages out of a stream.
pub struct Reader {
    body: RecvStream,
    messages: Messages,
    /// Bytes that came and were not counted yet.
    uncounted: usize,
}

impl Reader {
    pub fn new(body: RecvStream) -> Self {
        Self {
            body,
            messages: Messages::default(),
            uncounted: 0,
        }
    }

    /// Bytes that came since this was last asked.
    pub fn count(&mut self) -> usize {
        std::mem::take(&mut self.uncounted)
    }

    /// The next message; `None` at the end of the stream. Byte fields are slices of what was received.
    pub fn poll_next<M: Message + Default>(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<M, Error>>> {
        loop {
            match self.messages.take() {
                Ok(Some(bytes)) => return Poll::Ready(Some(M::decode(bytes).map_err(Error::from))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
            match ready!(self.body.poll_data(cx)) {
                Some(Ok(data)) => {
                    // What is taken makes room for more at once: who reads decides how much is on its way.
                    if let Err(error) = self.body.flow_control().release_capacity(data.len()) {
                        return Poll::Ready(Some(Err(error.into())));
                    }
                    self.uncounted += data.len();
                    self.messages.data = data;
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None if self.messages.buffer.is_empty() => return Poll::Ready(None),
                None => return Poll::Ready(Some(Err(Error::CutOff))),
            }
        }
    }

    pub async fn next<M: Message + Default>(&mut self) -> Option<Result<M, Error>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }
}

/// Messages as they come out of pieces that were cut anywhere. One that lies in a single piece is not copied.
#[derive(Default)]
struct Messages {
    /// What came last, from where nothing was taken yet.
    data: Bytes,
    /// A message that more is to come of.
    buffer: BytesMut,
}

impl Messages {
    /// `None` once all data is used up.
    fn take(&mut self) -> Result<Option<Bytes>, Error> {
        if self.buffer.is_empty()
            && let Some(len) = announced(&self.data)?
            && self.data.len() >= PREFIX + len
        {
            self.data.advance(PREFIX);
            return checked(self.data.split_to(len)).map(Some);
        }
        loop {
            let len = announced(&self.buffer)?;
            let missing = len.map_or(PREFIX, |len| PREFIX + len) - self.buffer.len();
            if missing == 0 {
                let mut whole = self.buffer.split().freeze();
                whole.advance(PREFIX);
                return checked(whole).map(Some);
            }
            if self.data.is_empty() {
                return Ok(None);
            }
            self.buffer.reserve(missing.min(AHEAD_BYTES));
            let next = self.data.split_to(missing.min(self.data.len()));
            self.buffer.extend_from_slice(&next);
        }
    }
}

/// How long the message is, once its prefix has come.
fn announced(bytes: &[u8]) -> Result<Option<usize>, Error> {
    let Some(mut prefix) = bytes.get(..PREFIX) else {
        return Ok(None);
    };
    if prefix.get_u8() != 0 {
        return Err(Error::Compressed);
    }
    let len = prefix.get_u32() as usize;
    if len > MESSAGE_BYTES_MAX {
        return Err(Error::TooLong(len));
    }
    Ok(Some(len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_api::proto::quorate::peer::{Forward, Request, request::Body};

    #[test]
    fn a_frame_is_a_prefix_and_the_message() {
        let request = Request {
            number: 7,
            body: Some(Body::Forward(Forward {
                batch: Bytes::from_static(b"batch"),
                grows_store: true,
            })),
        };
        let framed = frame(&request);
        assert_eq!(&framed[..PREFIX], &[0, 0, 0, 0, (framed.len() - PREFIX) as u8]);
        let message = framed.slice(PREFIX..);
        assert_eq!(Request::decode(message.clone()).unwrap(), request, "with the check");
        assert_eq!(Request::decode(checked(message.clone()).unwrap()).unwrap(), request);
        for bit in 0..message.len() * 8 {
            let mut flipped = message.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(checked(flipped.into()).is_err(), "bit {bit}");
        }
        for len in 0..message.len() {
            assert!(checked(message.slice(..len)).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn messages_come_out_of_any_pieces() {
        let message = |len: usize| Forward {
            batch: vec![len as u8; len].into(),
            grows_store: false,
        };
        let lens = [0, 1, 300, 5000, 2, 0, 70_000];
        let mut stream = BytesMut::new();
        for len in lens {
            put(&mut stream, &message(len));
        }
        let stream = stream.freeze();
        for cut in [1, 2, 5, 6, 7, 100, 311, 4096, 5015, 60_000, stream.len()] {
            let mut messages = Messages::default();
            let mut came = Vec::new();
            let mut rest = stream.clone();
            while !rest.is_empty() {
                messages.data = rest.split_to(cut.min(rest.len()));
                while let Some(bytes) = messages.take().unwrap() {
                    came.push(Forward::decode(bytes).unwrap().batch.len());
                }
                assert!(messages.data.is_empty(), "all of it was taken");
            }
            assert_eq!(came, lens, "pieces of {cut} bytes");
            assert!(messages.buffer.is_empty());
        }
    }

    #[test]
    fn a_message_in_one_piece_is_not_copied() {
        let whole = frame(&Forward {
            batch: vec![1; 1000].into(),
            grows_store: false,
        });
        let mut messages = Messages {
            data: whole.clone(),
            ..Messages::default()
        };
        let message = messages.take().unwrap().unwrap();
        assert_eq!(message.as_ptr(), whole[PREFIX..].as_ptr());
    }

    #[test]
    fn what_is_no_message_is_refused_by_its_prefix() {
        let refused = |prefix: [u8; PREFIX]| {
            let data = Bytes::copy_from_slice(&prefix);
            let buffer = BytesMut::new();
            Messages { data, buffer }.take().unwrap_err()
        };
        assert!(matches!(refused([1, 0, 0, 0, 0]), Error::Compressed));
        assert!(matches!(refused([0, 255, 0, 0, 0]), Error::TooLong(_)));
        assert!(matches!(refused([0; PREFIX]), Error::Unchecked));
    }
}
