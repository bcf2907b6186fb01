//! What the clients do. Each workload gets a server of its own on fresh data; its client counts follow one another there.

mod cas;
mod catalogue;
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
use crate::cluster::{Cluster, Via};
use crate::data::{Random, Values, scattered};
use crate::grpc::{Caller, Pool, Rpc};
use crate::load::{Step, Worker, drive};
use crate::meter::{ELECTIONS, Meter, Metrics};
use crate::scenario;

use Workload as W;
pub use catalogue::{CLUSTER_MIN, Workload, default_set, listing, select};

/// Lists return half a mebibyte each; a thousand of them in flight would measure the client's memory.
pub const LIST_CLIENTS_MAX: usize = 100;
const LOADERS: usize = 100;
const TRICKLE_PUTS: usize = 4;
/// Longer than the 100 ms after which etcd commits.
const TRICKLE_PAUSE: Duration = Duration::from_millis(150);

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
    pub cluster: Cluster,
    pub workload: Workload,
    pub samples: Vec<Sample>,
}

impl Bench<'_> {
    /// Runs the workload with each number of clients.
    pub async fn run(&mut self) -> anyhow::Result<()> {
        match self.workload {
            W::Put256 => kv::put(self, 256).await,
            W::Put1k => kv::put(self, 1024).await,
            W::GetLinearizable => kv::get(self, self.args.via, false).await,
            W::GetSerializable => kv::get(self, self.args.via, true).await,
            W::GetFollower => kv::get(self, Via::Follower, false).await,
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
            W::LeaderKill => scenario::leader_kill::run(self).await,
            W::LeaderStop => scenario::leader_stop::run(self).await,
            W::Rolling => scenario::rolling::run(self).await,
            W::Join => scenario::join::run(self).await,
            W::Defrag => scenario::defrag::run(self).await,
        }
    }

    pub async fn pool(&self, clients: usize) -> anyhow::Result<Pool> {
        self.pool_via(self.args.via, clients).await
    }

    pub async fn pool_via(&self, via: Via, clients: usize) -> anyhow::Result<Pool> {
        let endpoints = self.cluster.endpoints(via).await?;
        // Each endpoint has a connection, where there are clients enough.
        let conns = (self.args.conns).unwrap_or_else(|| clients.div_ceil(100).max(endpoints.len().min(clients)));
        Pool::connect(&endpoints, conns).await
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
        let before = self.cluster.leadership().await?;
        let meter = Meter::open(self.cluster.pids()).await?;
        let outcome = drive(workers, limit).await?;
        let ops = outcome.ops();
        let mut metrics = meter.close(outcome.latencies, outcome.elapsed).await?;
        let after = self.cluster.leadership().await?;
        metrics.push((ELECTIONS, (after.term - before.term) as f64));
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
        let mut caller = Caller::connect(&self.cluster.any()).await?;
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
        let mut caller = Caller::connect(&self.cluster.any()).await?;
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
