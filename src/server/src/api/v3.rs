//! The gRPC services: one handler a method, matched by [`Method`]. A handler checks the request, sends writes through
//! the log or reads behind a barrier, and encodes the answer once.

mod cluster;
mod health;
mod kv;
mod leader;
mod lease;
mod maintenance;
mod parts;
mod range;
mod watch;

use crate::member::Member;
use crate::rpc::{self, CallContext, Incoming, Method, Outgoing, Reply};
use crate::state::State;
use bytes::Bytes;
use prost::Message;
use quorate_api::error::transport;
use quorate_api::proto::etcdserverpb as pb;
use quorate_api::{Code, Error, Status};
use std::sync::Arc;

/// The services of one member. Calls are let in only once it is there.
#[derive(Clone)]
pub struct Services {
    state: Arc<State>,
}

impl Services {
    pub fn new(state: Arc<State>) -> Self {
        Self { state }
    }

    /// What etcd's interceptors look at, in their order. `message`: the request, where there is just one.
    fn admit(&self, method: Method, call: &CallContext, message: Option<&Bytes>) -> Result<&Arc<Member>, Status> {
        let member = self.state.member().ok_or(Error::Stopped)?;
        if member.is_learner() && !is_for_learners(method, message) {
            return Err(Error::NotSupportedForLearner.into());
        }
        if call.client_api_version().is_err() {
            return Err(Error::InvalidClientApiVersion.into());
        }
        if call.requires_leader() && member.node.leader().is_none() {
            return Err(Error::NoLeader.into());
        }
        Ok(member)
    }
}

impl rpc::Api for Services {
    async fn unary(&self, method: Method, call: &CallContext, message: Bytes) -> Result<Reply, Status> {
        let member = self.admit(method, call, Some(&message))?;
        match method {
            Method::KvPut => kv::put(member, message).await,
            Method::KvRange => range::range(member, message).await,
            Method::KvTxn => kv::txn(member, message).await,
            Method::KvDeleteRange => kv::delete_range(member, message).await,
            Method::KvCompact => kv::compact(member, message).await,
            Method::LeaseGrant => lease::grant(member, message).await,
            Method::LeaseRevoke => lease::revoke(member, message).await,
            Method::LeaseTimeToLive => lease::time_to_live(member, message).await,
            Method::LeaseLeases => lease::leases(member, message).await,
            Method::ClusterMemberList => cluster::member_list(member, message).await,
            Method::ClusterMemberAdd => cluster::member_add(member, message).await,
            Method::ClusterMemberRemove => cluster::member_remove(member, message).await,
            Method::ClusterMemberUpdate => cluster::member_update(member, message).await,
            Method::ClusterMemberPromote => cluster::member_promote(member, message).await,
            Method::MaintenanceStatus => maintenance::status(member, message),
            Method::MaintenanceAlarm => maintenance::alarm(member, message).await,
            Method::MaintenanceDefragment => maintenance::defragment(member, message).await,
            Method::MaintenanceMoveLeader => maintenance::move_leader(member, message).await,
            Method::MaintenanceHashKv => maintenance::hash_kv(member, message).await,
            Method::HealthCheck => health::check(member, message),
            Method::HealthList => health::list(member, message),
            other => Err(not_yet(other)),
        }
    }

    async fn stream(
        &self,
        method: Method,
        call: CallContext,
        incoming: Incoming,
        outgoing: Outgoing,
    ) -> Result<(), Status> {
        let member = self.admit(method, &call, None)?;
        match method {
            Method::Watch => watch::serve(member, call, incoming, outgoing).await,
            Method::LeaseKeepAlive => lease::keep_alive(member, call, incoming, outgoing).await,
            Method::KvRangeStream => range::stream(member, incoming, outgoing).await,
            Method::HealthWatch => health::watch(member, incoming, outgoing).await,
            other => Err(not_yet(other)),
        }
    }
}

/// What a learner, which may be far behind and knows nothing of quorums, can answer all the same.
fn is_for_learners(method: Method, message: Option<&Bytes>) -> bool {
    match method {
        Method::MaintenanceStatus | Method::MaintenanceSnapshot => true,
        // Bytes that can't be read are no serializable range.
        Method::KvRange => message
            .and_then(|message| pb::RangeRequest::decode(message.clone()).ok())
            .is_some_and(|request| request.serializable),
        _ => false,
    }
}

/// A method that etcd has and this version does not serve. Said as such, so that nobody looks for a typing mistake.
fn not_yet(method: Method) -> Status {
    let (service, name) = (method.service(), method.name());
    Status::new(
        Code::Unimplemented,
        format!("{service}/{name} is not yet served by Quorate"),
    )
}

fn decode<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message).map_err(transport::bad_message)
}

/// [`decode`] for messages of a stream.
fn decode_streamed<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message).map_err(transport::bad_stream_message)
}

fn reply(message: &impl Message) -> Result<Reply, Status> {
    Ok(Reply::Message(message.encode_to_vec().into()))
}

/// An outcome whose kind is not that of its command: impossible, and reported instead of trusted.
fn mismatched() -> Status {
    Status::new(Code::Internal, "the command's outcome is of another kind")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_learner_serves_status_snapshot_and_serializable_ranges_only() {
        let range = |serializable| -> Bytes {
            let request = pb::RangeRequest {
                key: "a".into(),
                serializable,
                ..Default::default()
            };
            request.encode_to_vec().into()
        };
        let serves = |method, message: Bytes| is_for_learners(method, Some(&message));
        assert!(serves(Method::KvRange, range(true)));
        assert!(!serves(Method::KvRange, range(false)));
        assert!(!serves(Method::KvRange, Bytes::from_static(&[0xff])));
        for method in Method::ALL {
            let always = matches!(method, Method::MaintenanceStatus | Method::MaintenanceSnapshot);
            assert_eq!(is_for_learners(*method, None), always, "{method:?}");
            assert_eq!(
                serves(*method, range(true)),
                always || *method == Method::KvRange,
                "{method:?}"
            );
        }
    }
}
