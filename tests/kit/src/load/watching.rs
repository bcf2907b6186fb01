//! A watcher that goes on over broken connections, as etcd's client does it: at another member, from the revision after
//! the last that it was told of.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_api::proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse, watch_request};
use quorate_api::proto::mvccpb;
use tokio::task::JoinHandle;

use super::{act, lock};
use crate::background;
use crate::check::{Batch, Change, Event, Keys, Previous, Watcher};
use crate::client::{Client, WATCH};
use crate::wait::until;

/// To open a watch somewhere. A member that is paused takes connections and answers nothing.
const OPEN_LIMIT: Duration = Duration::from_secs(2);
/// Without any response the watch is opened again elsewhere, as a broken one: the member may be cut off.
const SILENCE_LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// Ends when dropped.
#[derive(Debug)]
pub struct Watching {
    log: Arc<Mutex<Log>>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Log {
    watcher: Watcher,
    /// Why it can't go on.
    ended: Option<String>,
}

enum Interrupted {
    /// Go on elsewhere.
    Broken,
    Ended(String),
}

impl Watching {
    pub fn start(name: String, client: Client, keys: Keys, from: i64) -> Self {
        let watcher = Watcher {
            name,
            keys,
            from,
            batches: Vec::new(),
        };
        let log = Arc::new(Mutex::new(Log { watcher, ended: None }));
        let task = background::handle().spawn(follow(client, log.clone()));
        Self { log, task }
    }

    /// What it got so far, once it was told everything up to `revision`.
    pub fn wait_until(&self, revision: i64, limit: Duration) -> Watcher {
        let name = lock(&self.log).watcher.name.clone();
        until(
            &format!("watcher {name} to be told of revision {revision}"),
            limit,
            || {
                let log = lock(&self.log);
                if let Some(why) = &log.ended {
                    panic!("watcher {name} ended: {why}");
                }
                (log.watcher.told_until() >= revision).then(|| log.watcher.clone())
            },
        )
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(client: Client, log: Arc<Mutex<Log>>) {
    loop {
        match one_stream(&client, &log).await {
            Interrupted::Broken => tokio::time::sleep(PAUSE).await,
            Interrupted::Ended(why) => {
                lock(&log).ended = Some(why);
                return;
            }
        }
    }
}

/// Until the stream ends.
async fn one_stream(client: &Client, log: &Mutex<Log>) -> Interrupted {
    let create = {
        let watcher = &lock(log).watcher;
        WatchCreateRequest {
            key: watcher.keys.first.clone(),
            range_end: watcher.keys.end.clone().unwrap_or_default(),
            start_revision: watcher.told_until() + 1,
            prev_kv: true,
            progress_notify: true,
            ..WatchCreateRequest::default()
        }
    };
    let request = WatchRequest {
        request_union: Some(watch_request::RequestUnion::CreateRequest(create)),
    };
    let opened = tokio::time::timeout(OPEN_LIMIT, client.next().bidi(WATCH, &request)).await;
    let Ok(Ok(mut stream)) = opened else {
        return Interrupted::Broken;
    };
    let mut limit = OPEN_LIMIT; // until it says that the watch is there
    loop {
        let Ok(Some(response)) = stream.next::<WatchResponse>(limit).await else {
            return Interrupted::Broken;
        };
        limit = SILENCE_LIMIT;
        if response.compact_revision != 0 {
            return Interrupted::Ended(format!("compacted at {}", response.compact_revision));
        }
        if response.canceled {
            return Interrupted::Broken; // a member that has lost its leader, or that stops
        }
        if response.created {
            continue; // its revision promises nothing
        }
        let revision = response.header.map_or(0, |header| header.revision);
        let events = response.events.into_iter().map(event).collect::<Option<Vec<_>>>();
        let Some(events) = events else {
            return Interrupted::Ended("an event without a key".to_owned());
        };
        lock(log).watcher.batches.push(Batch { revision, events });
    }
}

fn event(event: mvccpb::Event) -> Option<Event> {
    let deletes = event.r#type == i32::from(mvccpb::event::EventType::Delete);
    let new = event.kv?;
    let previous = match event.prev_kv {
        Some(previous) => Previous::Was(Some(act::kv(previous))),
        // it may also have been compacted meanwhile
        None if deletes || new.version != 1 => Previous::NotAsked,
        None => Previous::Was(None),
    };
    Some(Event {
        revision: new.mod_revision,
        key: new.key.clone(),
        change: match deletes {
            true => Change::Delete,
            false => Change::Put(act::kv(new)),
        },
        previous,
    })
}
