//! Nodes of consensus in this process: on real files, or on two disks that fail on demand.

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod wires;

use bytes::Bytes;
use quorate_api::proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest};
use quorate_raft::{Node, Options, StartError};
use quorate_store::command::Command;
use quorate_store::testing::{MemDisk, MemPlace};
use quorate_store::{Applier, Store};
use quorate_wal::disk::{Disk, FaultyDisk, Tear};
use quorate_wal::{LogPos, RealDisk, Wal};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub const MEMBER: u64 = 7;
pub const ELECTION: Duration = Duration::from_millis(1000);

/// As the server's defaults, but for the purge. Each is of a start of its own.
pub fn options() -> Options {
    static BOOTS: AtomicU64 = AtomicU64::new(1);
    let mut options = Options {
        catchup_entries: 5,
        purge_interval: Duration::from_millis(5),
        on_fatal: Arc::new(|reason| panic!("{reason}")),
        ..Options::alone(MEMBER)
    };
    options.identity.boot = BOOTS.fetch_add(1, Ordering::Relaxed);
    options
}

pub fn start(dir: &Path, snapshot_count: u64) -> Arc<Node> {
    let mut stored = quorate_store::Options::default();
    stored.backend.reserve_bytes = 0;
    let (store, applier) = Store::open(&dir.join("store.redb"), stored, Box::new(())).unwrap();
    let (wal, _) = Wal::open(quorate_wal::Options::new(dir.join("wal")), Arc::new(RealDisk)).unwrap();
    let options = Options {
        snapshot_count,
        ..options()
    };
    Node::start(
        quorate_raft::node::Threads::start().unwrap(),
        options,
        wal,
        store,
        applier,
    )
    .unwrap()
}

/// What a member has on disk.
#[derive(Clone, Default)]
pub struct Disks {
    pub log: FaultyDisk,
    pub store: MemDisk,
    pub log_options: Option<quorate_wal::Options>,
    /// The store commits when it is told to, and by itself never.
    pub quiet_store: bool,
}

impl Disks {
    pub fn start(&self) -> Arc<Node> {
        self.try_start(options()).unwrap()
    }

    pub fn try_start(&self, options: Options) -> Result<Arc<Node>, StartError> {
        let (wal, store, applier) = self.open();
        Node::start(quorate_raft::node::Threads::start()?, options, wal, store, applier)
    }

    /// Opens both as the server does.
    pub fn open(&self) -> (Wal, Store, Applier) {
        let mut stored = quorate_store::Options::default();
        stored.backend.reserve_bytes = 0;
        stored.backend.cache_bytes = 1 << 20;
        if self.quiet_store {
            stored.backend.commit_interval = Duration::from_secs(3600);
            stored.backend.commit_bytes = 128 << 20;
        }
        let place = Box::new(MemPlace::with(self.store.clone()));
        let (store, applier) = Store::open_in(place, stored, Box::new(())).unwrap();
        let durable = store.durable().last;
        let wal_options = quorate_wal::Options {
            applied: (durable.index > 0).then_some(LogPos {
                term: durable.term,
                index: durable.index,
            }),
            ..self.log_options.clone().unwrap_or(quorate_wal::Options::new("/wal"))
        };
        let disk: Arc<dyn Disk> = Arc::new(self.log.clone());
        let (wal, _) = Wal::open(wal_options, disk).unwrap();
        (wal, store, applier)
    }

    /// As they are found after a power loss now. What still uses these goes on with them.
    pub fn after_power_loss(&self, tear: Tear) -> Self {
        let after = Self {
            log: self.log.fork(),
            store: MemDisk::with_image(self.store.image()),
            ..self.clone()
        };
        after.log.power_loss(tear);
        after
    }
}

/// Options whose fatal ends are counted.
pub fn counting() -> (Options, Arc<AtomicUsize>) {
    let ends = Arc::new(AtomicUsize::new(0));
    let count = ends.clone();
    let on_fatal = Arc::new(move |_: String| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    (Options { on_fatal, ..options() }, ends)
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

/// Waits until `what` holds; a condition, not a time.
pub fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what} never came true");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>, lease: i64) -> Command {
    Command::Put(PutRequest {
        key: key.into().into(),
        value: value.into().into(),
        lease,
        ..Default::default()
    })
}

pub fn delete(key: impl Into<Vec<u8>>) -> Command {
    Command::DeleteRange(DeleteRangeRequest {
        key: key.into().into(),
        ..Default::default()
    })
}

pub fn value(node: &Node, key: impl Into<Vec<u8>>) -> Option<Bytes> {
    let request = RangeRequest {
        key: key.into().into(),
        ..Default::default()
    };
    let kvs = node.store().range(&request).unwrap().into_kvs().unwrap();
    kvs.into_iter().next().map(|kv| kv.value)
}
