//! What the hub wants from the store: to read the past.

use crate::event::EventBatch;
use quorate_api::proto::mvccpb;
use quorate_api::{KeyRange, Revision};

/// The store's past, as watchers need it. Called from the hub's own threads, concurrently with apply.
///
/// `revision` reaches a batch before the batch is published to the hub. Otherwise nothing is lost or repeated, but a
/// watcher may have to wait for events that could have been read.
pub trait History: Send + Sync + 'static {
    /// Newest applied revision.
    fn revision(&self) -> Revision;

    /// Revision of the last compaction; −1 if there was none.
    fn compacted(&self) -> i64;

    /// The events in `range` from `from` on, ascending, whole transactions at a time (reduced to `range`), at most
    /// about `bytes_max` of keys and values and at most `batches_max` transactions, but at least one if there is any.
    /// May stop earlier, for example after scanning enough that did not match, as long as `through` moves.
    ///
    /// `from` equal to the compacted revision is fine, and what was deleted by that very revision is then among the
    /// events; below it the answer is [`HistoryError::Compacted`].
    fn read(
        &self,
        range: &KeyRange,
        from: Revision,
        batches_max: usize,
        bytes_max: usize,
    ) -> Result<Replay, HistoryError>;

    /// The pair as written at exactly `mod_revision`; `None` when compaction has taken it.
    fn pair_at(&self, key: &[u8], mod_revision: Revision) -> Result<Option<mvccpb::KeyValue>, HistoryError>;

    /// The same for many, in their order: what costs a lock or a transaction of the backend is then paid once.
    fn pairs_at(&self, wanted: &[(&[u8], Revision)]) -> Result<Vec<Option<mvccpb::KeyValue>>, HistoryError> {
        wanted.iter().map(|(key, at)| self.pair_at(key, *at)).collect()
    }
}

/// A slice of the past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// Never empty batches, by ascending revision.
    pub batches: Vec<EventBatch>,
    /// Every event of the range from `from` up to and including this revision is in `batches`. At the end of history
    /// this is the newest revision; `from − 1` says that there is nothing yet.
    pub through: Revision,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// `at` is the compacted revision.
    #[error("required revision has been compacted at {at}")]
    Compacted { at: i64 },
    /// The backend failed; the text is its error with its causes.
    #[error("read history for watchers: {0}")]
    Failed(String),
}
