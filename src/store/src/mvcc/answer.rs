//! The answer to a range, on its way out. It knows its size before a value is read, and hands itself out in pieces,
//! so that what a large range costs is one piece of memory and not its result.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use quorate_api::Revision;
use quorate_api::proto::mvccpb::KeyValue;

use super::gather::{Gather, Item, Items};
use super::index::Resume;
use super::pair;
use super::reads::Pin;
use super::version::Version;
use crate::backend::{RowId, View};
use crate::error::Error;
use crate::store::{SLICE_KEYS, Shared};

/// Values that a small answer had to read from the file are kept in memory; a scan must not wash those out.
const CACHE_PAIRS_MAX: usize = 16;

/// What an answer has yet to read stays readable because of this.
pub(crate) enum Hold {
    /// It has nothing to read.
    Nothing,
    /// Taken under the index lock: it has every row that the index knew of. Pins what is written while it lives.
    View(View),
    /// Compaction leaves the rows alone, so any View has them.
    Pin { _held: Pin },
}

/// All of it stands at one revision, whatever is written or compacted meanwhile. While it lives, compaction waits
/// below that revision, or (small answers) a View pins rows: let go of it after seconds.
pub struct RangeAnswer {
    /// The store's revision when the read began, whichever revision it asked for.
    pub revision: Revision,
    /// Keys in the range, whatever limit and filters say.
    pub count: i64,
    /// The limit cut something off.
    pub more: bool,
    shared: Arc<Shared>,
    gather: Gather,
    source: Source,
    encoded_len: usize,
    left: usize,
    hold: Hold,
}

enum Source {
    /// All pairs are here, and so many have been handed out.
    Held { next: usize },
    /// Read again from here.
    Index { from: Resume },
}

/// Pairs of one piece: part of what is held, or read from the index just now.
pub struct Piece {
    read: Option<Items>,
    part: Range<usize>,
    bytes: usize,
}

impl Piece {
    /// Bytes of its `kvs` fields.
    pub fn encoded_len(&self) -> usize {
        self.bytes
    }
}

impl RangeAnswer {
    /// Of a range that has been gathered to its end.
    pub(crate) fn new(shared: Arc<Shared>, revision: Revision, gather: Gather, hold: Hold) -> Self {
        let source = match gather.spilled {
            true => Source::Index { from: Resume::Start },
            false => Source::Held { next: 0 },
        };
        Self {
            revision,
            count: gather.count,
            more: gather.more(),
            shared,
            source,
            encoded_len: gather.encoded_len,
            left: gather.len_answered(),
            gather,
            hold,
        }
    }

    /// Bytes of all `kvs` fields as they stand in a `RangeResponse`.
    pub fn encoded_len(&self) -> usize {
        self.encoded_len
    }

    /// Pairs not handed out yet.
    pub fn pairs_left(&self) -> usize {
        self.left
    }

    /// Bytes that it holds, for budgets. Pieces come on top.
    pub fn memory(&self) -> usize {
        size_of::<Self>() + self.gather.items.memory()
    }

    /// The next `kvs` fields, whole pairs, at most `max_bytes` of them but at least one pair. All pieces together are
    /// `encoded_len` bytes.
    pub fn next_chunk(&mut self, max_bytes: usize) -> Result<Option<Bytes>, Error> {
        let piece = self.next_piece(usize::MAX, max_bytes);
        piece.map(|piece| self.encode(&piece)).transpose()
    }

    /// Chooses the next pairs without reading their values: at most so many, and whole pairs of at most `max_bytes`, but
    /// at least one. To be [encoded](Self::encode).
    pub fn next_piece(&mut self, max_pairs: usize, max_bytes: usize) -> Option<Piece> {
        while self.left > 0 {
            let piece = self.take_piece(max_pairs, max_bytes);
            if piece.bytes > 0 {
                return Some(piece);
            }
        }
        None
    }

    /// The `kvs` fields of a piece of this answer.
    pub fn encode(&self, piece: &Piece) -> Result<Bytes, Error> {
        let mut out = Vec::with_capacity(piece.bytes);
        let shape = self.gather.shape.clone();
        self.each(piece, |key, version, value| {
            pair::put_kvs(&mut out, key, &shape.shown(*version), value);
        })?;
        Ok(out.into())
    }

    /// At most `max_pairs` more pairs, as messages; empty when there are no more.
    pub fn next_kvs(&mut self, max_pairs: usize) -> Result<Vec<KeyValue>, Error> {
        let mut out = Vec::new();
        while out.is_empty() && self.left > 0 && max_pairs > 0 {
            let piece = self.take_piece(max_pairs, usize::MAX);
            out.reserve_exact(piece.part.len());
            let shape = self.gather.shape.clone();
            self.each(&piece, |key, version, value| {
                let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
                out.push(pair::key_value(key, &shape.shown(*version), value));
            })?;
        }
        Ok(out)
    }

    /// All that is left, as messages: for small answers.
    pub fn into_kvs(mut self) -> Result<Vec<KeyValue>, Error> {
        let mut out = self.next_kvs(usize::MAX)?;
        while self.left > 0 {
            out.append(&mut self.next_kvs(usize::MAX)?);
        }
        Ok(out)
    }

    fn take_piece(&mut self, max_pairs: usize, max_bytes: usize) -> Piece {
        let shape = &self.gather.shape;
        let max_pairs = max_pairs.min(self.left);
        let (mut pairs, mut bytes) = (0, 0usize);
        let mut fits = |key_len: usize, version: Version| {
            let len = pair::kvs_len(key_len, &shape.shown(version));
            let fits = pairs == 0 || (pairs < max_pairs && bytes.saturating_add(len) <= max_bytes);
            if fits {
                pairs += 1;
                bytes += len;
            }
            fits
        };
        let (read, part) = match &mut self.source {
            Source::Held { next } => {
                let start = *next;
                let list = &self.gather.items.list;
                while *next < list.len() && fits(self.gather.items.key(&list[*next]).len(), list[*next].version) {
                    *next += 1;
                }
                (None, start..*next)
            }
            Source::Index { from } => {
                let mut items = Items::default();
                let mut full = false;
                let mvcc = self.shared.mvcc.read();
                let (range, at) = (&self.gather.range, self.gather.at);
                let next = mvcc.index.scan(range, from, at, SLICE_KEYS, |key, version| {
                    if !shape.admits(&version) {
                        return true;
                    }
                    full = !fits(key.len(), version);
                    if !full {
                        items.push(key, version);
                    }
                    !full
                });
                drop(mvcc);
                match (next, items.list.last()) {
                    // The one that did not fit comes first in the next piece.
                    (_, Some(last)) if full => *from = Resume::After(items.key(last).into()),
                    (Some(next), _) => *from = next,
                    (None, _) => {}
                }
                let part = 0..items.list.len();
                (Some(items), part)
            }
        };
        self.left -= pairs;
        Piece { read, part, bytes }
    }

    /// Calls `each` with every pair of the piece, in order. Each value is copied by whoever takes it, and not before.
    fn each(&self, piece: &Piece, each: impl FnMut(&[u8], &Version, &[u8])) -> Result<(), Error> {
        let items = piece.read.as_ref().unwrap_or(&self.gather.items);
        let list = &items.list[piece.part.clone()];
        let mut emit = Emit {
            items,
            list,
            known: Vec::new(),
            next: 0,
            each,
        };
        if self.gather.shape.keys_only() {
            list.iter().for_each(|item| emit.one(item, b""));
            return Ok(());
        }
        let values = &self.shared.values;
        emit.known = list.iter().map(|item| values.get(item.version.row())).collect();
        let unknown: Vec<usize> = (0..list.len()).filter(|at| emit.known[*at].is_none()).collect();
        let mut odd: Option<RowId> = None;
        if !unknown.is_empty() {
            let ids: Vec<RowId> = unknown.iter().map(|at| list[*at].version.row()).collect();
            let fresh;
            let view = match &self.hold {
                Hold::View(view) => view,
                Hold::Pin { .. } | Hold::Nothing => {
                    fresh = self.shared.backend.view()?;
                    &fresh
                }
            };
            view.values(&ids, |nth, value| {
                let at = unknown[nth];
                emit.known_before(at);
                emit.next = at + 1;
                if value.len() != list[at].version.value_len as usize {
                    odd = Some(ids[nth]);
                    return;
                }
                if list.len() <= CACHE_PAIRS_MAX {
                    values.insert(ids[nth], Bytes::copy_from_slice(value), 0);
                }
                emit.one(&list[at], value);
            })?;
        }
        emit.known_before(list.len());
        match odd {
            Some(id) => Err(Error::Damaged {
                what: "value",
                name: format!("revision {}.{}", id.main, id.sub),
            }),
            None => Ok(()),
        }
    }
}

/// Pairs in order, though their values come from two places.
struct Emit<'p, F> {
    items: &'p Items,
    list: &'p [Item],
    /// Values that were in memory.
    known: Vec<Option<Bytes>>,
    next: usize,
    each: F,
}

impl<F: FnMut(&[u8], &Version, &[u8])> Emit<'_, F> {
    fn one(&mut self, item: &Item, value: &[u8]) {
        (self.each)(self.items.key(item), &item.version, value);
    }

    fn known_before(&mut self, upto: usize) {
        for at in self.next..upto {
            if let Some(value) = self.known[at].take() {
                self.one(&self.list[at], &value);
            }
        }
        self.next = upto;
    }
}
