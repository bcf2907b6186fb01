//! The members table: what clients see of the cluster. raft's voters follow it, never the other way round.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;
use quorate_api::proto::etcdserverpb::Member;
use quorate_api::{ClusterId, Error as Answer, MemberId};

use crate::backend::{SystemTable, SystemWrite};

pub(crate) const CLUSTER_ID_RECORD: &[u8] = b"cluster-id";

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Members {
    cluster_id: Option<u64>,
    by_id: BTreeMap<u64, Member>,
    /// Never to be used again.
    removed: BTreeSet<u64>,
}

impl Members {
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.cluster_id.map(ClusterId)
    }

    /// By ascending id.
    pub fn list(&self) -> Vec<Member> {
        self.by_id.values().cloned().collect()
    }

    pub fn get(&self, id: MemberId) -> Option<&Member> {
        self.by_id.get(&id.0)
    }

    pub fn is_removed(&self, id: MemberId) -> bool {
        self.removed.contains(&id.0)
    }

    /// The cluster's first command; a second one is the first one proposed again, and changes nothing.
    pub fn init(&mut self, cluster_id: u64, members: Vec<Member>, system: &mut Vec<SystemWrite>) {
        if self.cluster_id.is_some() {
            return;
        }
        self.cluster_id = Some(cluster_id);
        let value = Bytes::copy_from_slice(&cluster_id.to_le_bytes());
        system.push((SystemTable::Cluster, CLUSTER_ID_RECORD.into(), Some(value)));
        for member in members {
            self.store(normal(member), system);
        }
    }

    /// Adds a member or changes one. What a change does not know it leaves alone: name and client URLs are the
    /// member's own to publish, and a voter does not become a learner again because a change was composed before its
    /// promotion.
    pub fn put(&mut self, member: Option<Member>, system: &mut Vec<SystemWrite>) -> Result<(), Answer> {
        let mut member = normal(member.unwrap_or_default());
        if member.id == 0 || self.removed.contains(&member.id) {
            return Err(Answer::MemberNotFound);
        }
        let mut others = self.by_id.values().filter(|other| other.id != member.id);
        if others.any(|other| other.peer_ur_ls.iter().any(|url| member.peer_ur_ls.contains(url))) {
            return Err(Answer::PeerUrlExists);
        }
        if let Some(before) = self.by_id.get(&member.id) {
            if member.name.is_empty() {
                member.name.clone_from(&before.name);
            }
            if member.client_ur_ls.is_empty() {
                member.client_ur_ls.clone_from(&before.client_ur_ls);
            }
            member.is_learner &= before.is_learner;
        }
        self.store(member, system);
        Ok(())
    }

    pub fn remove(&mut self, id: u64, system: &mut Vec<SystemWrite>) -> Result<(), Answer> {
        self.by_id.remove(&id).ok_or(Answer::MemberNotFound)?;
        self.removed.insert(id);
        system.push((SystemTable::Member, key(id), None));
        system.push((SystemTable::Removed, key(id), Some(Bytes::new())));
        Ok(())
    }

    pub fn publish(
        &mut self,
        id: u64,
        name: String,
        client_urls: Vec<String>,
        system: &mut Vec<SystemWrite>,
    ) -> Result<(), Answer> {
        let mut member = self.by_id.get(&id).cloned().ok_or(Answer::MemberNotFound)?;
        member.name = name;
        member.client_ur_ls = client_urls;
        self.store(member, system);
        Ok(())
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
            SystemTable::Removed => match name.try_into() {
                Ok(id) => self.removed.insert(u64::from_be_bytes(id)),
                Err(_) => false,
            },
            _ => true,
        }
    }
}

/// URLs are kept sorted.
fn normal(mut member: Member) -> Member {
    member.peer_ur_ls.sort();
    member
}

fn key(id: u64) -> Bytes {
    Bytes::copy_from_slice(&id.to_be_bytes())
}
