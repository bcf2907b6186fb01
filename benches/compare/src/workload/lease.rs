//! Leases: keep-alives on open streams, grants, revokes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use prost::Message;
use quorate_api::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseRevokeRequest,
    LeaseRevokeResponse,
};

use super::{Bench, LOADERS};
use crate::args::Limit;
use crate::grpc::{Answers, Caller, Questions, Rpc, frame};
use crate::load::{Step, Worker, drive};

/// Longer than any run, so that no lease expires within a window.
const TTL_SECS: i64 = 36_000;

pub async fn keep_alive(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    for &clients in &bench.args.clients {
        let pool = bench.pool(clients).await?;
        let mut workers = Vec::with_capacity(clients);
        for client in 0..clients {
            let mut caller = pool.caller(client);
            let id = grant_one(&mut caller).await?;
            let (questions, answers) = caller.stream(Rpc::LeaseKeepAlive).await?;
            workers.push(KeepAlive {
                questions,
                answers,
                id,
                question: frame(&LeaseKeepAliveRequest { id }),
            });
        }
        bench.measure(workers).await?;
    }
    Ok(())
}

struct KeepAlive {
    questions: Questions,
    answers: Answers,
    id: i64,
    question: Bytes,
}

impl Worker for KeepAlive {
    async fn step(&mut self) -> anyhow::Result<Step> {
        self.questions.send(self.question.clone())?;
        let Some(answer) = self.answers.next().await? else {
            bail!("the server closed a keep-alive stream")
        };
        let answer = LeaseKeepAliveResponse::decode(answer).context("decode a keep-alive's answer")?;
        ensure!(
            answer.id == self.id && answer.ttl == TTL_SECS,
            "lease {:x} answered {answer:?}",
            self.id
        );
        Ok(Step::Done)
    }
}

pub async fn grant(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    for &clients in &bench.args.clients {
        let pool = bench.pool(clients).await?;
        let workers = (0..clients)
            .map(|client| Grant {
                caller: pool.caller(client),
                granted: Vec::new(),
            })
            .collect();
        bench.measure(workers).await?;
    }
    Ok(())
}

struct Grant {
    caller: Caller,
    granted: Vec<i64>,
}

impl Worker for Grant {
    async fn step(&mut self) -> anyhow::Result<Step> {
        self.granted.push(grant_one(&mut self.caller).await?);
        Ok(Step::Done)
    }
}

async fn grant_one(caller: &mut Caller) -> anyhow::Result<i64> {
    let request = LeaseGrantRequest { ttl: TTL_SECS, id: 0 };
    let response: LeaseGrantResponse = caller.unary(Rpc::LeaseGrant, &request).await?;
    ensure!(
        response.id != 0 && response.ttl >= TTL_SECS,
        "a grant answered {response:?}"
    );
    Ok(response.id)
}

/// A tenth of the leases serves the warm-up.
pub async fn revoke(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let leases = bench.args.scale.revoke_leases;
    for &clients in &bench.args.clients {
        let pool = bench.pool(LOADERS).await?;
        let granters = (0..LOADERS)
            .map(|client| Grant {
                caller: pool.caller(client),
                granted: Vec::new(),
            })
            .collect();
        let granted = drive(granters, Limit::Ops(leases))
            .await
            .context("grant leases to revoke")?;
        let granted: Arc<[i64]> = granted.workers.into_iter().flat_map(|worker| worker.granted).collect();

        let pool = bench.pool(clients).await?;
        let (next, limit) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(leases / 10)));
        let workers = (0..clients)
            .map(|client| Revoke {
                caller: pool.caller(client),
                granted: Arc::clone(&granted),
                next: Arc::clone(&next),
                end: Arc::clone(&limit),
            })
            .collect();
        let warm = drive(workers, Limit::Ops(u64::MAX)).await.context("warm-up")?;
        next.store((leases / 10) as usize, Ordering::Relaxed); // failed attempts at its end moved it on
        limit.store(leases, Ordering::Relaxed);
        bench.window(warm.workers, bench.args.limit).await?;
    }
    Ok(())
}

struct Revoke {
    caller: Caller,
    granted: Arc<[i64]>,
    next: Arc<AtomicUsize>,
    end: Arc<AtomicU64>,
}

impl Worker for Revoke {
    async fn step(&mut self) -> anyhow::Result<Step> {
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        if at as u64 >= self.end.load(Ordering::Relaxed) {
            return Ok(Step::Exhausted);
        }
        let request = LeaseRevokeRequest { id: self.granted[at] };
        let response: LeaseRevokeResponse = self.caller.unary(Rpc::LeaseRevoke, &request).await?;
        ensure!(response.header.is_some(), "a revoke's answer without a header");
        Ok(Step::Done)
    }
}
