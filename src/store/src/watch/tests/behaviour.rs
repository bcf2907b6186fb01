//! What single watchers and streams see, rule by rule.

use super::super::{History, Options};
use super::world::{Op, World, delete, put, revision, revisions, watch};
use bytes::Bytes;
use quorate_api::error::watch_cancel;
use quorate_api::proto::etcdserverpb::WatchCreateRequest;
use quorate_api::proto::etcdserverpb::watch_create_request::FilterType;

#[test]
fn a_watcher_is_created_first_and_then_sees_what_comes_after() {
    let mut world = World::new();
    world.put("a", "old");
    let mut stream = world.hub.stream();
    // Even if the hub hears of the write before it hears of the watcher.
    stream.create(watch("a", "", 2));
    world.write(&[put("a", "new")]);
    let got = world.drain(&mut stream);
    assert!(got[0].created && got[0].watch_id == 0 && got[0].events.is_empty());
    assert_eq!(revision(&got[0]), 3);
    assert_eq!(revisions(&got[1..]).concat(), [2, 3]);
}

#[test]
fn without_a_start_revision_only_later_writes_are_seen() {
    let mut world = World::new();
    let mut stream = world.hub.stream();
    world.write(&[put("a", "published before the watcher, dispatched after")]);
    let got = world.create(&mut stream, watch("a", "", 0));
    assert_eq!(got.len(), 1);
    assert_eq!(revision(&got[0]), 2);
    world.put("a", "seen");
    let got = world.drain(&mut stream);
    assert_eq!(revisions(&got), [[3]]);
    assert_eq!(
        revision(&got[0]),
        3,
        "a live response carries the revision of its events"
    );
}

/// B15
#[test]
fn future_watch_gets_no_old_event() {
    let mut world = World::new();
    let mut stream = world.hub.stream();
    world.create(&mut stream, watch("a", "z", 5));
    for value in ["2", "3", "4"] {
        world.put("a", value);
        assert_eq!(world.drain(&mut stream), []);
    }
    // Also when it has to catch up in between.
    world.past.apply(&[put("b", "5")]).unwrap();
    world.past.apply(&[put("b", "6")]).unwrap();
    world.hub.resync_all();
    assert_eq!(revisions(&world.drain(&mut stream)).concat(), [5, 6]);
}

/// B14
#[test]
fn future_watch_gets_no_notice() {
    let mut world = World::new();
    let mut stream = world.hub.stream();
    let request = WatchCreateRequest {
        progress_notify: true,
        ..watch("a", "", 3)
    };
    world.create(&mut stream, request);
    for _ in 0..2 {
        world.hub.tick_progress();
        stream.progress();
        assert_eq!(world.drain(&mut stream), []);
        assert!(world.past.revision().0 < 3);
        if world.past.revision().0 < 2 {
            world.put("b", "");
        }
    }
    world.put("b", "");
    world.hub.tick_progress();
    stream.progress();
    let got = world.drain(&mut stream);
    let told: Vec<(i64, i64)> = got.iter().map(|notice| (notice.watch_id, revision(notice))).collect();
    assert_eq!(told, [(0, 3), (-1, 3)]);
}

#[test]
fn created_refused_and_cancelled_are_answered_in_the_order_of_the_requests() {
    let mut world = World::new();
    let mut stream = world.hub.stream();
    stream.create(watch("a", "", 0));
    stream.refuse("rpc error: code = PermissionDenied desc = etcdserver: permission denied");
    stream.cancel(0);
    stream.cancel(0);
    stream.cancel(77);
    stream.create(watch("a", "", 0));
    let got = world.drain(&mut stream);
    let seen: Vec<_> = got
        .iter()
        .map(|r| (r.watch_id, r.created, r.canceled, r.cancel_reason.as_str()))
        .collect();
    assert_eq!(
        seen,
        [
            (0, true, false, ""),
            (
                -1,
                true,
                true,
                "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
            ),
            (0, false, true, ""),
            (1, true, false, ""),
        ]
    );
    assert!(got.iter().all(|response| revision(response) == 1));
}

#[test]
fn ids_are_the_clients_or_the_next_free_one() {
    let mut world = World::new();
    let mut stream = world.hub.stream();
    let mut ids = Vec::new();
    for watch_id in [0, 1, -5, 0, 7, 7, -5, 0] {
        let got = world.create(
            &mut stream,
            WatchCreateRequest {
                watch_id,
                ..watch("a", "", 0)
            },
        );
        ids.push(got[0].watch_id);
        if got[0].canceled {
            assert_eq!(got[0].cancel_reason, watch_cancel::DUPLICATE_ID);
            assert_eq!(got[0].compact_revision, 0);
        }
    }
    assert_eq!(ids, [0, 1, -5, 2, 7, -1, -1, 3]);
    // A cancelled id may be used again.
    stream.cancel(7);
    let got = world.create(
        &mut stream,
        WatchCreateRequest {
            watch_id: 7,
            ..watch("b", "", 0)
        },
    );
    assert!(got[0].canceled && got[1].created && got[1].watch_id == 7);
}

#[test]
fn ranges_follow_the_wire_convention_and_empty_ones_are_refused() {
    let mut world = World::new();
    let mut stream = world.hub.stream();
    for (key, end) in [("b", "a"), ("b", "b"), ("", "\0\0")] {
        let got = world.create(&mut stream, watch(key, end, 0));
        let empty = !key.is_empty();
        assert_eq!(got[0].canceled, empty, "{key:?}..{end:?}");
        assert_eq!(got[0].cancel_reason, if empty { watch_cancel::EMPTY_RANGE } else { "" });
    }
    let mut stream = world.hub.stream();
    for (key, end) in [("b", ""), ("b", "d"), ("b", "\0"), ("", "\0"), ("", "")] {
        world.create(&mut stream, watch(key, end, 0));
    }
    world.write(&[put("a", ""), put("b", ""), put("c", ""), put("d", ""), put("\0", "")]);
    let mut seen = world.drain(&mut stream);
    seen.sort_by_key(|response| response.watch_id);
    let keys: Vec<String> = seen
        .iter()
        .map(|r| {
            r.events
                .iter()
                .map(|e| String::from_utf8_lossy(&e.kv.as_ref().unwrap().key).into_owned())
                .collect()
        })
        .collect();
    assert_eq!(keys, ["b", "bc", "bcd", "abcd\0", "\0"]);
}

#[test]
fn a_negative_start_revision_is_refused_as_compacted() {
    let mut world = World::new();
    let mut stream = world.hub.stream();
    let got = world.create(&mut stream, watch("a", "", -1));
    assert!(got[0].created && got[0].canceled);
    assert_eq!((got[0].watch_id, got[0].compact_revision), (-1, 0));
    assert_eq!(got[0].cancel_reason, watch_cancel::COMPACTED);
}

/// B7
#[test]
fn txn_delivers_each_event_once() {
    let mut world = World::new();
    let mut stream = world.hub.stream();
    // Watched by key and by two ranges that overlap; each watcher gets each event once, all in one response.
    for (key, end) in [("a", ""), ("a", "c"), ("", "\0")] {
        world.create(&mut stream, watch(key, end, 0));
    }
    let revision = world.write(&[put("a", "1"), put("b", "1"), delete("a"), put("a", "2")]);
    let got = world.drain(&mut stream);
    assert_eq!(got.len(), 3);
    for response in got {
        let want = if response.watch_id == 0 { 3 } else { 4 };
        assert_eq!(response.events.len(), want);
        assert!(
            response
                .events
                .iter()
                .all(|event| event.kv.as_ref().unwrap().mod_revision == revision)
        );
    }
    // A batch that is published twice (a replayed log) is delivered once.
    let batch = world.past.apply(&[put("a", "3")]).unwrap();
    world.hub.publish(vec![batch.clone(), batch.clone()]);
    world.hub.publish(vec![batch]);
    assert_eq!(revisions(&world.drain(&mut stream)), [[3], [3], [3]]);
}

#[test]
fn events_that_are_queued_together_share_a_response() {
    let mut world = World::new();
    let mut stream = world.hub.stream();
    world.create(&mut stream, watch("a", "", 0));
    world.write(&[put("a", "2")]);
    world.write(&[put("a", "3")]);
    world.stepper.dispatch();
    world.write(&[put("a", "4")]);
    let got = world.drain(&mut stream);
    assert_eq!(
        revisions(&got),
        [[2, 3, 4]],
        "nobody has taken the response before the last event came"
    );
    assert_eq!(revision(&got[0]), 4);
}

/// B5, B47
#[test]
fn progress_never_overtakes_events() {
    let mut world = World::new();
    let mut stream = world.hub.stream();
    let request = WatchCreateRequest {
        progress_notify: true,
        ..watch("a", "", 0)
    };
    world.create(&mut stream, request);
    world.write(&[put("a", "2")]);
    stream.progress(); // asked when the write is applied but not dispatched: the answer covers it
    world.write(&[put("a", "3")]);
    let got = world.drain(&mut stream);
    assert_eq!(revisions(&got), [vec![2, 3], vec![]]);
    assert_eq!((got[1].watch_id, revision(&got[1])), (-1, 3));

    // Applied, but not even published: the answer waits for it.
    let batch = world.past.apply(&[put("a", "4")]).unwrap();
    stream.progress();
    assert_eq!(world.drain(&mut stream), []);
    world.hub.publish(vec![batch]);
    let got = world.drain(&mut stream);
    assert_eq!(revisions(&got), [vec![4], vec![]]);
    assert_eq!(revision(&got[1]), 4);
}

/// B47
#[test]
fn progress_answers_stay_ordered() {
    let mut world = World::new();
    let mut stream = world.hub.stream();
    let request = WatchCreateRequest {
        progress_notify: true,
        ..watch("a", "", 0)
    };
    world.create(&mut stream, request);
    // Notices are not overtaken by later events of the same watcher either: a client would be told less than it has.
    let mut last = 0;
    for round in 0..4 {
        world.put(if round % 2 == 0 { "a" } else { "b" }, "");
        stream.progress();
        world.stepper.settle();
        world.hub.tick_progress();
        world.stepper.settle();
    }
    for response in world.drain(&mut stream) {
        assert!(revision(&response) >= last, "{response:?} after {last}");
        last = revision(&response);
    }
    assert_eq!(last, 5);
}

#[test]
fn notices_come_to_those_who_want_them_and_heard_nothing_since_the_last() {
    let mut world = World::new();
    let mut stream = world.hub.stream();
    for (key, progress_notify) in [("a", true), ("b", true), ("c", false)] {
        world.create(
            &mut stream,
            WatchCreateRequest {
                progress_notify,
                ..watch(key, "", 0)
            },
        );
    }
    world.put("a", "");
    let mut told = Vec::new();
    for _ in 0..2 {
        world.drain(&mut stream);
        world.hub.tick_progress();
        told.push(
            world
                .drain(&mut stream)
                .iter()
                .map(|r| (r.watch_id, revision(r)))
                .collect::<Vec<_>>(),
        );
    }
    assert_eq!(told, [vec![(1, 2)], vec![(0, 2), (1, 2)]]);
}

#[test]
fn progress_of_a_stream_needs_watchers_and_all_of_them_up_to_date() {
    let mut world = World::new();
    for _ in 0..5 {
        world.put("a", "");
    }
    let mut stream = world.hub.stream();
    stream.progress();
    assert_eq!(world.drain(&mut stream), [], "no watcher, no answer");
    world.create(&mut stream, watch("a", "", 0));
    stream.create(watch("a", "", 2));
    world.stepper.dispatch(); // created, but its history was not read
    stream.progress();
    let got = world.drain(&mut stream);
    assert_eq!(
        revisions(&got),
        [vec![], vec![2, 3, 4, 5, 6]],
        "one is behind: no answer"
    );
    stream.progress();
    let got = world.drain(&mut stream);
    assert_eq!((got.len(), got[0].watch_id, revision(&got[0])), (1, -1, 6));
}

#[test]
fn a_question_is_not_silenced_by_the_watcher_that_is_created_after_it() {
    let mut world = World::new();
    for _ in 0..5 {
        world.put("a", "");
    }
    let mut stream = world.hub.stream();
    world.create(&mut stream, watch("a", "", 0));
    stream.progress();
    stream.create(watch("a", "", 2)); // in the same turn, and behind
    let got = world.drain(&mut stream);
    assert_eq!((got[0].watch_id, revision(&got[0]), got[0].created), (-1, 6, false));
    assert!(got[1].created);
    assert_eq!(revisions(&got[2..]), [[2, 3, 4, 5, 6]]);
}

/// B5, B47
#[test]
fn progress_never_says_less_than_history_has_delivered() {
    let mut world = World::new();
    for value in ["2", "3"] {
        world.put("a", value);
    }
    let mut stream = world.hub.stream();
    let request = WatchCreateRequest {
        progress_notify: true,
        ..watch("a", "", 2)
    };
    stream.create(request);
    world.stepper.dispatch(); // the watcher is created, and its history asked for
    let mut batches = vec![world.past.apply(&[put("a", "4")]).unwrap()];
    stream.progress();
    world.stepper.dispatch(); // asked at revision 4, which the dispatcher has not seen
    batches.push(world.past.apply(&[put("a", "5")]).unwrap());
    world.stepper.read_history(); // history serves even revision 5
    world.hub.publish(vec![batches.remove(0)]);
    for _ in 0..2 {
        // The second time there was no event since the last tick.
        world.hub.tick_progress();
        let got = world.drain(&mut stream);
        assert!(
            got.iter()
                .all(|response| response.created || !response.events.is_empty()),
            "{got:?}"
        );
    }
    world.hub.publish(batches);
    let got = world.drain(&mut stream);
    assert_eq!(got.len(), 1);
    assert_eq!((got[0].watch_id, revision(&got[0]), got[0].events.len()), (-1, 5, 0));
    world.hub.tick_progress();
    let got = world.drain(&mut stream);
    assert_eq!((got[0].watch_id, revision(&got[0]), got[0].events.len()), (0, 5, 0));
}

#[test]
fn filters_drop_kinds_of_events_and_empty_responses() {
    let mut world = World::new();
    let mut stream = world.hub.stream();
    for filters in [
        vec![FilterType::Noput],
        vec![FilterType::Nodelete],
        vec![FilterType::Noput, FilterType::Nodelete],
    ] {
        world.create(
            &mut stream,
            WatchCreateRequest {
                filters: filters.into_iter().map(Into::into).collect(),
                ..watch("a", "", 0)
            },
        );
    }
    world.put("a", "");
    assert_eq!(
        world.drain(&mut stream).iter().map(|r| r.watch_id).collect::<Vec<_>>(),
        [1]
    );
    world.write(&[delete("a")]);
    assert_eq!(
        world.drain(&mut stream).iter().map(|r| r.watch_id).collect::<Vec<_>>(),
        [0]
    );
}

#[test]
fn previous_pairs_are_read_once_for_all_who_want_them() {
    let mut world = World::new();
    let mut stream = world.hub.stream();
    for (key, end) in [("a", ""), ("a", ""), ("", "\0")] {
        world.create(
            &mut stream,
            WatchCreateRequest {
                prev_kv: true,
                ..watch(key, end, 0)
            },
        );
    }
    world.create(&mut stream, watch("a", "", 0));
    world.put("a", "1");
    assert!(
        world.drain(&mut stream).iter().all(|r| r.events[0].prev_kv.is_none()),
        "nothing was there before"
    );
    assert_eq!(world.past.reads().1, 0);
    world.put("a", "2");
    for response in world.drain(&mut stream) {
        let prev = response.events[0].prev_kv.as_ref().map(|pair| pair.value.clone());
        assert_eq!(prev, (response.watch_id < 3).then(|| Bytes::from("1")));
    }
    assert_eq!(world.past.reads().1, 1);
}

#[test]
fn previous_pairs_of_one_turn_are_read_together() {
    let mut world = World::new();
    let mut stream = world.hub.stream();
    let request = WatchCreateRequest {
        prev_kv: true,
        ..watch("", "\0", 0)
    };
    world.create(&mut stream, request);
    for key in ["a", "b", "c"] {
        world.put(key, "1");
    }
    world.write(&[put("a", "2"), put("b", "2"), put("new", "2")]);
    world.write(&[put("b", "3"), put("c", "3")]);
    let events = world
        .drain(&mut stream)
        .into_iter()
        .flat_map(|response| response.events);
    let prev: Vec<_> = events
        .skip(3)
        .map(|event| event.prev_kv.map(|pair| pair.value))
        .collect();
    let want = ["1", "1", "", "2", "1"].map(|value| (!value.is_empty()).then(|| Bytes::from(value)));
    assert_eq!(prev, want);
    assert_eq!((world.past.reads().1, world.past.pair_calls()), (4, 1));
}

#[test]
fn a_previous_pair_that_was_compacted_is_left_out() {
    let mut world = World::new();
    world.put("a", "2");
    world.put("a", "3");
    world.put("a", "4");
    world.past.compact(3);
    let mut stream = world.hub.stream();
    let got = world.create(
        &mut stream,
        WatchCreateRequest {
            prev_kv: true,
            ..watch("a", "", 3)
        },
    );
    let prev: Vec<_> = got[1]
        .events
        .iter()
        .map(|e| e.prev_kv.as_ref().map(|pair| pair.mod_revision))
        .collect();
    assert_eq!(prev, [None, Some(3)]);
}

/// B11, B13, B47
#[test]
fn watch_at_compaction_revision_sees_delete() {
    let mut world = World::new();
    world.put("a", "");
    let deleted = world.write(&[delete("a")]);
    world.put("b", "");
    world.past.compact(deleted);
    let mut stream = world.hub.stream();
    let got = world.create(&mut stream, watch("a", "", deleted));
    assert!(got[0].created && !got[0].canceled);
    assert_eq!(revisions(&got[1..]), [[deleted]]);
    let kv = got[1].events[0].kv.as_ref().unwrap();
    assert_eq!(
        (kv.version, kv.create_revision, kv.value.len()),
        (0, 0, 0),
        "a delete has key and revision only"
    );
}

/// B11
#[test]
fn compaction_on_delete_keeps_the_event() {
    let mut world = World::with(Options {
        recent_batches: 0,
        ..Options::default()
    });
    let mut stream = world.hub.stream();
    world.create(&mut stream, watch("a", "", 0));
    world.put("a", "");
    // Its delete is skipped by the hub (an install) and compacted before the watcher has read it.
    let deleted = world.past.apply(&[delete("a")]).unwrap().revision.0;
    world.past.compact(deleted);
    world.hub.resync_all();
    let got = world.drain(&mut stream);
    assert_eq!(revisions(&got).concat(), [2, deleted]);
}

#[test]
fn a_watcher_that_compaction_overtakes_ends_with_one_response_and_keeps_its_id() {
    let mut world = World::new();
    for _ in 0..5 {
        world.put("a", "");
    }
    world.past.compact(4);
    let mut stream = world.hub.stream();
    let got = world.create(
        &mut stream,
        WatchCreateRequest {
            watch_id: 9,
            ..watch("a", "", 3)
        },
    );
    assert_eq!(got.len(), 2);
    assert!(got[0].created && !got[0].canceled && revision(&got[0]) == 6);
    assert!(!got[1].created && got[1].canceled);
    assert_eq!((got[1].watch_id, got[1].compact_revision, revision(&got[1])), (9, 4, 0));
    assert_eq!(got[1].cancel_reason, "");
    assert_eq!(got[1].header.as_ref().unwrap().raft_term, 2);

    world.put("a", "");
    assert_eq!(world.drain(&mut stream), []);
    let again = WatchCreateRequest {
        watch_id: 9,
        ..watch("a", "", 0)
    };
    assert_eq!(
        world.create(&mut stream, again.clone())[0].cancel_reason,
        watch_cancel::DUPLICATE_ID
    );
    stream.cancel(9);
    let got = world.create(&mut stream, again);
    assert!(got[0].canceled && got[0].watch_id == 9 && got[0].compact_revision == 0);
    assert!(got[1].created && got[1].watch_id == 9);
}

#[test]
fn compaction_does_not_touch_a_watcher_that_has_seen_everything() {
    let mut world = World::new();
    let mut stream = world.hub.stream();
    world.create(&mut stream, watch("quiet", "", 0));
    for _ in 0..10 {
        world.put("loud", "");
    }
    world.past.compact(11);
    // Not even when it has to turn to history right then: nothing before was for it.
    world.past.apply(&[put("quiet", "")]).unwrap();
    world.hub.resync_all();
    assert_eq!(revisions(&world.drain(&mut stream)), [[12]]);
}

/// B6
#[test]
fn watch_never_goes_back_after_snapshot() {
    let mut world = World::new();
    let mut stream = world.hub.stream();
    world.create(&mut stream, watch("a", "z", 0));
    world.put("a", "2");
    world.put("a", "3");
    world.drain(&mut stream);
    // Published, not dispatched, and then covered by the snapshot together with more.
    world.write(&[put("b", "4")]);
    for value in ["5", "6"] {
        world.past.apply(&[put("c", value)]).unwrap();
    }
    world.hub.resync_all();
    assert_eq!(revisions(&world.drain(&mut stream)).concat(), [4, 5, 6]);
    world.put("a", "7");
    assert_eq!(revisions(&world.drain(&mut stream)), [[7]]);
}

/// What a node does at start: between the first look at the store's revision and the first published batch, there may
/// have been one that nobody was told of.
#[test]
fn a_resync_makes_up_for_batches_that_no_hub_was_told_of() {
    let mut world = World::new();
    world.past.apply(&[put("a", "2")]).unwrap();
    let mut stream = world.hub.stream();
    world.create(&mut stream, watch("a", "", 0));
    stream.progress();
    assert_eq!(
        world.drain(&mut stream),
        [],
        "the hub waits for what it takes to be on its way"
    );
    world.hub.resync_all();
    let got = world.drain(&mut stream);
    assert_eq!((got[0].watch_id, revision(&got[0])), (-1, 2));
}

#[test]
fn a_gap_between_published_batches_is_filled_from_history() {
    let mut world = World::new();
    let mut stream = world.hub.stream();
    world.create(&mut stream, watch("a", "", 0));
    world.write(&[put("a", "2")]);
    world.past.apply(&[put("a", "3")]).unwrap();
    world.write(&[put("a", "4")]);
    assert_eq!(revisions(&world.drain(&mut stream)).concat(), [2, 3, 4]);
}

#[test]
fn the_header_of_old_events_is_the_stores_revision() {
    let mut world = World::with(Options {
        response_bytes: 1, // one transaction per read
        ..Options::default()
    });
    for _ in 0..3 {
        world.put("a", "");
    }
    world.put("b", "");
    let mut stream = world.hub.stream();
    let got = world.create(&mut stream, watch("a", "", 2));
    assert_eq!(revisions(&got[1..]), [[2], [3], [4]]);
    assert!(got.iter().all(|response| revision(response) == 5));
}

#[test]
fn catching_up_takes_at_most_a_thousand_revisions_per_response() {
    let mut world = World::new();
    for _ in 0..2500 {
        world.write(&[put("a", "")]);
    }
    let mut stream = world.hub.stream();
    let got = world.create(&mut stream, watch("a", "", 1));
    let revisions = revisions(&got);
    assert!(revisions.iter().all(|response| response.len() <= 1000));
    assert_eq!(revisions.concat(), (2..=2501).collect::<Vec<_>>());
}

#[test]
fn large_responses_are_split_for_those_who_take_fragments_only() {
    let mut world = World::with(Options {
        fragment_bytes: 10_000,
        ..Options::default()
    });
    let mut stream = world.hub.stream();
    for fragment in [false, true] {
        world.create(
            &mut stream,
            WatchCreateRequest {
                fragment,
                ..watch("k", "l", 0)
            },
        );
    }
    let value = "v".repeat(3000);
    let ops: Vec<Op> = (0..10).map(|n| put(&format!("k{n}"), &value)).collect();
    let at = world.write(&ops);
    let got = world.drain(&mut stream);
    let (whole, pieces): (Vec<_>, Vec<_>) = got.into_iter().partition(|response| response.watch_id == 0);
    assert_eq!((whole.len(), whole[0].events.len(), whole[0].fragment), (1, 10, false));
    assert_eq!(pieces.len(), 4);
    assert!(
        pieces
            .iter()
            .all(|piece| prost::Message::encoded_len(piece) < 10_000 && revision(piece) == at)
    );
    assert_eq!(
        pieces.iter().map(|piece| piece.fragment).collect::<Vec<_>>(),
        [true, true, true, false]
    );
    assert_eq!(
        pieces.iter().flat_map(|piece| piece.events.clone()).collect::<Vec<_>>(),
        whole[0].events
    );

    // One event can't be split.
    world.write(&[put("k", &"v".repeat(20_000))]);
    assert!(
        world
            .drain(&mut stream)
            .iter()
            .all(|response| response.events.len() == 1 && !response.fragment)
    );
}

#[test]
fn nothing_comes_for_a_cancelled_watcher() {
    let mut world = World::new();
    world.put("a", "2");
    let mut stream = world.hub.stream();
    stream.create(watch("a", "", 1));
    world.stepper.dispatch(); // a read of history is under way
    stream.cancel(0);
    world.write(&[put("a", "3")]);
    let got = world.drain(&mut stream);
    assert_eq!(got.len(), 2);
    assert!(got[0].created && got[1].canceled);
    assert_eq!(world.hub.stats().watchers, 0);
}

#[test]
fn a_dropped_stream_takes_its_watchers_along() {
    let mut world = World::new();
    let mut kept = world.hub.stream();
    world.create(&mut kept, watch("a", "", 0));
    let mut stream = world.hub.stream();
    for start in [0, 0, 1] {
        stream.create(watch("a", "b", start));
    }
    world.put("a", "");
    let stats = world.hub.stats();
    assert_eq!((stats.streams, stats.watchers), (2, 4));
    drop(stream);
    world.put("a", "");
    let stats = world.hub.stats();
    assert_eq!((stats.streams, stats.watchers, stats.behind), (1, 1, 0));
    // Its number goes to the next stream, which has nothing to do with it.
    let mut next = world.hub.stream();
    assert_eq!(world.create(&mut next, watch("a", "", 0))[0].watch_id, 0);
    assert_eq!(revisions(&world.drain(&mut kept)).concat(), [2, 3]);
}
