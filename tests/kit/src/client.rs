//! A client of several endpoints that retries as etcd's own does.
//!
//! etcd's client (`clientv3`) goes round its endpoints, leaves out those it has no connection to, and retries
//!
//! - reads while the answer is `Unavailable`, a hundred times, with a pause after every majority of endpoints;
//! - writes only when the request certainly never reached a server: not sent at all, or refused by a connection that
//!   was closing. Whatever else happens to a write, nobody knows whether it was done, and the caller gets the error.

use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use quorate_api::proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, TxnRequest,
    TxnResponse,
};
use tonic::{Code, ConnectError, Status};

use crate::Rpc;

const ATTEMPTS: usize = 100;
const PAUSE: Duration = Duration::from_millis(25);
const LIMIT: Duration = Duration::from_secs(10);

pub const PUT: &str = "/etcdserverpb.KV/Put";
pub const RANGE: &str = "/etcdserverpb.KV/Range";
pub const TXN: &str = "/etcdserverpb.KV/Txn";
pub const DELETE: &str = "/etcdserverpb.KV/DeleteRange";
pub const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// When a request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// One endpoint, one attempt.
    Never,
    /// As etcd's client does with writes.
    IfNothingWasDone,
    /// As etcd's client does with reads.
    IfUnavailable,
}

/// Cheap to clone; clones share connections and take turns on the endpoints.
#[derive(Clone, Debug)]
pub struct Client {
    endpoints: Arc<RwLock<Vec<Rpc>>>,
    turn: Arc<AtomicUsize>,
    limit: Duration,
    retries: bool,
}

impl Client {
    pub fn new(endpoints: Vec<Rpc>) -> Self {
        assert!(!endpoints.is_empty(), "a client needs an endpoint");
        Self {
            endpoints: Arc::new(RwLock::new(endpoints)),
            turn: Arc::default(),
            limit: LIMIT,
            retries: true,
        }
    }

    /// Other endpoints from now on, for all clones: what `SetEndpoints` is in etcd's client.
    pub fn set_endpoints(&self, endpoints: Vec<Rpc>) {
        assert!(!endpoints.is_empty(), "a client needs an endpoint");
        *self.endpoints.write().unwrap_or_else(PoisonError::into_inner) = endpoints;
    }

    /// How long a request may take, all attempts together.
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// One attempt for each request, whatever it is.
    pub fn without_retries(mut self) -> Self {
        self.retries = false;
        self
    }

    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<PutResponse, Status> {
        let request = PutRequest {
            key: key.into(),
            value: value.into(),
            ..PutRequest::default()
        };
        self.call(PUT, &request, Retry::IfNothingWasDone).await
    }

    /// One key, linearizably.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<RangeResponse, Status> {
        let request = RangeRequest {
            key: key.into(),
            ..RangeRequest::default()
        };
        self.range(&request).await
    }

    pub async fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Status> {
        self.call(RANGE, request, Retry::IfUnavailable).await
    }

    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<DeleteRangeResponse, Status> {
        let request = DeleteRangeRequest {
            key: key.into(),
            prev_kv: true,
            ..DeleteRangeRequest::default()
        };
        self.call(DELETE, &request, Retry::IfNothingWasDone).await
    }

    pub async fn txn(&self, request: &TxnRequest) -> Result<TxnResponse, Status> {
        self.call(TXN, request, Retry::IfNothingWasDone).await
    }

    /// Any unary call.
    pub async fn call<A: Message + Default>(
        &self,
        path: &str,
        request: &impl Message,
        retry: Retry,
    ) -> Result<A, Status> {
        let retry = if self.retries { retry } else { Retry::Never };
        let late = |_| Err(Status::deadline_exceeded("context deadline exceeded"));
        tokio::time::timeout(self.limit, self.attempts(path, request, retry))
            .await
            .unwrap_or_else(late)
    }

    async fn attempts<A: Message + Default>(
        &self,
        path: &str,
        request: &impl Message,
        retry: Retry,
    ) -> Result<A, Status> {
        let mut attempt = 1;
        loop {
            let status = match self.attempt(path, request, retry).await {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            if retry != Retry::IfUnavailable || !is_unavailable(&status) || attempt == ATTEMPTS {
                return Err(status);
            }
            if attempt % (self.len() / 2 + 1) == 0 {
                tokio::time::sleep(PAUSE).await;
            }
            attempt += 1;
        }
    }

    /// At the next endpoint that takes the request at all.
    async fn attempt<A: Message + Default>(
        &self,
        path: &str,
        request: &impl Message,
        retry: Retry,
    ) -> Result<A, Status> {
        let mut tried = 1;
        loop {
            match self.next().unary(path, request).await {
                Err(status) if retry != Retry::Never && never_reached_a_server(&status) && tried < self.len() => {
                    tried += 1;
                }
                answer => return answer,
            }
        }
    }

    /// The endpoint whose turn it is.
    pub(crate) fn next(&self) -> Rpc {
        let endpoints = self.endpoints.read().unwrap_or_else(PoisonError::into_inner);
        endpoints[self.turn.fetch_add(1, Ordering::Relaxed) % endpoints.len()].clone()
    }

    fn len(&self) -> usize {
        self.endpoints.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// Whether the failed request is certain to have changed nothing, now or later.
pub fn nothing_was_done(status: &Status) -> bool {
    if came_from_transport(status) {
        return never_reached_a_server(status);
    }
    let refused = matches!(
        status.code(),
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated
    );
    refused || status.message() == "etcdserver: too many requests"
}

/// Not connected, not sent, or sent on a connection that was closing and said that it would not look at it.
pub fn never_reached_a_server(status: &Status) -> bool {
    causes(status).any(|cause| {
        let unsent = |error: &hyper::Error| error.is_canceled();
        let turned_away = |error: &h2::Error| {
            error.is_remote()
                && match error.reason() {
                    Some(h2::Reason::REFUSED_STREAM) => error.is_reset(),
                    Some(h2::Reason::NO_ERROR) => error.is_go_away(),
                    _ => false,
                }
        };
        cause.is::<ConnectError>()
            || cause.downcast_ref().is_some_and(unsent)
            || cause.downcast_ref().is_some_and(turned_away)
    })
}

/// A connection that broke is `Unavailable` to etcd's client, whatever ours calls it.
fn is_unavailable(status: &Status) -> bool {
    status.code() == Code::Unavailable || came_from_transport(status)
}

/// Servers send no causes.
fn came_from_transport(status: &Status) -> bool {
    status.source().is_some()
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    let mut next = status.source();
    std::iter::from_fn(move || {
        let cause = next?;
        next = cause.source();
        Some(cause)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::ports;

    fn client(ports: &[u16]) -> Client {
        let endpoints = ports.iter().map(|port| Rpc::new(&format!("http://127.0.0.1:{port}")));
        Client::new(endpoints.collect()).within(Duration::from_secs(1))
    }

    #[tokio::test]
    async fn a_write_that_found_no_server_changed_nothing() {
        let status = client(&[ports::free()]).put("a", "1").await.unwrap_err();
        assert!(never_reached_a_server(&status), "{status:?}");
        assert!(nothing_was_done(&status));
    }

    /// How often each request was seen by a server that takes it and hangs up.
    async fn hangs_up() -> (u16, Arc<AtomicU32>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(AtomicU32::new(0));
        let count = seen.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let mut connection = h2::server::handshake(stream).await.unwrap();
                if let Some(Ok((request, _answer))) = connection.accept().await {
                    let (_, mut body) = request.into_parts();
                    body.data().await.unwrap().unwrap();
                    count.fetch_add(1, Ordering::Relaxed);
                }
                connection.abrupt_shutdown(h2::Reason::INTERNAL_ERROR);
            }
        });
        (port, seen)
    }

    #[tokio::test]
    async fn a_write_whose_connection_broke_is_not_sent_again_and_may_have_been_done() {
        let (port, seen) = hangs_up().await;
        let status = client(&[port, port]).put("a", "1").await.unwrap_err();
        assert_eq!(seen.load(Ordering::Relaxed), 1, "{status:?}");
        assert!(!nothing_was_done(&status), "{status:?}");
    }

    #[tokio::test]
    async fn a_read_whose_connection_broke_is_sent_again() {
        let (port, seen) = hangs_up().await;
        client(&[port, port]).get("a").await.unwrap_err();
        assert!(seen.load(Ordering::Relaxed) > 1);
    }

    #[tokio::test]
    async fn one_attempt_is_one_attempt() {
        let (port, seen) = hangs_up().await;
        let client = client(&[port, port]).without_retries();
        client.get("a").await.unwrap_err();
        assert_eq!(seen.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_silent_server_is_given_up_on_and_may_have_done_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut sink = Vec::new();
            stream.read_to_end(&mut sink).await.unwrap();
        });
        let status = client(&[port]).put("a", "1").await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(!nothing_was_done(&status));
    }

    #[test]
    fn what_a_server_says_decides_about_a_write() {
        for (status, nothing) in [
            (Status::unknown("etcdserver: too many requests"), true),
            (Status::unknown("etcdserver: something else"), false),
            (Status::unavailable("etcdserver: request timed out"), false),
            (Status::unavailable("etcdserver: leader changed"), false),
            (Status::unavailable("etcdserver: server stopped"), false),
            (Status::invalid_argument("etcdserver: key is not provided"), true),
            (
                Status::resource_exhausted("etcdserver: mvcc: database space exceeded"),
                true,
            ),
            (Status::deadline_exceeded("context deadline exceeded"), false),
            (Status::cancelled("context canceled"), false),
        ] {
            assert_eq!(nothing_was_done(&status), nothing, "{status:?}");
        }
    }
}
