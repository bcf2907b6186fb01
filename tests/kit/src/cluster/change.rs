//! Membership: members come and go while the cluster runs.

use prost::Message;
use quorate_api::proto::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
};
use tonic::Status;

use super::{Cluster, LIMIT};
use crate::background;
use crate::client::Retry;
use crate::wait::until;

/// What etcd says while a member has been connected for less than five seconds, and while it promotes too early.
const NOT_YET: [&str; 2] = [
    "etcdserver: unhealthy cluster",
    "etcdserver: can only promote a learner member which is in sync with leader",
];

impl Cluster {
    /// Adds a voter to the cluster's members. Its process is not started: `cluster[n].restart()` does that, or
    /// [`Self::grow`] does both.
    pub fn add(&mut self) -> usize {
        until("the cluster to accept a member", LIMIT, || {
            accepted(self.try_add(false))
        })
    }

    /// The same as a learner.
    pub fn add_learner(&mut self) -> usize {
        until("the cluster to accept a learner", LIMIT, || {
            accepted(self.try_add(true))
        })
    }

    /// Adds a voter, starts it, and waits until it serves.
    pub fn grow(&mut self) -> usize {
        let number = self.add();
        self[number].restart();
        number
    }

    /// One attempt, and the cluster's answer.
    pub fn try_add(&mut self, learner: bool) -> Result<usize, Status> {
        let mut config = self.config(self.nodes.len());
        let url = config.advertised_peer_url();
        let request = MemberAddRequest {
            peer_ur_ls: vec![url.clone()],
            is_learner: learner,
        };
        let answer: MemberAddResponse = self.call("/etcdserverpb.Cluster/MemberAdd", request)?;
        // as `etcdctl member add` prints it: those who have started by their names, the new one by its own
        let mut all = Vec::new();
        for member in &answer.members {
            let name = match member.peer_ur_ls.contains(&url) {
                true => &config.name,
                false => &member.name,
            };
            all.extend(member.peer_ur_ls.iter().map(|url| format!("{name}={url}")));
        }
        config.initial_cluster = all.join(",");
        config.initial_cluster_state = "existing".to_owned();
        Ok(self.join(config))
    }

    pub fn promote(&mut self, member: usize) {
        let request = MemberPromoteRequest {
            id: self.member_id(member),
        };
        until("the cluster to promote a learner", LIMIT, || {
            let path = "/etcdserverpb.Cluster/MemberPromote";
            accepted(self.call::<MemberPromoteResponse>(path, request))
        });
    }

    /// Removes it from the cluster's members. Its process is left alone: a removed member ends by itself.
    pub fn remove(&mut self, member: usize) {
        let request = MemberRemoveRequest {
            id: self.member_id(member),
        };
        until("the cluster to remove a member", LIMIT, || {
            let path = "/etcdserverpb.Cluster/MemberRemove";
            accepted(self.call::<MemberRemoveResponse>(path, request))
        });
        self.removed.insert(member);
    }

    /// It has been removed by other means than [`Self::remove`].
    pub fn forget(&mut self, member: usize) {
        self.removed.insert(member);
    }

    /// By which the cluster knows it, also before it has started.
    pub fn member_id(&mut self, member: usize) -> u64 {
        let url = self[member].config.advertised_peer_url();
        let path = "/etcdserverpb.Cluster/MemberList";
        let listed: MemberListResponse = self
            .call(path, MemberListRequest::default())
            .unwrap_or_else(|status| panic!("list members: {status}"));
        let known = listed.members.iter().find(|known| known.peer_ur_ls.contains(&url));
        known
            .unwrap_or_else(|| panic!("no member has the peer URL {url}: {listed:?}"))
            .id
    }

    /// On one of the running members.
    fn call<A: Message + Default + 'static>(
        &mut self,
        path: &'static str,
        request: impl Message + 'static,
    ) -> Result<A, Status> {
        let running = self.running();
        let _runtime = background::handle().enter();
        let client = self.client_of(&running);
        background::wait_for(async move { client.call(path, &request, Retry::IfNothingWasDone).await })
    }
}

fn accepted<T>(answer: Result<T, Status>) -> Option<T> {
    match answer {
        Ok(value) => Some(value),
        Err(status) if NOT_YET.contains(&status.message()) => None,
        Err(status) => panic!("the cluster refuses: {status}"),
    }
}
