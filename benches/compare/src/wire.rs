//! Reads large answers where they lie. Decoding a list of 500 pairs would cost the client a good part of what it costs
//! the server, and both share the cores; counting pairs and bytes costs next to nothing.

/// A field of a protobuf message as it lies in the buffer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Field<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

/// Top-level fields of a message, with their numbers.
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, bytes: u64) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(usize::try_from(bytes).ok()?)?;
        self.0 = rest;
        Some(front)
    }

    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => Field::Varint(self.varint()?),
            1 => self.take(8).map(|_| Field::Fixed)?,
            2 => {
                let bytes = self.varint()?;
                Field::Bytes(self.take(bytes)?)
            }
            5 => self.take(4).map(|_| Field::Fixed)?,
            _ => return None,
        };
        Some((tag >> 3, field))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field().ok_or(Malformed);
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// What a list's answer says, without its values.
#[derive(Debug, Default, PartialEq)]
pub struct RangeSummary<'a> {
    pub kvs: u64,
    /// Smallest encoded pair; tells whether values came along.
    pub smallest: usize,
    pub last_key: &'a [u8],
    pub count: u64,
    pub more: bool,
    pub revision: u64,
}

/// Summary of an encoded `RangeResponse`.
pub fn range_summary(message: &[u8]) -> Result<RangeSummary<'_>, Malformed> {
    let mut summary = RangeSummary {
        smallest: usize::MAX,
        ..RangeSummary::default()
    };
    let mut last: &[u8] = &[];
    for field in Fields::of(message) {
        match field? {
            (1, Field::Bytes(header)) => summary.revision = number(header, 3)?,
            (2, Field::Bytes(pair)) => {
                summary.kvs += 1;
                summary.smallest = summary.smallest.min(pair.len());
                last = pair;
            }
            (3, Field::Varint(more)) => summary.more = more != 0,
            (4, Field::Varint(count)) => summary.count = count,
            _ => {}
        }
    }
    summary.last_key = bytes(last, 1)?;
    Ok(summary)
}

/// Calls `each` with the value of every event of an encoded `WatchResponse` and returns how many there were.
pub fn for_each_event(message: &[u8], mut each: impl FnMut(&[u8])) -> Result<u64, Malformed> {
    let mut events = 0;
    for field in Fields::of(message) {
        if let (11, Field::Bytes(event)) = field? {
            events += 1;
            each(bytes(bytes(event, 2)?, 5)?);
        }
    }
    Ok(events)
}

fn number(message: &[u8], wanted: u64) -> Result<u64, Malformed> {
    for field in Fields::of(message) {
        match field? {
            (at, Field::Varint(value)) if at == wanted => return Ok(value),
            _ => {}
        }
    }
    Ok(0)
}

fn bytes(message: &[u8], wanted: u64) -> Result<&[u8], Malformed> {
    for field in Fields::of(message) {
        match field? {
            (at, Field::Bytes(value)) if at == wanted => return Ok(value),
            _ => {}
        }
    }
    Ok(&[])
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use quorate_api::proto::etcdserverpb::{RangeResponse, ResponseHeader, WatchResponse};
    use quorate_api::proto::mvccpb::{Event, KeyValue};

    use super::*;

    fn pair(key: &'static str, value: &'static str) -> KeyValue {
        KeyValue {
            key: key.into(),
            value: value.into(),
            mod_revision: 9,
            version: 300,
            ..Default::default()
        }
    }

    #[test]
    fn a_summary_agrees_with_the_full_decoder() {
        let response = RangeResponse {
            header: Some(ResponseHeader {
                cluster_id: u64::MAX,
                member_id: 2,
                revision: 7_000_000,
                raft_term: 2,
            }),
            kvs: vec![pair("a", "one"), pair("bcd", "fourteen bytes")],
            more: true,
            count: 501,
        };
        let encoded = response.encode_to_vec();
        let summary = range_summary(&encoded).unwrap();
        let smallest = response.kvs[0].encoded_len();
        let expected = RangeSummary {
            kvs: 2,
            smallest,
            last_key: b"bcd",
            count: 501,
            more: true,
            revision: 7_000_000,
        };
        assert_eq!(summary, expected);
    }

    #[test]
    fn events_give_their_values() {
        let events = vec![
            Event {
                kv: Some(pair("a", "one")),
                prev_kv: Some(pair("a", "zero")),
                ..Default::default()
            },
            Event {
                kv: Some(pair("b", "two")),
                ..Default::default()
            },
        ];
        let encoded = WatchResponse {
            watch_id: 3,
            events,
            ..Default::default()
        }
        .encode_to_vec();
        let mut values = Vec::new();
        assert_eq!(for_each_event(&encoded, |value| values.push(value.to_vec())), Ok(2));
        assert_eq!(values, [b"one", b"two"]);
    }

    #[test]
    fn a_cut_message_is_malformed() {
        let response = RangeResponse {
            kvs: vec![pair("a", "one")],
            count: 1,
            ..Default::default()
        };
        let encoded = response.encode_to_vec();
        let whole = range_summary(&encoded).unwrap();
        assert_eq!((whole.kvs, whole.count), (1, 1));
        assert_eq!(range_summary(&encoded[..encoded.len() - 3]), Err(Malformed));
    }
}
