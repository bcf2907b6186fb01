//! Clients: any number of requests to any member, each with what came of it.

use crate::machine::{ELECTION, Life};
use crate::world::{Seen, World};
use bytes::Bytes;
use quorate_api::proto::etcdserverpb as pb;
use quorate_api::proto::etcdserverpb::request_op::Request as TxnOp;
use quorate_api::proto::etcdserverpb::response_op::Response as TxnAnswer;
use quorate_api::proto::mvccpb::KeyValue;
use quorate_kit::check::{Answer, Kv, Op, Outcome, Previous, Request};
use quorate_raft::{Node, ProposeError};
use quorate_store::command::{Command, Reply};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

/// What came of a request.
pub enum Asked<T> {
    Done(T),
    /// There is nobody to ask: it was not sent.
    Down,
    /// The connection broke, or it took too long.
    Unknown,
}

impl World {
    /// Asks a member, as over a connection: what runs there ends with its process, and not with the patience of who asks.
    pub async fn ask<T, F>(
        &self,
        member: u64,
        patience: Duration,
        work: impl FnOnce(Arc<Life>, Arc<Node>) -> F,
    ) -> Asked<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let Some((life, node)) = self.serving(member) else {
            sleep(Duration::from_millis(5)).await;
            return Asked::Down;
        };
        sleep(self.clients.millis(0..2)).await;
        let (tell, told) = oneshot::channel();
        let work = work(life.clone(), node);
        let handler = life.process.spawn(async move { drop(tell.send(work.await)) });
        match timeout(patience, told).await {
            Ok(Ok(answer)) => {
                sleep(self.clients.millis(0..2)).await;
                Asked::Done(answer)
            }
            Ok(Err(_)) => Asked::Unknown,
            Err(_) => {
                if self.clients.chance(50) {
                    handler.abort();
                }
                Asked::Unknown
            }
        }
    }

    /// A command, and the revision and the answer that came back.
    pub async fn command(
        self: &Arc<Self>,
        member: u64,
        patience: Duration,
        command: Command,
    ) -> Asked<Result<(i64, Result<Reply, quorate_api::Error>), ProposeError>> {
        let world = self.clone();
        self.ask(member, patience, |life, node| async move {
            let called = world.around.trace.tick();
            let outcome = node.propose(&command).await?;
            world.saw(&life, called, outcome.revision.0);
            Ok((outcome.revision.0, outcome.result))
        })
        .await
    }

    fn saw(&self, life: &Life, called: u64, revision: i64) {
        self.seen.lock().push(Seen {
            member: life.member,
            boot: life.boot,
            called,
            returned: self.around.trace.tick(),
            revision,
        });
    }

    pub async fn range(
        self: &Arc<Self>,
        member: u64,
        patience: Duration,
        request: pb::RangeRequest,
    ) -> Asked<(i64, Vec<KeyValue>)> {
        let world = self.clone();
        self.ask(member, patience, |life, node| async move {
            let called = world.around.trace.tick();
            if !request.serializable && node.barrier().pass().await.is_err() {
                return None;
            }
            let answer = life.store.range(&request).ok()?;
            let revision = answer.revision.0;
            let kvs = answer.into_kvs().ok()?;
            world.saw(&life, called, revision);
            Some((revision, kvs))
        })
        .await
        .flatten()
    }
}

impl<T> Asked<Option<T>> {
    fn flatten(self) -> Asked<T> {
        match self {
            Self::Done(Some(answer)) => Asked::Done(answer),
            Self::Down => Asked::Down,
            Self::Done(None) | Self::Unknown => Asked::Unknown,
        }
    }
}

/// One that does one thing after the other, mostly to the same few keys as the others.
pub struct Client {
    pub number: usize,
    pub world: Arc<World>,
    written: u64,
}

impl Client {
    pub fn new(number: usize, world: Arc<World>) -> Self {
        Self {
            number,
            world,
            written: 0,
        }
    }

    pub async fn run(mut self) {
        let world = self.world.clone();
        let dice = &world.clients;
        let mut home = world.some_member();
        // What it saw last, to swap against.
        let mut known: Option<(Bytes, Option<i64>)> = None;
        while !world.is_over() {
            sleep(dice.millis(1..world.plan.think_ms + 2)).await;
            if dice.chance(20) {
                home = world.some_member();
            }
            let key = Bytes::from(format!("k/{}", dice.below(world.plan.keys)));
            let request = match dice.below(100) {
                0..35 => Request::Put(self.value()),
                35..60 => Request::Get { serializable: false },
                60..72 => Request::Get { serializable: true },
                72..92 => match known.take().filter(|_| dice.chance(80)) {
                    Some((_, expected)) => Request::Swap(expected, self.value()),
                    None => Request::Swap(None, self.value()),
                },
                _ => Request::Delete,
            };
            let called = world.around.trace.tick();
            let outcome = self.perform(home, &key, &request).await;
            let Some(outcome) = outcome else {
                home = world.some_member();
                continue;
            };
            let op = Op {
                client: self.number,
                key: key.clone(),
                called,
                returned: world.around.trace.tick(),
                request,
                outcome,
            };
            world.around.trace.note(format_args!("at {home}: {op:?}"));
            if let Outcome::Unknown = op.outcome {
                home = world.some_member();
            }
            known = op.saw().map(|(seen, _)| (key, seen.as_ref().map(|kv| kv.mod_revision)));
            world.history.lock().ops.push(op);
        }
    }

    fn value(&mut self) -> Bytes {
        self.written += 1;
        // Now and then a large one, so that segments of the log fill up.
        let padding = match self.world.clients.chance(10) {
            true => self.world.clients.below(3000) as usize,
            false => 0,
        };
        format!("{}.{}{}", self.number, self.written, "x".repeat(padding)).into()
    }

    /// `None`: it was not sent.
    async fn perform(&self, member: u64, key: &Bytes, request: &Request) -> Option<Outcome> {
        let world = &self.world;
        let patience = ELECTION * (2 + world.clients.below(5) as u32);
        let prev_kv = world.clients.chance(30);
        let command = match request {
            Request::Get { serializable } => {
                let range = pb::RangeRequest {
                    key: key.clone(),
                    serializable: *serializable,
                    ..Default::default()
                };
                return match world.range(member, patience, range).await {
                    Asked::Done((revision, kvs)) => Some(Outcome::Done(revision, Answer::Got(kvs.first().map(kv)))),
                    Asked::Unknown => Some(Outcome::Unknown),
                    Asked::Down => None,
                };
            }
            Request::Put(value) => Command::Put(pb::PutRequest {
                key: key.clone(),
                value: value.clone(),
                prev_kv,
                ..Default::default()
            }),
            Request::Delete => Command::DeleteRange(pb::DeleteRangeRequest {
                key: key.clone(),
                prev_kv,
                ..Default::default()
            }),
            Request::Swap(expected, value) => Command::Txn(swap(key, *expected, value)),
        };
        let previous = |found: Option<&KeyValue>| match prev_kv {
            true => Previous::Was(found.map(kv)),
            false => Previous::NotAsked,
        };
        let (revision, reply) = match world.command(member, patience, command).await {
            Asked::Done(Ok(done)) => done,
            Asked::Done(Err(ProposeError::TooManyRequests | ProposeError::NoSpace)) => return Some(Outcome::Failed),
            Asked::Done(Err(ProposeError::Unknown | ProposeError::Stopped)) | Asked::Unknown => {
                return Some(Outcome::Unknown);
            }
            Asked::Down => return None,
        };
        let answer = match reply {
            Ok(Reply::Put(put)) => Answer::Put(previous(put.prev_kv.as_ref())),
            Ok(Reply::DeleteRange(deleted)) if deleted.deleted == 0 => Answer::NotDeleted,
            Ok(Reply::DeleteRange(deleted)) => Answer::Deleted(previous(deleted.prev_kvs.first())),
            Ok(Reply::Txn(txn)) if txn.succeeded => Answer::Swapped,
            Ok(Reply::Txn(txn)) => match txn.responses.first().and_then(|first| first.response.as_ref()) {
                Some(TxnAnswer::ResponseRange(found)) => Answer::NotSwapped(found.kvs.first().map(kv)),
                _ => return self.nonsense(&txn),
            },
            other => return self.nonsense(&other),
        };
        Some(Outcome::Done(revision, answer))
    }

    fn nonsense(&self, answer: &dyn std::fmt::Debug) -> Option<Outcome> {
        self.world
            .around
            .trace
            .fail(format_args!("an answer to something else: {answer:?}"));
        None
    }
}

pub fn kv(found: &KeyValue) -> Kv {
    Kv {
        value: found.value.clone(),
        create_revision: found.create_revision,
        mod_revision: found.mod_revision,
        version: found.version,
    }
}

fn swap(key: &Bytes, expected: Option<i64>, value: &Bytes) -> pb::TxnRequest {
    use pb::compare::{CompareResult, CompareTarget, TargetUnion};
    let op = |request| pb::RequestOp { request: Some(request) };
    pb::TxnRequest {
        compare: vec![pb::Compare {
            result: CompareResult::Equal as i32,
            target: CompareTarget::Mod as i32,
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(expected.unwrap_or(0))),
            ..Default::default()
        }],
        success: vec![op(TxnOp::RequestPut(pb::PutRequest {
            key: key.clone(),
            value: value.clone(),
            ..Default::default()
        }))],
        failure: vec![op(TxnOp::RequestRange(pb::RangeRequest {
            key: key.clone(),
            ..Default::default()
        }))],
    }
}
