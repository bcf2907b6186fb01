//! Watchers: each follows some keys from some revision, at one member after the other, as clients do whose connection
//! breaks.

use crate::clients::{Asked, kv};
use crate::machine::Life;
use crate::tap::KEYS;
use crate::world::World;
use parking_lot::Mutex;
use prost::Message;
use quorate_api::proto::etcdserverpb::{WatchCreateRequest, WatchResponse};
use quorate_api::proto::mvccpb::event::EventType;
use quorate_kit::check::{Batch, Change, Event, Keys, Previous, Watcher};
use quorate_store::watch::{Header, Response, Segments};
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// What a watcher got so far. Filled by the handler as it sends.
struct Followed {
    watcher: Watcher,
    /// Where it begins is said by the first member that it asks.
    begun: bool,
    compacted: Option<i64>,
    /// The client has gone.
    left: bool,
}

/// A watcher that hears nothing for so long asks how far it is.
const IDLE: Duration = Duration::from_millis(200);

pub async fn run(world: Arc<World>, number: usize) {
    let dice = &world.clients;
    let keys = match dice.chance(60) {
        true => Keys::prefix(KEYS),
        false => Keys::one(format!("{KEYS}{}", dice.below(world.plan.keys))),
    };
    let mut from = match dice.chance(50) {
        true => None,
        false => Some(1 + dice.below(world.around.tap.newest() as u64) as i64),
    };
    loop {
        let followed = Arc::new(Mutex::new(Followed {
            watcher: Watcher {
                name: format!("w{number}"),
                keys: keys.clone(),
                from: from.unwrap_or(0),
                batches: Vec::new(),
            },
            begun: from.is_some(),
            compacted: None,
            left: false,
        }));
        let ended = follow(&world, &followed).await;
        let followed = Arc::into_inner(followed).map(Mutex::into_inner);
        // One whose handler lives on in a stopped process has all that it will get.
        let Some(followed) = followed else {
            return world.around.trace.fail("a watcher that is not let go of");
        };
        if followed.begun {
            world.watchers.lock().push(followed.watcher);
        }
        match (ended, followed.compacted) {
            (true, _) => return,
            // What was at that revision may be gone with it.
            (false, compacted) => from = compacted.map(|compacted| compacted + 1),
        }
    }
}

/// Until the world ends (true), or until compaction has overtaken the watcher.
async fn follow(world: &Arc<World>, followed: &Arc<Mutex<Followed>>) -> bool {
    loop {
        let member = world.some_member();
        let patience = match world.is_over() {
            true => Duration::from_secs(1),
            false => world.clients.millis(100..4000),
        };
        let (asking, into) = (world.clone(), followed.clone());
        let asked = world.ask(member, patience, |life, _| handle(asking, life, into)).await;
        if matches!(asked, Asked::Unknown) {
            // It has let go of the record when its task is gone.
            followed.lock().left = true;
            while Arc::strong_count(followed) > 1 {
                sleep(Duration::from_millis(5)).await;
            }
        }
        let (told, compacted) = {
            let mut followed = followed.lock();
            followed.left = false;
            (followed.watcher.told_until(), followed.compacted)
        };
        if compacted.is_some() {
            return false;
        }
        if world.final_revision().is_some_and(|last| told >= last) {
            return true;
        }
        if world.is_given_up() {
            world.around.trace.fail(format_args!(
                "watcher {} has come to {told} only",
                followed.lock().watcher.name
            ));
            return true;
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Runs at the member, for as long as the connection stands.
async fn handle(world: Arc<World>, life: Arc<Life>, followed: Arc<Mutex<Followed>>) {
    let mut stream = life.hub.stream();
    let (keys, next, begun) = {
        let followed = followed.lock();
        let next = followed.watcher.told_until() + 1;
        (followed.watcher.keys.clone(), next, followed.begun)
    };
    stream.create(WatchCreateRequest {
        key: keys.first.clone(),
        range_end: keys.end.clone().unwrap_or_default(),
        start_revision: if begun { next } else { 0 },
        prev_kv: world.clients.chance(30),
        ..Default::default()
    });
    loop {
        {
            let followed = followed.lock();
            let told = followed.watcher.told_until();
            let done = world.final_revision().is_some_and(|last| told >= last);
            if done || followed.compacted.is_some() || followed.left {
                return;
            }
        }
        match timeout(IDLE, poll_fn(|cx| stream.poll_next(cx))).await {
            Ok(Some(response)) => take(&world, &life, &mut followed.lock(), next, &response),
            Ok(None) => return,
            Err(_) => stream.progress(),
        }
        // Reads slowly, now and then.
        if world.clients.chance(5) {
            sleep(world.clients.millis(1..300)).await;
        }
    }
}

fn take(world: &World, life: &Life, followed: &mut Followed, asked: i64, response: &Response) {
    let mut out = Segments::new();
    response.encode_grpc(&Header::default(), &mut out);
    let bytes = out.take().concat();
    let Ok(response) = WatchResponse::decode(&bytes[5..]) else {
        return world.around.trace.fail("a watch response that can't be read");
    };
    let revision = response.header.as_ref().map_or(0, |header| header.revision);
    let trace = &world.around.trace;
    trace.mark(&[9, life.member, revision as u64, response.events.len() as u64]);
    if response.created {
        if !followed.begun {
            followed.begun = true;
            followed.watcher.from = revision + 1;
        }
        return;
    }
    if response.canceled {
        let next = followed.watcher.told_until() + 1;
        if response.compact_revision == 0 || response.compact_revision <= next.min(asked) {
            trace.fail(format_args!(
                "watcher {} was at {next} and {} ended it: compacted {}, {}",
                followed.watcher.name, life.member, response.compact_revision, response.cancel_reason
            ));
        }
        trace.note(format_args!(
            "watcher {} was overtaken by compaction to {}",
            followed.watcher.name, response.compact_revision
        ));
        followed.compacted = Some(response.compact_revision);
        return;
    }
    let event = |event: quorate_api::proto::mvccpb::Event| {
        let pair = event.kv.unwrap_or_default();
        Event {
            revision: pair.mod_revision,
            key: pair.key.clone(),
            change: match event.r#type == EventType::Delete as i32 {
                true => Change::Delete,
                false => Change::Put(kv(&pair)),
            },
            // The pair before may be gone with compaction, and then is not told.
            previous: match &event.prev_kv {
                Some(before) => Previous::Was(Some(kv(before))),
                None => Previous::NotAsked,
            },
        }
    };
    followed.watcher.batches.push(Batch {
        revision,
        events: response.events.into_iter().map(event).collect(),
    });
}
