//! What the peer port answers to other members, and to operators who look there. Consensus has no traffic of its own on
//! it yet.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use quorate_api::proto::etcdserverpb::Member;
use serde::Serialize;

use super::Ops;
use super::routes::{method_not_allowed, plain_error, typed};

pub(crate) const CLUSTER_ID: HeaderName = HeaderName::from_static("x-etcd-cluster-id");

/// Tells members of Quorate from etcd's, which speak another language among themselves.
pub(crate) const QUORATE_VERSION: HeaderName = HeaderName::from_static("x-quorate-version");

/// One element of `/members`, in etcd's field names and order.
#[derive(Serialize)]
struct Listed<'a> {
    id: u64,
    #[serde(rename = "peerURLs")]
    peer_urls: &'a [String],
    #[serde(rename = "isLearner", skip_serializing_if = "std::ops::Not::not")]
    is_learner: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(rename = "clientURLs", skip_serializing_if = "<[String]>::is_empty")]
    client_urls: &'a [String],
}

impl<'a> From<&'a Member> for Listed<'a> {
    fn from(member: &'a Member) -> Self {
        Self {
            id: member.id,
            peer_urls: &member.peer_ur_ls,
            is_learner: member.is_learner,
            name: &member.name,
            client_urls: &member.client_ur_ls,
        }
    }
}

pub(super) async fn members(State(ops): State<Arc<Ops>>, request: Request) -> Response {
    if request.method() != Method::GET {
        return method_not_allowed();
    }
    // An empty list would be a lie that a joining member believes. Those that found the cluster with us ask before
    // they know, as we do: an answer that is none keeps nobody waiting.
    let Some(membership) = ops.node.membership() else {
        return plain_error(StatusCode::SERVICE_UNAVAILABLE, "the member is not ready");
    };
    let listed: Vec<_> = membership.members.iter().map(Listed::from).collect();
    let Ok(body) = serde_json::to_string(&listed) else {
        return plain_error(StatusCode::INTERNAL_SERVER_ERROR, "encode members");
    };
    let mut response = typed(StatusCode::OK, "application/json", body + "\n");
    if let Ok(id) = HeaderValue::from_str(&membership.cluster.to_string()) {
        response.headers_mut().insert(CLUSTER_ID, id);
    }
    let version = HeaderValue::from_static(quorate_api::version::QUORATE_VERSION);
    response.headers_mut().insert(QUORATE_VERSION, version);
    response
}
