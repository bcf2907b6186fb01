//! A mix shaped like an API server's: linearizable gets, optimistic creates, updates and deletes, lists in pages of 500
//! with the second page pinned to the revision of the first, and one watch with `prev_kv` per resource.
//!
//! Each object has one writer, so each read of it has one right answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, ensure};
use bytes::Bytes;
use prost::Message;
use quorate_api::proto::etcdserverpb::watch_request::RequestUnion;
use quorate_api::proto::etcdserverpb::{RangeRequest, RangeResponse, WatchCreateRequest, WatchRequest, WatchResponse};
use quorate_api::proto::mvccpb::event::EventType;
use tokio::task::JoinSet;

use super::Bench;
use super::cas::{Owned, change};
use crate::data::{self, Values};
use crate::grpc::{Answers, Caller, Questions, Rpc, frame};
use crate::load::{Step, Worker};
use crate::wire;

const VALUE_BYTES: usize = 1024;
const RESOURCES: u64 = 10;
const PAGE: i64 = 500;
const DELIVERY_MAX: Duration = Duration::from_secs(20);

fn prefix(resource: u64) -> String {
    format!("/registry/resource-{resource}/")
}

fn object_key(number: u64) -> Bytes {
    let (resource, object) = (number % RESOURCES, number / RESOURCES);
    format!("{}namespace-{:02}/object-{object:06}", prefix(resource), object % 20).into()
}

pub async fn mix(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let revisions = bench
        .load(bench.args.scale.kube_objects, VALUE_BYTES, object_key)
        .await?;
    let mut watches = Watches::open(bench, bench.revision().await? + 1).await?;
    let writes = Arc::new(AtomicU64::new(0));
    for &clients in &bench.args.clients {
        let pool = bench.pool(clients).await?;
        let (before, written) = (bench.revision().await?, writes.load(Ordering::Relaxed));
        let workers = (0..clients)
            .map(|client| {
                Ok(ApiServer {
                    caller: pool.caller(client),
                    values: bench.values.clone(),
                    owned: Owned::new(client, clients, &revisions)?,
                    writes: Arc::clone(&writes),
                })
            })
            .collect::<anyhow::Result<_>>()?;
        bench.measure(workers).await?;
        let now_written = writes.load(Ordering::Relaxed);
        bench.check_writes(before, now_written - written).await?;
        watches.expect(now_written).await?;
    }
    Ok(())
}

struct ApiServer {
    caller: Caller,
    values: Values,
    owned: Owned,
    writes: Arc<AtomicU64>,
}

impl Worker for ApiServer {
    async fn step(&mut self) -> anyhow::Result<Step> {
        match self.owned.random.below(100) {
            0..59 => self.get().await?,
            59..99 => self.write().await?,
            _ => self.list().await?,
        }
        Ok(Step::Done)
    }
}

impl ApiServer {
    async fn get(&mut self) -> anyhow::Result<()> {
        let number = self.owned.pick();
        let request = RangeRequest {
            key: object_key(number),
            limit: 1,
            ..Default::default()
        };
        let response: RangeResponse = self.caller.unary(Rpc::Range, &request).await?;
        let (found, known) = (
            response.kvs.first().map_or(0, |kv| kv.mod_revision),
            self.owned.revision(number),
        );
        ensure!(
            found == known,
            "a get found revision {found}; the last write was acknowledged at {known}"
        );
        Ok(())
    }

    async fn write(&mut self) -> anyhow::Result<()> {
        let number = self.owned.pick();
        let known = self.owned.revision(number);
        let delete = known != 0 && self.owned.random.below(10) == 0;
        let value = (!delete).then(|| self.values.cut(&mut self.owned.random, VALUE_BYTES));
        let revision = change(&mut self.caller, object_key(number), known, value).await?;
        self.owned.set_revision(number, if delete { 0 } else { revision });
        self.writes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn list(&mut self) -> anyhow::Result<()> {
        let prefix = prefix(self.owned.random.below(RESOURCES));
        let range_end = data::prefix_end(&prefix);
        let mut request = RangeRequest {
            key: prefix.into(),
            range_end,
            limit: PAGE,
            ..Default::default()
        };
        let mut expected = None;
        loop {
            let answer = self.caller.unary_raw(Rpc::Range, frame(&request)).await?;
            let page = wire::range_summary(&answer).map_err(|_| anyhow!("a page is malformed"))?;
            ensure!(
                page.count == expected.unwrap_or(page.count),
                "a pinned page counts {page:?}, not {expected:?}"
            );
            ensure!(
                page.kvs == page.count.min(PAGE as u64),
                "a page came incomplete: {page:?}"
            );
            ensure!(page.more == (page.count > page.kvs), "`more` is wrong: {page:?}");
            ensure!(
                page.kvs == 0 || page.smallest > VALUE_BYTES,
                "a page came without values: {page:?}"
            );
            if !page.more {
                return Ok(());
            }
            if request.revision == 0 {
                request.revision = i64::try_from(page.revision).map_err(|_| anyhow!("revision beyond i64"))?;
            }
            request.key = [page.last_key, b"\0"].concat().into();
            expected = Some(page.count - page.kvs);
        }
    }
}

/// One watch per resource, on streams of one connection.
struct Watches {
    delivered: Arc<AtomicU64>,
    readers: JoinSet<anyhow::Result<()>>,
}

impl Watches {
    async fn open(bench: &Bench<'_>, start_revision: i64) -> anyhow::Result<Self> {
        let pool = bench.pool(1).await?;
        let delivered = Arc::new(AtomicU64::new(0));
        let mut readers = JoinSet::new();
        for resource in 0..RESOURCES {
            let prefix = prefix(resource);
            let range_end = data::prefix_end(&prefix);
            let (key, prev_kv) = (prefix.into(), true);
            let create = WatchCreateRequest {
                key,
                range_end,
                start_revision,
                prev_kv,
                ..Default::default()
            };
            let request = WatchRequest {
                request_union: Some(RequestUnion::CreateRequest(create)),
            };
            let (mut questions, mut answers) = pool.caller(0).stream(Rpc::Watch).await?;
            questions.send(frame(&request))?;
            let created = answers.next().await?.map(WatchResponse::decode).transpose()?;
            ensure!(
                created.is_some_and(|response| response.created),
                "a watch was not created"
            );
            readers.spawn(read_events(questions, answers, Arc::clone(&delivered)));
        }
        Ok(Self { delivered, readers })
    }

    /// Waits until `events` were delivered in all.
    async fn expect(&mut self, events: u64) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            if let Some(ended) = self.readers.try_join_next() {
                ended??;
                bail!("a watch ended by itself");
            }
            let delivered = self.delivered.load(Ordering::Relaxed);
            ensure!(delivered <= events, "{delivered} events for {events} writes");
            if delivered == events {
                return Ok(());
            }
            ensure!(
                began.elapsed() < DELIVERY_MAX,
                "{delivered} events for {events} writes after {DELIVERY_MAX:?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn read_events(_open: Questions, mut answers: Answers, delivered: Arc<AtomicU64>) -> anyhow::Result<()> {
    let mut newest = 0;
    while let Some(message) = answers.next().await? {
        let response = WatchResponse::decode(message)?;
        ensure!(!response.canceled, "a watch was cancelled: {}", response.cancel_reason);
        for event in &response.events {
            let Some(kv) = &event.kv else {
                bail!("an event without a pair")
            };
            ensure!(
                kv.mod_revision > newest,
                "event of revision {} after {newest}",
                kv.mod_revision
            );
            newest = kv.mod_revision;
            let is_create = event.r#type() == EventType::Put && kv.create_revision == kv.mod_revision;
            ensure!(
                is_create || event.prev_kv.is_some(),
                "a change came without the pair before it"
            );
        }
        delivered.fetch_add(response.events.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_lie_in_their_resource() {
        let inside = |number, resource| {
            let prefix = prefix(resource);
            (Bytes::from(prefix.clone())..data::prefix_end(&prefix)).contains(&object_key(number))
        };
        assert!(inside(13, 3) && inside(9_993, 3));
        assert!(!inside(14, 3));
        assert_ne!(object_key(13), object_key(23));
    }
}
