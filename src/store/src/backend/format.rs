//! Tables, keys and encodings of the file, as FORMAT.md describes them. Every stored value carries a CRC32C over its
//! key and its bytes: the last check before an answer, after whatever redb and its cache did with them.

use std::cmp::Ordering;

use redb::{TableDefinition, TypeName};

use super::change::{Row, RowId, SystemTable};
use super::error::Error;

/// Written at the head of every file; a file with a higher one is refused.
pub const FORMAT: u32 = 1;

pub(super) const META: TableDefinition<RowId, &[u8]> = TableDefinition::new("meta");
pub(super) const VALUES: TableDefinition<RowId, &[u8]> = TableDefinition::new("values");
pub(super) const SYSTEM: TableDefinition<&[u8], &[u8]> = TableDefinition::new("system");

/// Prefix of the backend's own records in `system`; the others are [`SystemTable`] numbers.
pub(super) const OWN: u8 = 0;
pub(super) const APPLIED_RECORD: &[u8] = &[OWN, b'a'];
pub(super) const APPLIED_BEFORE_RECORD: &[u8] = &[OWN, b'b'];
pub(super) const REVISION_RECORD: &[u8] = &[OWN, b'r'];
pub(super) const COMPACTED_RECORD: &[u8] = &[OWN, b'c'];
pub(super) const INSTALLED_RECORD: &[u8] = &[OWN, b'i'];
pub(super) const IN_USE_RECORD: &[u8] = &[OWN, b'u'];

const CRC_LEN: usize = 4;
const ID_LEN: usize = 12;
const TOMBSTONE: u8 = 1;
const LEASED: u8 = 2;
/// What a row costs in its leaf beside key and value.
const LEAF_OVERHEAD: usize = 8;

impl redb::Value for RowId {
    type SelfType<'a> = RowId;
    type AsBytes<'a> = [u8; ID_LEN];

    fn fixed_width() -> Option<usize> {
        Some(ID_LEN)
    }

    fn from_bytes<'a>(data: &'a [u8]) -> RowId
    where
        Self: 'a,
    {
        let mut main = [0; 8];
        let mut sub = [0; 4];
        main.copy_from_slice(&data[..8]);
        sub.copy_from_slice(&data[8..ID_LEN]);
        RowId {
            main: i64::from_be_bytes(main),
            sub: u32::from_be_bytes(sub),
        }
    }

    fn as_bytes<'a, 'b: 'a>(value: &'a RowId) -> [u8; ID_LEN]
    where
        Self: 'b,
    {
        let mut out = [0; ID_LEN];
        out[..8].copy_from_slice(&value.main.to_be_bytes());
        out[8..].copy_from_slice(&value.sub.to_be_bytes());
        out
    }

    fn type_name() -> TypeName {
        TypeName::new("quorate::RowId")
    }
}

impl redb::Key for RowId {
    /// Big-endian and never negative, so that bytes order as revisions do.
    fn compare(a: &[u8], b: &[u8]) -> Ordering {
        a.cmp(b)
    }
}

fn id_bytes(id: RowId) -> [u8; ID_LEN] {
    <RowId as redb::Value>::as_bytes(&id)
}

/// What the `meta` table tells of a version: everything but the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetaRow<'a> {
    pub id: RowId,
    pub key: &'a [u8],
    pub create: i64,
    pub version: i64,
    pub lease: i64,
    pub tombstone: bool,
    pub value_len: u64,
}

impl<'r> MetaRow<'r> {
    /// Of a row that is in memory.
    pub(super) fn of(row: &'r Row) -> Self {
        Self {
            id: row.id,
            key: &row.key,
            create: row.create,
            version: row.version,
            lease: row.lease,
            tombstone: row.tombstone,
            value_len: row.value.len() as u64,
        }
    }
}

/// `crc | flags | main − create | version | lease, if any | length of the value | key`; numbers as varints.
pub(super) fn encode_meta(row: &Row, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&[0; CRC_LEN]);
    let leased = if row.lease != 0 { LEASED } else { 0 };
    out.push(leased | if row.tombstone { TOMBSTONE } else { 0 });
    put_varint(out, row.id.main.wrapping_sub(row.create) as u64);
    put_varint(out, row.version as u64);
    if row.lease != 0 {
        out.extend_from_slice(&row.lease.to_le_bytes());
    }
    put_varint(out, row.value.len() as u64);
    out.extend_from_slice(&row.key);
    seal(&id_bytes(row.id), out);
}

pub(crate) fn decode_meta(id: RowId, bytes: &[u8]) -> Result<MetaRow<'_>, Error> {
    let body = open_sealed(&id_bytes(id), bytes).ok_or_else(|| Error::checksum(id, "meta"))?;
    decode_meta_body(id, body).ok_or_else(|| Error::Corrupt {
        what: format!("row of revision {}.{} in table meta can't be read", id.main, id.sub),
    })
}

fn decode_meta_body(id: RowId, body: &[u8]) -> Option<MetaRow<'_>> {
    let (&flags, mut rest) = body.split_first()?;
    let since = take_varint(&mut rest)?;
    let version = take_varint(&mut rest)?;
    let lease = if flags & LEASED != 0 {
        let (lease, after) = rest.split_first_chunk::<8>()?;
        rest = after;
        i64::from_le_bytes(*lease)
    } else {
        0
    };
    let value_len = take_varint(&mut rest)?;
    Some(MetaRow {
        id,
        key: rest,
        create: id.main.wrapping_sub(since as i64),
        version: version as i64,
        lease,
        tombstone: flags & TOMBSTONE != 0,
        value_len,
    })
}

/// `crc | value`
pub(super) fn encode_value(id: RowId, value: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&[0; CRC_LEN]);
    out.extend_from_slice(value);
    seal(&id_bytes(id), out);
}

pub(super) fn decode_value(id: RowId, bytes: &[u8]) -> Result<&[u8], Error> {
    open_sealed(&id_bytes(id), bytes).ok_or_else(|| Error::checksum(id, "values"))
}

pub(super) fn system_key(table: SystemTable, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + key.len());
    out.push(table as u8);
    out.extend_from_slice(key);
    out
}

/// `crc | bytes`, the CRC over the record's whole key first.
pub(super) fn encode_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(CRC_LEN + value.len());
    out.extend_from_slice(&[0; CRC_LEN]);
    out.extend_from_slice(value);
    seal(key, &mut out);
    out
}

pub(super) fn decode_record<'a>(key: &[u8], bytes: &'a [u8]) -> Result<&'a [u8], Error> {
    open_sealed(key, bytes).ok_or_else(|| Error::Corrupt {
        what: format!("checksum of system record {} does not match", key.escape_ascii()),
    })
}

/// Bytes that a row is counted with in the size in use, from the lengths of what is stored for it.
pub(super) fn stored_cost(key_len: usize, value_len: usize) -> u64 {
    (key_len + value_len + LEAF_OVERHEAD) as u64
}

pub(super) const ROW_ID_LEN: usize = ID_LEN;

fn seal(key: &[u8], sealed: &mut [u8]) {
    let crc = crc32c::crc32c_append(crc32c::crc32c(key), &sealed[CRC_LEN..]);
    sealed[..CRC_LEN].copy_from_slice(&crc.to_le_bytes());
}

fn open_sealed<'a>(key: &[u8], sealed: &'a [u8]) -> Option<&'a [u8]> {
    let (crc, body) = sealed.split_first_chunk::<CRC_LEN>()?;
    (crc32c::crc32c_append(crc32c::crc32c(key), body) == u32::from_le_bytes(*crc)).then_some(body)
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(super) fn take_varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use redb::Key;

    use super::*;

    fn row(main: i64, lease: i64, tombstone: bool) -> Row {
        Row {
            id: RowId { main, sub: 3 },
            key: Bytes::from_static(b"a key"),
            create: main - 200,
            version: i64::MAX,
            lease,
            tombstone,
            value: Bytes::from_static(b"some value"),
        }
    }

    #[test]
    fn a_meta_row_reads_back_as_it_was_written() {
        for row in [row(300, 0, false), row(i64::MAX, -5, false), row(201, i64::MAX, true)] {
            let mut out = Vec::new();
            encode_meta(&row, &mut out);
            let read = decode_meta(row.id, &out).unwrap();
            assert_eq!(
                (read.key, read.create, read.version),
                (&row.key[..], row.create, row.version)
            );
            assert_eq!(
                (read.lease, read.tombstone, read.value_len),
                (row.lease, row.tombstone, 10)
            );
        }
    }

    /// D4: whichever bit flips, in whatever we store, the reader is told.
    #[test]
    fn every_flipped_bit_is_noticed() {
        let row = row(300, 7, false);
        let (mut meta, mut value) = (Vec::new(), Vec::new());
        encode_meta(&row, &mut meta);
        encode_value(row.id, &row.value, &mut value);
        let record = encode_record(b"\x01name", b"content");
        let check = |stored: &[u8], good: &dyn Fn(&[u8]) -> bool| {
            assert!(good(stored));
            for bit in 0..stored.len() * 8 {
                let mut flipped = stored.to_vec();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(!good(&flipped), "bit {bit}");
            }
        };
        check(&meta, &|bytes| decode_meta(row.id, bytes).is_ok());
        check(&value, &|bytes| decode_value(row.id, bytes).is_ok());
        check(&record, &|bytes| decode_record(b"\x01name", bytes).is_ok());
        let other = RowId { main: 300, sub: 4 };
        assert!(
            decode_value(other, &value).is_err(),
            "a value under another row's id is not that row's"
        );
    }

    #[test]
    fn ids_order_as_revisions_do() {
        let ids = [(0, 0), (1, 0), (1, 1), (1, u32::MAX), (2, 0), (256, 0), (i64::MAX, 1)];
        let ids = ids.map(|(main, sub)| RowId { main, sub });
        assert!(ids.is_sorted());
        for pair in ids.windows(2) {
            assert_eq!(RowId::compare(&id_bytes(pair[0]), &id_bytes(pair[1])), Ordering::Less);
            assert_eq!(<RowId as redb::Value>::from_bytes(&id_bytes(pair[1])), pair[1]);
        }
    }
}
