//! KV reads: Range and RangeStream.
//!
//! A Range answer is one message whose length has to be known before its first byte. The store knows it from its index
//! alone, so a large answer is read and sent piece by piece, as the client takes it, and holds one piece in memory.

use super::decode;
use crate::budget::Reserved;
use crate::member::Member;
use crate::rpc::{Incoming, Outgoing, PieceFuture, Reply, ReplyBody};
use bytes::{Bytes, BytesMut};
use prost::Message;
use prost::encoding::{encode_key, encode_varint, WireType};
use quorate_api::proto::etcdserverpb::{self as pb, range_request::SortOrder, range_request::SortTarget};
use quorate_api::{Error, Status};
use quorate_store::{RangeAnswer, validate};
use std::sync::Arc;

/// Answers up to this size are put together at once; larger ones are sent piece by piece.
const WHOLE_BYTES: usize = 32 << 10;

/// Size of a piece: what a connection holds for a client that does not read.
const PIECE_BYTES: usize = 64 << 10;

/// Keys that a request may select to be looked up on the thread that serves its connection.
const INLINE_KEYS: i64 = 1000;

/// RangeStream's first piece, in keys; the number then follows the size of the pieces.
const STREAM_KEYS_FIRST: usize = 10;

pub async fn range(member: &Arc<Member>, message: Bytes) -> Result<Reply, Status> {
    let request: pb::RangeRequest = decode(message)?;
    validate::range(&request)?;
    if !request.serializable {
        member.linearize().await?;
    }
    let (answer, held) = select(member, request).await?;
    let header = member.header(answer.revision);
    let mut head = BytesMut::with_capacity(64);
    encode_key(1, WireType::LengthDelimited, &mut head);
    encode_varint(header.encoded_len() as u64, &mut head);
    header.encode_raw(&mut head);
    let mut tail = BytesMut::with_capacity(16);
    encode_tail(&answer, &mut tail);

    let kvs = answer.encoded_len();
    let body = Pieces { head: Some(head.freeze()), answer, left: kvs, tail: Some(tail.freeze()), _held: held };
    if kvs <= WHOLE_BYTES {
        return body.whole();
    }
    Ok(Reply::Body(Box::new(body)))
}

/// `more` and `count`, the fields behind the pairs.
fn encode_tail(answer: &RangeAnswer, tail: &mut BytesMut) {
    if answer.more {
        prost::encoding::bool::encode(3, &answer.more, tail);
    }
    if answer.count != 0 {
        prost::encoding::int64::encode(4, &answer.count, tail);
    }
}

/// Runs the selection: at once when it can't be long, otherwise off the serving threads and few at a time.
async fn select(member: &Arc<Member>, request: pb::RangeRequest) -> Result<(RangeAnswer, Option<Reserved>), Status> {
    if is_short(&request) {
        return Ok((member.store.range(&request)?, None));
    }
    let slot = member.large_reads.clone().acquire_owned().await.map_err(|_| Status::from(Error::Stopped))?;
    let store = member.store.clone();
    let selected = tokio::task::spawn_blocking(move || {
        let answer = store.range(&request);
        drop(slot);
        answer
    });
    let answer = selected.await.map_err(|_| Status::from(Error::Stopped))??;
    let held = match answer.memory() {
        small if small <= WHOLE_BYTES => None,
        large => Some(member.memory.reserve(large).await?),
    };
    Ok((answer, held))
}

fn is_short(request: &pb::RangeRequest) -> bool {
    let plain = request.sort_order == SortOrder::None as i32
        && request.sort_target == SortTarget::Key as i32
        && request.min_mod_revision == 0
        && request.max_mod_revision == 0
        && request.min_create_revision == 0
        && request.max_create_revision == 0;
    request.range_end.is_empty() || (plain && (1..=INLINE_KEYS).contains(&request.limit))
}

/// An answer on its way.
struct Pieces {
    head: Option<Bytes>,
    answer: RangeAnswer,
    /// Bytes of pairs still to come.
    left: usize,
    tail: Option<Bytes>,
    _held: Option<Reserved>,
}

impl Pieces {
    fn whole(mut self) -> Result<Reply, Status> {
        let mut message = BytesMut::with_capacity(self.len());
        while let Some(piece) = self.piece()? {
            message.extend_from_slice(&piece);
        }
        Ok(Reply::Message(message.freeze()))
    }

    fn piece(&mut self) -> Result<Option<Bytes>, Status> {
        if let Some(head) = self.head.take() {
            return Ok(Some(head));
        }
        if self.left > 0 {
            let piece = self.answer.next_chunk(PIECE_BYTES)?.ok_or_else(super::mismatched)?;
            self.left = self.left.saturating_sub(piece.len());
            return Ok(Some(piece));
        }
        Ok(self.tail.take().filter(|tail| !tail.is_empty()))
    }
}

impl ReplyBody for Pieces {
    fn len(&self) -> usize {
        self.left + self.head.as_ref().map_or(0, Bytes::len) + self.tail.as_ref().map_or(0, Bytes::len)
    }

    fn next(&mut self) -> PieceFuture<'_> {
        Box::pin(async { self.piece().transpose() })
    }
}

/// The same answer as a sequence of messages at one revision; header, `more` and `count` come with the last.
pub async fn stream(member: &Arc<Member>, mut incoming: Incoming, mut outgoing: Outgoing) -> Result<(), Status> {
    let Some(message) = incoming.message().await? else { return Ok(()) };
    let request: pb::RangeRequest = decode(message)?;
    validate::range(&request)?;
    if request.sort_order != SortOrder::None as i32 || request.sort_target != SortTarget::Key as i32 {
        return Err(Error::RangeStreamSort.into());
    }
    let filters = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    if filters.iter().any(|filter| *filter != 0) {
        return Err(Error::RangeStreamFilter.into());
    }
    if !request.serializable {
        member.linearize().await?;
    }
    let (mut answer, _held) = select(member, request).await?;
    let header = member.header(answer.revision);
    let mut left = answer.encoded_len();
    let mut keys = STREAM_KEYS_FIRST;
    let half = member.limits.request_bytes / 2;
    while left > 0 {
        let piece = answer.next_keys(keys, PIECE_BYTES.max(half * 4))?.ok_or_else(super::mismatched)?;
        left = left.saturating_sub(piece.len());
        if piece.len() < half {
            keys = keys.saturating_mul(2);
        } else if piece.len() > half * 4 {
            keys = (keys / 2).max(1);
        }
        if left == 0 {
            return send_last(&mut outgoing, header, &answer, piece).await;
        }
        outgoing.send(in_stream(piece)).await?;
    }
    send_last(&mut outgoing, header, &answer, Bytes::new()).await
}

async fn send_last(
    outgoing: &mut Outgoing,
    header: pb::ResponseHeader,
    answer: &RangeAnswer,
    kvs: Bytes,
) -> Result<(), Status> {
    let mut message = BytesMut::with_capacity(kvs.len() + 80);
    let head = pb::RangeResponse { header: Some(header), ..Default::default() };
    head.encode_raw(&mut message);
    message.extend_from_slice(&kvs);
    encode_tail(answer, &mut message);
    outgoing.send(in_stream(message.freeze())).await
}

/// Wraps an encoded RangeResponse as the one field of a RangeStreamResponse.
fn in_stream(response: Bytes) -> Bytes {
    let mut message = BytesMut::with_capacity(response.len() + 8);
    encode_key(1, WireType::LengthDelimited, &mut message);
    encode_varint(response.len() as u64, &mut message);
    message.extend_from_slice(&response);
    message.freeze()
}
