//! A client over all members that treats failures as etcd's `clientv3` does, so that "a failed request" here is one that
//! a user of that client would see.
//!
//! * Requests go round over the connections that are up. Lost ones are dialled again at once, then after 1 s, 1.6 s, …
//! * What never left, or what the server says it did not look at (a stream above the one that its GOAWAY names), goes out
//!   again on another connection, the latter once. That is gRPC's transparent retry.
//! * Anything else is the answer of a write: `clientv3` does not repeat a put whose outcome is not known.
//!
//! The one difference: with every connection down, a request waits for one until its deadline instead of failing.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use prost::Message;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::grpc::{Caller, Endpoint, Fate, Rpc, fate, frame};

/// How long a user waits for one request.
const REQUEST_MAX: Duration = Duration::from_secs(10);
const REDIAL_FIRST: Duration = Duration::from_secs(1);
const REDIAL_GROWTH: f64 = 1.6;
const REDIAL_MAX: Duration = Duration::from_secs(120);
const DIAL_MAX: Duration = Duration::from_secs(20);

pub struct Retrying {
    shared: Arc<Shared>,
    /// One keeper per endpoint; they end with the client.
    _keepers: JoinSet<()>,
}

struct Shared {
    slots: Vec<Slot>,
    next: AtomicUsize,
    /// A connection came up.
    up: Notify,
}

struct Slot {
    endpoint: Endpoint,
    connection: Mutex<Option<Connection>>,
    lost: Notify,
}

#[derive(Clone)]
struct Connection {
    caller: Caller,
    /// Tells a connection from its successors.
    number: u64,
}

impl Slot {
    fn connection(&self) -> MutexGuard<'_, Option<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the connection out of service, unless another has taken its place.
    fn lose(&self, number: u64) {
        let mut connection = self.connection();
        if connection
            .as_ref()
            .is_some_and(|connection| connection.number == number)
        {
            *connection = None;
            self.lost.notify_one();
        }
    }
}

impl Retrying {
    /// Connects to all endpoints. At least one has to answer.
    pub async fn connect(endpoints: Vec<Endpoint>) -> anyhow::Result<Self> {
        let slots = endpoints.into_iter().map(|endpoint| Slot {
            endpoint,
            connection: Mutex::new(None),
            lost: Notify::new(),
        });
        let shared = Arc::new(Shared {
            slots: slots.collect(),
            next: AtomicUsize::new(0),
            up: Notify::new(),
        });
        let mut keepers = JoinSet::new();
        for at in 0..shared.slots.len() {
            keepers.spawn(keep(Arc::clone(&shared), at));
        }
        tokio::time::timeout(REQUEST_MAX, shared.pick())
            .await
            .map_err(|_| anyhow!("no member accepts a connection"))?;
        Ok(Self {
            shared,
            _keepers: keepers,
        })
    }

    pub async fn unary<A: Message + Default>(&self, rpc: Rpc, message: &impl Message) -> anyhow::Result<A> {
        let answer = tokio::time::timeout(REQUEST_MAX, self.shared.attempt(rpc, frame(message)))
            .await
            .map_err(|_| anyhow!("{rpc:?}: no answer within {REQUEST_MAX:?}"))??;
        A::decode(answer).with_context(|| format!("decode the answer of {rpc:?}"))
    }
}

impl Shared {
    async fn attempt(&self, rpc: Rpc, body: Bytes) -> anyhow::Result<Bytes> {
        let mut repeated = false;
        loop {
            let (slot, mut connection) = self.pick().await;
            let error = match connection.caller.unary_raw(rpc, body.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            match fate(&error) {
                Fate::NotSent => slot.lose(connection.number),
                Fate::Unprocessed if !repeated => repeated = true,
                Fate::Unprocessed | Fate::Other => return Err(error),
            }
        }
    }

    /// The next connection that is up, or the first to come up.
    async fn pick(&self) -> (&Slot, Connection) {
        loop {
            // Registered before the look, so that none that comes up in between is missed.
            let up = self.up.notified();
            tokio::pin!(up);
            up.as_mut().enable();
            let first = self.next.fetch_add(1, Ordering::Relaxed);
            for step in 0..self.slots.len() {
                let slot = &self.slots[first.wrapping_add(step) % self.slots.len()];
                let connection = slot.connection().clone();
                if let Some(connection) = connection {
                    return (slot, connection);
                }
            }
            up.await;
        }
    }
}

/// Keeps the connection of one endpoint up.
async fn keep(shared: Arc<Shared>, at: usize) {
    let slot = &shared.slots[at];
    let mut pause = REDIAL_FIRST;
    for number in 0.. {
        match tokio::time::timeout(DIAL_MAX, Caller::connect_watched(&slot.endpoint)).await {
            Ok(Ok((caller, mut ends))) => {
                pause = REDIAL_FIRST;
                *slot.connection() = Some(Connection { caller, number });
                shared.up.notify_waiters();
                tokio::select! {
                    _ = &mut ends => slot.lose(number),
                    () = slot.lost.notified() => continue,
                }
                // Taken back, lest it end the wait for the next connection.
                let _ = tokio::time::timeout(Duration::ZERO, slot.lost.notified()).await;
            }
            Ok(Err(_)) | Err(_) => {
                tokio::time::sleep(pause).await;
                pause = pause.mul_f64(REDIAL_GROWTH).min(REDIAL_MAX);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate_api::proto::etcdserverpb::{PutRequest, PutResponse};

    use super::*;
    use crate::made_up::{Manner, member};

    async fn client(manners: &[Manner]) -> Retrying {
        let mut endpoints = Vec::new();
        for manner in manners {
            let addr = member(*manner).await;
            endpoints.push(Endpoint { addr, tls: None });
        }
        let client = Retrying::connect(endpoints).await.unwrap();
        while client.shared.slots.iter().any(|slot| slot.connection().is_none()) {
            tokio::task::yield_now().await;
        }
        client
    }

    async fn puts(client: &Retrying, number: usize) -> Vec<anyhow::Result<PutResponse>> {
        let mut results = Vec::new();
        for _ in 0..number {
            results.push(client.unary(Rpc::Put, &PutRequest::default()).await);
        }
        results
    }

    #[tokio::test]
    async fn what_a_leaving_member_left_out_goes_to_another() {
        let client = client(&[Manner::LeavesOutTheSecond, Manner::Answers]).await;
        assert!(puts(&client, 8).await.iter().all(Result::is_ok));
    }

    #[tokio::test]
    async fn a_put_whose_outcome_is_unknown_is_not_repeated() {
        let client = client(&[Manner::DiesOfTheFirst, Manner::Answers]).await;
        let failed = puts(&client, 8).await.iter().filter(|put| put.is_err()).count();
        assert_eq!(failed, 1, "the dead member was asked once and never again");
    }
}
