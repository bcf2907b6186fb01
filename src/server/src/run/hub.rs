//! The watch hub of a node: its start, the clock that it does not have, and what is said when it can't read.

use anyhow::Context;
use parking_lot::Mutex;
use quorate_store::watch::{History, HistoryError, Hub, Observer, Options};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tracing::{error, warn};

/// etcd's bound for `--watch-progress-notify-interval`.
const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Time for clients to read what they were sent, before it is taken from them for want of memory.
const SLOW_AFTER: Duration = Duration::from_secs(5);

/// A reason why history can't be read is told no more often. Watchers are tried again twenty times a second.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);
/// Reasons that are remembered.
const REASONS_MAX: usize = 32;

/// Starts the hub and puts it where apply finds it.
pub(super) fn start(history: Arc<dyn History>, options: Options, place: &OnceLock<Hub>) -> anyhow::Result<Hub> {
    let started = Hub::start(history, options).context("start the watch hub")?;
    let hub = place.get_or_init(|| started).clone();
    // What was applied since the hub first looked at the store, and before it was found there, was published to nobody.
    hub.resync_all();
    Ok(hub)
}

pub(super) fn options(message_bytes_max: usize) -> Options {
    Options {
        fragment_bytes: message_bytes_max,
        observer: Arc::new(Complaints::default()),
        ..Default::default()
    }
}

/// Tells the hub how time goes by.
pub(super) async fn tick(hub: Hub, progress_interval: Duration) {
    tokio::join!(tick_progress(&hub, progress_interval), tick_slow(&hub));
}

async fn tick_progress(hub: &Hub, asked: Duration) {
    let interval = asked.max(PROGRESS_INTERVAL_MIN);
    if interval > asked {
        warn!(minimum = ?interval, "adjusting watch progress notify interval to minimum period");
    }
    loop {
        // Up to a tenth more, as etcd does, so that many servers don't speak at once.
        tokio::time::sleep(interval.mul_f64(1.0 + 0.1 * rand::random::<f64>())).await;
        hub.tick_progress();
    }
}

async fn tick_slow(hub: &Hub) {
    loop {
        tokio::time::sleep(SLOW_AFTER).await;
        hub.tick_slow();
    }
}

/// Logs that watchers stand still, since nobody else is told.
#[derive(Default)]
struct Complaints {
    /// When a reason was told, and how often it came up since.
    told: Mutex<HashMap<String, (Instant, u64)>>,
}

impl Complaints {
    /// How often it came up since it was last told, if it is to be told again.
    fn due(&self, reason: String, now: Instant) -> Option<u64> {
        let mut told = self.told.lock();
        if let Some((at, repeated)) = told.get_mut(&reason) {
            if now.saturating_duration_since(*at) < COMPLAINT_INTERVAL {
                *repeated += 1;
                return None;
            }
            *at = now;
            return Some(std::mem::take(repeated));
        }
        if told.len() >= REASONS_MAX {
            told.retain(|_, (at, _)| now.saturating_duration_since(*at) < COMPLAINT_INTERVAL);
        }
        if told.len() >= REASONS_MAX {
            return None;
        }
        told.insert(reason, (now, 0));
        Some(0)
    }
}

impl Observer for Complaints {
    fn history_failed(&self, error: &HistoryError) {
        if let Some(repeated) = self.due(error.to_string(), Instant::now()) {
            error!(%error, repeated, "watchers can't read history");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_api::proto::etcdserverpb::WatchCreateRequest;
    use quorate_api::proto::mvccpb::KeyValue;
    use quorate_api::{KeyRange, Revision};
    use quorate_store::watch::Replay;
    use std::future::poll_fn;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_reason_is_told_once_a_minute() {
        let complaints = Complaints::default();
        let start = Instant::now();
        let due = |reason: &str, seconds| complaints.due(reason.to_owned(), start + Duration::from_secs(seconds));
        assert_eq!(due("disk on fire", 0), Some(0));
        for second in 1..60 {
            assert_eq!(due("disk on fire", second), None);
        }
        assert_eq!(due("row is damaged", 59), Some(0));
        assert_eq!(due("disk on fire", 60), Some(59));
        assert_eq!(due("disk on fire", 61), None);
        // Reasons without end are not remembered without end.
        let told = (0..1000).filter(|n| due(&format!("row {n}"), 62).is_some()).count();
        assert_eq!(told, REASONS_MAX - 2);
        assert_eq!(due("row 1000", 200), Some(0));
    }

    /// A store that applies something just after the hub has looked at it.
    #[derive(Default)]
    struct Moves(AtomicBool);

    impl History for Moves {
        fn revision(&self) -> Revision {
            Revision(if self.0.swap(true, Ordering::SeqCst) { 2 } else { 1 })
        }

        fn compacted(&self) -> i64 {
            -1
        }

        fn read(&self, _: &KeyRange, _: Revision, _: usize, _: usize) -> Result<Replay, HistoryError> {
            Ok(Replay {
                batches: Vec::new(),
                through: Revision(2),
            })
        }

        fn pair_at(&self, _: &[u8], _: Revision) -> Result<Option<KeyValue>, HistoryError> {
            Ok(None)
        }
    }

    #[tokio::test]
    async fn what_was_applied_while_the_hub_started_is_not_waited_for() {
        let place = OnceLock::new();
        let hub = start(Arc::new(Moves::default()), options(1 << 20), &place).unwrap();
        let mut stream = hub.stream();
        stream.create(WatchCreateRequest {
            key: "k".into(),
            ..Default::default()
        });
        stream.progress();
        let mut next = async || {
            let next = poll_fn(|cx| stream.poll_next(cx));
            let response = tokio::time::timeout(Duration::from_secs(20), next).await;
            response.expect("an answer").expect("the hub goes on")
        };
        assert!(next().await.created);
        let progress = next().await;
        assert_eq!((progress.watch_id, progress.revision), (-1, Revision(2)));
    }
}
