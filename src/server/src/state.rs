//! The node as its HTTP endpoints see it, from the first moment on: probes and scrapers ask long before there is a
//! member to answer.

use crate::http::{Alarm, Check, Membership, NodeState, Probe, ProbeFuture};
use crate::member::Member;
use prometheus::{IntCounter, IntCounterVec, IntGaugeVec};
use quorate_api::proto::etcdserverpb::{self as pb, AlarmType, RangeRequest};
use quorate_api::{ClusterId, Error, version};
use quorate_runtime::metrics::Registry;
use quorate_store::Store;
use std::sync::{Arc, OnceLock};

/// Shared by all listeners. The member arrives when it is ready to serve.
pub struct State {
    member: OnceLock<Arc<Member>>,
    roster: OnceLock<Roster>,
    health_ok: IntCounter,
    health_failed: IntCounter,
    check: IntGaugeVec,
    checks: IntCounterVec,
}

/// Who is in the cluster, known before the member serves and even if it never gets that far.
pub struct Roster {
    pub cluster: ClusterId,
    /// What the member founds or was told, for as long as nothing is applied.
    pub told: Vec<pb::Member>,
    pub store: Store,
}

impl State {
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            member: OnceLock::new(),
            roster: OnceLock::new(),
            health_ok: registry.counter(
                "etcd_server_health_success",
                "Calls of /health that were answered well.",
            )?,
            health_failed: registry.counter("etcd_server_health_failures", "Calls of /health that failed.")?,
            check: registry.gauge_vec(
                "etcd_server_healthcheck",
                "Last result of each check of /livez and /readyz.",
                &["type", "name"],
            )?,
            checks: registry.counter_vec(
                "etcd_server_healthchecks_total",
                "Runs of each check of /livez and /readyz.",
                &["type", "name", "status"],
            )?,
        })
    }

    /// From now on other members are told who is in the cluster.
    pub fn opened(&self, roster: Roster) {
        let _ = self.roster.set(roster);
    }

    /// The member serves from now on.
    pub fn ready(&self, member: Arc<Member>) {
        let _ = self.member.set(member);
    }

    pub fn member(&self) -> Option<&Arc<Member>> {
        self.member.get()
    }
}

/// The smallest read there is: one key. Of a range all keys would be counted, whatever the limit.
fn probe() -> RangeRequest {
    RangeRequest {
        key: vec![0].into(),
        keys_only: true,
        ..Default::default()
    }
}

impl NodeState for State {
    fn alarms(&self) -> Vec<Alarm> {
        let Some(member) = self.member() else { return Vec::new() };
        let kind = |kind| match kind {
            AlarmType::Nospace => Alarm::NoSpace,
            AlarmType::Corrupt => Alarm::Corrupt,
            AlarmType::None => Alarm::Unknown,
        };
        member.store.alarms().iter().map(|alarm| kind(alarm.alarm())).collect()
    }

    fn has_leader(&self) -> bool {
        self.member().is_some_and(|member| member.node.leader().is_some())
    }

    fn is_learner(&self) -> bool {
        self.member().is_some_and(|member| member.is_learner())
    }

    fn probe_linearizable(&self) -> ProbeFuture<'_> {
        Box::pin(async {
            let member = self.member().ok_or(Error::Timeout)?;
            member.linearize().await?;
            member.store.range(&probe())?;
            Ok(())
        })
    }

    fn probe_serializable(&self) -> ProbeFuture<'_> {
        Box::pin(async {
            // Before the member is there, its process is alive all the same: there is nothing to read yet.
            if let Some(member) = self.member() {
                member.store.range(&probe())?;
            }
            Ok(())
        })
    }

    fn cluster_version(&self) -> Option<String> {
        self.member().map(|_| format!("{}.0", version::CLUSTER_VERSION))
    }

    fn storage_version(&self) -> Option<String> {
        self.member().map(|_| version::STORAGE_VERSION.to_owned())
    }

    fn membership(&self) -> Option<Membership> {
        let roster = self.roster.get()?;
        let is_applied = roster.store.cluster_id().is_some();
        let mut members = if is_applied {
            roster.store.members()
        } else {
            roster.told.clone()
        };
        members.sort_by_key(|member| member.id);
        Some(Membership {
            cluster: roster.cluster,
            members,
        })
    }

    fn raft_status(&self) -> serde_json::Value {
        let Some(member) = self.member() else {
            return serde_json::json!({});
        };
        let raft = member.node.status();
        serde_json::json!({
            "id": member.id.to_string(),
            "term": raft.term,
            "vote": raft.leader.map_or_else(|| "0".to_owned(), |leader| format!("{leader:x}")),
            "commit": raft.committed,
            "lead": raft.leader.map_or_else(|| "0".to_owned(), |leader| format!("{leader:x}")),
            "raftState": if raft.leader == Some(member.id.0) { "StateLeader" } else { "StateFollower" },
            "applied": raft.applied,
            "progress": {},
            "leadtransferee": "0",
        })
    }

    fn observe_health(&self, ok: bool) {
        if ok { &self.health_ok } else { &self.health_failed }.inc();
    }

    fn observe_check(&self, probe: Probe, check: Check, ok: bool) {
        self.check
            .with_label_values(&[probe.name(), check.name()])
            .set(i64::from(ok));
        let status = if ok { "success" } else { "error" };
        self.checks
            .with_label_values(&[probe.name(), check.name(), status])
            .inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;

    impl quorate_store::EventSink for Nobody {
        fn publish(&self, _: Vec<Arc<quorate_store::event::EventBatch>>) {}

        fn replaced(&self) {}
    }

    /// Members that found a cluster together need each other's answer before any of them can have applied anything.
    #[test]
    fn a_member_tells_what_it_was_told_until_it_has_a_table() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("store.redb");
        let (store, _applier) = Store::open(&path, quorate_store::Options::default(), Box::new(Nobody)).unwrap();
        let state = State::new(&Registry::new()).unwrap();
        assert_eq!(state.membership(), None);
        let member = |id| pb::Member {
            id,
            name: format!("m{id}"),
            ..Default::default()
        };
        state.opened(Roster {
            cluster: ClusterId(0xc1),
            told: vec![member(2), member(1)],
            store,
        });
        let told = state.membership().unwrap();
        assert_eq!(
            (told.cluster, told.members),
            (ClusterId(0xc1), vec![member(1), member(2)])
        );
        assert_eq!(state.cluster_version(), None, "not decided before it serves");
    }
}
