//! What the log carries: one entry is a batch of commands, encoded once; the same bytes go into the log and to the
//! peers. Each command keeps its own revision and its own answer.

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{decode_varint, encode_varint, encoded_len_varint};
use quorate_api::proto::etcdserverpb as pb;
use quorate_api::proto::quorate as wire;
use quorate_api::{Error, Revision};

/// One command, decoded. Every kind that can be decoded can be applied: limits and ids were settled before it was
/// proposed, and what is left to go wrong is an [`Outcome`].
pub use wire::command::Kind as Command;

/// How a command ended: the store's revision right after it, and the answer without its header (the member that took
/// the request fills that in) or the error that it earned. An error means that nothing was changed, but for
/// [`Error::AnswerUnreadable`]: then it is the answer that this member can't give.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub revision: Revision,
    pub result: Result<Reply, Error>,
}

/// Answers, in the shape in which they travel.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Put(pb::PutResponse),
    DeleteRange(pb::DeleteRangeResponse),
    Txn(pb::TxnResponse),
    /// Compaction is in force; its physical part goes on in the background.
    Compact,
    LeaseGrant {
        id: i64,
        ttl_secs: i64,
    },
    LeaseRevoke,
    /// Members after a membership command, by ascending id.
    Members(Vec<pb::Member>),
    /// The alarm that the command set or took away; `None` when there was nothing to take away.
    Alarm(Option<pb::AlarmMember>),
    /// Commands that have nothing to say: checkpoints, the cluster's first entry, a stale revocation.
    Done,
}

/// A batch that can't be read. Committed bytes that don't decode are damage or a newer format, never to be skipped.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("command {at} of the batch: length does not fit the batch")]
    Length { at: usize },
    #[error("command {at} of the batch: {source}")]
    Command { at: usize, source: prost::DecodeError },
    #[error("command {at} of the batch: {source}")]
    Txn { at: usize, source: quorate_api::txn::Error },
    #[error("command {at} of the batch is of a kind this version does not know")]
    UnknownKind { at: usize },
}

/// Appends one command to a batch under construction.
pub fn encode_into(batch: &mut BytesMut, command: &Command) {
    let len = command.encoded_len();
    batch.reserve(len + encoded_len_varint(len as u64));
    encode_varint(len as u64, batch);
    command.encode(batch);
}

/// Reads a whole batch. Byte fields are slices of `batch`: whatever outlives it must be copied.
pub fn decode(mut batch: Bytes) -> Result<Vec<Command>, DecodeError> {
    let mut commands = Vec::new();
    while batch.has_remaining() {
        let at = commands.len();
        let len = decode_varint(&mut batch).map_err(|source| DecodeError::Command { at, source })?;
        let len = usize::try_from(len)
            .ok()
            .filter(|len| *len <= batch.len())
            .ok_or(DecodeError::Length { at })?;
        commands.push(decode_one(batch.split_to(len), at)?);
    }
    Ok(commands)
}

/// `Command.txn`: field 3, length-delimited.
const TXN_KEY: u8 = 3 << 3 | 2;

fn decode_one(mut command: Bytes, at: usize) -> Result<Command, DecodeError> {
    // Transactions nest deeper than prost reads. We wrote these bytes: a transaction is all there is behind its key.
    if command.first() == Some(&TXN_KEY) {
        command.advance(1);
        let len = decode_varint(&mut command).map_err(|source| DecodeError::Command { at, source })?;
        if len != command.len() as u64 {
            return Err(DecodeError::Length { at });
        }
        let txn = quorate_api::txn::decode(command, quorate_api::txn::DEPTH_MAX);
        return txn.map(Command::Txn).map_err(|source| DecodeError::Txn { at, source });
    }
    let one = wire::Command::decode(command).map_err(|source| DecodeError::Command { at, source })?;
    one.kind.ok_or(DecodeError::UnknownKind { at })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str) -> Command {
        Command::Put(pb::PutRequest {
            key: key.into(),
            value: "v".into(),
            ..Default::default()
        })
    }

    #[test]
    fn a_batch_reads_back_as_it_was_written() {
        let commands = [
            put("a"),
            Command::Compact(pb::CompactionRequest {
                revision: 7,
                physical: false,
            }),
            put("b"),
        ];
        let mut batch = BytesMut::new();
        commands.iter().for_each(|command| encode_into(&mut batch, command));
        assert_eq!(decode(batch.freeze()).unwrap(), commands);
    }

    #[test]
    fn damaged_batches_are_errors() {
        let mut batch = BytesMut::new();
        encode_into(&mut batch, &put("a"));
        let whole = batch.freeze();
        for cut in 1..whole.len() {
            assert!(decode(whole.slice(..cut)).is_err(), "cut at {cut}");
        }
        assert!(matches!(
            decode(Bytes::from_static(&[0])),
            Err(DecodeError::UnknownKind { at: 0 })
        ));
        assert!(matches!(
            decode(Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0x0f, 1])),
            Err(DecodeError::Length { .. })
        ));
    }
}
