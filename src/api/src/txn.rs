//! Reading a `TxnRequest`. prost stops at a nesting of a hundred messages, which is some fifty transactions in one
//! another; etcd allows as many as there may be operations. Lifting prost's limit would let a crafted message of two
//! megabytes overflow the stack, so transactions are taken apart here, level by level, with a limit of their own.

use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::{Compare, RequestOp, TxnRequest};
use bytes::{Buf, Bytes};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// Deepest nesting that is read, whatever `--max-txn-ops` says: a level takes stack when the transaction runs.
pub const DEPTH_MAX: usize = 512;

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Decode(#[from] prost::DecodeError),
    #[error("field {field} is longer than its message")]
    Length { field: u32 },
    #[error("transactions are nested more than {depth_max} deep")]
    TooDeep { depth_max: usize },
}

/// Decodes a transaction with at most `depth_max` levels (and never more than [`DEPTH_MAX`]). Byte fields are slices of
/// `message`.
pub fn decode(message: Bytes, depth_max: usize) -> Result<TxnRequest, Error> {
    decode_level(message, 1, depth_max.min(DEPTH_MAX))
}

fn decode_level(mut message: Bytes, depth: usize, depth_max: usize) -> Result<TxnRequest, Error> {
    if depth > depth_max {
        return Err(Error::TooDeep { depth_max });
    }
    let mut txn = TxnRequest::default();
    while let Some((field, bytes)) = next_field(&mut message, 1..=3)? {
        match field {
            1 => txn.compare.push(Compare::decode(bytes)?),
            2 => txn.success.push(decode_op(bytes, depth, depth_max)?),
            _ => txn.failure.push(decode_op(bytes, depth, depth_max)?),
        }
    }
    Ok(txn)
}

fn decode_op(mut message: Bytes, depth: usize, depth_max: usize) -> Result<RequestOp, Error> {
    let whole = message.clone();
    let mut nested = None;
    while let Some((_, bytes)) = next_field(&mut message, 4..=4)? {
        nested = Some(bytes);
    }
    match nested {
        Some(txn) => {
            let txn = decode_level(txn, depth + 1, depth_max)?;
            Ok(RequestOp {
                request: Some(Request::RequestTxn(txn)),
            })
        }
        None => Ok(RequestOp::decode(whole)?),
    }
}

/// The next length-delimited field whose number is wanted; others are skipped.
fn next_field(message: &mut Bytes, wanted: std::ops::RangeInclusive<u32>) -> Result<Option<(u32, Bytes)>, Error> {
    while message.has_remaining() {
        let (field, wire) = decode_key(message)?;
        if wire != WireType::LengthDelimited || !wanted.contains(&field) {
            skip_field(wire, field, message, DecodeContext::default())?;
            continue;
        }
        let len = usize::try_from(decode_varint(message)?).unwrap_or(usize::MAX);
        if len > message.len() {
            return Err(Error::Length { field });
        }
        return Ok(Some((field, message.split_to(len))));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::{PutRequest, RangeRequest};

    fn op(request: Request) -> RequestOp {
        RequestOp { request: Some(request) }
    }

    fn nested(depth: usize) -> TxnRequest {
        let put = op(Request::RequestPut(PutRequest {
            key: "k".into(),
            ..Default::default()
        }));
        let range = op(Request::RequestRange(RangeRequest {
            key: "r".into(),
            limit: 7,
            ..Default::default()
        }));
        let compare = Compare {
            key: "c".into(),
            ..Default::default()
        };
        let mut txn = TxnRequest {
            compare: vec![compare],
            success: vec![put, range],
            failure: vec![op_none()],
        };
        for _ in 1..depth {
            txn = TxnRequest {
                success: vec![op(Request::RequestTxn(txn))],
                ..Default::default()
            };
        }
        txn
    }

    fn op_none() -> RequestOp {
        RequestOp { request: None }
    }

    #[test]
    fn reads_what_prost_reads_and_deeper() {
        for depth in [1, 2, 40, 128] {
            let txn = nested(depth);
            assert_eq!(decode(txn.encode_to_vec().into(), 128).unwrap(), txn);
        }
        let deep = nested(129).encode_to_vec();
        assert_eq!(decode(deep.into(), 128).unwrap_err(), Error::TooDeep { depth_max: 128 });
    }

    /// A44: a message that is nothing but nesting does not get to the stack.
    #[test]
    fn thousands_of_levels_are_refused() {
        let mut bytes = Vec::new();
        while bytes.len() < 30_000 {
            let mut level = vec![0x22]; // RequestOp.request_txn
            prost::encoding::encode_varint(bytes.len() as u64, &mut level);
            level.append(&mut bytes);
            let mut txn = vec![0x12]; // TxnRequest.success
            prost::encoding::encode_varint(level.len() as u64, &mut txn);
            txn.append(&mut level);
            bytes = txn;
        }
        assert_eq!(
            decode(bytes.into(), usize::MAX).unwrap_err(),
            Error::TooDeep { depth_max: DEPTH_MAX }
        );
    }

    #[test]
    fn cut_messages_are_errors_or_shorter_messages() {
        let whole = Bytes::from(nested(3).encode_to_vec());
        for cut in 0..whole.len() {
            let _ = decode(whole.slice(..cut), 128);
        }
        assert!(decode(Bytes::from_static(&[0x12, 0x7f]), 128).is_err());
    }
}
