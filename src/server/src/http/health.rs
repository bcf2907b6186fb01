//! `/health`: alarms, then the leader, then a read. The first that fails is the reason.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use http::{Method, StatusCode};
use quorate_api::Error;

use super::node::NodeState;
use super::routes::{Ops, Query, method_not_allowed, plain, plain_error};

pub(crate) async fn answer(State(ops): State<Arc<Ops>>, request: Request) -> Response {
    if request.method() != Method::GET {
        return method_not_allowed();
    }
    let query = Query::of(request.uri());
    let reason = reason(&ops, &query).await;
    ops.node.observe_health(reason.is_none());
    match reason {
        // etcd's answer has no newline here, and one when it fails. Probes compare it byte by byte.
        None => plain(StatusCode::OK, body("true", "")),
        Some(reason) => {
            tracing::debug!(%reason, "serving unhealthy");
            plain_error(StatusCode::SERVICE_UNAVAILABLE, &body("false", &reason))
        }
    }
}

async fn reason(ops: &Ops, query: &Query) -> Option<String> {
    let node: &dyn NodeState = &*ops.node;
    let excluded = |name: &str| query.all("exclude").any(|entry| entry == name);
    if let Some(alarm) = node.alarms().into_iter().find(|alarm| !excluded(alarm.name())) {
        return Some(format!("ALARM {}", alarm.name()));
    }
    let serializable = query.first("serializable") == Some("true");
    if !serializable && !node.has_leader() {
        return Some("RAFT NO LEADER".to_owned());
    }
    let read = if serializable {
        node.probe_serializable()
    } else {
        node.probe_linearizable()
    };
    let result = tokio::time::timeout(ops.probe_deadline, read)
        .await
        .unwrap_or_else(|_| Err(Error::DeadlineExceeded.into()));
    result.err().map(|status| format!("RANGE ERROR:{}", status.message))
}

/// `health` is a string, as etcd's clients expect.
fn body(health: &str, reason: &str) -> String {
    let reason = serde_json::Value::from(reason);
    format!("{{\"health\":\"{health}\",\"reason\":{reason}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_etcds_to_the_byte() {
        assert_eq!(body("true", ""), r#"{"health":"true","reason":""}"#);
        assert_eq!(body("true", "").len(), 29);
        assert_eq!(
            body("false", "RANGE ERROR:say \"x\""),
            r#"{"health":"false","reason":"RANGE ERROR:say \"x\""}"#
        );
    }
}
