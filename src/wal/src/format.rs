//! Bytes of segments and records, version 1. The layout is told in full in `FORMAT.md`.
//!
//! A checksum covers where a record lies (segment number and offset) as well as what it says, so a record that a
//! segment kept from its former life, or that the disk read from elsewhere, is never taken for one of this place.

use crate::LogPos;
use crate::segment::{Place, SegmentId};

pub(crate) const VERSION: u32 = 1;
pub(crate) const MAGIC: [u8; 8] = *b"quorwal\n";
/// The segment's own header.
pub(crate) const HEADER: usize = 64;
/// Head of a record: checksum, length, kind, session.
pub(crate) const RECORD: usize = 16;
pub(crate) const BATCH_BODY: usize = 24;
/// A batch header as a whole record.
pub(crate) const BATCH: usize = RECORD + BATCH_BODY;
pub(crate) const ENTRY_BODY: usize = 16;
const STATE_BODY: usize = 64;
pub(crate) const VOTE_MAX: usize = 512;
/// The largest state record: what a segment needs besides its header before the first entry.
pub(crate) const STATE_MAX: usize = RECORD + STATE_BODY + VOTE_MAX;

/// Enough for the header, the state, the reserve and a small entry.
pub(crate) const SEGMENT_BYTES_MIN: u64 = 4096;
/// Offsets are kept in 32 bits in memory.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 1 << 31;
pub(crate) const PAYLOAD_MAX: usize = 1 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Batch = 1,
    State = 2,
    Entry = 3,
    Vote = 4,
    Committed = 5,
    Truncate = 6,
    Purge = 7,
    Reset = 8,
    Open = 9,
    End = 10,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Batch,
            2 => Self::State,
            3 => Self::Entry,
            4 => Self::Vote,
            5 => Self::Committed,
            6 => Self::Truncate,
            7 => Self::Purge,
            8 => Self::Reset,
            9 => Self::Open,
            10 => Self::End,
            _ => return None,
        })
    }
}

/// Records start at multiples of 8.
pub(crate) const fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(8)
}

/// Space that a record with this body takes.
pub(crate) const fn record_bytes(body: usize) -> usize {
    RECORD + padded(body)
}

/// Kept free of entries at the end of each segment, so that votes, purges and marks fit when the disk is full.
pub(crate) fn reserve(segment_bytes: u64) -> u64 {
    (segment_bytes / 64).clamp(1024, 64 << 10)
}

/// What a segment of this size can hold of records other than its first two, its reserve left alone.
pub(crate) fn usable(segment_bytes: u64) -> u64 {
    segment_bytes.saturating_sub(reserve(segment_bytes) + (HEADER + BATCH + STATE_MAX) as u64)
}

fn checksum(at: Place, parts: &[&[u8]]) -> u32 {
    let mut seed = [0; 16];
    seed[..8].copy_from_slice(&at.segment.0.to_le_bytes());
    seed[8..].copy_from_slice(&at.offset.to_le_bytes());
    parts
        .iter()
        .fold(crc32c::crc32c(&seed), |crc, part| crc32c::crc32c_append(crc, part))
}

pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from(get_u32(bytes, at)) | u64::from(get_u32(bytes, at + 4)) << 32
}

// ---- segment header ----

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HeaderFault {
    Magic,
    Version(u32),
    Checksum,
    Id(u64),
    Bytes(u64),
}

pub(crate) fn encode_header(segment: SegmentId, bytes: u64, owner: u64) -> [u8; HEADER] {
    let mut out = [0; HEADER];
    out[..8].copy_from_slice(&MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[12..16].copy_from_slice(&(HEADER as u32).to_le_bytes());
    out[16..24].copy_from_slice(&segment.0.to_le_bytes());
    out[24..32].copy_from_slice(&bytes.to_le_bytes());
    out[32..40].copy_from_slice(&owner.to_le_bytes());
    let crc = crc32c::crc32c(&out[..60]);
    out[60..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Whose log the segment is part of, from a header that can be believed whatever file it is in.
pub(crate) fn header_owner(header: &[u8; HEADER]) -> Option<u64> {
    let ours = header[..8] == MAGIC && get_u32(header, 8) == VERSION;
    (ours && is_header_sound(header)).then(|| get_u64(header, 32))
}

/// The place of the checksum is the same in every version, so that a flipped bit is never taken for a newer one.
fn is_header_sound(header: &[u8; HEADER]) -> bool {
    crc32c::crc32c(&header[..60]) == get_u32(header, 60)
}

/// The header of the file named `segment` that is `bytes` long. Its owner is another question:
/// [`header_owner`].
pub(crate) fn check_header(header: &[u8; HEADER], segment: SegmentId, bytes: u64) -> Result<(), HeaderFault> {
    if header[..8] != MAGIC {
        return Err(HeaderFault::Magic);
    }
    if !is_header_sound(header) {
        return Err(HeaderFault::Checksum);
    }
    let version = get_u32(header, 8);
    if version > VERSION {
        return Err(HeaderFault::Version(version));
    }
    if version != VERSION || get_u32(header, 12) as usize != HEADER {
        return Err(HeaderFault::Checksum);
    }
    if get_u64(header, 16) != segment.0 {
        return Err(HeaderFault::Id(get_u64(header, 16)));
    }
    if get_u64(header, 24) != bytes {
        return Err(HeaderFault::Bytes(get_u64(header, 24)));
    }
    Ok(())
}

// ---- records ----

/// Head of a record as it stands on disk, not yet believed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub crc: u32,
    pub len: usize,
    pub kind: u8,
    pub session: u32,
}

impl Head {
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        Self {
            crc: get_u32(bytes, 0),
            len: get_u32(bytes, 4) as usize,
            kind: bytes[8],
            session: get_u32(bytes, 12),
        }
    }

    pub(crate) fn is_blank(&self) -> bool {
        self.crc == 0 && self.len == 0 && self.kind == 0 && self.session == 0
    }
}

/// Whether `record` (head and body, no padding) is what was written at this place.
pub(crate) fn is_sound(record: &[u8], at: Place) -> bool {
    checksum(at, &[&record[4..]]) == get_u32(record, 0)
}

/// Appends a record to `out`; `parts` together are its body.
pub(crate) fn encode_record(out: &mut Vec<u8>, at: Place, kind: Kind, session: u32, parts: &[&[u8]]) {
    debug_assert!(
        at.offset.is_multiple_of(8),
        "records start at multiples of 8, not {}",
        at.offset
    );
    let start = out.len();
    let body: usize = parts.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&[0; RECORD]);
    out[start + 4..start + 8].copy_from_slice(&(body as u32).to_le_bytes());
    out[start + 8] = kind as u8;
    out[start + 12..start + 16].copy_from_slice(&session.to_le_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
    let crc = checksum(at, &[&out[start + 4..]]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    out.resize(start + record_bytes(body), 0);
}

/// A record whose checksum was right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    Batch(Batch),
    State(State<'a>),
    Entry {
        pos: LogPos,
        payload: &'a [u8],
    },
    Vote(&'a [u8]),
    Committed(LogPos),
    /// The log ends here now; nothing is left of it after the purge point if `None`.
    Truncate(Option<LogPos>),
    Purge {
        upto: LogPos,
        oldest: SegmentId,
    },
    Reset {
        upto: LogPos,
        oldest: SegmentId,
    },
    Open,
    End,
}

/// First record of each batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// Everything before this place was known to be durable when the batch was written.
    pub synced: Place,
    /// Length of the batch, this record included.
    pub bytes: u32,
    /// Records in it, this one not counted.
    pub records: u32,
}

/// Second record of each segment: all that the segments before it would have told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State<'a> {
    pub vote: Option<&'a [u8]>,
    pub committed: Option<LogPos>,
    pub purged: Option<LogPos>,
    pub last: Option<LogPos>,
    /// The oldest segment that the log still needs.
    pub oldest: u64,
}

fn pos_bytes(pos: LogPos) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&pos.term.to_le_bytes());
    out[8..].copy_from_slice(&pos.index.to_le_bytes());
    out
}

/// The last index is not one: everything that counts entries can then add 1.
fn get_pos(bytes: &[u8], at: usize) -> Result<LogPos, String> {
    let pos = LogPos {
        term: get_u64(bytes, at),
        index: get_u64(bytes, at + 8),
    };
    match pos.index {
        u64::MAX => Err(format!("position {pos} (term/index) is beyond what a log can hold")),
        _ => Ok(pos),
    }
}

pub(crate) fn encode_batch(batch: Batch) -> [u8; BATCH_BODY] {
    let mut out = [0; BATCH_BODY];
    out[..8].copy_from_slice(&batch.synced.segment.0.to_le_bytes());
    out[8..16].copy_from_slice(&batch.synced.offset.to_le_bytes());
    out[16..20].copy_from_slice(&batch.bytes.to_le_bytes());
    out[20..].copy_from_slice(&batch.records.to_le_bytes());
    out
}

impl Record<'_> {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Batch(_) => Kind::Batch,
            Self::State(_) => Kind::State,
            Self::Entry { .. } => Kind::Entry,
            Self::Vote(_) => Kind::Vote,
            Self::Committed(_) => Kind::Committed,
            Self::Truncate(_) => Kind::Truncate,
            Self::Purge { .. } => Kind::Purge,
            Self::Reset { .. } => Kind::Reset,
            Self::Open => Kind::Open,
            Self::End => Kind::End,
        }
    }

    /// Bytes of the body, without head and padding.
    pub(crate) fn body_bytes(&self) -> usize {
        match self {
            Self::Batch(_) => BATCH_BODY,
            Self::State(state) => STATE_BODY + state.vote.map_or(0, <[u8]>::len),
            Self::Entry { payload, .. } => ENTRY_BODY + payload.len(),
            Self::Vote(vote) => vote.len(),
            Self::Committed(_) => 16,
            Self::Truncate(_) | Self::Purge { .. } | Self::Reset { .. } => 24,
            Self::Open | Self::End => 0,
        }
    }

    /// Appends the whole record to `out`, for this place.
    pub(crate) fn encode(&self, out: &mut Vec<u8>, at: Place, session: u32) {
        let mut put = |parts: &[&[u8]]| encode_record(out, at, self.kind(), session, parts);
        match self {
            Self::Batch(batch) => put(&[&encode_batch(*batch)]),
            Self::Entry { pos, payload } => put(&[&pos_bytes(*pos), payload]),
            Self::Vote(vote) => put(&[vote]),
            Self::Committed(pos) => put(&[&pos_bytes(*pos)]),
            Self::Truncate(last) => {
                let flag = u64::from(last.is_some()).to_le_bytes();
                put(&[&flag, &pos_bytes(last.unwrap_or(LogPos { term: 0, index: 0 }))]);
            }
            Self::Purge { upto, oldest } | Self::Reset { upto, oldest } => {
                put(&[&oldest.0.to_le_bytes(), &pos_bytes(*upto)]);
            }
            Self::Open | Self::End => put(&[]),
            Self::State(state) => {
                let State {
                    vote,
                    committed,
                    purged,
                    last,
                    oldest,
                } = state;
                let mut fixed = [0; STATE_BODY];
                let mut flags = 0u64;
                for (bit, pos) in [(1, committed), (2, purged), (4, last)] {
                    if let Some(pos) = pos {
                        flags |= bit;
                        let at = 16 * bit.trailing_zeros() as usize + 16;
                        fixed[at..at + 16].copy_from_slice(&pos_bytes(*pos));
                    }
                }
                flags |= if vote.is_some() { 8 } else { 0 };
                fixed[..8].copy_from_slice(&oldest.to_le_bytes());
                fixed[8..16].copy_from_slice(&flags.to_le_bytes());
                put(&[&fixed, vote.unwrap_or_default()]);
            }
        }
    }
}

/// Reads a body whose checksum was right; what it can't be is told, not guessed.
pub(crate) fn decode(kind: u8, body: &[u8]) -> Result<Record<'_>, String> {
    let Some(known) = Kind::from_byte(kind) else {
        return Err(format!("record of unknown kind {kind}"));
    };
    let exactly = |bytes: usize| match body.len() == bytes {
        true => Ok(()),
        false => Err(format!("{known:?} record of {} bytes instead of {bytes}", body.len())),
    };
    Ok(match known {
        Kind::Batch => {
            exactly(BATCH_BODY)?;
            Record::Batch(Batch {
                synced: Place {
                    segment: SegmentId(get_u64(body, 0)),
                    offset: get_u64(body, 8),
                },
                bytes: get_u32(body, 16),
                records: get_u32(body, 20),
            })
        }
        Kind::State => {
            if body.len() < STATE_BODY {
                return Err(format!("State record of {} bytes, less than {STATE_BODY}", body.len()));
            }
            let flags = get_u64(body, 8);
            let pos = |bit: u64| {
                let at = 16 * bit.trailing_zeros() as usize + 16;
                (flags & bit != 0).then(|| get_pos(body, at)).transpose()
            };
            Record::State(State {
                vote: (flags & 8 != 0).then(|| &body[STATE_BODY..]),
                committed: pos(1)?,
                purged: pos(2)?,
                last: pos(4)?,
                oldest: get_u64(body, 0),
            })
        }
        Kind::Entry => {
            if body.len() < ENTRY_BODY {
                return Err(format!("Entry record of {} bytes, less than {ENTRY_BODY}", body.len()));
            }
            Record::Entry {
                pos: get_pos(body, 0)?,
                payload: &body[ENTRY_BODY..],
            }
        }
        Kind::Vote => Record::Vote(body),
        Kind::Committed => {
            exactly(16)?;
            Record::Committed(get_pos(body, 0)?)
        }
        Kind::Truncate => {
            exactly(24)?;
            let pos = || get_pos(body, 8);
            Record::Truncate((get_u64(body, 0) != 0).then(pos).transpose()?)
        }
        Kind::Purge => {
            exactly(24)?;
            Record::Purge {
                upto: get_pos(body, 8)?,
                oldest: SegmentId(get_u64(body, 0)),
            }
        }
        Kind::Reset => {
            exactly(24)?;
            Record::Reset {
                upto: get_pos(body, 8)?,
                oldest: SegmentId(get_u64(body, 0)),
            }
        }
        Kind::Open => {
            exactly(0)?;
            Record::Open
        }
        Kind::End => {
            exactly(0)?;
            Record::End
        }
    })
}
