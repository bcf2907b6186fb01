//! What is read from the member when somebody asks: nothing is counted twice, and a scrape costs what it reads.

use crate::config::Gates;
use crate::state::State;
use quorate_api::MemberId;
use quorate_api::version::{CLUSTER_VERSION, ETCD_VERSION, QUORATE_VERSION};
use quorate_runtime::metrics::{GO_VERSION, Kind, Page, Source, labels};
use std::sync::Arc;

/// The member's own figures; zeros until it is there.
pub struct Live {
    pub state: Arc<State>,
    /// `None`: no quota.
    pub quota_bytes: Option<u64>,
    pub gates: Gates,
}

impl Source for Live {
    fn write(&self, page: &mut Page) {
        fixed(page);
        self.features(page);
        self.server(page);
        self.store(page);
        self.watch(page);
    }
}

fn fixed(page: &mut Page) {
    let mut one = |name: &'static str, help: &str, label: &str, value: &str| {
        page.family(name, help, Kind::Gauge)
            .sample(&labels(&[(label, value)]), 1.0);
    };
    one(
        "etcd_server_version",
        "The etcd version that is served.",
        "server_version",
        ETCD_VERSION,
    );
    one(
        "etcd_server_go_version",
        "For dashboards; there is no Go here.",
        "server_go_version",
        GO_VERSION,
    );
    one(
        "etcd_cluster_version",
        "The version that the members agreed on.",
        "cluster_version",
        CLUSTER_VERSION,
    );
    one(
        "quorate_build_info",
        "Quorate's own version.",
        "version",
        QUORATE_VERSION,
    );
}

impl Live {
    fn features(&self, page: &mut Page) {
        let mut features = page.family(
            "etcd_server_feature_enabled",
            "1 for features that are switched on.",
            Kind::Gauge,
        );
        for (gate, on) in self.gates.all() {
            let labels = labels(&[("name", gate.name), ("stage", gate.stage)]);
            features.sample(&labels, f64::from(u8::from(on)));
        }
    }

    fn server(&self, page: &mut Page) {
        let member = self.state.member();
        let raft = member.map(|member| member.node.status());
        let leads = raft.is_some_and(|raft| raft.leader.is_some() && raft.leader == member.map(|member| member.id.0));
        let value = |read: fn(&quorate_raft::RaftStatus) -> u64| raft.as_ref().map_or(0, read) as f64;
        if let Some(member) = member {
            let id = member.id.to_string();
            page.family("etcd_server_id", "This member.", Kind::Gauge)
                .sample(&labels(&[("server_id", &id)]), 1.0);
            let mut peers = page.family(
                "etcd_network_known_peers",
                "Members that this one knows, itself included.",
                Kind::Gauge,
            );
            for known in member.store.members() {
                let remote = MemberId(known.id).to_string();
                peers.sample(&labels(&[("Local", &id), ("Remote", &remote)]), 1.0);
            }
        }
        let has_leader = raft.is_some_and(|raft| raft.leader.is_some());
        let mut gauge = |name, help: &str, value: f64| page.single(name, help, Kind::Gauge, value);
        gauge(
            "etcd_server_has_leader",
            "1 while this member knows a leader.",
            f64::from(u8::from(has_leader)),
        );
        gauge(
            "etcd_server_is_leader",
            "1 while this member leads.",
            f64::from(u8::from(leads)),
        );
        let is_learner = member.is_some_and(|member| member.is_learner());
        gauge(
            "etcd_server_is_learner",
            "1 while this member has no vote.",
            f64::from(u8::from(is_learner)),
        );
        gauge(
            "etcd_server_proposals_committed_total",
            "Last committed entry.",
            value(|raft| raft.committed),
        );
        gauge(
            "etcd_server_proposals_applied_total",
            "Last applied entry.",
            value(|raft| raft.applied),
        );
        let pending = member.map_or(0, |member| member.node.proposer().pending());
        gauge(
            "etcd_server_proposals_pending",
            "Commands that wait for their outcome.",
            pending as f64,
        );
        gauge(
            "etcd_server_quota_backend_bytes",
            "The quota in force; -1: none.",
            self.quota_bytes.map_or(-1.0, |quota| quota as f64),
        );
        let mut counter = |name, help: &str, value: f64| page.single(name, help, Kind::Counter, value);
        counter(
            "etcd_server_leader_changes_seen_total",
            "Changes of leader.",
            value(|raft| raft.leader_changes),
        );
        let failed = member.map_or(0, |member| member.node.proposer().failed());
        counter(
            "etcd_server_proposals_failed_total",
            "Commands that ended without an outcome.",
            failed as f64,
        );
        let barriers = member.map_or(0, |member| member.node.barrier().failed());
        counter(
            "etcd_server_read_indexes_failed_total",
            "Read barriers that failed.",
            barriers as f64,
        );
        if let Some(member) = member {
            let alarms = member.store.alarms();
            if !alarms.is_empty() {
                let mut family = page.family("etcd_debugging_server_alarms", "1 while raised.", Kind::Gauge);
                for alarm in alarms {
                    let id = format!("{:x}", alarm.member_id);
                    family.sample(
                        &labels(&[("alarm_type", alarm.alarm().as_str_name()), ("server_id", &id)]),
                        1.0,
                    );
                }
            }
        }
    }

    fn store(&self, page: &mut Page) {
        let member = self.state.member();
        let sizes = member.map(|member| member.store.sizes()).unwrap_or_default();
        let mut gauge = |name, help: &str, value: f64| page.single(name, help, Kind::Gauge, value);
        gauge(
            "etcd_mvcc_db_total_size_in_bytes",
            "Space that the backend has taken.",
            sizes.total_bytes as f64,
        );
        gauge(
            "etcd_mvcc_db_total_size_in_use_in_bytes",
            "Of it, in use.",
            sizes.in_use_bytes as f64,
        );
        gauge(
            "quorate_store_pending_bytes",
            "Changes that are not in the backend yet.",
            sizes.pending_bytes as f64,
        );
        let reads = member.map_or(0, |member| member.store.open_reads());
        gauge(
            "etcd_mvcc_db_open_read_transactions",
            "Reads that are under way.",
            reads as f64,
        );
        let keys = member.map_or(0, |member| member.store.live_keys());
        gauge("etcd_debugging_mvcc_keys_total", "Keys that exist.", keys as f64);
        let revision = member.map_or(0, |member| member.store.revision().0);
        gauge(
            "etcd_debugging_mvcc_current_revision",
            "The store's revision.",
            revision as f64,
        );
        let compacted = member.map_or(0, |member| member.store.compacted().max(0));
        gauge(
            "etcd_debugging_mvcc_compact_revision",
            "Revision of the last compaction.",
            compacted as f64,
        );
    }

    fn watch(&self, page: &mut Page) {
        let stats = self.state.member().map(|member| member.hub.stats()).unwrap_or_default();
        let mut gauge = |name, help: &str, value: f64| page.single(name, help, Kind::Gauge, value);
        gauge(
            "etcd_debugging_mvcc_watch_stream_total",
            "Open watch streams.",
            stats.streams as f64,
        );
        gauge("etcd_debugging_mvcc_watcher_total", "Watchers.", stats.watchers as f64);
        gauge(
            "etcd_debugging_mvcc_slow_watcher_total",
            "Of these, not served live.",
            stats.behind as f64,
        );
        gauge(
            "etcd_debugging_mvcc_pending_events_total",
            "Events that wait for their watchers.",
            stats.pending_events as f64,
        );
        let events = "etcd_debugging_mvcc_events_total";
        page.single(
            events,
            "Events handed to watchers.",
            Kind::Counter,
            stats.events_total as f64,
        );
    }
}
