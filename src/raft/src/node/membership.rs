//! raft's voters follow the members table.
//!
//! The table is what clients see and change; a change of it is an ordinary command, applied at once. This loop, on the
//! leader, brings raft's own membership after it, one step at a time:
//!
//! | in the table | in raft | step |
//! |---|---|---|
//! | not there | voter or learner | drop it |
//! | there | not there | add it as a learner |
//! | voter, has published itself, log caught up | learner | make it a voter |
//!
//! So a voter that was added and never started counts against no quorum. Each step is idempotent and looks at what is
//! there, so a new leader finishes what the old one left half done.
//!
//! A member that the table has dropped and raft has not is *leaving*: its vote may be needed to let it go (one of two
//! goes), so links to it stay, peers hear it, and its process waits. A leader that leaves hands over first.
//!
//! On every member, links follow the table and whoever is leaving.

use super::{Node, Parts};
use crate::types::{Membership, position};
use openraft::async_runtime::WatchReceiver;
use openraft::error::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, EmptyNode};
use quorate_api::MemberId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tracing::{info, warn};

/// How often the table is held against raft's membership when nobody says that it has changed: members catch up, and
/// steps fail.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Members that don't lead look by themselves this often: raft's membership has changed with an entry that tells nobody.
const LOOK_EVERY_FOLLOWING: Duration = Duration::from_secs(1);

/// A log is caught up with so many entries missing at most: they are on their way.
const CAUGHT_UP: u64 = 64;

/// A step that has not come through after this time is looked at anew.
const STEP_PATIENCE: Duration = Duration::from_secs(5);

/// A leader that leaves gives others so long to take over; then it goes as it is.
const HAND_OVER_PATIENCE: Duration = Duration::from_millis(600);

/// The process of a removed member waits so long to be let go by raft. Who is left may need its vote, but may also be
/// out of reach for good.
const LEAVE_PATIENCE: Duration = Duration::from_secs(10);

type Step = ChangeMembers<u64, EmptyNode>;

pub(super) async fn run(parts: Arc<Parts>) {
    let mut leading = parts.leading.subscribe();
    let mut table = parts.members_changed.subscribe();
    loop {
        parts.network.members_changed(&parts.nodes());
        let leads = *leading.borrow_and_update();
        if leads && parts.follow_table().await {
            continue;
        }
        let pause = if leads { LOOK_EVERY } else { LOOK_EVERY_FOLLOWING };
        let looked = async {
            tokio::select! {
                biased;
                changed = table.changed() => changed.is_ok(),
                changed = leading.changed() => changed.is_ok(),
            }
        };
        if let Ok(false) = timeout(pause, looked).await {
            return;
        }
    }
}

impl Parts {
    /// One step of raft's membership after the table; true when there may be another at once.
    async fn follow_table(&self) -> bool {
        let Some((step, retain)) = self.next_step() else {
            self.find_out_whether_alone();
            return false;
        };
        if self.store.is_removed(MemberId(self.identity.member)) && self.hand_over_and_leave().await {
            return false;
        }
        info!(%step, "raft's membership follows the members table");
        let change = self.raft.change_membership(step.clone(), retain);
        match timeout(STEP_PATIENCE, change).await {
            Ok(Ok(_)) => return true,
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => {}
            Ok(Err(error)) => warn!(%step, %error, "raft's membership did not change; it will be tried again"),
            Err(_) => warn!(%step, "raft's membership has not changed yet; a quorum of the members has to answer"),
        }
        false
    }

    /// Gives leadership to a voter that stays, if there is one that can take it: without a leader the others would need
    /// an election timeout to find that out.
    async fn hand_over_and_leave(&self) -> bool {
        let stays = |id: &u64| self.store.member(MemberId(*id)).is_some();
        let candidates: Vec<u64> = self.voters().into_iter().filter(stays).collect();
        if candidates.is_empty() {
            return false;
        }
        info!("this member is removed and leads; handing over");
        let given = timeout(HAND_OVER_PATIENCE, self.give_to(&candidates)).await;
        self.proposer.hold(false);
        given.is_ok()
    }

    /// Everybody that raft's membership names as this member knows it, voters and learners: the newest, and the one that it
    /// replaces until it is committed, since it may come back.
    pub(crate) fn nodes(&self) -> BTreeSet<u64> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let (newest, committed) = (&metrics.membership_config, &metrics.committed_membership_config);
        let both = newest.nodes().chain(committed.nodes());
        both.map(|(id, _)| *id).collect()
    }

    /// Whether raft's membership, as far as this member knows it, has a member.
    pub(crate) fn is_counted(&self, member: u64) -> bool {
        self.nodes().contains(&member)
    }

    /// Whether the member is removed, and raft needs it no more.
    pub(crate) fn has_gone(&self, member: u64) -> bool {
        self.store.is_removed(MemberId(member)) && !self.nodes().contains(&member)
    }

    /// Waits until raft has let the member go, for good. Of itself a member may never see that: who lets it go sends it
    /// no more entries, and tells it when it asks.
    async fn gone(&self, member: u64) {
        let mut left = self.left.subscribe();
        tokio::select! {
            biased;
            () = self.let_go_by_raft(member) => {}
            // Its sender is `self`.
            _ = left.wait_for(|left| *left), if member == self.identity.member => {}
        }
    }

    async fn let_go_by_raft(&self, member: u64) {
        let mut metrics = self.raft.server_metrics();
        loop {
            let settled = {
                let now = metrics.borrow_and_update();
                now.membership_config == now.committed_membership_config
            };
            if settled && self.has_gone(member) {
                return;
            }
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Node {
    /// Waits until raft has let a removed member go, so that the others decide without it; false when that has not come
    /// about within `limit`. Until then its process may still be needed.
    pub async fn let_go(&self, member: u64, limit: Duration) -> bool {
        timeout(limit, self.parts.gone(member)).await.is_ok()
    }

    /// This member has been removed and nobody needs it any more: whoever waits for that hears it.
    pub fn leave(&self) {
        self.parts.left.send_replace(true);
    }
}

impl Parts {
    /// What to do next, and whether voters that are dropped stay as learners.
    fn next_step(&self) -> Option<(Step, bool)> {
        // Before the first command of the cluster is applied the table says nothing.
        self.store.cluster_id()?;
        let table: BTreeMap<u64, bool> = self
            .store
            .members()
            .into_iter()
            .map(|member| (member.id, !member.is_learner && !member.name.is_empty()))
            .collect();
        let raft = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.membership().clone()
        };
        // Its own removal is the last thing that a leader does: openraft has it lead on only until that is committed.
        if !raft.voter_ids().any(|id| id == self.identity.member) {
            return None;
        }
        let ready = |id: u64| self.is_caught_up(id);
        next_step(&table, &raft, ready)
    }

    fn is_caught_up(&self, member: u64) -> bool {
        let Some(last) = self.last_log() else { return false };
        self.has_answered(member, self.election) && self.matched(member).saturating_add(CAUGHT_UP) >= last
    }

    /// The last voter left may read without asking, as if it had always been alone, once its own vote decides all.
    pub(super) fn find_out_whether_alone(&self) {
        if self.alone.is_alone() {
            return;
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let settled = metrics.membership_config == metrics.committed_membership_config;
        let membership = metrics.membership_config.membership();
        let alone = membership.get_joint_config().len() == 1 && membership.voter_ids().eq([self.identity.member]);
        if let Some(found) = metrics.membership_config.log_id().filter(|_| settled && alone) {
            self.alone.found_alone(position(found.index));
        }
    }
}

/// `table`: who is a member, and whether it is a voter that has made itself known.
fn next_step(
    table: &BTreeMap<u64, bool>,
    raft: &Membership,
    is_caught_up: impl Fn(u64) -> bool,
) -> Option<(Step, bool)> {
    let voters: BTreeSet<u64> = raft.voter_ids().collect();
    let configs = raft.get_joint_config();
    if let [_, .., wanted] = &configs[..] {
        // Half of a change that an earlier leader began.
        return Some((Step::ReplaceAllVoters(wanted.clone()), false));
    }
    let nodes: BTreeSet<u64> = raft.nodes().map(|(id, _)| *id).collect();
    let gone: BTreeSet<u64> = nodes.iter().copied().filter(|id| !table.contains_key(id)).collect();
    let gone_voters: BTreeSet<u64> = gone.intersection(&voters).copied().collect();
    // Somebody has to be left to vote for the change.
    if !gone_voters.is_empty() && gone_voters != voters {
        return Some((Step::RemoveVoters(gone_voters), false));
    }
    let gone_learners: BTreeSet<u64> = gone.difference(&voters).copied().collect();
    if !gone_learners.is_empty() {
        return Some((Step::RemoveNodes(gone_learners), false));
    }
    let new: BTreeMap<u64, EmptyNode> = table
        .keys()
        .filter(|id| !nodes.contains(id))
        .map(|id| (*id, EmptyNode::new()))
        .collect();
    if !new.is_empty() {
        return Some((Step::AddNodes(new), false));
    }
    let ready = table
        .iter()
        .find(|(id, votes)| **votes && !voters.contains(id) && is_caught_up(**id));
    ready.map(|(id, _)| (Step::AddVoterIds(BTreeSet::from([*id])), false))
}

impl Parts {
    /// Notices that this member was removed, whichever way the news comes.
    pub(super) async fn watch_removal(self: Arc<Self>) {
        let own = MemberId(self.identity.member);
        let mut table = self.members_changed.subscribe();
        while !self.store.is_removed(own) {
            if table.changed().await.is_err() {
                return;
            }
        }
        // Peers that have let this member go say so, too, when they are asked: see `Service::admit`.
        if timeout(LEAVE_PATIENCE, self.gone(own.0)).await.is_err() {
            warn!("this member is removed, and the others have not let it go yet; leaving all the same");
        }
        (self.on_removed)();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raft(configs: &[&[u64]], learners: &[u64]) -> Membership {
        let configs = configs.iter().map(|ids| ids.iter().copied().collect()).collect();
        Membership::new_with_defaults(configs, learners.iter().copied())
    }

    fn table(voters: &[u64], others: &[u64]) -> BTreeMap<u64, bool> {
        let voters = voters.iter().map(|id| (*id, true));
        voters.chain(others.iter().map(|id| (*id, false))).collect()
    }

    fn step(table: &BTreeMap<u64, bool>, raft: &Membership, caught_up: &[u64]) -> Option<String> {
        let (step, retain) = next_step(table, raft, |id| caught_up.contains(&id))?;
        assert!(!retain);
        Some(format!("{step:?}"))
    }

    #[test]
    fn nothing_to_do_when_both_are_the_same() {
        assert_eq!(step(&table(&[1, 2, 3], &[4]), &raft(&[&[1, 2, 3]], &[4]), &[]), None);
    }

    #[test]
    fn a_new_member_becomes_a_learner_first_and_a_voter_when_it_is_ready() {
        let new = table(&[1], &[2]);
        assert_eq!(
            step(&new, &raft(&[&[1]], &[]), &[]).unwrap(),
            format!("{:?}", Step::AddNodes([(2, EmptyNode::new())].into()))
        );
        let learner = raft(&[&[1]], &[2]);
        assert_eq!(
            step(&new, &learner, &[2]),
            None,
            "has not made itself known, or is a learner"
        );
        let known = table(&[1, 2], &[]);
        assert_eq!(step(&known, &learner, &[]), None, "its log is behind");
        assert_eq!(
            step(&known, &learner, &[2]).unwrap(),
            format!("{:?}", Step::AddVoterIds([2].into()))
        );
    }

    #[test]
    fn who_is_gone_from_the_table_is_dropped() {
        let gone = table(&[1, 2], &[]);
        assert_eq!(
            step(&gone, &raft(&[&[1, 2, 3]], &[]), &[]).unwrap(),
            format!("{:?}", Step::RemoveVoters([3].into()))
        );
        assert_eq!(
            step(&gone, &raft(&[&[1, 2]], &[3]), &[]).unwrap(),
            format!("{:?}", Step::RemoveNodes([3].into()))
        );
    }

    /// D13: a leader that went between the two halves of a change.
    #[test]
    fn half_a_change_is_finished_first() {
        let joint = raft(&[&[1, 2], &[1, 2, 3]], &[]);
        assert_eq!(
            step(&table(&[1, 2, 3], &[4]), &joint, &[]).unwrap(),
            format!("{:?}", Step::ReplaceAllVoters([1, 2, 3].into()))
        );
    }
}
