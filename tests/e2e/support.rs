//! What the tests of this suite share.

use std::path::Path;
use std::time::Duration;

use quorate_api::proto::etcdserverpb::{PutRequest, PutResponse, RangeRequest, RangeResponse};
use quorate_kit::{Binary, Config, Node, Rpc};
use tempfile::TempDir;
use tonic::Status;

use crate::turn::{self, Turn};

pub const PUT: &str = "/etcdserverpb.KV/Put";
pub const RANGE: &str = "/etcdserverpb.KV/Range";
pub const TXN: &str = "/etcdserverpb.KV/Txn";
pub const DELETE: &str = "/etcdserverpb.KV/DeleteRange";
pub const COMPACT: &str = "/etcdserverpb.KV/Compact";
pub const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// A node and the directory it lives in, which goes after it.
pub struct Own {
    pub node: Node,
    pub dir: Place,
}

/// A directory of a test's own, and its leave to run beside others.
pub struct Place {
    dir: TempDir,
    _turn: Turn,
}

impl Place {
    pub fn new() -> Self {
        Self {
            _turn: turn::shared(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

pub fn binary() -> Binary {
    Binary::under_test(env!("CARGO_BIN_EXE_quorate"))
}

/// A config in a directory of its own.
pub fn config() -> (Config, Place) {
    let dir = Place::new();
    (Config::new(binary(), dir.path()), dir)
}

pub fn start() -> Own {
    start_with(|config| config)
}

pub fn start_with(adjust: impl FnOnce(Config) -> Config) -> Own {
    let (config, dir) = config();
    Own {
        node: Node::start(adjust(config)),
        dir,
    }
}

/// A flag that 3.4 knew under another name.
pub fn experimental(binary: &Binary, flag: &str) -> String {
    if binary.is_34() {
        format!("--experimental-{flag}")
    } else {
        format!("--{flag}")
    }
}

pub async fn put(rpc: &Rpc, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Result<PutResponse, Status> {
    let request = PutRequest {
        key: key.into().into(),
        value: value.into().into(),
        ..PutRequest::default()
    };
    rpc.unary(PUT, &request).await
}

/// Puts and gives the revision.
pub async fn put_at(rpc: &Rpc, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> i64 {
    put(rpc, key, value).await.unwrap().header.unwrap().revision
}

pub async fn get(rpc: &Rpc, key: impl Into<Vec<u8>>) -> Result<RangeResponse, Status> {
    rpc.unary(
        RANGE,
        &RangeRequest {
            key: key.into().into(),
            ..RangeRequest::default()
        },
    )
    .await
}

/// Everything under `prefix`, which must not end in 0xFF.
pub fn prefix(prefix: &str) -> RangeRequest {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().unwrap() += 1;
    RangeRequest {
        key: prefix.as_bytes().to_vec().into(),
        range_end: end.into(),
        ..RangeRequest::default()
    }
}

/// The node answers a write and a linearizable read on a new connection.
pub async fn assert_serves(node: &mut Node) {
    node.assert_alive();
    let rpc = node.rpc();
    let asked = async {
        put(&rpc, "still/here", "yes").await.unwrap();
        let got = get(&rpc, "still/here").await.unwrap();
        assert_eq!(got.kvs.len(), 1);
    };
    tokio::time::timeout(Duration::from_secs(5), asked)
        .await
        .expect("the node serves within 5 s");
}

/// The value that `percent` of `samples` do not exceed.
pub fn percentile(samples: &mut [Duration], percent: usize) -> Duration {
    assert!(!samples.is_empty(), "nothing was measured");
    samples.sort();
    samples[(samples.len() * percent / 100).min(samples.len() - 1)]
}

/// A number of the metrics page.
pub fn metric(node: &Node, name: &str) -> f64 {
    let text = quorate_kit::http::get(node.address(), "/metrics").unwrap().text();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name).and_then(|rest| rest.strip_prefix(' ')))
        .unwrap_or_else(|| panic!("the metrics page has no {name}"));
    line.parse().unwrap()
}

/// A number that the environment may set.
pub fn from_env<T: std::str::FromStr>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}
