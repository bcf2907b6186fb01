//! What the page of `/metrics` counts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_api::proto::etcdserverpb::{self as pb, watch_request::RequestUnion};
use quorate_kit::background::wait_for;
use quorate_kit::http::get as http_get;
use quorate_kit::rpc::{Bidi, Rpc};
use quorate_kit::{Cluster, Node, wait};

use crate::support::{COMPACT, PUT, RANGE, TXN, WATCH, binary, get, prefix, put, start_with};
use crate::turn;

const SOON: Duration = Duration::from_secs(10);

/// Families that etcd's own suite looks for on one member's page after a few puts and a get, with those of
/// `--metrics=extensive`; its Go runtime's are looked for where they are made.
const DEMANDED: &[&str] = &[
    "etcd_cluster_version",
    "etcd_debugging_auth_revision",
    "etcd_debugging_disk_backend_commit_rebalance_duration_seconds",
    "etcd_debugging_disk_backend_commit_spill_duration_seconds",
    "etcd_debugging_disk_backend_commit_write_duration_seconds",
    "etcd_debugging_lease_granted_total",
    "etcd_debugging_lease_renewed_total",
    "etcd_debugging_lease_revoked_total",
    "etcd_debugging_lease_ttl_total",
    "etcd_debugging_mvcc_compact_revision",
    "etcd_debugging_mvcc_current_revision",
    "etcd_debugging_mvcc_db_compaction_keys_total",
    "etcd_debugging_mvcc_db_compaction_last",
    "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
    "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
    "etcd_debugging_mvcc_events_total",
    "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds",
    "etcd_debugging_mvcc_keys_total",
    "etcd_debugging_mvcc_pending_events_total",
    "etcd_debugging_mvcc_slow_watcher_total",
    "etcd_debugging_mvcc_total_put_size_in_bytes",
    "etcd_debugging_mvcc_watch_stream_total",
    "etcd_debugging_mvcc_watcher_total",
    "etcd_debugging_server_lease_expired_total",
    "etcd_debugging_server_watch_send_loop_control_stream_duration_seconds",
    "etcd_debugging_server_watch_send_loop_progress_duration_seconds",
    "etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds",
    "etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds",
    "etcd_debugging_snap_save_marshalling_duration_seconds",
    "etcd_debugging_snap_save_total_duration_seconds",
    "etcd_debugging_store_expires_total",
    "etcd_debugging_store_watch_requests_total",
    "etcd_debugging_store_watchers",
    "etcd_disk_backend_commit_duration_seconds",
    "etcd_disk_backend_defrag_duration_seconds",
    "etcd_disk_backend_snapshot_duration_seconds",
    "etcd_disk_defrag_inflight",
    "etcd_disk_wal_fsync_duration_seconds",
    "etcd_disk_wal_write_bytes_total",
    "etcd_disk_wal_write_duration_seconds",
    "etcd_grpc_proxy_cache_hits_total",
    "etcd_grpc_proxy_cache_keys_total",
    "etcd_grpc_proxy_cache_misses_total",
    "etcd_grpc_proxy_events_coalescing_total",
    "etcd_grpc_proxy_watchers_coalescing_total",
    "etcd_mvcc_db_open_read_transactions",
    "etcd_mvcc_db_total_size_in_bytes",
    "etcd_mvcc_db_total_size_in_use_in_bytes",
    "etcd_mvcc_delete_total",
    "etcd_mvcc_hash_duration_seconds",
    "etcd_mvcc_hash_rev_duration_seconds",
    "etcd_mvcc_put_total",
    "etcd_mvcc_range_total",
    "etcd_mvcc_txn_total",
    "etcd_network_client_grpc_received_bytes_total",
    "etcd_network_client_grpc_sent_bytes_total",
    "etcd_network_known_peers",
    "etcd_server_apply_duration_seconds",
    "etcd_server_client_requests_total",
    "etcd_server_feature_enabled",
    "etcd_server_go_version",
    "etcd_server_has_leader",
    "etcd_server_health_failures",
    "etcd_server_health_success",
    "etcd_server_heartbeat_send_failures_total",
    "etcd_server_id",
    "etcd_server_is_leader",
    "etcd_server_is_learner",
    "etcd_server_leader_changes_seen_total",
    "etcd_server_learner_promote_successes",
    "etcd_server_proposals_applied_total",
    "etcd_server_proposals_committed_total",
    "etcd_server_proposals_failed_total",
    "etcd_server_proposals_pending",
    "etcd_server_quota_backend_bytes",
    "etcd_server_range_duration_seconds",
    "etcd_server_read_indexes_failed_total",
    "etcd_server_request_duration_seconds",
    "etcd_server_slow_apply_total",
    "etcd_server_slow_read_indexes_total",
    "etcd_server_snapshot_apply_in_progress_total",
    "etcd_server_version",
    "etcd_snap_db_fsync_duration_seconds",
    "etcd_snap_db_save_total_duration_seconds",
    "etcd_snap_fsync_duration_seconds",
    "grpc_server_handled_total",
    "grpc_server_handling_seconds",
    "grpc_server_msg_received_total",
    "grpc_server_msg_sent_total",
    "grpc_server_started_total",
    "promhttp_metric_handler_requests_in_flight",
    "promhttp_metric_handler_requests_total",
];

/// Families that do not move in a minute's life of one healthy member, by the reason.
const AT_REST: &[(&str, &[&str])] = &[
    (
        "they say what this member is",
        &[
            "etcd_cluster_version",
            "etcd_network_known_peers",
            "etcd_server_feature_enabled",
            "etcd_server_go_version",
            "etcd_server_has_leader",
            "etcd_server_id",
            "etcd_server_is_leader",
            "etcd_server_is_learner",
            "etcd_server_quota_backend_bytes",
            "etcd_server_version",
            "go_info",
            "os_fd_limit",
            "process_max_fds",
            "process_start_time_seconds",
            "process_virtual_memory_max_bytes",
            "quorate_build_info",
        ],
    ),
    (
        "they count faults, and there are none",
        &[
            "etcd_server_health_failures",
            "etcd_server_proposals_failed_total",
            "etcd_server_read_indexes_failed_total",
            "etcd_server_slow_read_indexes_total",
            "quorate_log_dropped_lines_total",
            "quorate_log_sampled_out_lines_total",
        ],
    ),
    (
        "the only election was over before the first look",
        &["etcd_server_leader_changes_seen_total"],
    ),
    (
        "one member alone has no peers: nobody's heartbeats, no snapshots, no learner that could have caught up",
        &[
            "etcd_disk_backend_snapshot_duration_seconds",
            "etcd_server_heartbeat_send_failures_total",
            "etcd_server_learner_promote_successes",
            "etcd_server_snapshot_apply_in_progress_total",
            "etcd_snap_db_save_total_duration_seconds",
        ],
    ),
    (
        "what they show is over before anybody looks",
        &[
            "etcd_debugging_mvcc_pending_events_total",
            "etcd_debugging_mvcc_slow_watcher_total",
            "etcd_disk_defrag_inflight",
            "etcd_mvcc_db_open_read_transactions",
            "etcd_server_proposals_pending",
            "promhttp_metric_handler_requests_in_flight",
        ],
    ),
    (
        "their parts are not there: absent.rs",
        &[
            "etcd_debugging_auth_revision",
            "etcd_debugging_disk_backend_commit_rebalance_duration_seconds",
            "etcd_debugging_disk_backend_commit_spill_duration_seconds",
            "etcd_debugging_disk_backend_commit_write_duration_seconds",
            "etcd_debugging_snap_save_marshalling_duration_seconds",
            "etcd_debugging_snap_save_total_duration_seconds",
            "etcd_debugging_store_expires_total",
            "etcd_debugging_store_watch_requests_total",
            "etcd_debugging_store_watchers",
            "etcd_grpc_proxy_cache_hits_total",
            "etcd_grpc_proxy_cache_keys_total",
            "etcd_grpc_proxy_cache_misses_total",
            "etcd_grpc_proxy_events_coalescing_total",
            "etcd_grpc_proxy_watchers_coalescing_total",
            "etcd_mvcc_hash_duration_seconds",
            "etcd_snap_db_fsync_duration_seconds",
            "etcd_snap_fsync_duration_seconds",
        ],
    ),
];

/// The Go runtime's families stand for a runtime that is not there, and the process's follow the system.
fn is_of_the_process(family: &str) -> bool {
    ["go_", "process_", "os_"].iter().any(|part| family.starts_with(part))
}

/// Every sample of a page, by family.
fn page(node: &Node) -> BTreeMap<String, Vec<String>> {
    let text = http_get(node.address(), "/metrics").unwrap().text();
    let mut families: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut family = String::new();
    for line in text.lines() {
        match line.strip_prefix("# TYPE ") {
            Some(rest) => family = rest.split(' ').next().unwrap().to_owned(),
            None if line.starts_with('#') => {}
            None => families.entry(family.clone()).or_default().push(line.to_owned()),
        }
    }
    families
}

fn value(node: &Node, line: &str) -> f64 {
    let text = http_get(node.address(), "/metrics").unwrap().text();
    let found = text.lines().find_map(|have| have.strip_prefix(line)?.strip_prefix(' '));
    found.map_or(0.0, |value| value.parse().unwrap())
}

/// A10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_moves() {
    let own = start_with(|config| {
        config
            .flag("--metrics=extensive")
            .flag("--warning-apply-duration=1ns")
            .flag("--watch-progress-notify-interval=100ms")
    });
    let rpc = own.node.rpc();
    let before = page(&own.node);
    for family in DEMANDED {
        let lazy = [
            "etcd_server_apply_duration_seconds",
            "etcd_server_range_duration_seconds",
        ];
        assert!(
            before.contains_key(*family) || lazy.contains(family) || family.starts_with("etcd_server_request"),
            "{family} is not there"
        );
    }

    keys(&rpc).await;
    watches(&rpc).await;
    leases(&own.node, &rpc).await;
    for path in ["/health", "/livez", "/readyz"] {
        assert_eq!(http_get(own.node.address(), path).unwrap().status, 200, "{path}");
    }
    // enough to make the file grow
    for key in ["x", "y", "z"] {
        put(&rpc, key, vec![7; 1 << 20]).await.unwrap();
    }
    maintenance(&rpc).await;

    let at_rest: BTreeSet<&str> = AT_REST.iter().flat_map(|(_, families)| *families).copied().collect();
    let still = |after: &BTreeMap<String, Vec<String>>| -> Vec<String> {
        let same = after
            .iter()
            .filter(|(family, samples)| before.get(*family) == Some(samples));
        same.map(|(family, _)| family.clone()).collect()
    };
    // the backend commits when it likes
    let moved = wait::until("all to move that should", SOON, || {
        let after = page(&own.node);
        let stuck: Vec<_> = still(&after)
            .into_iter()
            .filter(|family| !at_rest.contains(family.as_str()) && !is_of_the_process(family))
            .collect();
        stuck.is_empty().then_some(after)
    });
    for family in DEMANDED.iter().chain(&at_rest) {
        assert!(moved.contains_key(*family), "{family} is not there");
    }
}

/// Two puts, one get; a transaction in a transaction; ranges of all kinds; a deletion; a compaction.
async fn keys(rpc: &Rpc) {
    put(rpc, "a", "1").await.unwrap();
    put(rpc, "a", "2").await.unwrap();
    get(rpc, "a").await.unwrap();
    let stream: Vec<pb::RangeStreamResponse> = rpc.collect("/etcdserverpb.KV/RangeStream", &prefix("a")).await.unwrap();
    assert!(!stream.is_empty());
    let range = || pb::request_op::Request::RequestRange(prefix("a"));
    let put_b = pb::request_op::Request::RequestPut(pb::PutRequest {
        key: "b".into(),
        ..Default::default()
    });
    let txn = |requests: Vec<pb::request_op::Request>| pb::TxnRequest {
        success: requests
            .into_iter()
            .map(|request| pb::RequestOp { request: Some(request) })
            .collect(),
        ..Default::default()
    };
    let _: pb::TxnResponse = rpc.unary(TXN, &txn(vec![range(), range()])).await.unwrap();
    let nested = pb::request_op::Request::RequestTxn(txn(vec![range(), put_b]));
    let _: pb::TxnResponse = rpc.unary(TXN, &txn(vec![nested])).await.unwrap();
    let delete = pb::DeleteRangeRequest {
        key: "b".into(),
        ..Default::default()
    };
    let _: pb::DeleteRangeResponse = rpc.unary("/etcdserverpb.KV/DeleteRange", &delete).await.unwrap();
    let compact = pb::CompactionRequest {
        revision: 3,
        physical: true,
    };
    let _: pb::CompactionResponse = rpc.unary(COMPACT, &compact).await.unwrap();
}

async fn told(stream: &mut Bidi, wanted: impl Fn(&pb::WatchResponse) -> bool) {
    while let Some(response) = stream.next::<pb::WatchResponse>(SOON).await.unwrap() {
        if wanted(&response) {
            return;
        }
    }
    panic!("the stream ended");
}

async fn watches(rpc: &Rpc) {
    let create = pb::WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(pb::WatchCreateRequest {
            key: "a".into(),
            progress_notify: true,
            ..Default::default()
        })),
    };
    let mut stream = rpc.bidi(WATCH, &create).await.unwrap();
    told(&mut stream, |response| response.created).await;
    put(rpc, "a", "3").await.unwrap();
    told(&mut stream, |response| !response.events.is_empty()).await;
    told(&mut stream, |response| !response.created && response.events.is_empty()).await;
    // it stays open, so that streams and watchers are counted
    std::mem::forget(stream);
}

/// One that is kept alive and revoked, one that ends by itself.
async fn leases(node: &Node, rpc: &Rpc) {
    let grant = |ttl| pb::LeaseGrantRequest { ttl, id: 0 };
    let path = "/etcdserverpb.Lease/LeaseGrant";
    let kept: pb::LeaseGrantResponse = rpc.unary(path, &grant(60)).await.unwrap();
    let _: pb::LeaseGrantResponse = rpc.unary(path, &grant(1)).await.unwrap();
    let renew = pb::LeaseKeepAliveRequest { id: kept.id };
    let mut stream = rpc.bidi("/etcdserverpb.Lease/LeaseKeepAlive", &renew).await.unwrap();
    stream.next::<pb::LeaseKeepAliveResponse>(SOON).await.unwrap().unwrap();
    let revoke = pb::LeaseRevokeRequest { id: kept.id };
    let _: pb::LeaseRevokeResponse = rpc.unary("/etcdserverpb.Lease/LeaseRevoke", &revoke).await.unwrap();
    wait::until("a lease to end", SOON, || {
        (value(node, "etcd_debugging_server_lease_expired_total") == 1.0).then_some(())
    });
    assert_eq!(value(node, "etcd_debugging_lease_revoked_total"), 2.0);
}

/// A hash, a defragmentation, and an alarm that stays.
async fn maintenance(rpc: &Rpc) {
    let hash = pb::HashKvRequest { revision: 0 };
    let _: pb::HashKvResponse = rpc.unary("/etcdserverpb.Maintenance/HashKV", &hash).await.unwrap();
    let defragment = pb::DefragmentRequest {};
    let done: pb::DefragmentResponse = rpc
        .unary("/etcdserverpb.Maintenance/Defragment", &defragment)
        .await
        .unwrap();
    assert_eq!(done.header, None);
    let alarm = pb::AlarmRequest {
        action: pb::alarm_request::AlarmAction::Activate.into(),
        member_id: 1,
        alarm: pb::AlarmType::Corrupt.into(),
    };
    let _: pb::AlarmResponse = rpc.unary("/etcdserverpb.Maintenance/Alarm", &alarm).await.unwrap();
}

/// What clients and transactions do is counted once, wherever it happens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_are_counted_where_they_are_applied() {
    let own = start_with(|config| config);
    let rpc = own.node.rpc();
    let counted =
        || ["put", "range", "txn", "delete"].map(|what| value(&own.node, &format!("etcd_mvcc_{what}_total")) as u64);
    assert_eq!(counted(), [0; 4]);
    keys(&rpc).await;
    // the puts are two and one in a transaction; the ranges one, a stream, two and one in transactions
    assert_eq!(counted(), [3, 5, 2, 1]);
    let _: pb::PutResponse = rpc
        .unary(
            PUT,
            &pb::PutRequest {
                key: "a".into(),
                ..Default::default()
            },
        )
        .await
        .unwrap();
    let _: pb::RangeResponse = rpc.unary(RANGE, &prefix("a")).await.unwrap();
    assert_eq!(counted(), [4, 6, 2, 1]);
}

/// What a member's page says of its peers.
struct Views {
    ids: Vec<String>,
}

impl Views {
    /// The same family for each of `others`, on the page of `member`.
    fn of(&self, cluster: &Cluster, member: usize, family: &str, label: &str, others: &[usize]) -> Vec<f64> {
        let line = |other: &usize| match label {
            "Remote" => format!(
                "{family}{{Local=\"{}\",Remote=\"{}\"}}",
                self.ids[member], self.ids[*other]
            ),
            _ => format!("{family}{{{label}=\"{}\"}}", self.ids[*other]),
        };
        others
            .iter()
            .map(|other| value(&cluster[member], &line(other)))
            .collect()
    }

    fn one(&self, cluster: &Cluster, member: usize, family: &str, label: &str, other: usize) -> f64 {
        self.of(cluster, member, family, label, &[other])[0]
    }
}

fn others(members: &[usize], member: usize) -> Vec<usize> {
    members.iter().copied().filter(|other| *other != member).collect()
}

fn sum(cluster: &Cluster, members: &[usize], family: &str) -> f64 {
    members.iter().map(|member| value(&cluster[*member], family)).sum()
}

const ACTIVE: &str = "etcd_network_active_peers";
const LOST: &str = "etcd_network_disconnected_peers_total";
const ROUND_TRIPS: &str = "etcd_network_peer_round_trip_time_seconds_count";
const SENT: &str = "etcd_network_peer_sent_bytes_total";
const RECEIVED: &str = "etcd_network_peer_received_bytes_total";
const SEND_FAILURES: &str = "etcd_network_peer_sent_failures_total";

/// What dashboards draw of peers, snapshots and leadership, while members come and go.
#[test]
fn what_peers_do_to_each_other_is_counted() {
    let _turn = turn::shared();
    let mut cluster = Cluster::of(&binary())
        .members(3)
        .flag("--strict-reconfig-check=false")
        .flag("--snapshot-count=10")
        .flag("--snapshot-catchup-entries=5")
        .start();
    let leader = cluster.wait_leader();
    let all = cluster.members();
    let mut views = Views {
        ids: all
            .iter()
            .map(|member| format!("{:x}", cluster.member_id(*member)))
            .collect(),
    };

    // Pings alone move all of this, in both directions and between followers, too.
    let traffic = |cluster: &Cluster| -> Vec<f64> {
        let of = |member: &usize| {
            let families = [(ROUND_TRIPS, "To"), (SENT, "To"), (RECEIVED, "From")];
            let peers = others(&all, *member);
            families.map(|(family, label)| views.of(cluster, *member, family, label, &peers))
        };
        all.iter().flat_map(of).flatten().collect()
    };
    let before = traffic(&cluster);
    assert_eq!(before.len(), 18);
    wait::until("every peer to be heard of by every other", SOON, || {
        let now = traffic(&cluster);
        before.iter().zip(now).all(|(before, now)| now > *before).then_some(())
    });
    for member in &all {
        let peers = others(&all, *member);
        assert_eq!(views.of(&cluster, *member, ACTIVE, "Remote", &peers), [1.0, 1.0]);
        assert_eq!(
            views.of(&cluster, *member, "etcd_network_known_peers", "Remote", &all),
            [1.0; 3]
        );
        assert_eq!(value(&cluster[*member], "etcd_server_has_leader"), 1.0);
        let leads = value(&cluster[*member], "etcd_server_is_leader");
        assert_eq!(leads, f64::from(u8::from(*member == leader)));
    }

    // A follower goes and comes back.
    let follower = others(&all, leader)[0];
    let lost = |cluster: &Cluster, member| views.one(cluster, member, LOST, "Remote", follower);
    let before: Vec<f64> = all.iter().map(|member| lost(&cluster, *member)).collect();
    cluster[follower].kill();
    wait::until("a killed follower to be missed", SOON, || {
        let missed = others(&all, follower).into_iter().all(|member| {
            let lost = lost(&cluster, member) > before[member];
            lost && views.one(&cluster, member, ACTIVE, "Remote", follower) == 0.0
        });
        let failed = views.one(&cluster, leader, SEND_FAILURES, "To", follower) > 0.0;
        (missed && failed).then_some(())
    });
    cluster[follower].restart();
    wait::until("it to be back", SOON, || {
        let back = |member: usize| views.one(&cluster, member, ACTIVE, "Remote", follower) == 1.0;
        others(&all, follower).into_iter().all(back).then_some(())
    });

    let learner = learner(&mut cluster, &mut views);

    // The leader goes and comes back.
    let leader = cluster.wait_leader();
    let left = others(&all, leader);
    let changes = |cluster: &Cluster| {
        let of = |member: &usize| value(&cluster[*member], "etcd_server_leader_changes_seen_total");
        left.iter().map(of).collect::<Vec<_>>()
    };
    let before = changes(&cluster);
    cluster[leader].kill();
    cluster.wait_leader();
    wait::until("the next leader to be known", SOON, || {
        let seen = before.iter().zip(changes(&cluster)).all(|(before, now)| now > *before);
        let leaders = sum(&cluster, &left, "etcd_server_is_leader");
        (seen && leaders == 1.0).then_some(())
    });
    cluster[leader].restart();

    // The learner gets a vote, and goes.
    cluster.promote(learner);
    wait::until("the learner to have a vote", SOON, || {
        (value(&cluster[learner], "etcd_server_is_learner") == 0.0).then_some(())
    });
    let four = cluster.members();
    assert_eq!(sum(&cluster, &four, "etcd_server_learner_promote_successes"), 1.0);
    cluster.remove(learner);
    wait::until("it to be gone", SOON, || {
        let gone = |member: &usize| {
            let known = views.one(&cluster, *member, "etcd_network_known_peers", "Remote", learner);
            known == 0.0 && views.one(&cluster, *member, ACTIVE, "Remote", learner) == 0.0
        };
        all.iter().all(gone).then_some(())
    });
}

/// A learner comes when the log has no beginning any more.
fn learner(cluster: &mut Cluster, views: &mut Views) -> usize {
    let all = cluster.members();
    let leader = cluster.wait_leader();
    let first = cluster[leader]
        .config
        .data_dir()
        .join("member/wal/0000000000000001.wal");
    wait::until("the log to be purged", Duration::from_secs(30), || {
        let client = cluster.client_of(&[leader]);
        wait_for(async move { client.put("a", vec![b'v'; 1 << 20]).await }).unwrap();
        (!first.exists()).then_some(())
    });

    let learner = cluster.add_learner();
    let id = cluster.member_id(learner);
    views.ids.push(format!("{id:x}"));
    cluster[learner].restart();
    wait::until("the learner to be where the others are", SOON, || {
        let sent = |what: &str| -> f64 {
            let family = format!("etcd_network_snapshot_send_{what}");
            let by = |member: &usize| views.one(cluster, *member, &family, "To", learner);
            all.iter().map(by).sum()
        };
        let received = |what: &str| -> f64 {
            let family = format!("etcd_network_snapshot_receive_{what}");
            views.of(cluster, learner, &family, "From", &all).iter().sum()
        };
        let through = sent("success") >= 1.0 && received("success") >= 1.0;
        let timed = [
            sent("total_duration_seconds_count"),
            received("total_duration_seconds_count"),
        ];
        let over = [sent("inflights_total"), received("inflights_total")] == [0.0; 2];
        let work = [
            sum(cluster, &all, "etcd_disk_backend_snapshot_duration_seconds_count"),
            value(&cluster[learner], "etcd_snap_db_save_total_duration_seconds_count"),
        ];
        let moved = timed.into_iter().chain(work).all(|count| count >= 1.0);
        (through && over && moved).then_some(())
    });
    assert_eq!(
        value(&cluster[learner], "etcd_server_snapshot_apply_in_progress_total"),
        0.0
    );
    assert_eq!(value(&cluster[learner], "etcd_server_is_learner"), 1.0);
    assert_eq!(sum(cluster, &all, "etcd_server_is_learner"), 0.0);
    learner
}
