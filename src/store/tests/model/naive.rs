//! The store as one would write it down on paper: a list of all changes ever made, folded anew for every question.

use std::collections::{BTreeMap, BTreeSet};

use super::generate::Turn;
use bytes::Bytes;
use quorate_api::proto::etcdserverpb::compare::TargetUnion;
use quorate_api::proto::etcdserverpb::request_op::Request;
use quorate_api::proto::etcdserverpb::response_op::Response;
use quorate_api::proto::etcdserverpb::{self as pb};
use quorate_api::proto::mvccpb::KeyValue;
use quorate_api::{Error, KeyRange, Revision};
use quorate_store::Origin;
use quorate_store::command::{Command, Outcome, Reply};
use quorate_store::event::{Event, EventBatch, EventKind};

#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    main: i64,
    key: Bytes,
    /// None: deleted.
    pair: Option<KeyValue>,
    prev: Option<i64>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Naive {
    pub revision: i64,
    pub compacted: i64,
    pub changes: Vec<Change>,
    pub leases: BTreeMap<i64, (i64, i64)>,
    pub alarms: BTreeSet<(u64, i32)>,
    pub cluster: Option<u64>,
    pub members: BTreeMap<u64, pb::Member>,
    pub removed: BTreeSet<u64>,
    pub origins: BTreeMap<u64, (u64, u64)>,
    pub incarnations: BTreeMap<u64, u64>,
}

impl Naive {
    pub fn new() -> Self {
        Self {
            revision: 1,
            compacted: -1,
            changes: Vec::new(),
            leases: BTreeMap::new(),
            alarms: BTreeSet::new(),
            cluster: None,
            members: BTreeMap::new(),
            removed: BTreeSet::new(),
            origins: BTreeMap::new(),
            incarnations: BTreeMap::new(),
        }
    }

    pub fn state(&self, at: i64) -> BTreeMap<Bytes, KeyValue> {
        let mut state = BTreeMap::new();
        for change in self.changes.iter().filter(|change| change.main <= at) {
            match &change.pair {
                Some(pair) => state.insert(change.key.clone(), pair.clone()),
                None => state.remove(&change.key),
            };
        }
        state
    }

    fn get(&self, key: &Bytes) -> Option<KeyValue> {
        self.state(i64::MAX).remove(key)
    }

    pub fn lease_keys(&self, id: i64) -> Vec<Bytes> {
        let attached = self.state(i64::MAX).into_values().filter(|pair| pair.lease == id);
        attached.map(|pair| pair.key).collect()
    }

    pub fn history(&self, range: &KeyRange, from: i64) -> Vec<EventBatch> {
        let standing = self.state(self.compacted);
        let mut batches: Vec<EventBatch> = Vec::new();
        for change in &self.changes {
            if change.main < from || !range.contains(&change.key) {
                continue;
            }
            let kept = |prev: &i64| {
                *prev >= self.compacted || standing.get(&change.key).is_some_and(|pair| pair.mod_revision == *prev)
            };
            let event = event(change, change.prev.filter(kept));
            match batches.last_mut().filter(|batch| batch.revision.0 == change.main) {
                Some(batch) => batch.events.push(event),
                None => batches.push(EventBatch {
                    revision: Revision(change.main),
                    events: vec![event],
                }),
            }
        }
        batches
    }

    /// The events of one revision as they were when it was applied.
    pub fn events_of(&self, main: i64) -> Vec<Event> {
        let of = self.changes.iter().filter(|change| change.main == main);
        of.map(|change| event(change, change.prev)).collect()
    }

    pub fn pair_at(&self, key: &Bytes, at: i64) -> Option<KeyValue> {
        let written = |change: &&Change| change.main == at && change.key == *key && change.pair.is_some();
        let pair = self.changes.iter().rev().find(written)?.pair.clone();
        let standing = self.state(self.compacted).remove(key);
        pair.filter(|pair| at >= self.compacted || standing.as_ref() == Some(pair))
    }

    /// The batch that a member proposes next, or one that it proposed before.
    pub fn origin(&self, member: u64, turn: Turn) -> Origin {
        let (boot, sequence) = self.origins.get(&member).copied().unwrap_or((1, 1));
        let (boot, sequence) = match turn {
            Turn::Next => (boot, sequence + 1),
            Turn::Skip => (boot, sequence + 5),
            Turn::Restart => (boot + 1, 1),
            Turn::Repeat => (boot, sequence),
            Turn::Late => (boot.saturating_sub(1), sequence + 100),
        };
        Origin { member, boot, sequence }
    }

    /// Whether a batch is to be applied at all.
    pub fn begins(&mut self, Origin { member, boot, sequence }: Origin) -> bool {
        if member == 0 {
            return true;
        }
        let newest = self.origins.get(&member).copied();
        if self.removed.contains(&member) || newest.is_some_and(|newest| newest >= (boot, sequence)) {
            return false;
        }
        self.origins.insert(member, (boot, sequence));
        true
    }

    pub fn run(&mut self, term: u64, command: &Command) -> Outcome {
        let before = self.clone();
        let result = self.execute(term, command);
        if result.is_err() {
            *self = before;
        } else if self.changes.len() > before.changes.len() {
            self.revision += 1;
        }
        Outcome {
            revision: Revision(self.revision),
            result,
        }
    }

    fn execute(&mut self, term: u64, command: &Command) -> Result<Reply, Error> {
        use Command::*;
        let raised = |kind| self.alarms.iter().any(|alarm| alarm.1 == kind);
        let writes = matches!(
            command,
            Put(_) | DeleteRange(_) | Txn(_) | Compact(_) | LeaseGrant(_) | LeaseRevoke(_)
        );
        if writes && raised(2) {
            return Err(Error::Corrupt);
        }
        let grows = match command {
            Put(_) | LeaseGrant(_) => true,
            Txn(txn) => quorate_store::validate::txn_cost(txn) > 0,
            _ => false,
        };
        if grows && raised(1) {
            return Err(Error::NoSpace);
        }
        match command.clone() {
            Put(put) => {
                self.check_put(&put)?;
                Ok(Reply::Put(self.put(&put)))
            }
            DeleteRange(delete) => Ok(Reply::DeleteRange(self.delete(&delete))),
            Txn(txn) => {
                let mut plan = Vec::new();
                self.plan(&txn, &mut plan);
                let before = self.clone();
                self.txn(&before, &txn, &mut plan.into_iter()).map(Reply::Txn)
            }
            Compact(compact) => {
                if compact.revision <= self.compacted {
                    return Err(Error::Compacted);
                }
                if compact.revision > self.revision {
                    return Err(Error::FutureRevision);
                }
                self.compacted = compact.revision;
                Ok(Reply::Compact)
            }
            LeaseGrant(grant) => {
                if grant.id == 0 {
                    return Err(Error::LeaseNotFound);
                }
                if self.leases.contains_key(&grant.id) {
                    return Err(Error::LeaseExists);
                }
                self.leases.insert(grant.id, (grant.ttl_secs, 0));
                Ok(Reply::LeaseGrant {
                    id: grant.id,
                    ttl_secs: grant.ttl_secs,
                })
            }
            LeaseRevoke(revoke) => {
                if revoke.expired_in_term != 0 && revoke.expired_in_term != term {
                    return Ok(Reply::Done);
                }
                let keys = self.lease_keys(revoke.id);
                self.leases.remove(&revoke.id).ok_or(Error::LeaseNotFound)?;
                keys.into_iter().for_each(|key| self.remove(key));
                Ok(Reply::LeaseRevoke)
            }
            LeaseCheckpoint(checkpoint) => {
                let remainders = checkpoint.remainders.into_iter();
                for left in remainders.filter(|_| checkpoint.term == term) {
                    if let Some(lease) = self.leases.get_mut(&left.id) {
                        lease.1 = left.remaining_secs.max(0);
                    }
                }
                Ok(Reply::Done)
            }
            MemberAdd(add) => {
                let voters = self.voters();
                let started = voters.iter().filter(|voter| !voter.name.is_empty()).count();
                let lone = voters.len() == 1 && started == 1;
                if add.strict && !add.is_learner && !lone && 2 * started <= voters.len() + 1 {
                    return Err(Error::MemberNotEnoughStarted);
                }
                if add.id == 0 || self.removed.contains(&add.id) {
                    return Err(Error::MemberNotFound);
                }
                if self.members.contains_key(&add.id) {
                    return Err(Error::MemberExists);
                }
                if self.is_taken(add.id, &add.peer_urls) {
                    return Err(Error::PeerUrlExists);
                }
                if add.is_learner && self.members.len() - voters.len() + 1 > add.max_learners as usize {
                    return Err(Error::TooManyLearners);
                }
                let member = pb::Member {
                    id: add.id,
                    name: String::new(),
                    peer_ur_ls: tidy(&add.peer_urls),
                    client_ur_ls: Vec::new(),
                    is_learner: add.is_learner,
                };
                self.members.insert(member.id, member);
                Ok(self.member_list())
            }
            MemberUpdate(update) => {
                if !self.members.contains_key(&update.id) {
                    return Err(Error::MemberNotFound);
                }
                if self.is_taken(update.id, &update.peer_urls) {
                    return Err(Error::PeerUrlExists);
                }
                if let Some(member) = self.members.get_mut(&update.id) {
                    member.peer_ur_ls = tidy(&update.peer_urls);
                }
                Ok(self.member_list())
            }
            MemberPromote(promote) => {
                let voters = self.voters();
                let started = voters.iter().filter(|voter| !voter.name.is_empty()).count();
                let few = promote.strict && 2 * (started + 1) <= voters.len() + 1;
                let member = self.members.get_mut(&promote.id).ok_or(Error::MemberNotFound)?;
                if few {
                    return Err(Error::MemberNotEnoughStarted);
                }
                if !std::mem::take(&mut member.is_learner) {
                    return Err(Error::MemberNotLearner);
                }
                Ok(self.member_list())
            }
            MemberRemove(remove) => {
                let was_learner = self.members.get(&remove.id).is_some_and(|member| member.is_learner);
                let known = self.members.remove(&remove.id).ok_or(Error::MemberNotFound);
                let voters = self.voters();
                let started = voters.iter().filter(|voter| !voter.name.is_empty()).count();
                if remove.strict && !was_learner && 2 * started <= voters.len() {
                    return Err(Error::MemberNotEnoughStarted);
                }
                let known = known?;
                let last = voters.is_empty() || (started == 0 && !known.name.is_empty());
                if last && !known.is_learner {
                    return Err(Error::MemberNotEnoughStarted);
                }
                self.removed.insert(remove.id);
                self.origins.remove(&remove.id);
                Ok(self.member_list())
            }
            MemberPublish(publish) => {
                let member = self.members.get_mut(&publish.id).ok_or(Error::MemberNotFound)?;
                if *self.incarnations.entry(publish.id).or_insert(publish.incarnation) != publish.incarnation {
                    return Err(Error::MemberOtherData);
                }
                member.name = publish.name;
                member.client_ur_ls = publish.client_urls;
                Ok(self.member_list())
            }
            ClusterInit(init) => {
                if self.cluster.is_none() {
                    self.cluster = Some(init.cluster_id);
                    self.members
                        .extend(init.members.into_iter().map(|member| (member.id, member)));
                    for member in self.members.values_mut() {
                        member.peer_ur_ls = tidy(&member.peer_ur_ls);
                    }
                }
                Ok(Reply::Done)
            }
            AlarmSet(set) => {
                if set.alarm != 1 && set.alarm != 2 {
                    return Ok(Reply::Alarm(None));
                }
                let alarm = (set.member_id, set.alarm);
                let there = self.alarms.remove(&alarm);
                if set.active {
                    self.alarms.insert(alarm);
                }
                let answer = pb::AlarmMember {
                    member_id: set.member_id,
                    alarm: set.alarm,
                };
                Ok(Reply::Alarm((set.active || there).then_some(answer)))
            }
        }
    }

    fn voters(&self) -> Vec<pb::Member> {
        self.members
            .values()
            .filter(|member| !member.is_learner)
            .cloned()
            .collect()
    }

    fn is_taken(&self, id: u64, urls: &[String]) -> bool {
        let others = self.members.values().filter(|member| member.id != id);
        let taken: BTreeSet<&str> = others
            .flat_map(|member| &member.peer_ur_ls)
            .map(String::as_str)
            .collect();
        urls.iter().any(|url| taken.contains(url.trim()))
    }

    fn member_list(&self) -> Reply {
        Reply::Members(self.members.values().cloned().collect())
    }

    fn check_put(&self, put: &pb::PutRequest) -> Result<(), Error> {
        if put.lease != 0 && !self.leases.contains_key(&put.lease) {
            return Err(Error::LeaseNotFound);
        }
        if (put.ignore_lease || put.ignore_value) && self.get(&put.key).is_none() {
            return Err(Error::KeyNotFound);
        }
        Ok(())
    }

    fn put(&mut self, put: &pb::PutRequest) -> pb::PutResponse {
        let old = self.get(&put.key);
        let main = self.revision + 1;
        let mut pair = KeyValue {
            key: put.key.clone(),
            create_revision: main,
            mod_revision: main,
            version: 1,
            value: put.value.clone(),
            lease: put.lease,
        };
        if let Some(old) = &old {
            pair.create_revision = old.create_revision;
            pair.version = old.version + 1;
            if put.ignore_value {
                pair.value = old.value.clone();
            }
            if put.ignore_lease {
                pair.lease = old.lease;
            }
        }
        let created = pair.create_revision == main;
        self.changes.push(Change {
            main,
            key: put.key.clone(),
            pair: Some(pair),
            prev: self.before(&put.key).filter(|_| !created),
        });
        pb::PutResponse {
            header: None,
            prev_kv: old.filter(|_| put.prev_kv),
        }
    }

    /// What a watcher is shown as replaced: the pair before the transaction.
    fn before(&self, key: &Bytes) -> Option<i64> {
        self.state(self.revision).get(key).map(|pair| pair.mod_revision)
    }

    fn remove(&mut self, key: Bytes) {
        self.changes.push(Change {
            main: self.revision + 1,
            prev: self.before(&key),
            key,
            pair: None,
        });
    }

    fn delete(&mut self, delete: &pb::DeleteRangeRequest) -> pb::DeleteRangeResponse {
        let range = KeyRange::new(delete.key.clone(), delete.range_end.clone());
        let state = self.state(i64::MAX);
        let gone: Vec<KeyValue> = state.into_values().filter(|pair| range.contains(&pair.key)).collect();
        gone.iter().for_each(|pair| self.remove(pair.key.clone()));
        pb::DeleteRangeResponse {
            header: None,
            deleted: gone.len() as i64,
            prev_kvs: if delete.prev_kv { gone } else { Vec::new() },
        }
    }

    fn plan(&self, txn: &pb::TxnRequest, plan: &mut Vec<bool>) {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        plan.push(succeeded);
        for op in if succeeded { &txn.success } else { &txn.failure } {
            if let Some(Request::RequestTxn(nested)) = &op.request {
                self.plan(nested, plan);
            }
        }
    }

    /// Whatever fails on the way undoes everything: `run` restores what was. `before` is the state that checks look
    /// at, unless an operation before has deleted what a put wants to keep.
    fn txn(
        &mut self,
        before: &Naive,
        txn: &pb::TxnRequest,
        plan: &mut dyn Iterator<Item = bool>,
    ) -> Result<pb::TxnResponse, Error> {
        let succeeded = plan.next().unwrap();
        let mut responses = Vec::new();
        for op in if succeeded { &txn.success } else { &txn.failure } {
            let response = match op.request.as_ref().ok_or(Error::KeyNotFound)? {
                Request::RequestRange(range) => {
                    self.range(range, 0)?;
                    let at = match range.revision {
                        0 => i64::MAX,
                        at if at < 0 || at < before.compacted => return Err(Error::Compacted),
                        at if at > before.revision => return Err(Error::FutureRevision),
                        at => at,
                    };
                    let mut response = self.range(range, at)?;
                    response.header = self.header(before);
                    Response::ResponseRange(response)
                }
                Request::RequestPut(put) => {
                    before.check_put(put)?;
                    self.check_put(put)?;
                    let mut response = self.put(put);
                    response.header = self.header(before);
                    Response::ResponsePut(response)
                }
                Request::RequestDeleteRange(delete) => {
                    let mut response = self.delete(delete);
                    response.header = self.header(before);
                    Response::ResponseDeleteRange(response)
                }
                Request::RequestTxn(nested) => {
                    let mut response = self.txn(before, nested, plan)?;
                    response.header = Some(pb::ResponseHeader::default());
                    Response::ResponseTxn(response)
                }
            };
            responses.push(pb::ResponseOp {
                response: Some(response),
            });
        }
        Ok(pb::TxnResponse {
            header: None,
            succeeded,
            responses,
        })
    }

    fn header(&self, before: &Naive) -> Option<pb::ResponseHeader> {
        let changed = self.changes.len() > before.changes.len();
        Some(pb::ResponseHeader {
            revision: before.revision + i64::from(changed),
            ..Default::default()
        })
    }

    pub fn holds(&self, compare: &pb::Compare) -> bool {
        let range = KeyRange::new(compare.key.clone(), compare.range_end.clone());
        let state = self.state(i64::MAX);
        let mut pairs: Vec<KeyValue> = state.into_values().filter(|pair| range.contains(&pair.key)).collect();
        if pairs.is_empty() {
            if compare.target == 3 {
                return false;
            }
            pairs.push(KeyValue::default());
        }
        let union = compare.target_union.clone();
        pairs.iter().all(|pair| {
            let order = match (compare.target, &union) {
                (0, Some(TargetUnion::Version(given))) => pair.version.cmp(given),
                (1, Some(TargetUnion::CreateRevision(given))) => pair.create_revision.cmp(given),
                (2, Some(TargetUnion::ModRevision(given))) => pair.mod_revision.cmp(given),
                (3, Some(TargetUnion::Value(given))) => pair.value.cmp(given),
                (4, Some(TargetUnion::Lease(given))) => pair.lease.cmp(given),
                (0, _) => pair.version.cmp(&0),
                (1, _) => pair.create_revision.cmp(&0),
                (2, _) => pair.mod_revision.cmp(&0),
                (3, _) => pair.value.cmp(&Bytes::new()),
                (4, _) => pair.lease.cmp(&0),
                _ => std::cmp::Ordering::Equal,
            };
            match compare.result {
                0 => order.is_eq(),
                1 => order.is_gt(),
                2 => order.is_lt(),
                3 => order.is_ne(),
                _ => true,
            }
        })
    }

    pub fn range(&self, request: &pb::RangeRequest, at: i64) -> Result<pb::RangeResponse, Error> {
        if !(0..3).contains(&request.sort_order) || !(0..5).contains(&request.sort_target) {
            return Err(Error::InvalidSortOption);
        }
        let range = KeyRange::new(request.key.clone(), request.range_end.clone());
        let state = self.state(at);
        let mut kvs: Vec<KeyValue> = state.into_values().filter(|pair| range.contains(&pair.key)).collect();
        let count = kvs.len() as i64;
        let mut response = pb::RangeResponse {
            count,
            ..Default::default()
        };
        if request.count_only {
            return Ok(response);
        }
        let (min_mod, max_mod) = (request.min_mod_revision, request.max_mod_revision);
        let (min_create, max_create) = (request.min_create_revision, request.max_create_revision);
        let limit = usize::try_from(request.limit).unwrap_or(0);
        let filtered = [min_mod, max_mod, min_create, max_create] != [0; 4];
        if limit > 0 && request.sort_order == 0 && !filtered {
            kvs.truncate(limit + 1);
        }
        kvs.retain(|pair| {
            (min_mod == 0 || pair.mod_revision >= min_mod)
                && (max_mod == 0 || pair.mod_revision <= max_mod)
                && (min_create == 0 || pair.create_revision >= min_create)
                && (max_create == 0 || pair.create_revision <= max_create)
        });
        kvs.sort_by(|a, b| {
            let order = match request.sort_target {
                0 => a.key.cmp(&b.key),
                1 => a.version.cmp(&b.version),
                2 => a.create_revision.cmp(&b.create_revision),
                3 => a.mod_revision.cmp(&b.mod_revision),
                _ => a.value.cmp(&b.value),
            };
            if request.sort_order == 2 {
                order.reverse()
            } else {
                order
            }
        });
        if limit > 0 && kvs.len() > limit {
            kvs.truncate(limit);
            response.more = true;
        }
        for pair in &mut kvs {
            if request.keys_only {
                pair.value = Bytes::new();
                if request.sort_target != 4 {
                    pair.lease = 0;
                }
            }
        }
        response.kvs = kvs;
        Ok(response)
    }
}

fn event(change: &Change, prev: Option<i64>) -> Event {
    Event {
        kind: match &change.pair {
            Some(pair) => EventKind::Put {
                create_revision: Revision(pair.create_revision),
                version: pair.version,
                lease: pair.lease,
                value: pair.value.clone(),
            },
            None => EventKind::Delete,
        },
        key: change.key.clone(),
        prev: prev.map(Revision),
    }
}

/// As the table keeps URLs.
fn tidy(urls: &[String]) -> Vec<String> {
    let mut urls: Vec<_> = urls.iter().map(|url| url.trim().to_owned()).collect();
    urls.sort();
    urls
}
