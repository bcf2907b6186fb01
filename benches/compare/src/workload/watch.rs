//! Watch fan-out: every put goes to every watcher. An operation is a delivered event, its latency runs from before the
//! put was sent to the event's arrival, and CPU per operation includes the event's share of the put.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use bytes::Bytes;
use prost::Message;
use quorate_api::proto::etcdserverpb::watch_request::RequestUnion;
use quorate_api::proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Bench, Sample};
use crate::args::Limit;
use crate::data::{self, Random, Values};
use crate::grpc::{Answers, Caller, Pool, Questions, Rpc, frame};
use crate::load::{Latencies, Step, Worker, drive};
use crate::meter::Meter;

const PREFIX: &str = "/watched/";
const VALUE_BYTES: usize = 256;
const STREAMS: usize = 10;
const WRITERS: usize = 16;
/// Puts whose events are still under way. Bounded, so that delivery keeps up and a backlog is not what is measured.
const UNDELIVERED_MAX: usize = 32;
const DELIVERY_MAX: Duration = Duration::from_secs(30);

pub async fn fan_out(bench: &mut Bench<'_>, watchers: usize) -> anyhow::Result<()> {
    let pool = bench.pool(watchers).await?;
    let shared = Arc::new(Shared {
        epoch: Instant::now(),
        watchers: watchers as u64,
        delivered: AtomicU64::new(0),
        room: Semaphore::new(UNDELIVERED_MAX),
        latencies: Mutex::new(Latencies::default()),
    });
    let mut readers = watch(&pool, watchers, &shared).await?;
    let writing = bench.pool(1).await?;
    let writers = (0..WRITERS)
        .map(|client| Writer {
            caller: writing.caller(client),
            values: bench.values.clone(),
            random: Random::new(client as u64),
            shared: Arc::clone(&shared),
        })
        .collect();

    // Operations are events here, so an operations limit is turned into puts.
    let limit = match bench.args.limit {
        Limit::Ops(events) => Limit::Ops(events.div_ceil(watchers as u64)),
        time => time,
    };
    let warm = drive(writers, Limit::Time(bench.args.scale.warm_up))
        .await
        .context("warm-up")?;
    let mut events = warm.ops() * watchers as u64;
    all_delivered(&shared, &mut readers, events).await?;
    shared.take_latencies();

    let meter = Meter::open(bench.cluster.pids()).await?;
    let began = Instant::now();
    let outcome = drive(warm.workers, limit).await?;
    events += outcome.ops() * watchers as u64;
    all_delivered(&shared, &mut readers, events).await?;
    let metrics = meter.close(shared.take_latencies(), began.elapsed()).await?;
    // The meter waited for quiet: whatever was delivered beyond has come by now.
    all_delivered(&shared, &mut readers, events).await?;
    bench.samples.push(Sample {
        workload: bench.workload,
        clients: None,
        metrics,
    });
    Ok(())
}

struct Shared {
    epoch: Instant,
    watchers: u64,
    delivered: AtomicU64,
    /// One permit per put that may begin.
    room: Semaphore,
    latencies: Mutex<Latencies>,
}

impl Shared {
    fn take_latencies(&self) -> Latencies {
        std::mem::take(&mut *self.latencies.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// Values begin with the time of their put.
    fn delivered(&self, message: &[u8]) -> anyhow::Result<()> {
        let now = self.now();
        let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        let mut foreign = 0;
        let events = crate::wire::for_each_event(message, |value| match value.first_chunk() {
            Some(sent) if value.len() == VALUE_BYTES => {
                latencies.record(Duration::from_nanos(now.saturating_sub(u64::from_le_bytes(*sent))));
            }
            _ => foreign += 1,
        });
        drop(latencies);
        let events = events.map_err(|_| anyhow!("a watch response is malformed"))?;
        ensure!(foreign == 0, "{foreign} events carry a value that was never put");
        let before = self.delivered.fetch_add(events, Ordering::Relaxed);
        let puts_done = (before + events) / self.watchers - before / self.watchers;
        self.room.add_permits(puts_done as usize);
        Ok(())
    }
}

struct Writer {
    caller: Caller,
    values: Values,
    random: Random,
    shared: Arc<Shared>,
}

impl Worker for Writer {
    async fn step(&mut self) -> anyhow::Result<Step> {
        let room = tokio::time::timeout(DELIVERY_MAX, self.shared.room.acquire()).await;
        room.map_err(|_| anyhow!("no event was delivered for {DELIVERY_MAX:?}"))?
            .context("wait for room")?
            .forget();
        let mut value = self.values.cut(&mut self.random, VALUE_BYTES).to_vec();
        value[..8].copy_from_slice(&self.shared.now().to_le_bytes());
        let key = Bytes::from(format!("{PREFIX}{:06}", self.random.below(1000)));
        super::put(&mut self.caller, key, value.into()).await?;
        Ok(Step::Done)
    }
}

/// Opens the watchers on [`STREAMS`] streams and reads them until they end.
async fn watch(pool: &Pool, watchers: usize, shared: &Arc<Shared>) -> anyhow::Result<JoinSet<anyhow::Result<()>>> {
    let mut readers = JoinSet::new();
    for stream in 0..STREAMS {
        let share = (watchers + stream) / STREAMS;
        let (mut questions, mut answers) = pool.caller(stream).stream(Rpc::Watch).await?;
        open_watchers(&mut questions, &mut answers, (0..share).map(|_| PREFIX.to_owned())).await?;
        let shared = Arc::clone(shared);
        readers.spawn(async move {
            let _open = questions;
            while let Some(message) = answers.next().await? {
                shared.delivered(&message)?;
            }
            Ok(())
        });
    }
    Ok(readers)
}

/// Creates one watcher per prefix on an open stream and waits for all confirmations.
pub async fn open_watchers(
    questions: &mut Questions,
    answers: &mut Answers,
    prefixes: impl Iterator<Item = String>,
) -> anyhow::Result<()> {
    let mut asked = 0;
    for prefix in prefixes {
        let range_end = data::prefix_end(&prefix);
        let create = WatchCreateRequest {
            key: prefix.into(),
            range_end,
            ..Default::default()
        };
        questions.send(frame(&WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        }))?;
        asked += 1;
    }
    for _ in 0..asked {
        let Some(message) = answers.next().await? else {
            bail!("the server closed a watch stream")
        };
        let response = WatchResponse::decode(message)?;
        let created = response.created && !response.canceled;
        ensure!(created, "a watcher was not created: {:?}", response.cancel_reason);
    }
    Ok(())
}

/// Waits until exactly `events` were delivered since the beginning.
async fn all_delivered(shared: &Shared, readers: &mut JoinSet<anyhow::Result<()>>, events: u64) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        if let Some(ended) = readers.try_join_next() {
            ended.context("a reader died")??;
            bail!("a watch stream ended by itself");
        }
        let delivered = shared.delivered.load(Ordering::Relaxed);
        ensure!(
            delivered <= events,
            "{delivered} events were delivered where {events} were due"
        );
        if delivered == events {
            return Ok(());
        }
        ensure!(
            began.elapsed() < DELIVERY_MAX,
            "{delivered} of {events} events after {DELIVERY_MAX:?}"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
