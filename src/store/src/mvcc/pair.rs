//! How a stored pair looks on the wire. Lengths are known without the value, so that answers can be sized before
//! anything is read, and written with one copy of each value.

use std::ops::Range;

use bytes::{BufMut, Bytes};
use prost::encoding::{encode_varint, encoded_len_varint};
use quorate_api::proto::mvccpb::KeyValue;

use super::version::Version;

/// Tag of `RangeResponse.kvs`: field 2, length-delimited.
const KVS_TAG: u8 = 2 << 3 | 2;
const KEY_TAG: u8 = 1 << 3 | 2;
const CREATE_TAG: u8 = 2 << 3;
const MOD_TAG: u8 = 3 << 3;
const VERSION_TAG: u8 = 4 << 3;
const VALUE_TAG: u8 = 5 << 3 | 2;
const LEASE_TAG: u8 = 6 << 3;

pub fn key_value(key: Bytes, version: &Version, value: Bytes) -> KeyValue {
    KeyValue {
        key,
        create_revision: version.create,
        mod_revision: version.main,
        version: version.version,
        value,
        lease: version.lease,
    }
}

fn number_len(number: i64) -> usize {
    if number == 0 {
        0
    } else {
        1 + encoded_len_varint(number as u64)
    }
}

fn bytes_len(len: usize) -> usize {
    if len == 0 {
        0
    } else {
        1 + encoded_len_varint(len as u64) + len
    }
}

/// Bytes of the pair as a message.
fn message_len(key_len: usize, version: &Version) -> usize {
    bytes_len(key_len)
        + number_len(version.create)
        + number_len(version.main)
        + number_len(version.version)
        + bytes_len(version.value_len as usize)
        + number_len(version.lease)
}

/// Bytes of the pair as an element of `RangeResponse.kvs`.
pub fn kvs_len(key_len: usize, version: &Version) -> usize {
    let message = message_len(key_len, version);
    1 + encoded_len_varint(message as u64) + message
}

/// Writes the pair as an element of `RangeResponse.kvs`. `value` must be as long as the version says.
pub fn put_kvs(out: &mut Vec<u8>, key: &[u8], version: &Version, value: &[u8]) {
    debug_assert_eq!(value.len(), version.value_len as usize, "the index knows the length");
    put_kvs_head(out, key, version);
    out.put_slice(value);
    put_number(out, LEASE_TAG, version.lease);
}

/// The same with zeros where the value belongs; says where that is. For values that come in an order of their own.
pub fn put_kvs_blank(out: &mut Vec<u8>, key: &[u8], version: &Version) -> Range<usize> {
    put_kvs_head(out, key, version);
    let start = out.len();
    let end = start + version.value_len as usize;
    out.resize(end, 0);
    put_number(out, LEASE_TAG, version.lease);
    start..end
}

/// Up to the first byte of the value.
fn put_kvs_head(out: &mut Vec<u8>, key: &[u8], version: &Version) {
    out.put_u8(KVS_TAG);
    encode_varint(message_len(key.len(), version) as u64, out);
    put_head(out, key, version);
    if version.value_len > 0 {
        out.put_u8(VALUE_TAG);
        encode_varint(u64::from(version.value_len), out);
    }
}

/// Writes the pair as a message.
pub fn put_message(out: &mut Vec<u8>, key: &[u8], version: &Version, value: &[u8]) {
    put_head(out, key, version);
    put_bytes(out, VALUE_TAG, value);
    put_number(out, LEASE_TAG, version.lease);
}

fn put_head(out: &mut Vec<u8>, key: &[u8], version: &Version) {
    put_bytes(out, KEY_TAG, key);
    put_number(out, CREATE_TAG, version.create);
    put_number(out, MOD_TAG, version.main);
    put_number(out, VERSION_TAG, version.version);
}

fn put_number(out: &mut Vec<u8>, tag: u8, number: i64) {
    if number != 0 {
        out.put_u8(tag);
        encode_varint(number as u64, out);
    }
}

fn put_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        out.put_u8(tag);
        encode_varint(bytes.len() as u64, out);
        out.put_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use quorate_api::proto::etcdserverpb::RangeResponse;

    use super::*;

    #[test]
    fn it_is_the_encoding_that_everyone_reads() {
        for (key, value, lease) in [("k", "", 0), ("", "v", -1), ("key", &*"v".repeat(300), 7)] {
            let version = Version {
                main: 9,
                sub: 1,
                value_len: value.len() as u32,
                create: 3,
                version: i64::MAX,
                lease,
            };
            let pair = key_value(key.into(), &version, Bytes::from(value.to_owned()));
            let response = RangeResponse {
                kvs: vec![pair],
                ..Default::default()
            };
            let mut out = Vec::new();
            put_kvs(&mut out, key.as_bytes(), &version, value.as_bytes());
            assert_eq!(out, response.encode_to_vec());
            assert_eq!(out.len(), kvs_len(key.len(), &version));

            let mut later = Vec::new();
            let at = put_kvs_blank(&mut later, key.as_bytes(), &version);
            later[at].copy_from_slice(value.as_bytes());
            assert_eq!(later, out);
        }
    }
}
