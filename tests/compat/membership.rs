//! Changes of membership, asked of one member: what is refused, with which words, and what the answers show. Servers of
//! their own, since one of them can't go on in the end: etcd counts a voter that never started.

use std::collections::BTreeMap;

use prost::Message;
use quorate_api::proto::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
    PutRequest, PutResponse, ResponseHeader,
};
use quorate_kit::Rpc;

use crate::pair::Contest;
use crate::side::Side;

/// Names stand for ids, and [`OWN`] for the server's peer URL.
enum Step {
    Voter(&'static str, &'static [&'static str]),
    Learner(&'static str, &'static [&'static str]),
    Remove(&'static str),
    Promote(&'static str),
    Update(&'static str, &'static [&'static str]),
}

use Step::{Learner, Promote, Remove, Update, Voter};

const OWN: &str = "own url";
const MOVED: &str = "http://127.0.0.1:4";

const STEPS: &[Step] = &[
    Voter("-", &[]),
    Voter("-", &[""]),
    Voter("-", &["127.0.0.1:1"]),
    Voter("-", &["http://127.0.0.1"]),
    Voter("-", &["http://127.0.0.1:1/path"]),
    Voter("-", &["ftp://127.0.0.1:1"]),
    Learner("-", &["http://127.0.0.1:1", "nonsense"]),
    Voter("-", &[OWN]),
    Learner("-", &["http://127.0.0.1:1", OWN]),
    Remove("nobody"),
    Promote("nobody"),
    Update("nobody", &["http://127.0.0.1:1"]),
    Remove("itself"),
    Promote("itself"),
    Update("itself", &[OWN]),
    Learner("learner", &["http://127.0.0.1:2", " http://127.0.0.1:1 "]),
    Learner("-", &["http://127.0.0.1:3"]),
    Voter("-", &["http://127.0.0.1:2"]),
    Promote("learner"),
    Update("learner", &[MOVED, OWN]),
    Update("learner", &[MOVED]),
    Update("itself", &[MOVED]),
    Remove("itself"),
    Remove("learner"),
    Remove("learner"),
    Promote("learner"),
    Update("learner", &[MOVED]),
    Learner("another", &[MOVED]),
    Remove("another"),
    // From here on etcd has no quorum.
    Voter("voter", &["http://127.0.0.1:5"]),
    Voter("-", &["http://127.0.0.1:6"]),
    Remove("itself"),
];

struct One {
    rpc: Rpc,
    own_url: String,
    client_url: String,
    ids: BTreeMap<&'static str, u64>,
}

impl One {
    async fn new(side: &Side) -> Self {
        let mut one = Self {
            rpc: side.node.rpc(),
            own_url: side.node.config.peer_url(),
            client_url: side.node.config.client_url(),
            ids: BTreeMap::from([("nobody", 0x1234)]),
        };
        let members = one.list().await;
        one.ids.insert("itself", members[0].id);
        one
    }

    /// Without a quorum in 3.4, which does not know the field, and in 3.7, which is told not to ask for one.
    async fn list(&self) -> Vec<Member> {
        let request = MemberListRequest { linearizable: false };
        let answer: MemberListResponse = self.call("MemberList", &request).await.unwrap();
        answer.members
    }

    async fn call<A: Message + Default>(&self, method: &str, request: &impl Message) -> Result<A, tonic::Status> {
        let path = format!("/etcdserverpb.Cluster/{method}");
        self.rpc.unary(&path, request).await
    }

    fn urls(&self, urls: &[&str]) -> Vec<String> {
        let url = |url: &&str| {
            if *url == OWN {
                self.own_url.clone()
            } else {
                (*url).to_owned()
            }
        };
        urls.iter().map(url).collect()
    }

    /// The answer as text, with names for what differs between two servers.
    async fn take(&mut self, step: &Step) -> String {
        let answered = match step {
            Voter(name, urls) | Learner(name, urls) => {
                let is_learner = matches!(step, Learner(..));
                let request = MemberAddRequest {
                    peer_ur_ls: self.urls(urls),
                    is_learner,
                };
                let answer: Result<MemberAddResponse, _> = self.call("MemberAdd", &request).await;
                answer.map(|answer| {
                    let member = answer.member.unwrap();
                    self.ids.insert(name, member.id);
                    (answer.header, Some(member), answer.members)
                })
            }
            Remove(name) => {
                let request = MemberRemoveRequest { id: self.ids[name] };
                let answer: Result<MemberRemoveResponse, _> = self.call("MemberRemove", &request).await;
                answer.map(|answer| (answer.header, None, answer.members))
            }
            Promote(name) => {
                let request = MemberPromoteRequest { id: self.ids[name] };
                let answer: Result<MemberPromoteResponse, _> = self.call("MemberPromote", &request).await;
                answer.map(|answer| (answer.header, None, answer.members))
            }
            Update(name, urls) => {
                let request = MemberUpdateRequest {
                    id: self.ids[name],
                    peer_ur_ls: self.urls(urls),
                };
                let answer: Result<MemberUpdateResponse, _> = self.call("MemberUpdate", &request).await;
                answer.map(|answer| (answer.header, None, answer.members))
            }
        };
        match answered {
            Ok((header, member, members)) => self.show(header, member, members),
            Err(status) => format!("{:?}: {}", status.code(), status.message()),
        }
    }

    fn show(&self, header: Option<ResponseHeader>, member: Option<Member>, members: Vec<Member>) -> String {
        assert!(members.is_sorted_by_key(|member| member.id), "{members:?}");
        let header = header.unwrap();
        assert_eq!(header.member_id, self.ids["itself"]);
        let mut members: Vec<_> = members.iter().map(|member| self.name(member)).collect();
        members.sort();
        let member = member.map(|member| self.name(&member));
        format!("revision {}, {member:?} of {members:#?}", header.revision)
    }

    fn name(&self, member: &Member) -> String {
        let id = self.ids.iter().find(|(_, id)| **id == member.id).map(|(name, _)| name);
        format!("{id:?} {member:?}")
            .replace(&member.id.to_string(), "its id")
            .replace(&self.own_url, OWN)
            .replace(&self.client_url, "own client url")
    }
}

pub async fn agree(contest: &Contest) {
    let sides = (Side::start(&contest.ours), Side::start(&contest.oracle));
    let (mut ours, mut oracle) = (One::new(&sides.0).await, One::new(&sides.1).await);
    for (at, step) in STEPS.iter().enumerate() {
        // In 3.4 an update makes the learner a voter, in its table if not in its raft.
        if matches!(step, Update("learner" | "itself", [MOVED])) && contest.oracle.is_34() {
            continue;
        }
        let (got, want) = (ours.take(step).await, oracle.take(step).await);
        println!("membership, step {at}: {want}");
        assert_eq!(got, want, "step {at} of membership.rs");
    }
    // Better than etcd: who was added and has not started counts for nothing.
    let put = PutRequest {
        key: "still".into(),
        value: "here".into(),
        ..Default::default()
    };
    let answer: Result<PutResponse, _> = ours.rpc.unary("/etcdserverpb.KV/Put", &put).await;
    assert!(answer.is_ok() || contest.ours == contest.oracle, "{answer:?}");
}
