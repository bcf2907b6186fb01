//! `/livez` and `/readyz`: named checks, all together or each under a path of its own.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use http::{Method, StatusCode};

use super::node::{Alarm, Check, NodeState, Probe};
use super::routes::{Ops, Query, method_not_allowed, nosniff, plain, plain_error};

/// Answers the probe's own path, which runs all its checks but the excluded ones.
pub(crate) async fn answer_all(probe: Probe, State(ops): State<Arc<Ops>>, request: Request) -> Response {
    let query = Query::of(request.uri());
    for name in query.all("exclude") {
        if !probe.checks().iter().any(|check| check.name() == name) {
            tracing::warn!(probe = probe.name(), "a health check to exclude is not known");
        }
    }
    let checks: Vec<Check> = probe
        .checks()
        .iter()
        .copied()
        .filter(|check| !query.all("exclude").any(|name| name == check.name()))
        .collect();
    answer(probe, &checks, &ops, request.method() == Method::GET, &query).await
}

/// Answers the path of one check.
pub(crate) async fn answer_one(probe: Probe, check: Check, State(ops): State<Arc<Ops>>, request: Request) -> Response {
    let query = Query::of(request.uri());
    answer(probe, &[check], &ops, request.method() == Method::GET, &query).await
}

async fn answer(probe: Probe, checks: &[Check], ops: &Ops, is_get: bool, query: &Query) -> Response {
    if !is_get {
        return method_not_allowed();
    }
    let mut lines = String::new();
    let mut failed = false;
    for check in checks {
        let result = run(*check, &*ops.node).await;
        ops.node.observe_check(probe, *check, result.is_ok());
        match result {
            Ok(()) => lines.push_str(&format!("[+]{} ok\n", check.name())),
            Err(why) => {
                failed = true;
                lines.push_str(&format!("[-]{} failed: {why}\n", check.name()));
            }
        }
    }
    if failed {
        return plain_error(StatusCode::SERVICE_UNAVAILABLE, &lines);
    }
    // With every check excluded there is nothing to be verbose about.
    let shown = if query.has("verbose") { lines } else { String::new() };
    nosniff(plain(StatusCode::OK, shown + "ok\n"))
}

/// Reads have no deadline here beyond the server's own; a client that goes away drops them.
async fn run(check: Check, node: &dyn NodeState) -> Result<(), String> {
    match check {
        Check::DataCorruption if node.alarms().contains(&Alarm::Corrupt) => Err("alarm activated: CORRUPT".to_owned()),
        Check::NonLearner if node.is_learner() => Err("not supported for learner".to_owned()),
        Check::DataCorruption | Check::NonLearner => Ok(()),
        Check::SerializableRead => node
            .probe_serializable()
            .await
            .map_err(|status| status.message.into_owned()),
        Check::LinearizableRead => node
            .probe_linearizable()
            .await
            .map_err(|status| status.message.into_owned()),
    }
}
