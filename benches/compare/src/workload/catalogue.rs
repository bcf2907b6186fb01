//! The workloads by name.

use Workload as W;

/// The fewest members that get along without one of them.
pub const CLUSTER_MIN: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    Put256,
    Put1k,
    GetLinearizable,
    GetSerializable,
    ListResident,
    ListCold,
    ListColdDisk,
    ListStream,
    CasCreate,
    CasUpdate,
    Kube,
    Watch100,
    Watch1000,
    LeaseKeepAlive,
    LeaseGrant,
    LeaseRevoke,
    GetFollower,
    Memory,
    Watchers,
    LeaderKill,
    LeaderStop,
    Rolling,
    Join,
    Defrag,
}

/// All of them: name for the command line, what it does.
const ALL: [(Workload, &str, &str); 24] = [
    (W::Put256, "put-256", "put, 256 B values, over 100,000 keys of 16-64 B"),
    (W::Put1k, "put-1k", "the same with 1 KB values"),
    (
        W::GetLinearizable,
        "get-lin",
        "linearizable get of one key of 10,000, 256 B values",
    ),
    (W::GetSerializable, "get-ser", "serializable get of the same"),
    (
        W::GetFollower,
        "get-follower",
        "the gets of get-lin, through one follower alone",
    ),
    (
        W::ListResident,
        "list-resident",
        "linearizable list of 500 x 1 KB, lists seen before (at most 100 clients)",
    ),
    (
        W::ListCold,
        "list-cold",
        "each list once, after a restart; page cache as it is",
    ),
    (
        W::ListColdDisk,
        "list-cold-disk",
        "each list once, after a restart from an evicted page cache",
    ),
    (
        W::ListStream,
        "list-stream",
        "the lists of list-resident through RangeStream, which etcd has from 3.7 on",
    ),
    (W::CasCreate, "cas-create", "txn: mod_revision = 0, then put 256 B"),
    (W::CasUpdate, "cas-update", "txn: mod_revision = known, then put 256 B"),
    (
        W::Kube,
        "kube",
        "59 % get, 40 % optimistic writes, 1 % lists in pages of 500, ten watches with prev_kv; 1 KB",
    ),
    (
        W::Watch100,
        "watch-100",
        "256 B puts to 100 watchers of one prefix; an operation is a delivered event",
    ),
    (W::Watch1000, "watch-1000", "the same to 1000 watchers"),
    (
        W::LeaseKeepAlive,
        "lease-keepalive",
        "keep-alive on an open stream, one lease and stream per client",
    ),
    (W::LeaseGrant, "lease-grant", "grant"),
    (W::LeaseRevoke, "lease-revoke", "revoke leases without keys"),
    (
        W::Memory,
        "memory",
        "scenario: 1 M keys of 64 B + 1 KB; peak memory, restart times",
    ),
    (
        W::Watchers,
        "watchers",
        "scenario: 10,000 watchers on 100 streams; memory over idle",
    ),
    (
        W::LeaderKill,
        "leader-kill",
        "scenario: SIGKILL of the leader; time until a write succeeds again on any member",
    ),
    (
        W::LeaderStop,
        "leader-stop",
        "scenario: SIGTERM of the leader under retrying clients; gap and failed requests",
    ),
    (
        W::Rolling,
        "rolling",
        "scenario: each member restarted in turn under retrying clients; leader changes, failed requests",
    ),
    (
        W::Join,
        "join",
        "scenario: a new member joins 1 GiB of data; time until it has caught up, puts meanwhile",
    ),
    (
        W::Defrag,
        "defrag",
        "scenario: the leader of 1 GiB, as much again of it compacted, is defragmented; time, puts meanwhile",
    ),
];

impl Workload {
    pub fn name(self) -> &'static str {
        ALL.iter()
            .find(|(workload, ..)| *workload == self)
            .map_or("?", |(_, name, _)| name)
    }

    pub fn is_scenario(self) -> bool {
        matches!(self, W::Memory | W::Watchers | W::Defrag) || self.needs_cluster() && self != W::GetFollower
    }

    /// Whether one member is too few.
    pub fn needs_cluster(self) -> bool {
        matches!(
            self,
            W::GetFollower | W::LeaderKill | W::LeaderStop | W::Rolling | W::Join
        )
    }

    fn fits(self, members: usize) -> bool {
        members >= CLUSTER_MIN || !self.needs_cluster()
    }

    /// Whether it runs with at most [`LIST_CLIENTS_MAX`] clients.
    pub fn caps_clients(self) -> bool {
        matches!(self, W::ListResident | W::ListCold | W::ListColdDisk | W::ListStream)
    }

    /// Whether a server of that version has the calls that the workload makes.
    pub fn runs_on(self, version: (u32, u32)) -> bool {
        self != W::ListStream || version >= (3, 7)
    }
}

/// What runs when nothing is named: every workload, and the scenarios too if small.
pub fn default_set(quick: bool, members: usize) -> Vec<Workload> {
    ALL.iter()
        .map(|(workload, ..)| *workload)
        .filter(|workload| workload.fits(members) && (quick || !workload.is_scenario()))
        .collect()
}

/// Names, groups (see [`listing`]), `default` and `all`, comma-separated. Groups leave out what needs more members.
pub fn select(names: &str, members: usize) -> Result<Vec<Workload>, String> {
    let mut chosen = Vec::new();
    for name in names.split(',').map(str::trim) {
        let group = format!("{name}-");
        let matching: Vec<_> = ALL
            .iter()
            .filter(|(workload, full, _)| match name {
                "all" => true,
                "default" => !workload.is_scenario(),
                "cluster" => workload.needs_cluster(),
                _ => *full == name || full.starts_with(&group),
            })
            .map(|(workload, ..)| *workload)
            .collect();
        if matching.is_empty() {
            return Err(format!(
                "--workloads: no workload or group is called {name:?}; --list shows them"
            ));
        }
        if !matching.iter().any(|workload| workload.fits(members)) {
            return Err(format!("--workloads {name}: needs --members {CLUSTER_MIN} or more"));
        }
        for workload in matching {
            if workload.fits(members) && !chosen.contains(&workload) {
                chosen.push(workload);
            }
        }
    }
    Ok(chosen)
}

pub fn listing() -> String {
    let mut out: String = ALL
        .iter()
        .map(|(_, name, about)| format!("{name:16} {about}\n"))
        .collect();
    out.push_str("\ngroups: put, get, list, cas, watch, lease, leader, cluster (what needs --members 3 or more),\n        default (all but the scenarios), all\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_select_their_members() {
        assert_eq!(select("watch", 1).unwrap(), [W::Watch100, W::Watch1000]);
        assert_eq!(
            select("memory,get-ser,get", 1).unwrap(),
            [W::Memory, W::GetSerializable, W::GetLinearizable]
        );
        assert_eq!(select("all", 3).unwrap().len(), ALL.len());
        assert_eq!(select("default", 1).unwrap(), default_set(false, 1));
        assert!(select("pu", 1).is_err());
    }

    #[test]
    fn one_member_is_not_asked_for_what_only_a_cluster_does() {
        assert_eq!(select("cluster", 3).unwrap().len(), 5);
        assert!(select("get", 3).unwrap().contains(&W::GetFollower));
        assert!(!default_set(true, 1).contains(&W::Rolling));
        assert!(default_set(true, 3).contains(&W::Rolling));
        assert_eq!(
            select("put,join", 1).unwrap_err(),
            "--workloads join: needs --members 3 or more"
        );
    }

    #[test]
    fn every_workload_has_a_name_of_its_own() {
        for (workload, name, _) in ALL {
            assert_eq!(workload.name(), name);
            assert_eq!(ALL.iter().filter(|(_, other, _)| *other == name).count(), 1);
        }
    }
}
