//! The payload of a log entry.
//!
//! ```text
//! blank       0
//! batch       1 · origin u64 · boot u64 · sequence u64 · commands     (little-endian)
//! membership  2 · configs: count u32 · each: count u32, ids u64… · all nodes: count u32, ids u64…
//! ```
//! A batch is built in place behind its head, so the bytes that the requests were encoded into are the bytes that
//! go into the log and to the peers.

use crate::types::Membership;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::{EmptyNode, EntryPayload};
pub use quorate_store::Origin;
use quorate_store::command;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

const BLANK: u8 = 0;
const BATCH: u8 = 1;
const MEMBERSHIP: u8 = 2;
const HEAD: usize = 1 + 3 * 8;

/// Room in a batch's buffer that may stay unused.
const SPARE_BYTES_MAX: usize = 4 << 10;

pub type Payload = EntryPayload<Batch, u64, EmptyNode>;

/// Encoded commands with their origin. Cheap to clone.
#[derive(Clone)]
pub struct Batch {
    payload: Bytes,
    origin: Origin,
}

/// Committed bytes that can't be read: damage that got past the log's checksums, or a newer format.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("log entry payload of {len} bytes is cut short")]
    Short { len: usize },
    #[error("log entry payload is of kind {kind}, which this version does not know")]
    UnknownKind { kind: u8 },
    #[error("membership in the log is not valid: {reason}")]
    Membership { reason: String },
    #[error(transparent)]
    Command(#[from] command::DecodeError),
}

impl Batch {
    /// A buffer to encode commands into, with room for the head left in front.
    pub fn buffer(capacity: usize) -> BytesMut {
        let mut buffer = BytesMut::with_capacity(capacity.max(HEAD));
        buffer.put_bytes(0, HEAD);
        buffer
    }

    /// How many bytes of commands a [`Batch::buffer`] holds.
    pub fn commands_len(buffer: &BytesMut) -> usize {
        buffer.len() - HEAD
    }

    /// Fills in the head of a buffer that came from [`Batch::buffer`].
    pub fn seal(mut buffer: BytesMut, origin: Origin) -> Self {
        let mut head = &mut buffer[..HEAD];
        head.put_u8(BATCH);
        head.put_u64_le(origin.member);
        head.put_u64_le(origin.boot);
        head.put_u64_le(origin.sequence);
        // Its memory stays for as long as the log remembers the entry, and that counts bytes in use.
        let spare = buffer.capacity() - buffer.len();
        let payload = if spare > buffer.len().max(SPARE_BYTES_MAX) {
            Bytes::copy_from_slice(&buffer)
        } else {
            buffer.freeze()
        };
        Self { payload, origin }
    }

    /// Bytes of memory that the batch keeps.
    #[cfg(test)]
    pub(crate) fn kept_bytes(self) -> usize {
        BytesMut::from(self.payload).capacity()
    }

    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Bytes that it takes in the log.
    pub fn len(&self) -> usize {
        self.payload.len()
    }

    pub fn is_empty(&self) -> bool {
        self.payload.len() <= HEAD
    }

    /// As the log has it.
    pub fn payload(&self) -> Bytes {
        self.payload.clone()
    }

    /// The commands. Byte fields are slices of the batch.
    pub fn commands(&self) -> Result<Vec<command::Command>, Error> {
        Ok(command::decode(self.payload.slice(HEAD..))?)
    }

    fn from_payload(payload: Bytes) -> Result<Self, Error> {
        let mut head = payload.get(1..HEAD).ok_or(Error::Short { len: payload.len() })?;
        let origin = Origin {
            member: head.get_u64_le(),
            boot: head.get_u64_le(),
            sequence: head.get_u64_le(),
        };
        Ok(Self { payload, origin })
    }
}

/// What the log stores for a payload.
pub fn encode(payload: &Payload) -> Bytes {
    match payload {
        EntryPayload::Blank => Bytes::from_static(&[BLANK]),
        EntryPayload::Normal(batch) => batch.payload.clone(),
        EntryPayload::Membership(membership) => {
            let mut out = BytesMut::new();
            out.put_u8(MEMBERSHIP);
            encode_membership(membership, &mut out);
            out.freeze()
        }
    }
}

/// The opposite of [`encode`]; a batch stays a slice of `payload`.
pub fn decode(payload: Bytes) -> Result<Payload, Error> {
    match payload.first().copied() {
        None => Err(Error::Short { len: 0 }),
        Some(BLANK) => Ok(EntryPayload::Blank),
        Some(BATCH) => Batch::from_payload(payload).map(EntryPayload::Normal),
        Some(MEMBERSHIP) => decode_membership(&payload[1..]).map(EntryPayload::Membership),
        Some(kind) => Err(Error::UnknownKind { kind }),
    }
}

/// Appends the voter sets (two during a change) and the ids of all nodes, learners included.
pub fn encode_membership(membership: &Membership, out: &mut BytesMut) {
    let configs = membership.get_joint_config();
    out.put_u32_le(configs.len() as u32);
    for config in configs {
        put_ids(out, config.iter().copied());
    }
    put_ids(out, membership.nodes().map(|(id, _)| *id));
}

/// Reads what [`encode_membership`] wrote.
pub fn decode_membership(mut raw: &[u8]) -> Result<Membership, Error> {
    let short = Error::Short { len: raw.len() };
    let mut configs = Vec::new();
    for _ in 0..get_u32(&mut raw).ok_or(Error::Short { len: 0 })? {
        let Some(ids) = get_ids(&mut raw) else {
            return Err(short);
        };
        configs.push(ids);
    }
    let Some(nodes) = get_ids(&mut raw) else {
        return Err(short);
    };
    let nodes: BTreeMap<u64, EmptyNode> = nodes.into_iter().map(|id| (id, EmptyNode::new())).collect();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|error| Error::Membership {
        reason: error.to_string(),
    })
}

fn put_ids(out: &mut BytesMut, ids: impl Iterator<Item = u64>) {
    let at = out.len();
    out.put_u32_le(0);
    let mut count = 0u32;
    for id in ids {
        out.put_u64_le(id);
        count += 1;
    }
    out[at..at + 4].copy_from_slice(&count.to_le_bytes());
}

fn get_u32(raw: &mut &[u8]) -> Option<u32> {
    let (head, rest) = raw.split_first_chunk::<4>()?;
    *raw = rest;
    Some(u32::from_le_bytes(*head))
}

fn get_ids(raw: &mut &[u8]) -> Option<BTreeSet<u64>> {
    let count = get_u32(raw)?;
    let mut ids = BTreeSet::new();
    for _ in 0..count {
        let (head, rest) = raw.split_first_chunk::<8>()?;
        *raw = rest;
        ids.insert(u64::from_le_bytes(*head));
    }
    Some(ids)
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Batch {
    /// Never the content: keys and values stay out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "batch {} of {:x}, {} bytes",
            self.origin.sequence,
            self.origin.member,
            self.payload.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_api::proto::etcdserverpb::PutRequest;
    use quorate_store::command::Command;

    fn batch() -> Batch {
        let mut buffer = Batch::buffer(64);
        let put = Command::Put(PutRequest {
            key: "k".into(),
            value: "v".into(),
            ..Default::default()
        });
        command::encode_into(&mut buffer, &put);
        Batch::seal(
            buffer,
            Origin {
                member: 7,
                boot: 8,
                sequence: 9,
            },
        )
    }

    #[test]
    fn payloads_read_back_as_they_were_written() {
        let Payload::Normal(back) = decode(encode(&Payload::Normal(batch()))).unwrap() else {
            panic!("not a batch")
        };
        assert_eq!(
            back.origin(),
            Origin {
                member: 7,
                boot: 8,
                sequence: 9
            }
        );
        assert_eq!(back.commands().unwrap().len(), 1);
        assert!(matches!(decode(encode(&Payload::Blank)).unwrap(), Payload::Blank));

        let membership = Membership::new_with_defaults(vec![[1, 2].into(), [2, 3].into()], [4]);
        let Payload::Membership(back) = decode(encode(&Payload::Membership(membership.clone()))).unwrap() else {
            panic!("not a membership")
        };
        assert_eq!(back, membership);
    }

    /// A13, A46: whatever stands in the log or arrives from a peer is an error at worst.
    #[test]
    fn cut_and_forged_payloads_are_errors() {
        let membership = Membership::new_with_defaults(vec![[1, 2].into()], [4]);
        let whole = encode(&Payload::Membership(membership));
        for cut in 0..whole.len() {
            assert!(decode(whole.slice(..cut)).is_err(), "cut at {cut}");
        }
        assert!(decode(Bytes::from_static(&[BATCH, 1, 2])).is_err());
        assert!(matches!(
            decode(Bytes::from_static(&[9])),
            Err(Error::UnknownKind { kind: 9 })
        ));
        assert!(
            decode(Bytes::from_static(&[
                MEMBERSHIP, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff
            ]))
            .is_err()
        );
    }

    #[test]
    fn a_batch_never_prints_its_content() {
        assert_eq!(format!("{:?}", batch()), "batch 9 of 7, 34 bytes");
    }
}
