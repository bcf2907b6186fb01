//! How much memory answers may take. Values are read from the file and held until the answer is sent, and a small
//! request can ask for all there is, many times over. So the size of an answer is settled before anything runs, and
//! what would be too large is refused. Since the refusal decides what the store becomes, it follows from applied state
//! alone: lengths that the index knows, and no allocation's capacity. What comes out is no less than what the answer
//! then has, and more only in odd cases: nothing is tried out, so what earlier operations of the same transaction do
//! is allowed for, not known.

use std::collections::BTreeMap;

use quorate_api::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use quorate_api::proto::etcdserverpb::{self as pb};
use quorate_api::{Error as Answer, KeyRange};

use super::APPLY_SLICE_KEYS;
use super::step::Step;
use crate::mvcc::gather::{Gather, Shape};
use crate::mvcc::index::Resume;
use crate::mvcc::version::Version;
use crate::validate;

/// What one answer may hold, counted as keys, values and [`PAIR_BYTES`] for each pair.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// What all answers of an entry may hold, since they are held together. One of them may have a quarter of what those
/// before it left: large answers get less room the more there are, and small ones always find some.
const ENTRY_ANSWERS_BYTES_MAX: usize = 4 * ANSWER_BYTES_MAX;

/// What a pair costs beside its key and value.
const PAIR_BYTES: usize = 128;

/// Room for answers of one entry.
pub(super) struct Room {
    left: usize,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            left: ENTRY_ANSWERS_BYTES_MAX,
        }
    }
}

impl Room {
    /// For the answer of the next command.
    pub fn next(&self) -> usize {
        self.left / 4
    }

    pub fn take(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }
}

/// The operations that come before one in its transaction, as far as they matter to what that one answers, and what
/// the answers hold so far.
pub(super) struct Ahead<'r> {
    room: usize,
    answers: usize,
    deletes: Vec<KeyRange>,
    /// Keys that those deleted, at most. Deletes from this one on are not in it yet.
    deleted: usize,
    uncounted: usize,
    /// Keys written, and what a pair with the written value costs.
    puts: BTreeMap<&'r [u8], usize>,
}

impl<'r> Ahead<'r> {
    pub fn new(room: usize) -> Self {
        Self {
            room,
            answers: 0,
            deletes: Vec::new(),
            deleted: 0,
            uncounted: 0,
            puts: BTreeMap::new(),
        }
    }

    /// What all answers hold.
    pub fn answers(&self) -> usize {
        self.answers
    }

    pub fn deletes(&self, key: &[u8]) -> bool {
        self.deletes.iter().any(|range| range.contains(key))
    }

    fn charge(&mut self, bytes: usize) -> Result<(), Answer> {
        self.answers = self.answers.saturating_add(bytes);
        if self.answers > self.room {
            return Err(Answer::AnswerTooLarge);
        }
        Ok(())
    }

    /// Pairs of `range` that the transaction itself wrote.
    fn charge_puts(&mut self, range: &KeyRange) -> Result<(), Answer> {
        let mut sum = 0usize;
        for (_, cost) in self.puts.range::<[u8], _>(range.bounds()) {
            sum = sum.saturating_add(*cost);
            if sum > self.room {
                break;
            }
        }
        self.charge(sum)
    }
}

fn cost(key_len: usize, value_len: usize) -> usize {
    PAIR_BYTES + key_len + value_len
}

fn cost_of(key: &[u8], version: Version) -> usize {
    cost(key.len(), version.value_len as usize)
}

impl Step<'_> {
    pub(super) fn charge_put<'r>(&self, put: &'r pb::PutRequest, ahead: &mut Ahead<'r>) -> Result<(), Answer> {
        let key: &[u8] = &put.key;
        let own = ahead.puts.get(key).copied().unwrap_or(0);
        let old = match put.prev_kv || put.ignore_value {
            true => self.mvcc.index.newest(key).map_or(0, |old| cost_of(key, old)),
            false => 0,
        };
        if put.prev_kv {
            ahead.charge(old.max(own))?;
        }
        let new = match put.ignore_value {
            true => old,
            false => cost(key.len(), put.value.len()),
        };
        ahead.puts.insert(key, own.max(new));
        Ok(())
    }

    pub(super) fn charge_delete(
        &mut self,
        delete: &pb::DeleteRangeRequest,
        ahead: &mut Ahead<'_>,
    ) -> Result<(), Answer> {
        let range = KeyRange::new(delete.key.clone(), delete.range_end.clone());
        if delete.prev_kv {
            ahead.charge_puts(&range)?;
            let mut sum = 0usize;
            let room = ahead.room;
            self.each_newest(&range, |key, version| {
                sum = sum.saturating_add(cost_of(key, version));
                sum <= room
            });
            ahead.charge(sum)?;
        }
        ahead.deletes.push(range);
        Ok(())
    }

    pub(super) fn charge_range(&mut self, request: &pb::RangeRequest, ahead: &mut Ahead<'_>) -> Result<(), Answer> {
        if request.count_only {
            return Ok(());
        }
        let shape = Shape::of(request)?;
        let range = KeyRange::new(request.key.clone(), request.range_end.clone());
        let newest = request.revision <= 0;
        let at = if newest { self.revision } else { request.revision };
        if newest {
            ahead.charge_puts(&range)?;
        }
        if range.is_single() {
            let pair = self.mvcc.index.get(&range.start, at).filter(|pair| shape.admits(pair));
            return ahead.charge(pair.map_or(0, |pair| cost_of(&range.start, shape.shown(pair))));
        }
        let mut wide = request.clone();
        if request.sort_target == SortTarget::Value as i32 {
            // The sort has to hold the value of every pair, whatever is shown of it.
            (wide.limit, wide.keys_only) = (0, false);
            (wide.sort_target, wide.sort_order) = (SortTarget::Key as i32, SortOrder::None as i32);
        } else if request.limit > 0 && newest {
            // Each key that goes, or loses its place, may let another one come within the limit.
            let filtered = validate::is_filtered(request);
            let moved = match filtered || request.sort_target != SortTarget::Key as i32 {
                true => ahead.puts.len(),
                false => 0,
            };
            // One more: what is cut before it is sorted looks at one more than it answers.
            let more = match moved.saturating_add(self.deleted(ahead)) {
                0 => 0,
                changed => i64::try_from(changed).unwrap_or(i64::MAX).saturating_add(1),
            };
            wide.limit = request.limit.saturating_add(more);
        }
        let size = self.gathered(&wide, at, ahead.room - ahead.answers)?;
        ahead.charge(size)
    }

    /// What the pairs of a range cost; may end once that is more than `room`.
    fn gathered(&mut self, request: &pb::RangeRequest, at: i64, room: usize) -> Result<usize, Answer> {
        let mut gather = Gather::new(request, at, true)?;
        let so_far = |gather: &Gather| gather.encoded_len + gather.len_answered().saturating_mul(PAIR_BYTES);
        loop {
            let all = gather.step(&self.mvcc.index, APPLY_SLICE_KEYS);
            let candidates = gather.wants_settling().then(|| {
                // Sorted by what the index knows, so no value is asked for.
                let _ = gather.settle(&mut |_| Ok(bytes::Bytes::new()), usize::MAX);
                gather.items.key_bytes() + gather.items.list.len() * PAIR_BYTES
            });
            // A sort has to hold its candidates, however few of them it answers.
            let size = candidates.unwrap_or_else(|| so_far(&gather));
            if size > room {
                return Ok(size);
            }
            if all {
                gather.finish();
                return Ok(so_far(&gather));
            }
            self.let_readers_in();
        }
    }

    /// How many keys the operations ahead delete, at most.
    fn deleted(&mut self, ahead: &mut Ahead<'_>) -> usize {
        for range in &ahead.deletes[ahead.uncounted..] {
            let mut keys = 0;
            self.each_newest(range, |_, _| {
                keys += 1;
                true
            });
            ahead.deleted += keys;
        }
        ahead.uncounted = ahead.deletes.len();
        ahead.deleted
    }

    /// Shows the pairs of a range as they stand before the command, until `each` has enough.
    fn each_newest(&mut self, range: &KeyRange, mut each: impl FnMut(&[u8], Version) -> bool) {
        if range.is_single() {
            if let Some(version) = self.mvcc.index.newest(&range.start) {
                each(&range.start, version);
            }
            return;
        }
        let mut from = Resume::Start;
        loop {
            let mut enough = false;
            let next = self
                .mvcc
                .index
                .scan(range, &from, self.revision, APPLY_SLICE_KEYS, |key, version| {
                    enough = !each(key, version);
                    !enough
                });
            match next {
                Some(next) if !enough => from = next,
                _ => return,
            }
            self.let_readers_in();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bytes::Bytes;
    use proptest::prelude::*;
    use quorate_api::proto::etcdserverpb::request_op::Request;
    use quorate_api::proto::etcdserverpb::response_op::Response;
    use quorate_api::proto::mvccpb::KeyValue;

    use super::*;
    use crate::apply::tests::{Node, put};
    use crate::backend::RowId;
    use crate::command::{Command, Reply};

    fn key() -> impl Strategy<Value = Bytes> {
        prop::sample::select(&["a", "b", "c", "d", "e"][..]).prop_map(Bytes::from)
    }

    fn end() -> impl Strategy<Value = Bytes> {
        prop_oneof![1 => Just(Bytes::new()), 2 => Just(Bytes::from_static(b"\0")), 1 => key()]
    }

    fn value() -> impl Strategy<Value = Bytes> {
        prop::sample::select(&[0usize, 1, 40, 5000][..]).prop_map(|len| vec![b'v'; len].into())
    }

    fn op() -> BoxedStrategy<Request> {
        let revision = prop_oneof![4 => Just(0i64), 1 => 1..8i64];
        let filters = prop_oneof![2 => Just((0, 0)), 1 => (0..12i64, 0..12i64)];
        let range = (key(), end(), 0..4i64, revision, (0..3i32, 0..5i32), filters, 0..8u8);
        let range = range.prop_map(|(key, range_end, limit, revision, sort, filters, flags)| {
            Request::RequestRange(pb::RangeRequest {
                key,
                range_end,
                limit,
                revision,
                sort_order: sort.0,
                sort_target: sort.1,
                keys_only: flags == 0,
                count_only: flags == 1,
                min_mod_revision: filters.0,
                max_mod_revision: filters.1,
                ..Default::default()
            })
        });
        let put = (key(), value(), any::<bool>(), 0..5u8).prop_map(|(key, value, prev_kv, keep)| {
            let ignore_value = keep == 0;
            Request::RequestPut(pb::PutRequest {
                key,
                value: if ignore_value { Bytes::new() } else { value },
                prev_kv,
                ignore_value,
                ..Default::default()
            })
        });
        let delete = (key(), end(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| {
            Request::RequestDeleteRange(pb::DeleteRangeRequest {
                key,
                range_end,
                prev_kv,
            })
        });
        prop_oneof![3 => range, 2 => put, 1 => delete].boxed()
    }

    fn txn(ops: Vec<Request>) -> pb::TxnRequest {
        pb::TxnRequest {
            success: ops.into_iter().map(|op| pb::RequestOp { request: Some(op) }).collect(),
            ..Default::default()
        }
    }

    fn each_pair(txn: &pb::TxnResponse, each: &mut impl FnMut(&KeyValue)) {
        for op in &txn.responses {
            match op.response.as_ref().unwrap() {
                Response::ResponseRange(range) => range.kvs.iter().for_each(&mut *each),
                Response::ResponsePut(put) => put.prev_kv.iter().for_each(&mut *each),
                Response::ResponseDeleteRange(delete) => delete.prev_kvs.iter().for_each(&mut *each),
                Response::ResponseTxn(nested) => each_pair(nested, each),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        /// E2: whatever a transaction does before it reads, its answers hold no more than was settled before it ran.
        #[test]
        fn no_answer_is_larger_than_it_was_said_to_be(
            before in prop::collection::vec((key(), value()), 0..8),
            mut ops in prop::collection::vec(op(), 1..8),
            nested in prop::collection::vec(op(), 0..3),
            at in any::<prop::sample::Index>(),
        ) {
            let mut node = Node::new();
            for (key, value) in before {
                node.apply(vec![put(key, value)]);
            }
            ops.insert(at.index(ops.len() + 1), Request::RequestTxn(txn(nested)));
            let shared = node.applier.writer.lock().shared.clone();
            let mut step = Step::new(&shared, 1, true);
            let outcome = step.run(Command::Txn(txn(ops))).unwrap();
            let said = ENTRY_ANSWERS_BYTES_MAX - step.room.left;
            let lens: HashMap<RowId, usize> = step
                .mvcc
                .index
                .dump()
                .into_iter()
                .flat_map(|(_, versions)| versions)
                .map(|version| (version.row(), version.value_len as usize))
                .collect();
            let done = step.finish();
            if let Ok(Reply::Txn(reply)) = outcome.result {
                let mut holds = 0;
                each_pair(&reply, &mut |pair| holds += PAIR_BYTES + pair.key.len());
                holds += done.fills.iter().flatten().map(|row| lens[row]).sum::<usize>();
                prop_assert!(holds <= said, "{} bytes, said to be {}", holds, said);
            }
        }
    }
}
