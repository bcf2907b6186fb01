//! The members table: what clients see of the cluster. raft's voters follow it, never the other way round.
//!
//! ```text
//!              add            publish                  add as learner       publish         promote
//!   nobody ─────────► voter ──────────► started voter       …  ─► learner ──────────► started ────────► started voter
//!                                                        remove
//!   any of them ──────────────────────────────────────────────► removed: the id is used up
//! ```
//!
//! Whether a change may be made is decided here, when it is applied, from applied state and what the command says; so
//! two that are proposed at a time can't both slip through, and all members decide alike. What depends on who is
//! connected to whom is no applied state, and is looked at before anything is proposed: see [`reconfig`].
//!
//! Invariants: an id that was removed is never used again; there is always a voter, and once one has started, always
//! one that has; no two members have a peer URL in common, unless they were founded so.

pub mod reconfig;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;
use quorate_api::proto::etcdserverpb::Member;
use quorate_api::proto::quorate::{MemberAdd, MemberPromote, MemberPublish, MemberRemove, MemberUpdate};
use quorate_api::{ClusterId, Error as Answer, MemberId};

use crate::backend::{SystemTable, SystemWrite};

pub(crate) const CLUSTER_ID_RECORD: &[u8] = b"cluster-id";

/// What the table says of an id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub is_member: bool,
    pub is_removed: bool,
    /// The data directory that it published from, if it has.
    pub incarnation: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Members {
    cluster_id: Option<u64>,
    by_id: BTreeMap<u64, Member>,
    /// Never to be used again, as they were: who has lost its row may still be needed to let it go.
    removed: BTreeMap<u64, Member>,
    /// The data directory that each member published from, those that are removed included. One that comes with another
    /// has lost what it acknowledged.
    incarnations: BTreeMap<u64, u64>,
}

impl Members {
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.cluster_id.map(ClusterId)
    }

    /// By ascending id.
    pub fn list(&self) -> Vec<Member> {
        self.by_id.values().cloned().collect()
    }

    /// Those, and who is removed and still counted by raft.
    pub fn with_leaving(&self, counted: &BTreeSet<u64>) -> Vec<Member> {
        let leaving = counted.iter().filter_map(|id| self.removed.get(id));
        self.by_id.values().chain(leaving).cloned().collect()
    }

    pub fn standing(&self, id: MemberId) -> Standing {
        Standing {
            is_member: self.by_id.contains_key(&id.0),
            is_removed: self.removed.contains_key(&id.0),
            incarnation: self.incarnation(id),
        }
    }

    pub fn get(&self, id: MemberId) -> Option<&Member> {
        self.by_id.get(&id.0)
    }

    pub fn learners(&self) -> Vec<u64> {
        let learners = self.by_id.values().filter(|member| member.is_learner);
        learners.map(|member| member.id).collect()
    }

    pub fn is_removed(&self, id: MemberId) -> bool {
        self.removed.contains_key(&id.0)
    }

    pub fn incarnation(&self, id: MemberId) -> Option<u64> {
        self.incarnations.get(&id.0).copied()
    }

    /// The cluster's first command; a second one is the first one proposed again, and changes nothing.
    pub fn init(&mut self, cluster_id: u64, members: Vec<Member>, system: &mut Vec<SystemWrite>) {
        if self.cluster_id.is_some() {
            return;
        }
        self.cluster_id = Some(cluster_id);
        let value = Bytes::copy_from_slice(&cluster_id.to_le_bytes());
        system.push((SystemTable::Cluster, CLUSTER_ID_RECORD.into(), Some(value)));
        for mut member in members {
            member.peer_ur_ls = normal(member.peer_ur_ls);
            self.store(member, system);
        }
    }

    pub fn add(&mut self, add: MemberAdd, system: &mut Vec<SystemWrite>) -> Result<(), Answer> {
        let MemberAdd {
            id,
            peer_urls,
            is_learner,
            max_learners,
            strict,
        } = add;
        let peer_urls = normal(peer_urls);
        if strict && !is_learner && !reconfig::may_add_voter(self.by_id.values()) {
            return Err(Answer::MemberNotEnoughStarted);
        }
        if id == 0 || self.removed.contains_key(&id) {
            return Err(Answer::MemberNotFound);
        }
        if self.by_id.contains_key(&id) {
            return Err(Answer::MemberExists);
        }
        self.check_urls(id, &peer_urls)?;
        let learners = self.by_id.values().filter(|member| member.is_learner).count() as u64;
        if is_learner && learners >= max_learners {
            return Err(Answer::TooManyLearners);
        }
        let member = Member {
            id,
            peer_ur_ls: peer_urls,
            is_learner,
            ..Default::default()
        };
        self.store(member, system);
        Ok(())
    }

    /// Name and client URLs are the member's own to publish, and whether it votes is another command's.
    pub fn update(&mut self, update: MemberUpdate, system: &mut Vec<SystemWrite>) -> Result<(), Answer> {
        let MemberUpdate { id, peer_urls } = update;
        let mut member = self.find(id)?.clone();
        member.peer_ur_ls = normal(peer_urls);
        self.check_urls(id, &member.peer_ur_ls)?;
        self.store(member, system);
        Ok(())
    }

    /// Whether the learner has caught up was looked at before this was proposed: applied state does not know.
    pub fn promote(&mut self, promote: MemberPromote, system: &mut Vec<SystemWrite>) -> Result<(), Answer> {
        let MemberPromote { id, strict } = promote;
        let mut member = self.find(id)?.clone();
        if strict && !reconfig::may_promote(self.by_id.values()) {
            return Err(Answer::MemberNotEnoughStarted);
        }
        if !member.is_learner {
            return Err(Answer::MemberNotLearner);
        }
        member.is_learner = false;
        self.store(member, system);
        Ok(())
    }

    pub fn remove(&mut self, remove: MemberRemove, system: &mut Vec<SystemWrite>) -> Result<(), Answer> {
        let MemberRemove { id, strict } = remove;
        if strict && !reconfig::may_remove(self.by_id.values(), id) {
            return Err(Answer::MemberNotEnoughStarted);
        }
        let removed = self.find(id)?.clone();
        // Whoever switched the strict check off may lose the quorum, but nobody wants what nothing can follow.
        if reconfig::is_end(self.by_id.values(), id) {
            return Err(Answer::MemberNotEnoughStarted);
        }
        self.by_id.remove(&id);
        system.push((SystemTable::Member, key(id), None));
        system.push((SystemTable::Removed, key(id), Some(removed.encode_to_vec().into())));
        self.removed.insert(id, removed);
        Ok(())
    }

    pub fn publish(&mut self, publish: MemberPublish, system: &mut Vec<SystemWrite>) -> Result<(), Answer> {
        let MemberPublish {
            id,
            name,
            client_urls,
            incarnation,
        } = publish;
        let mut member = self.find(id)?.clone();
        match self.incarnations.get(&id) {
            Some(before) if *before != incarnation => return Err(Answer::MemberOtherData),
            Some(_) => {}
            None => {
                self.incarnations.insert(id, incarnation);
                let value = Bytes::copy_from_slice(&incarnation.to_le_bytes());
                system.push((SystemTable::Incarnation, key(id), Some(value)));
            }
        }
        member.name = name;
        member.client_ur_ls = client_urls;
        self.store(member, system);
        Ok(())
    }

    fn find(&self, id: u64) -> Result<&Member, Answer> {
        self.by_id.get(&id).ok_or(Answer::MemberNotFound)
    }

    fn check_urls(&self, id: u64, peer_urls: &[String]) -> Result<(), Answer> {
        let mut others = self.by_id.values().filter(|other| other.id != id);
        match others.any(|other| other.peer_ur_ls.iter().any(|url| peer_urls.contains(url))) {
            true => Err(Answer::PeerUrlExists),
            false => Ok(()),
        }
    }

    fn store(&mut self, member: Member, system: &mut Vec<SystemWrite>) {
        let value = member.encode_to_vec().into();
        system.push((SystemTable::Member, key(member.id), Some(value)));
        self.by_id.insert(member.id, member);
    }

    /// Reads a stored record; false: it can't be read.
    pub fn restore(&mut self, table: SystemTable, name: &[u8], value: &[u8]) -> bool {
        match table {
            SystemTable::Cluster if name == CLUSTER_ID_RECORD => {
                self.cluster_id = value.try_into().map(u64::from_le_bytes).ok();
                self.cluster_id.is_some()
            }
            SystemTable::Member => match Member::decode(value) {
                Ok(member) if name == member.id.to_be_bytes() => {
                    self.by_id.insert(member.id, member);
                    true
                }
                _ => false,
            },
            SystemTable::Removed => match Member::decode(value) {
                Ok(member) if name == member.id.to_be_bytes() => self.removed.insert(member.id, member).is_none(),
                _ => false,
            },
            SystemTable::Incarnation => match (name.try_into(), value.try_into()) {
                (Ok(id), Ok(incarnation)) => {
                    let incarnation = u64::from_le_bytes(incarnation);
                    self.incarnations.insert(u64::from_be_bytes(id), incarnation);
                    true
                }
                _ => false,
            },
            _ => true,
        }
    }
}

/// URLs are kept without blanks around them, and sorted.
fn normal(urls: Vec<String>) -> Vec<String> {
    let mut urls: Vec<String> = urls.iter().map(|url| url.trim().to_owned()).collect();
    urls.sort();
    urls
}

fn key(id: u64) -> Bytes {
    Bytes::copy_from_slice(&id.to_be_bytes())
}
