//! Compare-and-put: transactions that create a key or replace a revision they know.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, ensure};
use bytes::Bytes;
use quorate_api::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use quorate_api::proto::etcdserverpb::request_op::Request;
use quorate_api::proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse,
};

use super::{Bench, Revisions};
use crate::data::{self, Random, Values};
use crate::grpc::{Caller, Rpc};
use crate::load::{Step, Worker};

const VALUE_BYTES: usize = 256;

/// Changes `key` if its revision is still `known` (0: if it does not exist); `value` absent means delete. Returns the
/// new revision. The callers own their keys, so a refused change is an error.
pub async fn change(caller: &mut Caller, key: Bytes, known: i64, value: Option<Bytes>) -> anyhow::Result<i64> {
    let change = match value {
        Some(value) => Request::RequestPut(PutRequest {
            key: key.clone(),
            value,
            ..Default::default()
        }),
        None => Request::RequestDeleteRange(DeleteRangeRequest {
            key: key.clone(),
            ..Default::default()
        }),
    };
    // As Kubernetes writes: a create asks for nothing when it fails, the others for the present pair.
    let otherwise = (known != 0).then(|| RangeRequest {
        key: key.clone(),
        ..Default::default()
    });
    let request = TxnRequest {
        compare: vec![Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key,
            target_union: Some(TargetUnion::ModRevision(known)),
            ..Default::default()
        }],
        success: vec![RequestOp { request: Some(change) }],
        failure: otherwise
            .map(|range| RequestOp {
                request: Some(Request::RequestRange(range)),
            })
            .into_iter()
            .collect(),
    };
    let response: TxnResponse = caller.unary(Rpc::Txn, &request).await?;
    ensure!(
        response.succeeded,
        "a compare with revision {known} failed on a key that nobody else writes"
    );
    ensure!(
        response.responses.len() == 1,
        "{} answers to one operation",
        response.responses.len()
    );
    let revision = response.header.context("a txn's answer without a header")?.revision;
    ensure!(revision > known, "revision {revision} after {known}");
    Ok(revision)
}

pub async fn create(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let next = Arc::new(AtomicU64::new(0));
    for &clients in &bench.args.clients {
        let pool = bench.pool(clients).await?;
        let before = bench.revision().await?;
        let workers = (0..clients)
            .map(|client| Create {
                caller: pool.caller(client),
                values: bench.values.clone(),
                random: Random::new(client as u64),
                next: Arc::clone(&next),
            })
            .collect();
        let (_, ops) = bench.measure(workers).await?;
        bench.check_writes(before, ops).await?;
    }
    Ok(())
}

struct Create {
    caller: Caller,
    values: Values,
    random: Random,
    next: Arc<AtomicU64>,
}

impl Worker for Create {
    async fn step(&mut self) -> anyhow::Result<Step> {
        let key = data::key(self.next.fetch_add(1, Ordering::Relaxed));
        let value = self.values.cut(&mut self.random, VALUE_BYTES);
        change(&mut self.caller, key, 0, Some(value)).await?;
        Ok(Step::Done)
    }
}

pub async fn update(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let revisions = bench.load(bench.args.scale.get_keys, VALUE_BYTES, data::key).await?;
    for &clients in &bench.args.clients {
        let pool = bench.pool(clients).await?;
        let before = bench.revision().await?;
        let workers = (0..clients)
            .map(|client| {
                Ok(Update {
                    caller: pool.caller(client),
                    values: bench.values.clone(),
                    owned: Owned::new(client, clients, &revisions)?,
                })
            })
            .collect::<anyhow::Result<_>>()?;
        let (_, ops) = bench.measure(workers).await?;
        bench.check_writes(before, ops).await?;
    }
    Ok(())
}

struct Update {
    caller: Caller,
    values: Values,
    owned: Owned,
}

impl Worker for Update {
    async fn step(&mut self) -> anyhow::Result<Step> {
        let number = self.owned.pick();
        let value = self.values.cut(&mut self.owned.random, VALUE_BYTES);
        let known = self.owned.revision(number);
        let revision = change(&mut self.caller, data::key(number), known, Some(value)).await?;
        self.owned.set_revision(number, revision);
        Ok(Step::Done)
    }
}

/// The objects that one client writes: every `clients`-th.
pub struct Owned {
    pub random: Random,
    client: u64,
    clients: u64,
    share: u64,
    revisions: Revisions,
}

impl Owned {
    pub fn new(client: usize, clients: usize, revisions: &Revisions) -> anyhow::Result<Self> {
        let share = (revisions.len() / clients) as u64;
        ensure!(
            share > 0,
            "{clients} clients are more than the {} objects of this workload",
            revisions.len()
        );
        let (client, clients) = (client as u64, clients as u64);
        Ok(Self {
            random: Random::new(client),
            client,
            clients,
            share,
            revisions: Arc::clone(revisions),
        })
    }

    pub fn pick(&mut self) -> u64 {
        self.random.below(self.share) * self.clients + self.client
    }

    pub fn revision(&self, number: u64) -> i64 {
        self.revisions[number as usize].load(Ordering::Relaxed)
    }

    pub fn set_revision(&self, number: u64, revision: i64) {
        self.revisions[number as usize].store(revision, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::atomic::AtomicI64;

    use super::*;

    #[test]
    fn no_object_has_two_owners() {
        let revisions: Revisions = (0..10).map(AtomicI64::new).collect::<Vec<_>>().into();
        let mut seen = HashSet::new();
        for client in 0..3 {
            let mut owned = Owned::new(client, 3, &revisions).unwrap();
            let mine: HashSet<_> = (0..200).map(|_| owned.pick()).collect();
            assert_eq!(mine.len(), 3);
            assert!(mine.iter().all(|number| seen.insert(*number)), "{mine:?} overlaps");
        }
        assert!(Owned::new(0, 11, &revisions).is_err());
    }
}
