//! KV reads: Range, RangeStream, and transactions that only read.

use super::parts::{Parts, WHOLE_BYTES};
use super::{decode, decode_streamed};
use crate::budget::Reserved;
use crate::member::Member;
use crate::rpc::{Incoming, Outgoing, Reply};
use bytes::{Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use quorate_api::proto::etcdserverpb::request_op::Request;
use quorate_api::proto::etcdserverpb::{self as pb, range_request::SortOrder, range_request::SortTarget};
use quorate_api::{Error, Status};
use quorate_store::{Piece, RangeAnswer, Selection, Taken, validate};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::OwnedSemaphorePermit;

/// RangeStream's first piece, in keys; the most then follows the size of the pieces, as in etcd.
const STREAM_KEYS_FIRST: usize = 10;
/// Its largest piece, unless a single pair is larger.
const STREAM_BYTES_MAX: usize = 1 << 20;

pub async fn range(member: &Arc<Member>, message: Bytes) -> Result<Reply, Status> {
    let request: pb::RangeRequest = decode(message)?;
    validate::range(&request)?;
    let begun = Instant::now();
    let selected = linearized(member, request, Taken::AtOnce).await;
    member.counts.range_answered(selected.is_ok(), begun.elapsed());
    let (answer, held) = selected?;
    let mut parts = Parts::new(member, held);
    push_range(&mut parts, answer, |answer| member.header(answer.revision));
    parts.reply().await
}

/// The selection, behind a barrier unless it is serializable.
async fn linearized(
    member: &Arc<Member>,
    request: pb::RangeRequest,
    taken: Taken,
) -> Result<(RangeAnswer, Option<Reserved>), Status> {
    if !request.serializable {
        member.linearize().await?;
    }
    let begun = Instant::now();
    let selected = select(member, request, taken).await;
    member.counts.selected(selected.is_ok(), begun.elapsed());
    selected
}

/// A RangeResponse: header, pairs, `more` and `count`.
fn push_range(parts: &mut Parts, answer: RangeAnswer, header: impl FnOnce(&RangeAnswer) -> pb::ResponseHeader) {
    parts.push(encode_header(&header(&answer)));
    let tail = encode_tail(&answer);
    parts.push_pairs(answer);
    parts.push(tail);
}

fn encode_header(header: &pb::ResponseHeader) -> BytesMut {
    let mut out = BytesMut::with_capacity(64);
    encode_field(1, header.encoded_len(), &mut out);
    header.encode_raw(&mut out);
    out
}

/// The fields behind the pairs.
fn encode_tail(answer: &RangeAnswer) -> BytesMut {
    let mut tail = BytesMut::with_capacity(16);
    if answer.more {
        prost::encoding::bool::encode(3, &answer.more, &mut tail);
    }
    if answer.count != 0 {
        prost::encoding::int64::encode(4, &answer.count, &mut tail);
    }
    tail
}

fn encode_field(number: u32, len: usize, out: &mut BytesMut) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(len as u64, out);
}

/// Runs the selection: its first slice at once, what is longer off the serving threads and few at a time.
async fn select(
    member: &Arc<Member>,
    request: pb::RangeRequest,
    taken: Taken,
) -> Result<(RangeAnswer, Option<Reserved>), Status> {
    match member.store.select(&request, taken)? {
        Selection::Done(answer) => {
            let held = reserve(member, answer.memory()).await?;
            Ok((answer, held))
        }
        Selection::Rest(rest) => {
            let (answer, _slot) = match member.large_reads.clone().try_acquire_owned() {
                Ok(slot) => in_slot(member, slot, move |_| rest.finish()).await?,
                Err(_) => {
                    // Who waits for a turn holds nothing meanwhile.
                    drop(rest);
                    off_thread(member, move |store| store.select(&request, taken)?.finish()).await?
                }
            };
            let held = reserve(member, answer.memory()).await?;
            Ok((answer, held))
        }
    }
}

/// Runs what may take long where it delays nobody, a few at a time. Its memory counts as the slot's until that is let
/// go of: reserve what is kept before.
pub async fn off_thread<T: Send + 'static>(
    member: &Arc<Member>,
    read: impl FnOnce(&quorate_store::Store) -> Result<T, quorate_store::Error> + Send + 'static,
) -> Result<(T, OwnedSemaphorePermit), Status> {
    let slot = member.large_reads.clone().acquire_owned().await;
    let slot = slot.map_err(|_| Status::from(Error::Stopped))?;
    in_slot(member, slot, read).await
}

async fn in_slot<T: Send + 'static>(
    member: &Arc<Member>,
    slot: OwnedSemaphorePermit,
    read: impl FnOnce(&quorate_store::Store) -> Result<T, quorate_store::Error> + Send + 'static,
) -> Result<(T, OwnedSemaphorePermit), Status> {
    let store = member.store.clone();
    // The slot goes along: when the caller is gone, the work still takes its place.
    let done = tokio::task::spawn_blocking(move || read(&store).map(|result| (result, slot)));
    Ok(done.await.map_err(|_| Status::from(Error::Stopped))??)
}

/// Memory that a client will hold for as long as it takes to read its answer.
async fn reserve(member: &Arc<Member>, bytes: usize) -> Result<Option<Reserved>, Status> {
    match bytes {
        small if small <= WHOLE_BYTES => Ok(None),
        large => member.memory.reserve(large).await.map(Some),
    }
}

/// Never replicated: it runs on local state, behind a barrier unless all of it is serializable.
pub async fn read_only_txn(member: &Arc<Member>, request: pb::TxnRequest) -> Result<Reply, Status> {
    let begun = Instant::now();
    if !validate::is_serializable(&request) {
        member.linearize().await?;
    }
    let (answer, slot) = if is_short_txn(&request) {
        (member.store.read_txn(&request)?, None)
    } else {
        let (answer, slot) = off_thread(member, move |store| store.read_txn(&request)).await?;
        (answer, Some(slot))
    };
    member
        .counts
        .read_only_txn_answered(answer.ranges.len(), begun.elapsed());
    // Once for all of them: who holds a part and waits for more may wait for another who does the same.
    let held = reserve(member, answer.ranges.iter().map(RangeAnswer::memory).sum()).await?;
    drop(slot);
    let mut parts = Parts::new(member, held);
    parts.push(encode_header(&member.header(answer.revision)));
    if answer.succeeded {
        let mut succeeded = BytesMut::with_capacity(2);
        prost::encoding::bool::encode(2, &true, &mut succeeded);
        parts.push(succeeded);
    }
    for range in answer.ranges {
        push_response_op(&mut parts, range);
    }
    parts.reply().await
}

fn is_short_txn(request: &pb::TxnRequest) -> bool {
    let short = |op: &pb::RequestOp| match &op.request {
        Some(Request::RequestRange(range)) => range.range_end.is_empty(),
        _ => true,
    };
    request.compare.iter().all(|compare| compare.range_end.is_empty())
        && request.success.iter().chain(&request.failure).all(short)
}

/// `responses` of a TxnResponse: a ResponseOp with a RangeResponse, whose header says the revision only.
fn push_response_op(parts: &mut Parts, range: RangeAnswer) {
    let header = encode_header(&pb::ResponseHeader {
        revision: range.revision.0,
        ..Default::default()
    });
    let tail = encode_tail(&range);
    let response = header.len() + range.encoded_len() + tail.len();
    let op = key_len(1) + encoded_len_varint(response as u64) + response;
    let mut head = BytesMut::with_capacity(16 + header.len());
    encode_field(3, op, &mut head);
    encode_field(1, response, &mut head);
    head.extend_from_slice(&header);
    parts.push(head);
    parts.push_pairs(range);
    parts.push(tail);
}

/// The answer to a Range as a sequence of messages at one revision; header, `more` and `count` come with the last.
pub async fn stream(member: &Arc<Member>, mut incoming: Incoming, mut outgoing: Outgoing) -> Result<(), Status> {
    let Some(message) = incoming.message().await? else {
        return Ok(());
    };
    let request: pb::RangeRequest = decode_streamed(message)?;
    validate::range(&request)?;
    let by_key = request.sort_order == SortOrder::Ascend as i32 && request.sort_target == SortTarget::Key as i32;
    if request.sort_order != SortOrder::None as i32 && !by_key {
        return Err(Error::RangeStreamSort.into());
    }
    if validate::is_filtered(&request) {
        return Err(Error::RangeStreamFilter.into());
    }
    let (mut answer, _held) = linearized(member, request, Taken::Slowly).await?;
    let header = member.header(answer.revision);
    let request_bytes = member.limits.request_bytes;
    let bytes_max = STREAM_BYTES_MAX.min(request_bytes.saturating_mul(2));
    let mut keys = STREAM_KEYS_FIRST;
    let mut pace = outgoing.pace();
    loop {
        // A piece is read once the client has room for some of it.
        pace.keep(outgoing.ready()).await??;
        let piece = answer.next_piece(keys, bytes_max);
        let held = reserve(member, piece.as_ref().map_or(0, Piece::encoded_len)).await?;
        let pairs = piece
            .map(|piece| answer.encode(&piece))
            .transpose()?
            .unwrap_or_default();
        let last = answer.pairs_left() == 0;
        let (head, tail) = if last {
            (encode_header(&header), encode_tail(&answer))
        } else {
            (BytesMut::new(), BytesMut::new())
        };
        let response = head.len() + pairs.len() + tail.len();
        let mut start = BytesMut::with_capacity(16 + head.len());
        encode_field(1, response, &mut start);
        start.extend_from_slice(&head);
        let message = vec![start.freeze(), pairs, tail.freeze()];
        let len: usize = message.iter().map(Bytes::len).sum();
        pace.keep(outgoing.send(message)).await??;
        pace.sent(len);
        drop(held);
        if last {
            return Ok(());
        }
        if len < request_bytes / 2 {
            keys = keys.saturating_mul(2);
        } else if len > request_bytes.saturating_mul(2) {
            keys = (keys / 2).max(1);
        }
    }
}
