//! Requests that clients compress. Answers are never compressed; grpc's rules leave that to the sender.

use std::io::{self, Read};

use bytes::Bytes;
use flate2::read::GzDecoder;
use http::HeaderMap;

/// What a call's `grpc-encoding` says of those of its messages that are marked as compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Identity,
    Gzip,
    Unknown(String),
}

impl Encoding {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        match headers.get("grpc-encoding").map(|value| value.as_bytes()) {
            None | Some(b"" | b"identity") => Encoding::Identity,
            Some(b"gzip") => Encoding::Gzip,
            Some(other) => Encoding::Unknown(String::from_utf8_lossy(other).into_owned()),
        }
    }
}

/// Why a message could not be inflated; the texts are those of Go's library.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum InflateError {
    /// What should be the start of a gzip stream is none.
    Header(&'static str),
    Data(&'static str),
    /// More than the limit.
    TooLong,
}

const HEADER_LEN: usize = 10;
const MAGIC: &[u8] = &[0x1f, 0x8b, 8];

/// The length that a message claims to have once it is inflated. It stands at the end and is checked by [`inflate`], so
/// a lie costs its teller the call.
pub(crate) fn claimed_len(message: &[u8]) -> usize {
    match message.last_chunk::<4>() {
        Some(len) => u32::from_le_bytes(*len) as usize,
        None => 0,
    }
}

/// Inflates a message, to `limit` bytes at most.
pub(crate) fn inflate(message: &[u8], limit: usize) -> Result<Bytes, InflateError> {
    if message.len() < HEADER_LEN {
        let text = if message.is_empty() { "EOF" } else { "unexpected EOF" };
        return Err(InflateError::Header(text));
    }
    if !message.starts_with(MAGIC) {
        return Err(InflateError::Header("gzip: invalid header"));
    }
    let mut out = Vec::with_capacity(claimed_len(message).min(limit));
    // One byte more tells a message of just the limit from a longer one.
    let mut decoder = GzDecoder::new(message).take(limit as u64 + 1);
    match decoder.read_to_end(&mut out) {
        Ok(_) if out.len() > limit => Err(InflateError::TooLong),
        Ok(_) => Ok(out.into()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(InflateError::Data("unexpected EOF")),
        Err(_) => Err(InflateError::Data("gzip: invalid checksum")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn gzip(message: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(message).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn the_limit_is_of_the_inflated_length() {
        let zeros = vec![0; 1000];
        let packed = gzip(&zeros);
        assert!(packed.len() < 100);
        assert_eq!(claimed_len(&packed), 1000);
        assert_eq!(inflate(&packed, 1000).unwrap(), zeros);
        assert_eq!(inflate(&packed, 999), Err(InflateError::TooLong));
    }

    #[test]
    fn damage_is_told() {
        let packed = gzip(b"some message or other");
        assert_eq!(inflate(b"", 100), Err(InflateError::Header("EOF")));
        assert_eq!(inflate(&packed[..5], 100), Err(InflateError::Header("unexpected EOF")));
        assert_eq!(
            inflate(b"no gzip at all", 100),
            Err(InflateError::Header("gzip: invalid header"))
        );
        for len in 10..packed.len() {
            assert!(inflate(&packed[..len], 100).is_err(), "cut at {len}");
        }
        let mut lying = packed.clone();
        *lying.last_mut().unwrap() ^= 1;
        assert_eq!(inflate(&lying, 100), Err(InflateError::Data("gzip: invalid checksum")));
    }
}
