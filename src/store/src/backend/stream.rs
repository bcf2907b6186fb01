//! A whole store as a stream of bytes, as FORMAT.md describes it: what a member sends to one that can't be helped with
//! entries of the log any more.
//!
//! ```text
//!  header │ rows │ rows │ … │ records │ … │ end          each with a CRC over the whole stream up to there
//! ```
//!
//! A frame is checked before anything in it is looked at. Since each CRC goes on from the one before, a frame that was
//! left out, repeated or moved is noticed as a flipped bit is; the end says how much there was.

use bytes::{Buf, Bytes, BytesMut};

use super::change::{Applied, RowId};
use super::error::Error;
use super::format::{put_varint, take_varint};

/// Of the stream; a higher one is refused.
const FORMAT: u32 = 1;
const MAGIC: &[u8; 16] = b"quorate image\n\0\0";
const HEADER_LEN: usize = 16 + 4 + 4 * 8 + CRC_LEN;
const CRC_LEN: usize = 4;
/// Kind and length of a frame.
const HEAD_LEN: usize = 5;
/// More than any row takes; a length above is damage.
const BODY_MAX: usize = 1 << 30;

const ROWS: u8 = b'R';
const RECORDS: u8 = b'S';
const END: u8 = b'E';

/// What the image is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub applied: Applied,
    pub revision: i64,
    pub compacted: i64,
}

/// How much there was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub rows: u64,
    pub records: u64,
}

/// Makes the stream. Bodies are built behind [`Sealer::body`], so that sealing copies nothing.
#[derive(Debug, Default)]
pub(super) struct Sealer {
    crc: u32,
}

impl Sealer {
    pub fn header(&mut self, header: &Header) -> Bytes {
        let Header {
            applied: Applied { index, term },
            revision,
            compacted,
        } = *header;
        let mut out = Vec::with_capacity(HEADER_LEN);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        for number in [index, term, revision as u64, compacted as u64] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        self.seal(out)
    }

    /// An empty body, with room for what stands before it.
    pub fn body(capacity: usize) -> Vec<u8> {
        let mut body = Vec::with_capacity(capacity + HEAD_LEN + CRC_LEN);
        body.resize(HEAD_LEN, 0);
        body
    }

    pub fn rows(&mut self, body: Vec<u8>) -> Result<Bytes, Error> {
        self.frame(ROWS, body)
    }

    pub fn records(&mut self, body: Vec<u8>) -> Result<Bytes, Error> {
        self.frame(RECORDS, body)
    }

    pub fn end(&mut self, counts: Counts) -> Result<Bytes, Error> {
        let mut body = Self::body(16);
        body.extend_from_slice(&counts.rows.to_le_bytes());
        body.extend_from_slice(&counts.records.to_le_bytes());
        self.frame(END, body)
    }

    fn frame(&mut self, kind: u8, mut body: Vec<u8>) -> Result<Bytes, Error> {
        let len = body.len() - HEAD_LEN;
        if len > BODY_MAX {
            return Err(bad(format!("a row of {len} bytes is more than it can carry")));
        }
        body[0] = kind;
        body[1..HEAD_LEN].copy_from_slice(&(len as u32).to_le_bytes());
        Ok(self.seal(body))
    }

    fn seal(&mut self, mut bytes: Vec<u8>) -> Bytes {
        self.crc = crc32c::crc32c_append(self.crc, &bytes);
        bytes.extend_from_slice(&self.crc.to_le_bytes());
        bytes.into()
    }
}

/// One checked piece of the stream.
#[derive(Debug)]
pub(super) enum Part {
    Header(Header),
    /// To be read with [`take_row`].
    Rows(Bytes),
    /// To be read with [`take_record`].
    Records(Bytes),
    End(Counts),
}

/// Takes the stream apart again, however it was cut on its way. Holds at most one frame, and no more than has come; one
/// that came in a single piece is not copied.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// What came last, from where nothing was taken yet.
    data: Bytes,
    /// A frame that more is to come of.
    buffer: BytesMut,
    crc: u32,
    begun: bool,
    ended: bool,
}

impl Decoder {
    /// Then [`Decoder::next`] is due until it has no more.
    pub fn push(&mut self, bytes: Bytes) {
        self.buffer.extend_from_slice(&self.data);
        self.data = bytes;
    }

    /// The stream has come to its end, and nothing is behind it.
    pub fn is_whole(&self) -> bool {
        self.ended && self.is_empty()
    }

    /// The next part, if all of it is there.
    pub fn next(&mut self) -> Result<Option<Part>, Error> {
        if !self.begun {
            return self.header();
        }
        if self.ended && !self.is_empty() {
            return Err(bad("there are bytes behind its end"));
        }
        let Some((head, _)) = self.ahead(HEAD_LEN).split_first_chunk::<HEAD_LEN>() else {
            return Ok(None);
        };
        let [kind, len @ ..] = *head;
        let len = u32::from_le_bytes(len) as usize;
        if len > BODY_MAX {
            return Err(bad(format!("a frame of {len} bytes")));
        }
        let Some(mut frame) = self.sealed(HEAD_LEN + len)? else {
            return Ok(None);
        };
        frame.advance(HEAD_LEN);
        match kind {
            ROWS => Ok(Some(Part::Rows(frame))),
            RECORDS => Ok(Some(Part::Records(frame))),
            END if len == 16 => {
                self.ended = true;
                Ok(Some(Part::End(Counts {
                    rows: frame.get_u64_le(),
                    records: frame.get_u64_le(),
                })))
            }
            _ => Err(bad(format!("a frame of kind {kind}"))),
        }
    }

    fn is_empty(&self) -> bool {
        self.buffer.is_empty() && self.data.is_empty()
    }

    /// At least the next `len` bytes, or all that have come. Puts together what did not come in one piece, and no more.
    fn ahead(&mut self, len: usize) -> &[u8] {
        if self.buffer.is_empty() && self.data.len() >= len {
            return &self.data;
        }
        let missing = len.saturating_sub(self.buffer.len());
        let next = self.data.split_to(missing.min(self.data.len()));
        self.buffer.extend_from_slice(&next);
        &self.buffer
    }

    fn header(&mut self) -> Result<Option<Part>, Error> {
        let ahead = self.ahead(20);
        let known = ahead.len().min(MAGIC.len());
        if ahead[..known] != MAGIC[..known] {
            return Err(bad("it does not begin as one"));
        }
        // Before the CRC: what that covers is the format's to say.
        if let Some(format) = ahead.get(16..20) {
            let format = u32::from_le_bytes([format[0], format[1], format[2], format[3]]);
            if format != FORMAT {
                return Err(bad(format!("it has format {format}, this version reads {FORMAT}")));
            }
        }
        let Some(mut header) = self.sealed(HEADER_LEN - CRC_LEN)? else {
            return Ok(None);
        };
        self.begun = true;
        header.advance(20);
        let applied = Applied {
            index: header.get_u64_le(),
            term: header.get_u64_le(),
        };
        Ok(Some(Part::Header(Header {
            applied,
            revision: header.get_i64_le(),
            compacted: header.get_i64_le(),
        })))
    }

    /// The next `len` bytes, if they and their CRC are there.
    fn sealed(&mut self, len: usize) -> Result<Option<Bytes>, Error> {
        let whole = len + CRC_LEN;
        if self.ahead(whole).len() < whole {
            return Ok(None);
        }
        let mut crc = match self.buffer.is_empty() {
            true => self.data.split_to(whole),
            false => self.buffer.split_to(whole).freeze(),
        };
        let sealed = crc.split_to(len);
        let crc = crc.get_u32_le();
        self.crc = crc32c::crc32c_append(self.crc, &sealed);
        if crc != self.crc {
            return Err(bad("a checksum does not match"));
        }
        Ok(Some(sealed))
    }
}

/// `id (12) | length of meta | meta | length of value + 1, or 0 for none | value`, both as the file has them.
pub(super) fn put_row(out: &mut Vec<u8>, id: RowId, meta: &[u8], value: Option<&[u8]>) {
    out.extend_from_slice(&id.main.to_be_bytes());
    out.extend_from_slice(&id.sub.to_be_bytes());
    put_varint(out, meta.len() as u64);
    out.extend_from_slice(meta);
    put_varint(out, value.map_or(0, |value| value.len() as u64 + 1));
    out.extend_from_slice(value.unwrap_or_default());
}

pub(crate) struct StreamRow {
    pub id: RowId,
    pub meta: Bytes,
    pub value: Option<Bytes>,
}

pub(super) fn take_row(body: &mut Bytes) -> Result<StreamRow, Error> {
    let mut take = || {
        if body.len() < 12 {
            return None;
        }
        let id = RowId {
            main: body.get_i64(),
            sub: body.get_u32(),
        };
        let meta = take_counted(body, 0)?;
        let value = match body.first()? {
            0 => {
                body.advance(1);
                None
            }
            _ => Some(take_counted(body, 1)?),
        };
        Some(StreamRow { id, meta, value })
    };
    take().ok_or_else(|| bad("a row can't be read"))
}

/// `length of key | key | length of record | record`, as the file has them.
pub(super) fn put_record(out: &mut Vec<u8>, key: &[u8], record: &[u8]) {
    put_varint(out, key.len() as u64);
    out.extend_from_slice(key);
    put_varint(out, record.len() as u64);
    out.extend_from_slice(record);
}

pub(super) fn take_record(body: &mut Bytes) -> Result<(Bytes, Bytes), Error> {
    let mut take = || Some((take_counted(body, 0)?, take_counted(body, 0)?));
    take().ok_or_else(|| bad("a record can't be read"))
}

fn take_counted(body: &mut Bytes, excess: u64) -> Option<Bytes> {
    let mut rest = &body[..];
    let len = usize::try_from(take_varint(&mut rest)?.checked_sub(excess)?).ok()?;
    let head = body.len() - rest.len();
    if rest.len() < len {
        return None;
    }
    body.advance(head);
    Some(body.split_to(len))
}

pub(super) fn bad(what: impl Into<String>) -> Error {
    Error::Image { what: what.into() }
}
