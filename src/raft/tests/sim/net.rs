//! The twin of the network between members: in memory, and as bad as a network may be.
//!
//! It keeps what the real one promises, and nothing more. A lane is a connection: hello and admission come first, what is
//! sent on it arrives in order, and when it breaks whoever waits for an answer hears `Lost`, though the request may have
//! been acted on, or be acted on later. While there is none calls are refused as never sent.
//!
//! ```text
//!  Network::call ─► lane (task of the asking process) ══ pipe: delayed, held up, cut ══► serve (task of the asked one)
//!                        ◄══════════════════════ pipe ══════════════════════════
//! ```
//!
//! Each direction between two members is slow or cut by itself. What is sent into a cut waits there, as in TCP, until the
//! cut heals or the connection is given up.

mod lane;
mod pipe;
mod serve;
mod snapshot;

use crate::dice::Dice;
use crate::trace::Trace;
use lane::{Entrance, Lane};
use parking_lot::Mutex;
use quorate_api::proto::quorate::peer::{Forward, Hello};
use quorate_raft::peer::service::Service;
use quorate_raft::peer::{self, BoxFuture, Network, PeerError, Reason, Reply, Request, Snapshot};
use quorate_raft::runtime::{Process, watch};
use quorate_raft::types::Vote;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// A peer that does not answer for so long is not there: two election timeouts, but at least this.
const PATIENCE: Duration = Duration::from_secs(1);

/// All links of a world.
pub struct Net {
    state: Mutex<State>,
    /// Ways were cut or healed.
    changed: watch::Sender<u64>,
    pub dice: Dice,
    pub trace: Arc<Trace>,
    /// Of a hundred forwarded batches, so many come again later.
    pub duplicates: u64,
    /// Of a hundred snapshots, so many are cut off half way.
    pub snapshots_cut: u64,
}

#[derive(Default)]
struct State {
    members: BTreeMap<u64, Endpoint>,
    /// From one member to another.
    ways: BTreeMap<(u64, u64), Way>,
    resets: BTreeMap<(u64, u64), Vec<Arc<Notify>>>,
    snapshots: u64,
}

#[derive(Clone, Copy, Default)]
struct Way {
    cut: Option<Instant>,
    /// On top of the usual delay, up to so many milliseconds.
    slow_ms: u64,
}

/// A member that can be talked to.
#[derive(Clone)]
struct Endpoint {
    process: Process,
    service: Service,
}

impl Net {
    pub fn new(dice: Dice, trace: Arc<Trace>, duplicates: u64, snapshots_cut: u64) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            changed: watch::Sender::new(0),
            dice,
            trace,
            duplicates,
            snapshots_cut,
        })
    }

    pub fn attach(&self, member: u64, process: Process, service: Service) {
        self.state.lock().members.insert(member, Endpoint { process, service });
    }

    pub fn detach(&self, member: u64) {
        self.state.lock().members.remove(&member);
    }

    /// Cuts one direction, or heals it.
    pub fn cut(&self, from: u64, to: u64, cut: bool) {
        {
            let mut state = self.state.lock();
            let way = state.ways.entry((from, to)).or_default();
            match cut {
                true => {
                    way.cut.get_or_insert_with(Instant::now);
                }
                false => way.cut = None,
            }
        }
        self.changed.send_modify(|count| *count += 1);
    }

    pub fn slow(&self, from: u64, to: u64, slow_ms: u64) {
        self.state.lock().ways.entry((from, to)).or_default().slow_ms = slow_ms;
    }

    /// Breaks the connections from one member to another.
    pub fn reset(&self, from: u64, to: u64) {
        let resets = self.state.lock().resets.get(&(from, to)).cloned().unwrap_or_default();
        resets.iter().for_each(|reset| reset.notify_waiters());
    }

    pub fn heal(&self) {
        self.state.lock().ways.clear();
        self.changed.send_modify(|count| *count += 1);
    }

    /// Snapshots that were installed.
    pub fn snapshots(&self) -> u64 {
        self.state.lock().snapshots
    }

    fn endpoint(&self, member: u64) -> Option<Endpoint> {
        self.state.lock().members.get(&member).cloned()
    }

    fn way(&self, from: u64, to: u64) -> Way {
        self.state.lock().ways.get(&(from, to)).copied().unwrap_or_default()
    }

    fn passes(&self, from: u64, to: u64) -> bool {
        self.way(from, to).cut.is_none()
    }

    fn latency(&self, from: u64, to: u64) -> Duration {
        let slow = self.way(from, to).slow_ms;
        self.dice.millis(0..3 + slow)
    }

    fn resets(&self, from: u64, to: u64) -> Arc<Notify> {
        let reset = Arc::new(Notify::new());
        let mut state = self.state.lock();
        let resets = state.resets.entry((from, to)).or_default();
        // Whoever waits for one holds it.
        resets.retain(|reset| Arc::strong_count(reset) > 1);
        resets.push(reset.clone());
        reset
    }

    /// A batch that was forwarded comes again, some time later, perhaps to another member: as when its sender lost the
    /// connection and sent it to the next leader while the first was still to come through.
    fn perhaps_again(self: &Arc<Self>, hello: &Hello, forward: &Forward) {
        if !self.dice.chance(self.duplicates) {
            return;
        }
        let others: Vec<u64> = self.state.lock().members.keys().copied().collect();
        let later = self.dice.millis(0..2000);
        let Some(to) = self.dice.pick(&others).copied() else {
            return;
        };
        let (net, forward) = (self.clone(), forward.clone());
        let hello = Hello { to, ..*hello };
        tokio::spawn(async move {
            sleep(later).await;
            let Some(Endpoint { process, service }) = net.endpoint(to).filter(|_| to != hello.from) else {
                return;
            };
            net.trace.mark(&[7, hello.from, to]);
            process.spawn(async move { drop(service.handle(&hello, Request::Forward(forward)).await) });
        });
    }
}

/// The other members, as this one's table or what it was told says, and those that are leaving and counted by raft.
pub type Book = Arc<dyn Fn(&BTreeSet<u64>) -> BTreeSet<u64> + Send + Sync>;

/// Which data directory a member published from.
pub type IncarnationOf = Arc<dyn Fn(u64) -> Option<u64> + Send + Sync>;

/// Called with what a peer refused this member for.
pub type OnRefused = Arc<dyn Fn(Reason, &str) + Send + Sync>;

/// One life of one member's links.
pub struct Links {
    pub net: Arc<Net>,
    pub process: Process,
    /// But for whom it is for.
    pub hello: Hello,
    pub book: Book,
    /// Whose data a member has, where the table knows.
    pub incarnation_of: IncarnationOf,
    pub on_refused: OnRefused,
    pub peers: Mutex<BTreeMap<u64, Peer>>,
}

pub struct Peer {
    control: Arc<Entrance>,
    log: Arc<Entrance>,
    up_since: Arc<Mutex<Option<Instant>>>,
    lanes: [JoinHandle<()>; 2],
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.lanes.iter().for_each(JoinHandle::abort);
    }
}

impl Links {
    fn hello(&self, to: u64) -> Hello {
        Hello { to, ..self.hello }
    }

    fn peer(&self, to: u64) -> Peer {
        let up_since = Arc::<Mutex<Option<Instant>>>::default();
        let lane = |number: u64, up_since: Arc<Mutex<Option<Instant>>>| {
            let entrance = Arc::<Entrance>::default();
            let lane = Lane {
                net: self.net.clone(),
                number,
                hello: self.hello(to),
                incarnation_of: self.incarnation_of.clone(),
                entrance: entrance.clone(),
                up_since,
                on_refused: self.on_refused.clone(),
            };
            (entrance, self.process.spawn(lane.run()))
        };
        let (control, control_task) = lane(0, up_since.clone());
        let (log, log_task) = lane(1, Arc::default());
        Peer {
            control,
            log,
            up_since,
            lanes: [control_task, log_task],
        }
    }
}

impl Network for Links {
    fn call(&self, to: u64, lane: peer::Lane, request: Request) -> Reply {
        let (reply, answer) = oneshot::channel();
        let peers = self.peers.lock();
        match peers.get(&to) {
            Some(peer) => match lane {
                peer::Lane::Control => peer.control.call(to, request, reply),
                peer::Lane::Log => peer.log.call(to, request, reply),
            },
            None => {
                let reason = "nobody knows where it is".to_owned();
                let _ = reply.send(Err(PeerError::Unreachable { to, reason }));
            }
        }
        answer
    }

    fn snapshot(&self, to: u64, vote: Vote, snapshot: Snapshot) -> BoxFuture<Result<Vote, PeerError>> {
        let sent = snapshot::send(self.net.clone(), self.hello(to), vote, snapshot);
        let on_refused = self.on_refused.clone();
        Box::pin(async move {
            let sent = sent.await;
            if let Err(PeerError::Refused { reason, text, .. }) = &sent {
                on_refused(*reason, text);
            }
            sent
        })
    }

    fn connected(&self, since: Duration) -> BTreeSet<u64> {
        let up = |(id, peer): (&u64, &Peer)| {
            let up_since = *peer.up_since.lock();
            up_since.is_some_and(|at| at.elapsed() >= since).then_some(*id)
        };
        self.peers.lock().iter().filter_map(up).collect()
    }

    fn members_changed(&self, counted: &BTreeSet<u64>) {
        let mut wanted = (self.book)(counted);
        wanted.remove(&self.hello.from);
        let mut peers = self.peers.lock();
        peers.retain(|id, _| wanted.contains(id));
        for id in wanted {
            peers.entry(id).or_insert_with(|| self.peer(id));
        }
    }
}
