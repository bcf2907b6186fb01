//! Calls and bytes of clients.

use crate::rpc::{CallContext, Kind, Method, RpcObserver};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec};
use quorate_api::Code;
use quorate_runtime::metrics::{GrpcMetrics, MethodMetrics, Registry};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;

/// Versions of client libraries that get a label of their own, for each kind of call. The header is the client's to choose, and each new
/// label is memory for good.
const VERSIONS_MAX: usize = 32;

/// Counts calls. Every handle is looked up once, at start.
pub struct Rpc {
    methods: Vec<Arc<MethodMetrics>>,
    /// `--warning-unary-request-duration`
    slow: Duration,
    received: IntCounter,
    sent: IntCounter,
    requests: IntCounterVec,
    unknown: [IntCounter; 2],
    /// Of unary calls and of streams; read at every call, without a lock.
    by_version: [ArcSwap<HashMap<Box<str>, IntCounter>>; 2],
    learning: Mutex<()>,
}

impl Rpc {
    pub fn new(registry: &Registry, extensive: bool, slow: Duration) -> prometheus::Result<Self> {
        let grpc = Arc::new(GrpcMetrics::new(extensive)?);
        let missing = |method: &Method| prometheus::Error::Msg(format!("no metrics for {}", method.path()));
        let methods = Method::ALL
            .iter()
            .map(|method| grpc.method(method.path()).ok_or_else(|| missing(method)))
            .collect::<prometheus::Result<_>>()?;
        registry.add_source(grpc);
        let requests = registry.counter_vec(
            "etcd_server_client_requests_total",
            "Requests by kind and by the API version of the client's library.",
            &["type", "client_api_version"],
        )?;
        Ok(Self {
            methods,
            slow,
            received: registry.counter(
                "etcd_network_client_grpc_received_bytes_total",
                "Bytes of request messages from clients.",
            )?,
            sent: registry.counter(
                "etcd_network_client_grpc_sent_bytes_total",
                "Bytes of response messages to clients.",
            )?,
            unknown: [
                requests.with_label_values(&["unary", "unknown"]),
                requests.with_label_values(&["stream", "unknown"]),
            ],
            requests,
            by_version: Default::default(),
            learning: Mutex::default(),
        })
    }

    fn method(&self, method: Method) -> &MethodMetrics {
        &self.methods[method.index()]
    }

    fn count_request(&self, stream: bool, version: &str) {
        let known = self.by_version[usize::from(stream)].load();
        match known.get(version) {
            Some(counter) => counter.inc(),
            None if known.len() >= VERSIONS_MAX || !is_version(version) => self.unknown[usize::from(stream)].inc(),
            None => self.learn_version(stream, version).inc(),
        }
    }

    fn learn_version(&self, stream: bool, version: &str) -> IntCounter {
        let _alone = self.learning.lock();
        let known = self.by_version[usize::from(stream)].load_full();
        if let Some(counter) = known.get(version) {
            return counter.clone();
        }
        if known.len() >= VERSIONS_MAX {
            return self.unknown[usize::from(stream)].clone();
        }
        let kind = if stream { "stream" } else { "unary" };
        let counter = self.requests.with_label_values(&[kind, version]);
        let mut more = HashMap::clone(&known);
        more.insert(version.into(), counter.clone());
        self.by_version[usize::from(stream)].store(Arc::new(more));
        counter
    }
}

/// Digits and dots, as all released clients send.
fn is_version(text: &str) -> bool {
    !text.is_empty() && text.len() <= 16 && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
}

impl RpcObserver for Rpc {
    fn started(&self, method: Method, call: &CallContext) {
        self.method(method).started();
        let stream = method.kind() != Kind::Unary;
        match call.client_api_version() {
            Ok(Some(version)) => self.count_request(stream, version),
            _ => self.unknown[usize::from(stream)].inc(),
        }
    }

    fn received(&self, method: Method, bytes: usize) {
        self.method(method).received(1);
        self.received.inc_by(bytes as u64);
    }

    fn sent(&self, method: Method, messages: usize, bytes: usize) {
        self.method(method).sent(messages as u64);
        self.sent.inc_by(bytes as u64);
    }

    fn handled(&self, method: Method, code: Code, took: Duration) {
        self.method(method).handled(i32::from(code.number()), took);
        if took > self.slow && method.kind() == Kind::Unary {
            warn!("response type" = method.path(), "time spent" = ?took, "expected-duration" = ?self.slow, "request stats");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A20
    #[test]
    fn labels_come_from_a_closed_set() {
        let registry = Registry::new();
        let rpc = Rpc::new(&registry, false, Duration::from_secs(1)).unwrap();
        for n in 0..1000 {
            rpc.count_request(false, &format!("3.{n}"));
        }
        rpc.count_request(true, "3.7\"} 1\nfake 2");
        let page = registry.scrape();
        let lines = page
            .lines()
            .filter(|line| line.starts_with("etcd_server_client_requests_total{"))
            .count();
        assert_eq!(lines, VERSIONS_MAX + 2);
        assert!(!page.contains("fake"));
    }
}
