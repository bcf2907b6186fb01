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

/// D20
#[test]
fn a_stalled_watcher_holds_nothing_of_what_it_does_not_watch() {
    let mut world = World::new();
    let mut stream = world.hub.stream();
    world.create(&mut stream, watch("/index/", "/index0", 0));
    let blob = "b".repeat(1 << 20);
    let mut batches = Vec::new();
    for n in 0..20 {
        let ops = [put(&format!("/index/{n}"), "0123456789"), put("/blob", &blob)];
        let batch = world.past.apply(&ops).unwrap();
        world.hub.publish(vec![batch.clone()]);
        world.stepper.settle();
        batches.push(batch);
    }
    assert_eq!(world.hub.stats().pending_events, 20);
    for batch in batches {
        assert_eq!(Arc::strong_count(&batch), 2, "held by the past and by this test");
    }
    assert_eq!(
        revisions(&world.drain(&mut stream)).concat(),
        (2..=21).collect::<Vec<_>>()
    );
}

/// D20
#[test]
fn small_events_are_charged_with_what_they_take_in_memory() {
    let mut world = World::new();
    let mut stream = world.hub.stream();
    world.create(&mut stream, watch("a", "b", 0));
    for n in 0..1000 {
        world.put(&format!("a{n}"), "");
    }
    assert!(stream.queued_bytes() > 1000 * 300, "{}", stream.queued_bytes());
    // Of a large one there are two copies: as it was written, and as it is sent.
    let before = stream.queued_bytes();
    world.put("a", &"v".repeat(100_000));
    assert!(stream.queued_bytes() - before > 2 * 100_000);
}

#[test]
fn what_watchers_of_one_stream_share_is_charged_once() {
    let mut world = World::new();
    let mut stream = world.hub.stream();
    for _ in 0..100 {
        world.create(&mut stream, watch("a", "", 0));
    }
    world.put("a", &"v".repeat(100_000));
    assert!(stream.queued_bytes() < 300_000, "{}", stream.queued_bytes());
    assert_eq!(revisions(&world.drain(&mut stream)), vec![[2]; 100]);
    assert_eq!(stream.queued_bytes(), 0);
}

/// D20
#[test]
fn stalled_streams_make_room_for_those_that_read() {
    const STALLED: usize = 8;
    let mut world = World::with(Options {
        outbox_bytes_max: 512 << 10,
        outboxes_bytes_max: 512 << 10,
        ..Options::default()
    });
    let mut stalled: Vec<_> = (0..STALLED).map(|_| world.hub.stream()).collect();
    for stream in &mut stalled {
        world.create(stream, watch("a", "b", 0));
    }
    let mut reading = world.hub.stream();
    world.create(&mut reading, watch("a", "b", 0));
    let value = "v".repeat(10_000);
    let mut last = 1;
    while world.hub.stats().queued_bytes < 512 << 10 {
        last = world.put("a", &value);
        world.drain(&mut reading);
    }
    let waiting = world.hub.stats().queued_bytes;
    world.hub.tick_slow();
    world.drain(&mut reading);
    assert_eq!(world.hub.stats().queued_bytes, waiting, "nobody has had time to read");
    world.hub.tick_slow();
    world.drain(&mut reading);
    assert_eq!(world.hub.stats().queued_bytes, 0);
    assert_eq!(world.hub.stats().behind, STALLED as u64);

    // More than the share of a stream when there is too much: the one that reads has room for it.
    let reads = world.past.reads().0;
    let first = last + 1;
    for _ in 0..10 {
        last = world.put("a", &value);
    }
    assert!(reading.queued_bytes() > 2 * STREAM_SHARE_BYTES);
    assert_eq!(world.hub.stats().behind, STALLED as u64);
    let got = world.drain(&mut reading);
    assert_eq!(revisions(&got).concat(), (first..=last).collect::<Vec<_>>());
    assert_eq!(world.past.reads().0, reads);

    // And those that were stalled have lost nothing.
    for stream in &mut stalled {
        let got = world.drain(stream);
        assert_eq!(revisions(&got).concat(), (2..=last).collect::<Vec<_>>());
    }
    assert_eq!(world.hub.stats().behind, 0);
    world.put("a", "");
    assert_eq!(revisions(&world.drain(&mut stalled[0])), [[last + 1]]);
}

/// B5, D20
#[test]
fn progress_that_waits_behind_events_goes_back_with_them() {
    let mut world = World::with(Options {
        outboxes_bytes_max: 1,
        ..Options::default()
    });
    let mut stream = world.hub.stream();
    let request = WatchCreateRequest {
        progress_notify: true,
        ..watch("a", "", 0)
    };
    world.create(&mut stream, request);
    stream.progress();
    world.stepper.settle();
    world.put("a", "2"); // beside it waits an answer that says less
    stream.progress();
    world.stepper.settle();
    for _ in 0..2 {
        world.hub.tick_progress();
        world.stepper.settle();
        world.hub.tick_slow();
        world.stepper.settle();
    }
    let got = world.drain(&mut stream);
    let seen: Vec<_> = got.iter().map(|r| (r.watch_id, revision(r), r.events.len())).collect();
    assert_eq!(seen, [(-1, 1, 0), (0, 2, 1)]);
    stream.progress();
    assert_eq!(revision(&world.drain(&mut stream)[0]), 2);
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

#[test]
fn after_missed_batches_history_is_read_once_for_all_ranges() {
    let mut world = World::new();
    let mut stream = world.hub.stream();
    for n in 0..50 {
        let mut request = watch(&format!("a{n:02}"), &format!("a{:02}", n + 2), 0);
        request.prev_kv = n % 2 == 0;
        world.create(&mut stream, request);
    }
    world.create(&mut stream, watch("a07", "", 0));
    world.create(&mut stream, watch("b", "c", 0));
    // One that stands elsewhere: at the revision after the next.
    world.create(&mut stream, watch("a", "b", 3));
    for n in 0..50 {
        world.past.apply(&[put(&format!("a{n:02}"), "1")]).unwrap();
    }
    world.hub.resync_all();
    let mut got = world.drain(&mut stream);
    got.sort_by_key(|response| response.watch_id);
    let by_id: Vec<_> = got.iter().map(|response| response.watch_id).collect();
    assert_eq!(by_id, [(0..=50).collect::<Vec<_>>(), vec![52]].concat());
    assert_eq!(revisions(&got[..3]), [[2, 3], [3, 4], [4, 5]]);
    assert_eq!(revisions(&got[49..51]), [vec![51], vec![9]]);
    assert_eq!(revisions(&got[51..]), [(3..=51).collect::<Vec<_>>()]);
    assert_eq!(world.past.reads().0, 2);
    assert_eq!(world.hub.stats().behind, 0);
}

#[test]
fn watchers_of_one_range_at_many_revisions_catch_up() {
    let mut world = World::with(small());
    for _ in 0..30 {
        world.put("a", "");
    }
    let mut stream = world.hub.stream();
    for start in 1..=30 {
        stream.create(watch("a", "b", start));
        stream.create(watch("a", "b", start));
    }
    let got = world.drain(&mut stream);
    for id in 0..60 {
        let mine: Vec<_> = got.iter().filter(|response| response.watch_id == id).cloned().collect();
        let first = (id / 2 + 1).max(2);
        assert_eq!(revisions(&mine).concat(), (first..=31).collect::<Vec<_>>());
    }
}

#[test]
fn nobody_is_remembered_twice_while_two_ranges_catch_up() {
    const WATCHERS: usize = 20;
    let mut world = World::with(Options {
        response_bytes: 1, // one transaction per read
        ..Options::default()
    });
    for _ in 0..100 {
        world.put("a", "");
    }
    let mut stream = world.hub.stream();
    for n in 0..WATCHERS {
        stream.create(watch("a", ["b", "c"][n % 2], 2));
    }
    world.stepper.dispatch();
    let mut rounds = 0;
    while world.stepper.read_history() {
        world.stepper.dispatch();
        while stream.try_next().is_some() {}
        assert!(world.stepper.waiting() <= WATCHERS, "{}", world.stepper.waiting());
        rounds += 1;
    }
    assert_eq!(rounds, 200);
    assert_eq!((world.hub.stats().behind, world.stepper.waiting()), (0, 0));
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
