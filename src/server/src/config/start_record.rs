//! The record that tells what a member starts with. Support staff and etcd's own tests look for its field names.

use quorate_runtime::telemetry::{GoDuration, Level, Record};
use serde_json::Value;

use super::{
    ClusterState, Config, ETCD_VERSION, GIT_SHA, GO_VERSION, INITIAL_CORRUPT_CHECK, QUORATE_VERSION, Url, go_arch,
    go_os,
};

impl Config {
    /// `initialized`: the member has data already, so that the bootstrap settings mean nothing.
    pub fn start_record(&self, initialized: bool) -> Record {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let duration = |duration| GoDuration(duration).to_string();
        let dedicated_wal = self
            .wal_dir
            .as_ref()
            .map(|dir| dir.display().to_string())
            .unwrap_or_default();
        let state = match self.initial_cluster_state {
            ClusterState::New => "new",
            ClusterState::Existing => "existing",
        };
        // as in etcd, what was only of use to the first start is not shown later
        let bootstrap = |text: &str| {
            if initialized { String::new() } else { text.to_owned() }
        };
        Record::new(Level::Info, "starting an etcd server")
            .field("etcd-version", ETCD_VERSION)
            .field("quorate-version", QUORATE_VERSION)
            .field("git-sha", GIT_SHA)
            .field("go-version", GO_VERSION)
            .field("go-os", go_os())
            .field("go-arch", go_arch())
            .field("max-cpu-available", cpus)
            .field("member-initialized", initialized)
            .field("name", self.name.as_str())
            .field("data-dir", self.data_dir.display().to_string())
            .field("wal-dir", dedicated_wal)
            .field("member-dir", self.data_dir.join("member").display().to_string())
            .field("heartbeat-interval", duration(self.heartbeat_interval))
            .field("election-timeout", duration(self.election_timeout))
            .field("snapshot-count", self.snapshot_count)
            .field("snapshot-catchup-entries", self.snapshot_catchup_entries)
            .field("initial-advertise-peer-urls", urls(&self.initial_advertise_peer_urls))
            .field("listen-peer-urls", urls(&self.listen_peer_urls))
            .field("advertise-client-urls", urls(&self.advertise_client_urls))
            .field("listen-client-urls", urls(&self.listen_client_urls))
            .field("listen-metrics-urls", urls(&self.listen_metrics_urls))
            .field("initial-cluster", bootstrap(&self.initial_cluster))
            .field("initial-cluster-state", state)
            .field("initial-cluster-token", bootstrap(&self.initial_cluster_token))
            .field(
                "quota-backend-bytes",
                self.quota_backend.map_or(Value::from(-1), |quota| Value::from(quota.0)),
            )
            .field("max-request-bytes", self.max_request.0)
            .field("max-txn-ops", self.max_txn_ops)
            .field("max-concurrent-streams", self.max_concurrent_streams)
            .field("pre-vote", true)
            .field("strict-reconfig-check", self.strict_reconfig_check)
            .field("v2-deprecation", "write-only")
            .field("max-learners", self.max_learners)
            .field("feature-gates", self.gates.to_string())
            .field("initial-corrupt-check", self.gates.is_on(INITIAL_CORRUPT_CHECK))
            .field(
                "watch-progress-notify-interval",
                duration(self.watch_progress_notify_interval),
            )
    }
}

fn urls(urls: &[Url]) -> Vec<String> {
    urls.iter().map(Url::to_string).collect()
}
