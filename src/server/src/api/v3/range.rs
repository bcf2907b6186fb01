//! KV reads: Range, RangeStream, and transactions that only read.

use super::decode;
use super::parts::{Parts, WHOLE_BYTES};
use crate::budget::Reserved;
use crate::member::Member;
use crate::rpc::{Incoming, Outgoing, Reply};
use bytes::{Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use quorate_api::proto::etcdserverpb::request_op::Request;
use quorate_api::proto::etcdserverpb::{self as pb, range_request::SortOrder, range_request::SortTarget};
use quorate_api::{Error, Status};
use quorate_store::{RangeAnswer, validate};
use std::sync::Arc;
use std::time::Instant;

/// Keys that a request may select to be looked up on the thread that serves its connection.
const INLINE_KEYS: i64 = 1000;

/// RangeStream's first piece, in keys; the number then follows the size of the pieces.
const STREAM_KEYS_FIRST: usize = 10;

pub async fn range(member: &Arc<Member>, message: Bytes) -> Result<Reply, Status> {
    let request: pb::RangeRequest = decode(message)?;
    validate::range(&request)?;
    let begun = Instant::now();
    let selected = linearized(member, request).await;
    member.counts.range_answered(selected.is_ok(), begun.elapsed());
    let (answer, held) = selected?;
    let mut parts = Parts::new(held.into_iter().collect());
    push_range(&mut parts, answer, |answer| member.header(answer.revision));
    parts.reply()
}

/// The selection, behind a barrier unless it is serializable.
async fn linearized(
    member: &Arc<Member>,
    request: pb::RangeRequest,
) -> Result<(RangeAnswer, Option<Reserved>), Status> {
    if !request.serializable {
        member.linearize().await?;
    }
    let begun = Instant::now();
    let selected = select(member, request).await;
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

/// Runs the selection: at once when it can't be long, otherwise off the serving threads and few at a time.
async fn select(member: &Arc<Member>, request: pb::RangeRequest) -> Result<(RangeAnswer, Option<Reserved>), Status> {
    if is_short(&request) {
        return Ok((member.store.range(&request)?, None));
    }
    let answer = off_thread(member, move |store| store.range(&request)).await?;
    let held = reserve(member, &answer).await?;
    Ok((answer, held))
}

async fn off_thread<T: Send + 'static>(
    member: &Arc<Member>,
    read: impl FnOnce(&quorate_store::Store) -> Result<T, quorate_store::Error> + Send + 'static,
) -> Result<T, Status> {
    let stopped = |_| Status::from(Error::Stopped);
    let slot = member
        .large_reads
        .clone()
        .acquire_owned()
        .await
        .map_err(|_| Status::from(Error::Stopped))?;
    let store = member.store.clone();
    let done = tokio::task::spawn_blocking(move || {
        let result = read(&store);
        drop(slot);
        result
    });
    Ok(done.await.map_err(stopped)??)
}

async fn reserve(member: &Arc<Member>, answer: &RangeAnswer) -> Result<Option<Reserved>, Status> {
    match answer.memory() {
        small if small <= WHOLE_BYTES => Ok(None),
        large => member.memory.reserve(large).await.map(Some),
    }
}

fn is_short(request: &pb::RangeRequest) -> bool {
    let plain = request.sort_order == SortOrder::None as i32
        && request.sort_target == SortTarget::Key as i32
        && filters(request) == [0; 4];
    request.range_end.is_empty() || (plain && (1..=INLINE_KEYS).contains(&request.limit))
}

fn filters(request: &pb::RangeRequest) -> [i64; 4] {
    [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ]
}

/// Never replicated: it runs on local state, behind a barrier unless all of it is serializable.
pub async fn read_only_txn(member: &Arc<Member>, request: pb::TxnRequest) -> Result<Reply, Status> {
    let begun = Instant::now();
    if !validate::is_serializable(&request) {
        member.linearize().await?;
    }
    let answer = if is_short_txn(&request) {
        member.store.read_txn(&request)?
    } else {
        off_thread(member, move |store| store.read_txn(&request)).await?
    };
    member
        .counts
        .read_only_txn_answered(answer.ranges.len(), begun.elapsed());
    let mut held = Vec::new();
    for range in &answer.ranges {
        held.extend(reserve(member, range).await?);
    }
    let mut parts = Parts::new(held);
    parts.push(encode_header(&member.header(answer.revision)));
    if answer.succeeded {
        let mut succeeded = BytesMut::with_capacity(2);
        prost::encoding::bool::encode(2, &true, &mut succeeded);
        parts.push(succeeded);
    }
    for range in answer.ranges {
        push_response_op(&mut parts, range);
    }
    parts.reply()
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
    let request: pb::RangeRequest = decode(message)?;
    validate::range(&request)?;
    let by_key = request.sort_order == SortOrder::Ascend as i32 && request.sort_target == SortTarget::Key as i32;
    if request.sort_order != SortOrder::None as i32 && !by_key {
        return Err(Error::RangeStreamSort.into());
    }
    if filters(&request) != [0; 4] {
        return Err(Error::RangeStreamFilter.into());
    }
    let (mut answer, _held) = linearized(member, request).await?;
    let header = member.header(answer.revision);
    let mut keys = STREAM_KEYS_FIRST;
    loop {
        let mut response = pb::RangeResponse {
            kvs: answer.next_kvs(keys)?,
            ..Default::default()
        };
        let last = answer.pairs_left() == 0;
        if last {
            response.header = Some(header);
            response.more = answer.more;
            response.count = answer.count;
        }
        let message = pb::RangeStreamResponse {
            range_response: Some(response),
        }
        .encode_to_vec();
        let len = message.len();
        outgoing.send(message).await?;
        if last {
            return Ok(());
        }
        if len < member.limits.request_bytes / 2 {
            keys = keys.saturating_mul(2);
        } else if len > member.limits.request_bytes.saturating_mul(2) {
            keys = (keys / 2).max(1);
        }
    }
}
