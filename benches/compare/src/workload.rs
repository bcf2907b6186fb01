//! What the clients do. Each workload gets a server of its own on fresh data; its client counts follow one another there.

mod cas;
mod kube;
mod kv;
mod lease;
mod list;
pub mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use quorate_api::proto::etcdserverpb::{PutRequest, PutResponse, RangeRequest, RangeResponse};

use crate::args::{Args, Limit};
use crate::data::{Random, Values, scattered};
use crate::grpc::{Caller, Pool, Rpc};
use crate::load::{Step, Worker, drive};
use crate::meter::{Meter, Metrics};
use crate::node::Node;
use crate::scenario;

/// Lists return half a mebibyte each; a thousand of them in flight would measure the client's memory.
pub const LIST_CLIENTS_MAX: usize = 100;
const LOADERS: usize = 100;
const TRICKLE_PUTS: usize = 4;
/// Longer than the 100 ms after which etcd commits.
const TRICKLE_PAUSE: Duration = Duration::from_millis(150);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    Put256,
    Put1k,
    GetLinearizable,
    GetSerializable,
    ListResident,
    ListCold,
    ListColdDisk,
    ListStream,
    CasCreate,
    CasUpdate,
    Kube,
    Watch100,
    Watch1000,
    LeaseKeepAlive,
    LeaseGrant,
    LeaseRevoke,
    Memory,
    Watchers,
}

use Workload as W;

/// All of them: name for the command line, what it does.
const ALL: [(Workload, &str, &str); 18] = [
    (W::Put256, "put-256", "put, 256 B values, over 100,000 keys of 16-64 B"),
    (W::Put1k, "put-1k", "the same with 1 KB values"),
    (
        W::GetLinearizable,
        "get-lin",
        "linearizable get of one key of 10,000, 256 B values",
    ),
    (W::GetSerializable, "get-ser", "serializable get of the same"),
    (
        W::ListResident,
        "list-resident",
        "linearizable list of 500 x 1 KB, lists seen before (at most 100 clients)",
    ),
    (
        W::ListCold,
        "list-cold",
        "each list once, after a restart; page cache as it is",
    ),
    (
        W::ListColdDisk,
        "list-cold-disk",
        "each list once, after a restart from an evicted page cache",
    ),
    (
        W::ListStream,
        "list-stream",
        "the lists of list-resident through RangeStream, which etcd has from 3.7 on",
    ),
    (W::CasCreate, "cas-create", "txn: mod_revision = 0, then put 256 B"),
    (W::CasUpdate, "cas-update", "txn: mod_revision = known, then put 256 B"),
    (
        W::Kube,
        "kube",
        "59 % get, 40 % optimistic writes, 1 % lists in pages of 500, ten watches with prev_kv; 1 KB",
    ),
    (
        W::Watch100,
        "watch-100",
        "256 B puts to 100 watchers of one prefix; an operation is a delivered event",
    ),
    (W::Watch1000, "watch-1000", "the same to 1000 watchers"),
    (
        W::LeaseKeepAlive,
        "lease-keepalive",
        "keep-alive on an open stream, one lease and stream per client",
    ),
    (W::LeaseGrant, "lease-grant", "grant"),
    (W::LeaseRevoke, "lease-revoke", "revoke leases without keys"),
    (
        W::Memory,
        "memory",
        "scenario: 1 M keys of 64 B + 1 KB; peak memory, restart times",
    ),
    (
        W::Watchers,
        "watchers",
        "scenario: 10,000 watchers on 100 streams; memory over idle",
    ),
];

impl Workload {
    pub fn name(self) -> &'static str {
        ALL.iter()
            .find(|(workload, ..)| *workload == self)
            .map_or("?", |(_, name, _)| name)
    }

    pub fn is_scenario(self) -> bool {
        matches!(self, W::Memory | W::Watchers)
    }

    /// Whether it runs with at most [`LIST_CLIENTS_MAX`] clients.
    pub fn caps_clients(self) -> bool {
        matches!(self, W::ListResident | W::ListCold | W::ListColdDisk | W::ListStream)
    }

    /// Whether a server of that version has the calls that the workload makes.
    pub fn runs_on(self, version: (u32, u32)) -> bool {
        self != W::ListStream || version >= (3, 7)
    }
}

/// What runs when nothing is named: every workload, and the scenarios too if small.
pub fn default_set(quick: bool) -> Vec<Workload> {
    ALL.iter()
        .map(|(workload, ..)| *workload)
        .filter(|workload| quick || !workload.is_scenario())
        .collect()
}

/// Names, groups (`put`, `get`, `list`, `cas`, `watch`, `lease`), `default` and `all`, comma-separated.
pub fn select(names: &str) -> Result<Vec<Workload>, String> {
    let mut chosen = Vec::new();
    for name in names.split(',').map(str::trim) {
        let group = format!("{name}-");
        let matching: Vec<_> = ALL
            .iter()
            .filter(|(workload, full, _)| match name {
                "all" => true,
                "default" => !workload.is_scenario(),
                _ => *full == name || full.starts_with(&group),
            })
            .map(|(workload, ..)| *workload)
            .collect();
        if matching.is_empty() {
            return Err(format!(
                "--workloads: no workload or group is called {name:?}; --list shows them"
            ));
        }
        for workload in matching {
            if !chosen.contains(&workload) {
                chosen.push(workload);
            }
        }
    }
    Ok(chosen)
}

pub fn listing() -> String {
    let mut out: String = ALL
        .iter()
        .map(|(_, name, about)| format!("{name:16} {about}\n"))
        .collect();
    out.push_str("\ngroups: put, get, list, cas, watch, lease, default (all but the scenarios), all\n");
    out
}

/// One row of measurements, before medians.
#[derive(Clone, Debug)]
pub struct Sample {
    pub workload: Workload,
    /// `None` where the number of clients is the workload's own.
    pub clients: Option<usize>,
    pub metrics: Metrics,
}

/// One server under one workload.
pub struct Bench<'a> {
    pub args: &'a Args,
    pub values: Values,
    pub node: Node,
    pub workload: Workload,
    pub samples: Vec<Sample>,
}

impl Bench<'_> {
    /// Runs the workload with each number of clients.
    pub async fn run(&mut self) -> anyhow::Result<()> {
        match self.workload {
            W::Put256 => kv::put(self, 256).await,
            W::Put1k => kv::put(self, 1024).await,
            W::GetLinearizable => kv::get(self, false).await,
            W::GetSerializable => kv::get(self, true).await,
            W::ListResident => list::resident(self).await,
            W::ListCold => list::cold(self, false).await,
            W::ListColdDisk => list::cold(self, true).await,
            W::ListStream => list::stream(self).await,
            W::CasCreate => cas::create(self).await,
            W::CasUpdate => cas::update(self).await,
            W::Kube => kube::mix(self).await,
            W::Watch100 => watch::fan_out(self, 100).await,
            W::Watch1000 => watch::fan_out(self, 1000).await,
            W::LeaseKeepAlive => lease::keep_alive(self).await,
            W::LeaseGrant => lease::grant(self).await,
            W::LeaseRevoke => lease::revoke(self).await,
            W::Memory => scenario::memory::run(self).await,
            W::Watchers => scenario::watchers::run(self).await,
        }
    }

    pub async fn pool(&self, clients: usize) -> anyhow::Result<Pool> {
        let conns = self.args.conns.unwrap_or_else(|| clients.div_ceil(100));
        Pool::connect(&self.node.endpoint(), conns).await
    }

    /// Warm-up, then the measured window. Returns the clients and the operations of both.
    async fn measure<T: Worker>(&mut self, workers: Vec<T>) -> anyhow::Result<(Vec<T>, u64)> {
        let warm = drive(workers, Limit::Time(self.args.scale.warm_up))
            .await
            .context("warm-up")?;
        let warm_ops = warm.ops();
        let (workers, ops) = self.window(warm.workers, self.args.limit).await?;
        Ok((workers, warm_ops + ops))
    }

    /// The measured window alone.
    async fn window<T: Worker>(&mut self, workers: Vec<T>, limit: Limit) -> anyhow::Result<(Vec<T>, u64)> {
        let clients = workers.len();
        let meter = Meter::open(self.node.pid()).await?;
        let outcome = drive(workers, limit).await?;
        let ops = outcome.ops();
        let metrics = meter.close(outcome.latencies, outcome.elapsed).await?;
        self.samples.push(Sample {
            workload: self.workload,
            clients: Some(clients),
            metrics,
        });
        Ok((outcome.workers, ops))
    }

    /// [`Self::fill`], then a trickle of writes. A store may keep buffers sized for the burst until later commits (etcd
    /// 3.4 copies such a buffer on every read); the trickle ends that state, which no server in service stays in.
    async fn load(&self, keys: u64, value_bytes: usize, key: fn(u64) -> Bytes) -> anyhow::Result<Revisions> {
        let revisions = self.fill(keys, value_bytes, key).await?;
        let mut caller = Caller::connect(&self.node.endpoint()).await?;
        for _ in 0..TRICKLE_PUTS {
            tokio::time::sleep(TRICKLE_PAUSE).await;
            put(&mut caller, "/trickle".into(), "after the load".into()).await?;
        }
        Ok(revisions)
    }

    /// Puts `keys` keys, one a request and in scattered order; returns each key's revision.
    pub async fn fill(&self, keys: u64, value_bytes: usize, key: fn(u64) -> Bytes) -> anyhow::Result<Revisions> {
        let pool = self.pool(LOADERS).await?;
        let shared = Arc::new(Loading {
            next: AtomicU64::new(0),
            revisions: (0..keys).map(|_| AtomicI64::new(0)).collect::<Vec<_>>().into(),
        });
        let loaders = (0..LOADERS)
            .map(|client| Loader {
                caller: pool.caller(client),
                values: self.values.clone(),
                random: Random::new(client as u64),
                value_bytes,
                key,
                shared: Arc::clone(&shared),
            })
            .collect();
        let outcome = drive(loaders, Limit::Ops(u64::MAX)).await.context("load keys")?;
        ensure!(outcome.ops() == keys, "loaded {} of {keys} keys", outcome.ops());
        Ok(Arc::clone(&shared.revisions))
    }

    /// The store's revision now.
    async fn revision(&self) -> anyhow::Result<i64> {
        let request = RangeRequest {
            key: "none".into(),
            ..Default::default()
        };
        let mut caller = Caller::connect(&self.node.endpoint()).await?;
        let response: RangeResponse = caller.unary(Rpc::Range, &request).await?;
        Ok(response.header.context("an answer without a header")?.revision)
    }

    /// Fails unless exactly `writes` revisions came since `before`: no write lost, none done twice.
    async fn check_writes(&self, before: i64, writes: u64) -> anyhow::Result<()> {
        let came = self.revision().await? - before;
        ensure!(
            came == writes as i64,
            "{writes} writes were acknowledged, but the revision rose by {came}"
        );
        Ok(())
    }
}

/// The latest revision of each object, 0 while it does not exist. Only the client that owns an object writes it.
pub type Revisions = Arc<[AtomicI64]>;

struct Loading {
    next: AtomicU64,
    revisions: Revisions,
}

struct Loader {
    caller: Caller,
    values: Values,
    random: Random,
    value_bytes: usize,
    key: fn(u64) -> Bytes,
    shared: Arc<Loading>,
}

impl Worker for Loader {
    async fn step(&mut self) -> anyhow::Result<Step> {
        let (at, end) = (
            self.shared.next.fetch_add(1, Ordering::Relaxed),
            self.shared.revisions.len() as u64,
        );
        if at >= end {
            return Ok(Step::Exhausted);
        }
        let number = scattered(at, end);
        let value = self.values.cut(&mut self.random, self.value_bytes);
        let revision = put(&mut self.caller, (self.key)(number), value).await?;
        self.shared.revisions[number as usize].store(revision, Ordering::Relaxed);
        Ok(Step::Done)
    }
}

/// One put; returns its revision.
pub async fn put(caller: &mut Caller, key: Bytes, value: Bytes) -> anyhow::Result<i64> {
    let request = PutRequest {
        key,
        value,
        ..Default::default()
    };
    let response: PutResponse = caller.unary(Rpc::Put, &request).await?;
    Ok(response.header.context("a put's answer without a header")?.revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_select_their_members() {
        assert_eq!(select("watch").unwrap(), [W::Watch100, W::Watch1000]);
        assert_eq!(
            select("memory,get-ser,get").unwrap(),
            [W::Memory, W::GetSerializable, W::GetLinearizable]
        );
        assert_eq!(select("all").unwrap().len(), ALL.len());
        assert_eq!(select("default").unwrap(), default_set(false));
        assert!(select("pu").is_err());
    }

    #[test]
    fn every_workload_has_a_name_of_its_own() {
        for (workload, name, _) in ALL {
            assert_eq!(workload.name(), name);
            assert_eq!(ALL.iter().filter(|(_, other, _)| *other == name).count(), 1);
        }
    }
}
