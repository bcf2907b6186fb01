//! Opening: the index comes back from rows without values, leases and members from their records.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::RwLock;

use super::beside::Beside;
use super::hash::Hashes;
use super::{EventSink, Mvcc, Options, Root, Shared, Store};
use crate::apply::compaction::Compaction;
use crate::apply::{Applier, RAFT_MEMBERSHIP_RECORD};
use crate::backend::disk::{FilePlace, Place};
use crate::backend::{Applied, Backend, Recovered, SystemTable, View};
use crate::error::Error;
use crate::mvcc::index::Index;
use crate::mvcc::reads::OpenReads;
use crate::mvcc::restoring::Restoring;
use crate::mvcc::values::Values;
use crate::stepped::OnWork;
use crate::tables::Tables;

impl Store {
    /// Opens the file at `path`, or makes it.
    pub fn open(path: &Path, options: Options, sink: Box<dyn EventSink>) -> Result<(Store, Applier), Error> {
        Self::open_in(Box::new(FilePlace::new(path)), options, sink)
    }

    /// The same at any place.
    pub fn open_in(
        place: Box<dyn Place>,
        options: Options,
        sink: Box<dyn EventSink>,
    ) -> Result<(Store, Applier), Error> {
        Self::open_with(place, options, sink, None)
    }

    /// With `on_work` there are no threads.
    pub(crate) fn open_with(
        place: Box<dyn Place>,
        options: Options,
        sink: Box<dyn EventSink>,
        on_work: Option<OnWork>,
    ) -> Result<(Store, Applier), Error> {
        let opened = Backend::open_with(&*place, options.backend.clone(), on_work.clone())?;
        let compaction = Arc::new(Compaction::new(on_work.clone()));
        let restored = Restored::of(opened, &options, compaction)?;
        restored.shared.compaction.restart(restored.is_compacted());
        let root = Arc::new(Root {
            current: ArcSwap::new(restored.shared.clone()),
            place: place.into(),
            options,
            on_work,
            beside: Beside::default(),
        });
        let applier = Applier::new(root.clone(), restored, sink)?;
        Ok((Store { root }, applier))
    }
}

/// What a file holds, brought back to memory.
pub(crate) struct Restored {
    pub shared: Arc<Shared>,
    pub applied: Option<Applied>,
    pub membership: Option<Bytes>,
}

impl Restored {
    pub fn of(opened: (Backend, Recovered), options: &Options, compaction: Arc<Compaction>) -> Result<Self, Error> {
        let index = restore_index(&opened.0.view()?)?;
        Self::with(opened, index, options, compaction)
    }

    /// With an index of the rows that are in the file.
    pub fn with(
        (backend, recovered): (Backend, Recovered),
        index: Index,
        options: &Options,
        compaction: Arc<Compaction>,
    ) -> Result<Self, Error> {
        let view = backend.view()?;
        let mut tables = Tables::restore(&view)?;
        index.each_newest(|key, newest| tables.leases.attach(key, newest.lease));
        let membership = view.system(SystemTable::Cluster, RAFT_MEMBERSHIP_RECORD)?;
        drop(view);
        // A file that nothing was ever committed to has revision 0; what was applied is then nothing at all, and not
        // the entry of index 0.
        let fresh = recovered.revision == 0;
        let revision = recovered.revision.max(1);
        #[cfg(feature = "planted")]
        let revision = match crate::planted::is(crate::planted::Bug::LowerRevisionAfterCrash) {
            true => (revision - 1).max(1),
            false => revision,
        };
        let compacted = if fresh { -1 } else { recovered.compacted };
        let applied = (!fresh).then_some(recovered.applied);
        let learners = ArcSwap::from_pointee(tables.members.learners());
        let shared = Arc::new(Shared {
            mvcc: RwLock::new(Mvcc { index, compacted }),
            tables: RwLock::new(tables),
            backend,
            values: Values::new(options.value_cache_bytes),
            reads: Arc::new(OpenReads::default()),
            hashes: Hashes::default(),
            learners,
            compaction,
            range_bytes_max: options.range_bytes_max,
            installed: recovered.installed,
            revision: AtomicI64::new(revision),
            applied_index: AtomicU64::new(applied.map_or(0, |applied| applied.index)),
        });
        Ok(Self {
            shared,
            applied,
            membership,
        })
    }

    /// There may be something that compaction has not removed.
    pub fn is_compacted(&self) -> bool {
        self.shared.mvcc.read().compacted >= 0
    }
}

fn restore_index(view: &View) -> Result<Index, Error> {
    let mut index = Restoring::default();
    view.scan_meta(|row| index.add(&row))?;
    Ok(index.finish())
}

#[cfg(test)]
mod tests {
    use quorate_api::proto::etcdserverpb::{CompactionRequest, DeleteRangeRequest, PutRequest};

    use super::*;
    use crate::command::Command;

    fn open(path: &Path) -> (Store, Applier) {
        let mut options = Options {
            background_compaction: false,
            ..Options::default()
        };
        options.backend.reserve_bytes = 0;
        Store::open(path, options, Box::new(())).unwrap()
    }

    /// B18: also in the middle of a removal.
    #[test]
    fn restored_index_equals_live_index() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let (mut store, mut applier) = open(&path);
        for index in 0..400u64 {
            let key = Bytes::from(format!("{:03}", index * 7919 % 150));
            let command = match index % 10 {
                3 => Command::DeleteRange(DeleteRangeRequest {
                    range_end: Bytes::from_static(b"1"),
                    key,
                    prev_kv: false,
                }),
                7 => Command::Compact(CompactionRequest {
                    revision: store.revision().0 - 10,
                    physical: false,
                }),
                _ => Command::Put(PutRequest {
                    value: key.clone(),
                    key,
                    ..Default::default()
                }),
            };
            applier
                .apply(Applied { index, term: 1 }, vec![command], &mut Vec::new())
                .unwrap();
            if index % 10 == 8 {
                applier.compact_step(40).unwrap();
            }
            if index % 40 == 9 {
                store.flush().unwrap();
                let live = {
                    let shared = store.shared();
                    let mvcc = shared.mvcc.read();
                    (
                        mvcc.index.dump(),
                        mvcc.index.keys(),
                        mvcc.index.live_keys(),
                        mvcc.compacted,
                    )
                };
                drop((store, applier));
                (store, applier) = open(&path);
                let shared = store.shared();
                let mvcc = shared.mvcc.read();
                assert_eq!(
                    (
                        mvcc.index.dump(),
                        mvcc.index.keys(),
                        mvcc.index.live_keys(),
                        mvcc.compacted
                    ),
                    live
                );
            }
        }
    }
}
