//! Opening: the index comes back from rows without values, leases and members from their records.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};

use parking_lot::RwLock;

use super::{EventSink, Mvcc, Options, Shared, Store};
use crate::apply::compaction::Compaction;
use crate::apply::{Applier, RAFT_MEMBERSHIP_RECORD};
use crate::backend::disk::Disk;
use crate::backend::{Backend, Recovered, SystemTable, View};
use crate::error::Error;
use crate::mvcc::index::Index;
use crate::mvcc::reads::OpenReads;
use crate::mvcc::values::Values;
use crate::mvcc::version::Version;
use crate::tables::Tables;

impl Store {
    /// Opens the file at `path`, or makes it.
    pub fn open(path: &Path, options: Options, sink: Box<dyn EventSink>) -> Result<(Store, Applier), Error> {
        let opened = Backend::open(path, options.backend.clone())?;
        Self::restore(opened, options, sink)
    }

    /// The same on any disk.
    pub fn open_disk(
        disk: Arc<dyn Disk>,
        options: Options,
        sink: Box<dyn EventSink>,
    ) -> Result<(Store, Applier), Error> {
        let opened = Backend::open_disk(disk, options.backend.clone())?;
        Self::restore(opened, options, sink)
    }

    fn restore(
        (backend, recovered): (Backend, Recovered),
        options: Options,
        sink: Box<dyn EventSink>,
    ) -> Result<(Store, Applier), Error> {
        let view = backend.view()?;
        let mut tables = Tables::restore(&view)?;
        let index = restore_index(&view)?;
        index.each_newest(|key, newest| tables.leases.attach(key, newest.lease));
        let membership = view.system(SystemTable::Cluster, RAFT_MEMBERSHIP_RECORD)?;
        drop(view);
        // A file that nothing was ever committed to has revision 0; what was applied is then nothing at all, and not
        // the entry of index 0.
        let fresh = recovered.revision == 0;
        let revision = recovered.revision.max(1);
        let compacted = if fresh { -1 } else { recovered.compacted };
        let applied = (!fresh).then_some(recovered.applied);
        let shared = Arc::new(Shared {
            mvcc: RwLock::new(Mvcc { index, compacted }),
            tables: RwLock::new(tables),
            backend,
            values: Values::new(options.value_cache_bytes),
            reads: Arc::new(OpenReads::default()),
            compaction: Compaction::new(compacted >= 0),
            range_bytes_max: options.range_bytes_max,
            revision: AtomicI64::new(revision),
            applied_index: AtomicU64::new(applied.map_or(0, |applied| applied.index)),
        });
        let applier = Applier::new(shared.clone(), applied, membership, sink, options.background_compaction)?;
        Ok((Store { shared }, applier))
    }
}

fn restore_index(view: &View) -> Result<Index, Error> {
    let mut index = Index::default();
    view.scan_meta(|row| {
        index.restore(row.key, Version::of(&row));
    })?;
    Ok(index)
}
