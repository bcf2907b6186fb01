//! Who leads, looked at all the time, so that every term that had a leader is counted, also one between two others.
//!
//! A server may read its term and its leader one after the other, so a status can pair a new term with the leader of the
//! old one. What a member says counts when it says the same twice.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_api::proto::etcdserverpb::{StatusRequest, StatusResponse};
use tokio::task::JoinSet;

use crate::grpc::{Caller, Endpoint, Rpc};

const LOOK_EVERY: Duration = Duration::from_millis(10);
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Looks at one member each; they end when this is dropped.
pub struct Terms {
    seen: Arc<Mutex<Seen>>,
    _lookers: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    /// Terms that had a leader. None has two.
    led: BTreeSet<u64>,
    highest: u64,
}

impl Terms {
    pub fn watch(endpoints: Vec<Endpoint>) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut lookers = JoinSet::new();
        for endpoint in endpoints {
            let seen = Arc::clone(&seen);
            lookers.spawn(async move {
                loop {
                    // A member that is down has nothing to tell, and has to be dialled again.
                    let _ = look(&endpoint, &seen).await;
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            });
        }
        Self {
            seen,
            _lookers: lookers,
        }
    }

    /// Terms that had a leader, so far.
    pub fn leaders(&self) -> usize {
        lock(&self.seen).led.len()
    }

    /// The highest term so far. It also rises with elections that nobody won.
    pub fn highest(&self) -> u64 {
        lock(&self.seen).highest
    }
}

/// Looks until the connection is lost.
async fn look(endpoint: &Endpoint, seen: &Mutex<Seen>) -> anyhow::Result<()> {
    let mut caller = Caller::connect(endpoint).await?;
    let mut last = None;
    loop {
        let request = StatusRequest::default();
        let ask = caller.unary::<StatusResponse>(Rpc::Status, &request);
        let status = tokio::time::timeout(ANSWER_MAX, ask).await??;
        let now = (status.raft_term, status.leader);
        lock(seen).look(now, last.replace(now));
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

impl Seen {
    /// `now` and `before` are what one member says and said: its term and its leader (0: none).
    fn look(&mut self, now: (u64, u64), before: Option<(u64, u64)>) {
        let (term, leader) = now;
        self.highest = self.highest.max(term);
        if leader != 0 && before == Some(now) {
            self.led.insert(term);
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_counts_once_somebody_said_twice_who_leads_it() {
        let mut seen = Seen::default();
        let mut before = None;
        for now in [(2, 7), (2, 7), (2, 7), (3, 7), (3, 0), (3, 0), (4, 7), (4, 7)] {
            seen.look(now, before.replace(now));
        }
        assert_eq!(Vec::from_iter(seen.led), [2, 4]);
        assert_eq!(seen.highest, 4);
    }
}
