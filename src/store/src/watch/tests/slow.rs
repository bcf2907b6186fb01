//! Clients that read slowly or not at all, a dispatcher that is behind, and a store that fails.

use super::super::{HistoryError, Observer, Options, STREAM_SHARE_BYTES};
use super::world::{Op, World, put, revision, revisions, watch};
use parking_lot::Mutex;
use quorate_api::proto::etcdserverpb::WatchCreateRequest;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

fn small() -> Options {
    Options {
        outbox_bytes_max: 4096,
        outbox_responses_max: 8,
        response_bytes: 1024,
        recent_batches: 4,
        ..Options::default()
    }
}

/// D20
#[test]
fn slow_watchers_are_bounded_and_exact() {
    let mut world = World::with(small());
    let mut slow = world.hub.stream();
    let mut fast = world.hub.stream();
    world.create(&mut slow, watch("a", "", 0));
    world.create(&mut slow, watch("a", "b", 0));
    world.create(&mut fast, watch("a", "", 0));
    let value = "v".repeat(100);
    let mut fast_saw = Vec::new();
    for _ in 0..1000 {
        world.put("a", &value);
        fast_saw.extend(revisions(&world.drain(&mut fast)).concat());
        assert!(slow.queued_bytes() <= 4096);
    }
    let all: Vec<i64> = (2..=1001).collect();
    assert_eq!(fast_saw, all, "nobody waits for the slow one");
    assert_eq!(world.hub.stats().behind, 2);

    let got = world.drain(&mut slow);
    for id in [0, 1] {
        let mine: Vec<_> = got.iter().filter(|response| response.watch_id == id).cloned().collect();
        assert_eq!(revisions(&mine).concat(), all);
    }
    assert_eq!(world.hub.stats().behind, 0);
    world.put("a", "");
    assert_eq!(revisions(&world.drain(&mut slow)), [[1002], [1002]]);
}

/// D20
#[test]
fn many_slow_streams_are_bounded_together() {
    let mut world = World::with(Options {
        outboxes_bytes_max: 256 << 10,
        ..Options::default()
    });
    let mut streams: Vec<_> = (0..20).map(|_| world.hub.stream()).collect();
    for stream in &mut streams {
        world.create(stream, watch("a", "", 0));
    }
    let value = "v".repeat(1000);
    for _ in 0..1000 {
        world.put("a", &value);
    }
    let queued = world.hub.stats().queued_bytes;
    assert_eq!(queued, streams.iter().map(|stream| stream.queued_bytes()).sum());
    assert!(queued <= (256 << 10) + 20 * STREAM_SHARE_BYTES, "{queued}");
    for stream in &mut streams {
        let got = world.drain(stream);
        assert_eq!(revisions(&got).concat(), (2..=1001).collect::<Vec<_>>());
    }
    assert_eq!(world.hub.stats().queued_bytes, 0);
    // What a stream leaves behind is not counted either.
    world.put("a", &value);
    assert!(world.hub.stats().queued_bytes > 0);
    drop(streams);
    assert_eq!(world.hub.stats().queued_bytes, 0);
}

/// B8
#[test]
fn starved_watch_loses_nothing_silently() {
    let mut world = World::with(small());
    let mut stream = world.hub.stream();
    world.create(&mut stream, watch("a", "", 0));
    let value = "v".repeat(500);
    for _ in 0..100 {
        world.put("a", &value);
    }
    world.past.compact(90);
    world.put("a", &value);
    let got = world.drain(&mut stream);
    let (last, events) = got.split_last().unwrap();
    let seen = revisions(events).concat();
    assert_eq!(
        seen,
        (2..2 + seen.len() as i64).collect::<Vec<_>>(),
        "what came is without a gap"
    );
    assert!(!seen.is_empty() && seen.len() < 89);
    assert!(last.canceled && last.events.is_empty());
    assert_eq!((last.compact_revision, revision(last)), (90, 0));
}

/// B8
#[test]
fn a_quiet_watcher_on_a_full_stream_is_not_taken_for_one_that_compaction_overtook() {
    let mut world = World::with(small());
    let mut stream = world.hub.stream();
    world.create(&mut stream, watch("loud", "", 0));
    world.create(&mut stream, watch("quiet", "", 0));
    let value = "v".repeat(500);
    for _ in 0..3 {
        world.put("loud", &value);
        world.drain(&mut stream);
    }
    for _ in 0..10 {
        world.put("loud", &value);
    }
    // Compacted while the quiet watcher still takes live events; then it has none to take, for want of room.
    world.past.compact(13);
    world.put("quiet", &value);
    let got = world.drain(&mut stream);
    let (quiet, loud): (Vec<_>, Vec<_>) = got.into_iter().partition(|response| response.watch_id == 1);
    assert_eq!(revisions(&quiet), [[15]]);
    assert_eq!(loud.last().unwrap().compact_revision, 13);
}

#[test]
fn a_transaction_larger_than_the_outbox_still_arrives_whole() {
    let mut world = World::with(small());
    let mut stream = world.hub.stream();
    world.create(&mut stream, watch("a", "b", 0));
    world.create(&mut stream, watch("a", "", 0));
    world.put("a", "small");
    let value = "v".repeat(1000);
    let ops: Vec<Op> = (0..20).map(|n| put(&format!("a{n}"), &value)).collect();
    world.write(&ops);
    world.put("a", "small");
    let got = world.drain(&mut stream);
    let ranged: Vec<_> = got.iter().filter(|response| response.watch_id == 0).cloned().collect();
    let mut want = vec![2];
    want.extend([3; 20]);
    want.push(4);
    assert_eq!(revisions(&ranged).concat(), want);
    assert!(
        ranged.iter().any(|response| response.events.len() >= 20),
        "in one response"
    );
    let single: Vec<_> = got.iter().filter(|response| response.watch_id == 1).cloned().collect();
    assert_eq!(revisions(&single).concat(), [2, 4]);
}

#[test]
fn a_dispatcher_that_is_far_behind_lets_go_of_batches_and_loses_no_event() {
    let mut world = World::with(Options {
        inbox_bytes_max: 10_000,
        ..Options::default()
    });
    let mut stream = world.hub.stream();
    world.create(&mut stream, watch("a", "", 0));
    let value = "v".repeat(500);
    for _ in 0..101 {
        world.write(&[put("a", &value)]);
    }
    let got = world.drain(&mut stream);
    assert_eq!(revisions(&got).concat(), (2..=102).collect::<Vec<_>>());
    assert!(world.past.reads().0 > 0, "history had to help out");
}

#[test]
fn who_is_behind_by_little_needs_no_history() {
    let mut world = World::with(small());
    let mut stream = world.hub.stream();
    for _ in 0..9 {
        world.create(&mut stream, watch("a", "", 0)); // more watchers than responses fit
    }
    for _ in 0..2 {
        world.put("a", "");
    }
    assert_eq!(world.hub.stats().behind, 1);
    assert_eq!(revisions(&world.drain(&mut stream)).concat().len(), 18);
    assert_eq!((world.hub.stats().behind, world.past.reads().0), (0, 0));
}

#[test]
fn watchers_that_stand_at_the_same_place_share_a_read() {
    let mut world = World::new();
    for _ in 0..10 {
        world.put("a", "");
    }
    let mut stream = world.hub.stream();
    for _ in 0..50 {
        stream.create(watch("a", "b", 2));
    }
    let got = world.drain(&mut stream);
    assert_eq!(revisions(&got).concat().len(), 500);
    assert_eq!(world.past.reads().0, 1);
}

#[derive(Default)]
struct Complaints(Mutex<Vec<HistoryError>>);

impl Observer for Complaints {
    fn history_failed(&self, error: &HistoryError) {
        self.0.lock().push(error.clone());
    }
}

#[test]
fn a_failed_read_is_reported_and_tried_again_and_nothing_is_skipped() {
    let complaints = Arc::new(Complaints::default());
    let mut world = World::with(Options {
        observer: complaints.clone(),
        ..small()
    });
    for _ in 0..20 {
        world.put("a", "");
    }
    let mut stream = world.hub.stream();
    world.past.fail(3);
    let got = world.create(&mut stream, watch("a", "", 2));
    assert_eq!(revisions(&got).concat(), (2..=21).collect::<Vec<_>>());
    assert_eq!(complaints.0.lock().len(), 3);

    // The same for the previous pair of a live event: late is better than without it.
    world.create(
        &mut stream,
        WatchCreateRequest {
            prev_kv: true,
            ..watch("a", "", 0)
        },
    );
    world.past.fail(2);
    world.put("a", "");
    let got = world.drain(&mut stream);
    assert_eq!(complaints.0.lock().len(), 5);
    let with_prev: Vec<_> = got.iter().filter(|response| response.watch_id == 1).collect();
    assert_eq!(with_prev.len(), 1);
    assert_eq!(with_prev[0].events[0].prev_kv.as_ref().unwrap().mod_revision, 21);
}

#[test]
fn a_client_that_asks_without_reading_is_asked_for_patience() {
    let mut world = World::with(Options {
        requests_max: 10,
        ..Options::default()
    });
    let mut stream = world.hub.stream();
    let mut cx = Context::from_waker(Waker::noop());
    let mut asked = 0;
    while stream.poll_ready(&mut cx).is_ready() {
        match asked % 3 {
            0 => stream.create(watch("a", "", 0)),
            1 => stream.cancel(0),
            _ => stream.progress(),
        }
        asked += 1;
        world.stepper.settle();
        assert!(asked < 100);
    }
    assert!(asked >= 10);
    while stream.try_next().is_some() {}
    assert!(stream.poll_ready(&mut cx).is_ready());
}

#[test]
fn requests_without_an_answer_are_not_held_against_the_client() {
    let mut world = World::with(Options {
        requests_max: 2,
        ..Options::default()
    });
    let mut stream = world.hub.stream();
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..5 {
        assert!(stream.poll_ready(&mut cx).is_ready());
        stream.cancel(5);
        assert!(stream.poll_ready(&mut cx).is_ready());
        stream.progress();
        assert!(stream.poll_ready(&mut cx).is_pending());
        world.stepper.settle();
    }
}

#[test]
fn notices_do_not_pile_up_for_a_client_that_does_not_read() {
    let mut world = World::with(small());
    let mut stream = world.hub.stream();
    world.create(
        &mut stream,
        WatchCreateRequest {
            progress_notify: true,
            ..watch("a", "", 0)
        },
    );
    for _ in 0..100 {
        world.hub.tick_progress();
        world.stepper.settle();
    }
    assert!(stream.queued_bytes() <= 4096);
    let got = world.drain(&mut stream);
    assert!((1..=8).contains(&got.len()));
    // Room again: events and notices as before.
    world.put("a", "");
    assert_eq!(revisions(&world.drain(&mut stream)), [[2]]);
}

#[test]
fn an_empty_stream_wakes_its_task_once_for_all_that_came() {
    struct Count(std::sync::atomic::AtomicUsize);
    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
    let mut world = World::new();
    let mut stream = world.hub.stream();
    for key in ["a", "b", "c"] {
        world.create(&mut stream, watch(key, "", 0));
    }
    let count = Arc::new(Count(0.into()));
    let waker = Waker::from(count.clone());
    let mut cx = Context::from_waker(&waker);
    assert!(stream.poll_next(&mut cx).is_pending());
    for key in ["a", "b", "c", "a", "d"] {
        world.write(&[put(key, "")]);
    }
    world.stepper.settle();
    assert_eq!(count.0.load(std::sync::atomic::Ordering::Relaxed), 1);
    let mut got = 0;
    while let Poll::Ready(Some(response)) = stream.poll_next(&mut cx) {
        got += response.events_len();
    }
    assert_eq!(got, 4);
}
