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
    /// Values that are in memory. As long as the part, or empty when there are no values to show.
    known: Vec<Option<Bytes>>,
    /// Rows to read from the backend, in the order of their ids, with their places in the part.
    missing: Vec<(RowId, usize)>,
}

impl Piece {
    /// Bytes of its `kvs` fields.
    pub fn encoded_len(&self) -> usize {
        self.bytes
    }

    /// Values that are not in memory: what encoding it has to read from the backend.
    pub fn reads(&self) -> usize {
        self.missing.len()
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
        let shape = &self.gather.shape;
        let (items, list) = self.pairs(piece);
        let mut out = Vec::with_capacity(piece.bytes);
        let mut blanks = Vec::with_capacity(piece.missing.len());
        for (at, item) in list.iter().enumerate() {
            let (key, version) = (items.key(item), shape.shown(item.version));
            match piece.known.get(at) {
                None => pair::put_kvs(&mut out, key, &version, b""),
                Some(Some(value)) => pair::put_kvs(&mut out, key, &version, value),
                Some(None) => blanks.push((at, pair::put_kvs_blank(&mut out, key, &version))),
            }
        }
        self.read(piece, |at, value| {
            // Both stand in the order of places.
            if let Ok(found) = blanks.binary_search_by_key(&at, |(at, _)| *at) {
                out[blanks[found].1.clone()].copy_from_slice(value);
            }
        })?;
        Ok(out.into())
    }

    /// At most `max_pairs` more pairs, as messages; empty when there are no more.
    pub fn next_kvs(&mut self, max_pairs: usize) -> Result<Vec<KeyValue>, Error> {
        if max_pairs == 0 {
            return Ok(Vec::new());
        }
        let Some(piece) = self.next_piece(max_pairs, usize::MAX) else {
            return Ok(Vec::new());
        };
        let shape = &self.gather.shape;
        let (items, list) = self.pairs(&piece);
        let known = |at: usize| piece.known.get(at).cloned().flatten().unwrap_or_default();
        let mut out: Vec<_> = list
            .iter()
            .enumerate()
            .map(|(at, item)| {
                let key = Bytes::copy_from_slice(items.key(item));
                pair::key_value(key, &shape.shown(item.version), known(at))
            })
            .collect();
        self.read(&piece, |at, value| out[at].value = Bytes::copy_from_slice(value))?;
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
        let mut piece = Piece {
            read,
            part,
            bytes,
            known: Vec::new(),
            missing: Vec::new(),
        };
        if !self.gather.shape.keys_only() {
            self.recall(&mut piece);
        }
        piece
    }

    /// Takes what memory has of a piece's values, and notes the rest.
    fn recall(&self, piece: &mut Piece) {
        let values = &self.shared.values;
        let (_, list) = self.pairs(piece);
        let mut missing = Vec::new();
        let known = list
            .iter()
            .enumerate()
            .map(|(at, item)| {
                let id = item.version.row();
                let value = values.get(id);
                if value.is_none() {
                    missing.push((id, at));
                }
                value
            })
            .collect();
        // Rows lie in the file in this order, and many of a range's were written together.
        missing.sort_unstable_by_key(|(id, _)| *id);
        piece.known = known;
        piece.missing = missing;
    }

    fn pairs<'p>(&'p self, piece: &'p Piece) -> (&'p Items, &'p [Item]) {
        let items = piece.read.as_ref().unwrap_or(&self.gather.items);
        (items, &items.list[piece.part.clone()])
    }

    /// Hands the values that were not in memory to `take`, each with the place of its pair in the piece. Each is copied
    /// by whoever takes it, and not before.
    fn read(&self, piece: &Piece, mut take: impl FnMut(usize, &[u8])) -> Result<(), Error> {
        if piece.missing.is_empty() {
            return Ok(());
        }
        let (_, list) = self.pairs(piece);
        let ids: Vec<RowId> = piece.missing.iter().map(|(id, _)| *id).collect();
        let fresh;
        let view = match &self.hold {
            Hold::View(view) => view,
            Hold::Pin { .. } | Hold::Nothing => {
                fresh = self.shared.backend.view()?;
                &fresh
            }
        };
        let keep = list.len() <= CACHE_PAIRS_MAX;
        let mut odd: Option<RowId> = None;
        view.values(&ids, |nth, value| {
            let (id, at) = piece.missing[nth];
            if value.len() != list[at].version.value_len as usize {
                odd = Some(id);
                return;
            }
            if keep {
                self.shared.values.insert(id, Bytes::copy_from_slice(value), 0);
            }
            take(at, value);
        })?;
        match odd {
            Some(id) => Err(Error::Damaged {
                what: "value",
                name: format!("revision {}.{}", id.main, id.sub),
            }),
            None => Ok(()),
        }
    }
}
