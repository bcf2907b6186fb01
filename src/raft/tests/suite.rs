//! openraft's own suite for storage, over our log and state machine on real files.

#![allow(clippy::unwrap_used)]

use openraft::StorageError;
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use quorate_raft::log_store::LogStore;
use quorate_raft::runtime::watch;
use quorate_raft::state_machine::{Listeners, SnapshotData, StateMachine, received_snapshot};
use quorate_raft::types::{Entry, Membership, TypeConfig, log_id};
use quorate_store::{Options, Store};
use quorate_wal::{RealDisk, Wal};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        // Small, for the suite makes dozens of logs of a few entries.
        let options = quorate_wal::Options {
            segment_bytes: 1 << 20,
            ..quorate_wal::Options::new(dir.path().join("wal"))
        };
        let (wal, _) = Wal::open(options, Arc::new(RealDisk)).unwrap();
        let (_, machine, _) = open(dir.path());
        Ok((dir, LogStore::new(wal), machine))
    }
}

fn open(dir: &Path) -> (Store, StateMachine, watch::Receiver<u64>) {
    let mut options = Options::default();
    options.backend.reserve_bytes = 0;
    let (store, applier) = Store::open(&dir.join("backend"), options, Box::new(())).unwrap();
    let (listeners, applied) = Listeners::quiet();
    (store.clone(), StateMachine::new(applier, store, listeners), applied)
}

#[tokio::test]
async fn log_and_state_machine_pass_the_suite_of_openraft() {
    Suite::test_all(Builder).await.unwrap();
}

/// As a transfer does it: read out, fed to the other store, handed to openraft. Twice in a row (B10).
#[tokio::test]
async fn a_received_snapshot_is_installed_and_announced() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (_, mut from, _) = open(dirs[0].path());
    let (store, mut to, applied) = open(dirs[1].path());
    for index in 0..4 {
        let membership = Membership::new_with_defaults(vec![[1, 2 + index].into()], []);
        let entry = <Entry as openraft::entry::RaftEntry>::new_membership(log_id(1, index), membership);
        from.apply(futures_util::stream::iter([Ok((entry, None))]))
            .await
            .unwrap();
        let mut builder = from.try_create_snapshot_builder(true).await.unwrap();
        let built = builder.build_snapshot().await.unwrap();
        let SnapshotData::Image(image) = built.snapshot else {
            panic!("a built snapshot is an image");
        };
        let mut incoming = store.receive().unwrap();
        image.read().for_each(|piece| incoming.push(piece.unwrap()).unwrap());
        let received = received_snapshot(incoming.finish().unwrap()).unwrap();
        assert_eq!(received.meta, built.meta);
        to.install_snapshot(&built.meta, received.snapshot).await.unwrap();
        assert_eq!(*applied.borrow(), index + 1);
        assert_eq!(to.applied_state().await.unwrap(), from.applied_state().await.unwrap());
        let current = to.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(current.meta, built.meta);
    }
}
