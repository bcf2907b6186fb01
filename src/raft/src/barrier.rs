//! The point in the log behind which a linearizable read may run.
//!
//! ```text
//!   pass ──► waiting ──round──► who leads? ──┬─ this member: a quorum says it still does ─► position
//!   index ──►                                └─ another: ReadIndex to it ─────────────────► position
//!                                                              applied here up to it ─► pass returns
//! ```
//!
//! A read joins only a barrier that has not been sent yet; later reads form the next one. An attempt that fails is
//! never continued: the next one asks anew, so that no answer from an earlier term can vouch for a later read.

use crate::alone::Alone;
use crate::leadership::{Leadership, Led};
use crate::peer::{Answer, Lane, Network, Request};
use crate::runtime::watch;
use crate::types::{RaftHandle, position};
use openraft::ReadPolicy;
use openraft::error::RaftError;
use parking_lot::Mutex;
use quorate_api::proto::quorate::peer::ReadIndex;
#[cfg(feature = "planted")]
use quorate_store::planted::{self, Bug};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};

/// etcd resends a read index request as often.
const RETRY: Duration = Duration::from_millis(500);

/// A leader that could not answer is asked again after this time, unless another is known before.
const PAUSE: Duration = Duration::from_millis(5);

/// Why a read could not be made linearizable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarrierError {
    #[error("the node is stopping")]
    Stopped,
}

/// Gets the position behind which everything was acknowledged that was so before the call.
type Waiter = oneshot::Sender<u64>;

/// A read that waits for this member to apply what was found.
struct Behind {
    upto: u64,
    waiters: Vec<oneshot::Sender<()>>,
}

#[derive(Default)]
struct Waiting {
    /// Want the position only.
    index: Vec<Waiter>,
    /// Want it to be applied here, too.
    applied: Vec<oneshot::Sender<()>>,
}

impl Waiting {
    fn tidy(&mut self) {
        self.index.retain(|waiter| !waiter.is_closed());
        self.applied.retain(|waiter| !waiter.is_closed());
    }

    fn is_empty(&self) -> bool {
        self.index.is_empty() && self.applied.is_empty()
    }

    fn append(&mut self, mut other: Self) {
        self.index.append(&mut other.index);
        self.applied.append(&mut other.applied);
    }
}

/// Shared by all request handlers.
pub struct Barrier {
    waiting: Mutex<Waiting>,
    wake: Notify,
    stopped: AtomicBool,
    alone: Arc<Alone>,
    failed: AtomicU64,
}

/// Whom to ask.
pub(crate) struct Ways {
    pub member: u64,
    pub raft: RaftHandle,
    pub network: Arc<dyn Network>,
    pub led: Led,
}

impl Barrier {
    pub(crate) fn new(alone: Arc<Alone>) -> Self {
        Self {
            waiting: Mutex::default(),
            wake: Notify::new(),
            stopped: AtomicBool::new(false),
            alone,
            failed: AtomicU64::new(0),
        }
    }

    /// Returns once this member has applied everything that was acknowledged, anywhere, before the call. The caller
    /// sets its own time limit.
    pub async fn pass(&self) -> Result<(), BarrierError> {
        // A sole voter needs to ask nobody. Whatever was acknowledged was acknowledged by its own apply, so local
        // state has it; and nobody else can lead without an entry in this member's log.
        if self.alone.is_alone() {
            return Ok(());
        }
        let (tx, rx) = oneshot::channel();
        self.join(|waiting| waiting.applied.push(tx))?;
        rx.await.map_err(|_| BarrierError::Stopped)
    }

    /// The position up to which whoever asked has to have applied, for the same promise. An error also where another member
    /// leads. The caller sets its own time limit.
    pub async fn index(&self) -> Result<u64, BarrierError> {
        let (tx, rx) = oneshot::channel();
        self.join(|waiting| waiting.index.push(tx))?;
        rx.await.map_err(|_| BarrierError::Stopped)
    }

    fn join(&self, join: impl FnOnce(&mut Waiting)) -> Result<(), BarrierError> {
        {
            let mut waiting = self.waiting.lock();
            if self.stopped.load(Ordering::Acquire) {
                return Err(BarrierError::Stopped);
            }
            join(&mut waiting);
        }
        self.wake.notify_one();
        Ok(())
    }

    /// Rounds that failed.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    pub(crate) fn close(&self) {
        self.alone.end();
        {
            let mut waiting = self.waiting.lock();
            self.stopped.store(true, Ordering::Release);
            *waiting = Waiting::default();
        }
        self.wake.notify_one();
    }

    /// Asks for those who wait, one round after the other.
    pub(crate) async fn run(self: Arc<Self>, mut ways: Ways, applied: watch::Receiver<u64>) {
        let (behind, followers) = mpsc::unbounded_channel();
        tokio::join!(
            self.rounds(&mut ways, &applied, behind),
            follow(applied.clone(), followers)
        );
    }

    async fn rounds(&self, ways: &mut Ways, applied: &watch::Receiver<u64>, behind: mpsc::UnboundedSender<Behind>) {
        while !self.stopped.load(Ordering::Acquire) {
            let mut round = std::mem::take(&mut *self.waiting.lock());
            round.tidy();
            if round.is_empty() {
                self.wake.notified().await;
                continue;
            }
            let led = *ways.led.borrow_and_update();
            if led.leader.is_some_and(|leader| leader != ways.member) {
                // Only a leader can tell others. Asking on for them would be waiting for each other where two members
                // take each other for the leader, as they do for a moment when leadership moves.
                round.index.clear();
                if round.is_empty() {
                    continue;
                }
            }
            match ways.ask(led).await {
                Asked::Position(upto) => {
                    #[cfg(feature = "planted")]
                    if planted::is(Bug::BarrierJoinedLate) {
                        round.append(std::mem::take(&mut *self.waiting.lock()));
                    }
                    for waiter in round.index {
                        let _ = waiter.send(upto);
                    }
                    if *applied.borrow() >= upto {
                        answer(round.applied);
                    } else if !round.applied.is_empty() {
                        let waiters = round.applied;
                        let _ = behind.send(Behind { upto, waiters });
                    }
                }
                Asked::Nothing => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    // Those who still wait try again, with whoever came meanwhile.
                    self.waiting.lock().append(round);
                    if *ways.led.borrow() == led {
                        let _ = tokio::time::timeout(PAUSE, ways.led.changed()).await;
                    }
                }
                Asked::Ended => return,
            }
        }
    }
}

enum Asked {
    Position(u64),
    /// Nobody leads, or the leader could not make sure that it does.
    Nothing,
    Ended,
}

impl Ways {
    async fn ask(&mut self, led: Leadership) -> Asked {
        let Some(leader) = led.leader else {
            return Asked::Nothing;
        };
        let asked = async {
            if leader == self.member {
                own(&self.raft).await
            } else {
                theirs(&*self.network, leader).await
            }
        };
        tokio::select! {
            biased;
            asked = tokio::time::timeout(RETRY, asked) => asked.unwrap_or(Asked::Nothing),
            // Whoever was asked has lost its leadership or is about to hear so.
            () = another(&mut self.led, led) => Asked::Nothing,
        }
    }
}

/// Returns when not `led` leads any more.
async fn another(now: &mut Led, led: Leadership) {
    let changed = now.wait_for(|now| *now != led).await.is_ok();
    if !changed {
        std::future::pending::<()>().await;
    }
}

async fn own(raft: &RaftHandle) -> Asked {
    #[cfg(feature = "planted")]
    if planted::is(Bug::ReadIndexUnasked) {
        let committed = openraft::async_runtime::WatchReceiver::borrow_watched(&raft.data_metrics()).cluster_committed;
        return committed.map_or(Asked::Nothing, |id| Asked::Position(position(id.index)));
    }
    match raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
        Ok(linearizer) => Asked::Position(position(linearizer.read_log_id().index())),
        Err(RaftError::Fatal(_)) => Asked::Ended,
        Err(RaftError::APIError(_)) => Asked::Nothing,
    }
}

async fn theirs(network: &dyn Network, leader: u64) -> Asked {
    let request = Request::ReadIndex(ReadIndex {});
    match network.call(leader, Lane::Control, request).await {
        Ok(Ok(Answer::ReadIndex(answer))) if answer.index > 0 => Asked::Position(answer.index),
        _ => Asked::Nothing,
    }
}

/// Answers reads as this member applies what they wait for.
async fn follow(mut applied: watch::Receiver<u64>, mut reads: mpsc::UnboundedReceiver<Behind>) {
    // Positions only grow, so whoever came first is served first.
    while let Some(Behind { upto, waiters }) = reads.recv().await {
        if applied.wait_for(|applied| *applied >= upto).await.is_err() {
            return;
        }
        answer(waiters);
    }
}

fn answer(waiters: Vec<oneshot::Sender<()>>) {
    for waiter in waiters {
        let _ = waiter.send(());
    }
}
