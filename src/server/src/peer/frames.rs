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
    buffer: BytesMut,
    /// Bytes that came and were not counted yet.
    uncounted: usize,
}

impl Reader {
    pub fn new(body: RecvStream) -> Self {
        Self {
            body,
            buffer: BytesMut::new(),
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
            match self.take() {
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
                    self.buffer.extend_from_slice(&data);
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None if self.buffer.is_empty() => return Poll::Ready(None),
                None => return Poll::Ready(Some(Err(Error::CutOff))),
            }
        }
    }

    pub async fn next<M: Message + Default>(&mut self) -> Option<Result<M, Error>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn take(&mut self) -> Result<Option<Bytes>, Error> {
        let Some(mut prefix) = self.buffer.get(..PREFIX) else {
            return Ok(None);
        };
        if prefix.get_u8() != 0 {
            return Err(Error::Compressed);
        }
        let len = prefix.get_u32() as usize;
        if len > MESSAGE_BYTES_MAX {
            return Err(Error::TooLong(len));
        }
        let missing = (PREFIX + len).saturating_sub(self.buffer.len());
        if missing > 0 {
            self.buffer.reserve(missing.min(AHEAD_BYTES));
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        checked(self.buffer.split_to(len).freeze()).map(Some)
    }
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
}
