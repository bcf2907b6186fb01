//! What the members say about themselves: who leads, how far they are, whether they hold the same.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use prost::Message;
use quorate_api::proto::etcdserverpb::{HashKvRequest, HashKvResponse, StatusRequest, StatusResponse};
use tonic::Status;

use super::{Cluster, LIMIT};
use crate::{background, rpc};

/// A member that is well answers sooner; one that does not must not hold up the question to the others.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(10);

impl Cluster {
    /// What a member says of itself; none when it does not answer within a second.
    pub fn status(&mut self, member: usize) -> Option<StatusResponse> {
        self.statuses(&[member]).remove(0)
    }

    fn statuses(&mut self, members: &[usize]) -> Vec<Option<StatusResponse>> {
        let answers = self.ask(members, "/etcdserverpb.Maintenance/Status", &StatusRequest::default());
        answers.into_iter().map(Result::ok).collect()
    }

    /// Asks all of them the same at the same time.
    fn ask<A: Message + Default + 'static>(
        &mut self,
        members: &[usize],
        path: &'static str,
        request: &(impl Message + Clone + 'static),
    ) -> Vec<Result<A, Status>> {
        let connections: Vec<rpc::Rpc> = members
            .iter()
            .map(|member| {
                let node = &self.nodes[*member];
                let connection = self.connections.entry(*member);
                connection
                    .or_insert_with(|| {
                        let _runtime = background::handle().enter(); // it outlives the runtime of the caller
                        node.rpc()
                    })
                    .clone()
            })
            .collect();
        let request = request.clone();
        background::wait_for(async move {
            join_all(connections.iter().map(|connection| async {
                let answer = connection.unary(path, &request);
                let late = |_| Err(Status::deadline_exceeded("no answer within a second"));
                tokio::time::timeout(ANSWER_LIMIT, answer).await.unwrap_or_else(late)
            }))
            .await
        })
    }

    /// The member that all running members call their leader, and itself runs. Members that are paused are not asked.
    pub fn leader(&mut self) -> Option<usize> {
        let running = self.running();
        self.leader_of(&running)
    }

    fn leader_of(&mut self, members: &[usize]) -> Option<usize> {
        let said: Vec<StatusResponse> = self.statuses(members).into_iter().collect::<Option<_>>()?;
        let first = said.first()?;
        let agreed = said
            .iter()
            .all(|status| (status.leader, status.raft_term) == (first.leader, first.raft_term));
        let leads = |status: &StatusResponse| status.header.as_ref().is_some_and(|at| at.member_id == first.leader);
        let leader = said.iter().position(leads)?;
        agreed.then(|| members[leader])
    }

    /// Waits until all running members agree on a leader among them.
    pub fn wait_leader(&mut self) -> usize {
        self.wait_leader_without(&[])
    }

    /// The same where `apart` are neither asked nor elected, since they run but are cut off.
    pub fn wait_leader_without(&mut self, apart: &[usize]) -> usize {
        let what = "the members to agree on a leader";
        self.wait_for(what, |cluster| {
            let mut asked = cluster.running();
            asked.retain(|member| !apart.contains(member));
            cluster.leader_of(&asked).ok_or_else(|| {
                let said = cluster.statuses(&asked);
                format!("{:#?}", asked.iter().zip(said).collect::<Vec<_>>())
            })
        })
    }

    /// Waits until all running members have applied the same and hold the same, and gives their revision. Somebody who
    /// still writes makes this wait in vain.
    pub fn wait_equal(&mut self) -> i64 {
        let what = "all running members to hold the same at the same revision";
        self.wait_for(what, |cluster| {
            let running = cluster.running();
            let request = HashKvRequest::default(); // of the latest revision
            let path = "/etcdserverpb.Maintenance/HashKV";
            let answers = cluster.ask::<HashKvResponse>(&running, path, &request);
            let hashes: Vec<Option<(i64, i64, u32)>> = answers
                .iter()
                .map(|answer| {
                    let answer = answer.as_ref().ok()?;
                    Some((answer.header.as_ref()?.revision, answer.compact_revision, answer.hash))
                })
                .collect();
            match hashes.first() {
                Some(Some(first)) if hashes.iter().all(|hash| hash.as_ref() == Some(first)) => Ok(first.0),
                _ => Err(format!("{:#?}", running.iter().zip(answers).collect::<Vec<_>>())),
            }
        })
    }

    /// Waits until `check` gives a value; the failure shows what it last complained of.
    ///
    /// # Panics
    /// After half a minute, or when a process has ended or panicked that the test did not end.
    pub fn wait_for<T>(&mut self, what: &str, mut check: impl FnMut(&mut Self) -> Result<T, String>) -> T {
        let deadline = Instant::now() + LIMIT;
        loop {
            match check(self) {
                Ok(value) => return value,
                Err(complaint) => {
                    assert!(
                        Instant::now() < deadline,
                        "waited {LIMIT:?} in vain for {what}: {complaint}"
                    );
                }
            }
            for member in self.members() {
                self.nodes[member].assert_no_panic();
                if let Some(status) = self.nodes[member].poll() {
                    panic!("m{member} ended with {status} while waiting for {what}");
                }
            }
            std::thread::sleep(POLL);
        }
    }
}
