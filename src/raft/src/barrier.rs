//! The point in the log behind which a linearizable read may run.
//!
//! A read joins only a barrier that has not been sent yet; later reads form the next one. An attempt that fails is
//! never continued: the next one asks anew, so that no answer from an earlier term can vouch for a later read.

use crate::types::{RaftHandle, position};
use openraft::ReadPolicy;
use openraft::error::{LinearizableReadError, RaftError};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};

/// etcd resends a read index request as often.
const RETRY: Duration = Duration::from_millis(500);

/// Why a read could not be made linearizable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarrierError {
    #[error("leadership changed while the read waited")]
    LeaderChanged,
    #[error("the node is stopping")]
    Stopped,
}

/// Shared by all request handlers.
pub struct Barrier {
    waiting: Mutex<Vec<oneshot::Sender<Result<(), BarrierError>>>>,
    wake: Notify,
    stopped: AtomicBool,
    /// This member is the only voter and leads.
    alone: AtomicBool,
    failed: AtomicU64,
}

impl Default for Barrier {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            wake: Notify::new(),
            stopped: AtomicBool::new(false),
            alone: AtomicBool::new(false),
            failed: AtomicU64::new(0),
        }
    }
}

impl Barrier {
    /// Returns once this member has applied everything that was acknowledged, anywhere, before the call. The caller
    /// sets its own time limit.
    pub async fn pass(&self) -> Result<(), BarrierError> {
        // A sole voter needs to ask nobody. Whatever was acknowledged was acknowledged by its own apply, so local
        // state has it; and nobody else can lead without an entry in this member's log.
        if self.alone.load(Ordering::Acquire) {
            return Ok(());
        }
        let (tx, rx) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            if self.stopped.load(Ordering::Acquire) {
                return Err(BarrierError::Stopped);
            }
            waiting.push(tx);
        }
        self.wake.notify_one();
        rx.await.unwrap_or(Err(BarrierError::Stopped))
    }

    /// Says whether this member is the only voter, has won its election and has applied what it found in its log. To be
    /// taken back *before* another voter is proposed.
    pub(crate) fn set_alone(&self, alone: bool) {
        self.alone.store(alone, Ordering::Release);
    }

    pub(crate) fn is_alone(&self) -> bool {
        self.alone.load(Ordering::Acquire)
    }

    /// Rounds that failed.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    pub(crate) fn close(&self) {
        self.set_alone(false);
        let waiting = {
            let mut waiting = self.waiting.lock();
            self.stopped.store(true, Ordering::Release);
            std::mem::take(&mut *waiting)
        };
        answer(waiting, Err(BarrierError::Stopped));
        self.wake.notify_one();
    }

    pub(crate) async fn run(self: Arc<Self>, raft: RaftHandle, mut applied: watch::Receiver<u64>) {
        while !self.stopped.load(Ordering::Acquire) {
            let mut round = std::mem::take(&mut *self.waiting.lock());
            round.retain(|waiter| !waiter.is_closed());
            if round.is_empty() {
                self.wake.notified().await;
                continue;
            }
            match raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
                Ok(linearizer) => {
                    let upto = position(linearizer.read_log_id().index());
                    let reached = applied.wait_for(|applied| *applied >= upto).await.is_ok();
                    answer(round, if reached { Ok(()) } else { Err(BarrierError::Stopped) });
                }
                Err(RaftError::Fatal(_)) => answer(round, Err(BarrierError::Stopped)),
                Err(RaftError::APIError(error)) => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    match error {
                        LinearizableReadError::ForwardToLeader(_) => answer(round, Err(BarrierError::LeaderChanged)),
                        LinearizableReadError::QuorumNotEnough(_) => {
                            // Those who still wait try again with whoever came meanwhile.
                            self.waiting.lock().append(&mut round);
                            tokio::time::sleep(RETRY).await;
                        }
                    }
                }
            }
        }
    }
}

fn answer(round: Vec<oneshot::Sender<Result<(), BarrierError>>>, result: Result<(), BarrierError>) {
    for waiter in round {
        let _ = waiter.send(result);
    }
}
