//! Links to all other members, kept up: the real [`Network`].

use super::dial::Dialer;
use super::lane::{Call, Entrance, Lane};
use super::send_snapshot;
use crate::config::Url;
use crate::metrics::peers::{self as counted, Peers};
use parking_lot::Mutex;
use quorate_api::proto::quorate::peer::Hello;
use quorate_raft::peer::{self, BoxFuture, Network, PROTOCOL, PeerError, Reason, Reply, Request, Snapshot};
use quorate_raft::types::Vote;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Peers are believed to be gone when they don't answer for as many election timeouts, and not sooner than this.
const PATIENCE_ELECTIONS: u32 = 2;
const PATIENCE_MIN: Duration = Duration::from_secs(1);

/// Called with what a peer refused this member for.
pub type OnRefused = Arc<dyn Fn(Reason, &str) + Send + Sync>;

/// Whether a member may have a data directory of this incarnation. One that was wiped has forgotten votes and entries
/// that count; it would answer all the same.
pub type IsKnown = Arc<dyn Fn(u64, u64) -> bool + Send + Sync>;

/// Who this member is, as it says on every connection.
pub struct Identity {
    pub cluster: u64,
    pub member: u64,
    pub incarnation: u64,
    pub boot: u64,
    pub on_refused: OnRefused,
    pub is_known: IsKnown,
}

impl Identity {
    pub fn hello(&self, to: u64) -> Hello {
        Hello {
            protocol: PROTOCOL,
            cluster_id: self.cluster,
            from: self.member,
            to,
            incarnation: self.incarnation,
            boot: self.boot,
        }
    }
}

/// Where the other members are, as it is known at the moment; with those that the table has dropped, as far as raft still
/// counts them.
pub type Book = Arc<dyn Fn(&BTreeSet<u64>) -> BTreeMap<u64, Vec<Url>> + Send + Sync>;

/// Links to the other members.
pub struct Links {
    identity: Arc<Identity>,
    dialer: Dialer,
    metrics: Arc<Peers>,
    book: Book,
    patience: Duration,
    /// Connections live apart from requests.
    runtime: Handle,
    peers: Mutex<BTreeMap<u64, Peer>>,
}

struct Peer {
    metrics: Arc<counted::Peer>,
    control: Arc<Entrance>,
    log: Arc<Entrance>,
    up_since: Arc<Mutex<Option<Instant>>>,
    urls: watch::Sender<Vec<Url>>,
    lanes: [JoinHandle<()>; 2],
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.lanes.iter().for_each(JoinHandle::abort);
    }
}

impl Links {
    pub fn new(
        identity: Identity,
        dialer: Dialer,
        metrics: Arc<Peers>,
        book: Book,
        election: Duration,
        runtime: Handle,
    ) -> Self {
        let links = Self {
            identity: Arc::new(identity),
            dialer,
            metrics,
            book,
            patience: (election * PATIENCE_ELECTIONS).max(PATIENCE_MIN),
            runtime,
            peers: Mutex::default(),
        };
        links.members_changed(&BTreeSet::new());
        links
    }

    fn peer(&self, id: u64, urls: Vec<Url>) -> Peer {
        let (urls, changes) = watch::channel(urls);
        let up_since = Arc::<Mutex<Option<Instant>>>::default();
        let metrics = self.metrics.peer(id);
        let lane = |kind: peer::Lane, up_since: Arc<Mutex<Option<Instant>>>| {
            let entrance = Arc::<Entrance>::default();
            let lane = Lane {
                to: id,
                kind,
                identity: self.identity.clone(),
                dialer: self.dialer.clone(),
                urls: changes.clone(),
                entrance: entrance.clone(),
                up_since,
                metrics: metrics.clone(),
                patience: self.patience,
            };
            (entrance, self.runtime.spawn(lane.run()))
        };
        let (control, control_task) = lane(peer::Lane::Control, up_since.clone());
        let (log, log_task) = lane(peer::Lane::Log, Arc::default());
        Peer {
            metrics,
            control,
            log,
            up_since,
            urls,
            lanes: [control_task, log_task],
        }
    }
}

impl Network for Links {
    fn call(&self, to: u64, lane: peer::Lane, request: Request) -> Reply {
        let (reply, answer) = oneshot::channel();
        let peer = self.peers.lock().get(&to).map(|peer| {
            let entrance = match lane {
                peer::Lane::Control => &peer.control,
                peer::Lane::Log => &peer.log,
            };
            (entrance.clone(), peer.metrics.clone())
        });
        match peer {
            Some((entrance, metrics)) => {
                if let (peer::Lane::Control, Request::Append(heartbeat)) = (lane, &request) {
                    let term = heartbeat.vote.as_ref().map_or(0, |vote| vote.term);
                    metrics.heartbeat(term, std::time::Instant::now());
                }
                if !entrance.call(to, Call { request, reply }) {
                    metrics.send_failed(1);
                }
            }
            None => {
                let reason = "its peer URLs are not known here".to_owned();
                let _ = reply.send(Err(PeerError::Unreachable { to, reason }));
            }
        }
        answer
    }

    fn snapshot(&self, to: u64, vote: Vote, snapshot: Snapshot) -> BoxFuture<Result<Vote, PeerError>> {
        let urls = self.peers.lock().get(&to).map(|peer| peer.urls.borrow().clone());
        let metrics = self.metrics.peer(to);
        let sending = send_snapshot::Sending {
            to,
            hello: self.identity.hello(to),
            dialer: self.dialer.clone(),
            metrics: metrics.clone(),
            urls: urls.unwrap_or_default(),
        };
        let on_refused = self.identity.on_refused.clone();
        Box::pin(async move {
            let transfer = metrics.sends_snapshot();
            let sent = sending.send(vote, snapshot).await;
            match &sent {
                Ok(_) => transfer.done(),
                Err(_) => metrics.send_failed(1),
            }
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
        wanted.remove(&self.identity.member);
        let mut peers = self.peers.lock();
        peers.retain(|id, _| wanted.contains_key(id));
        for (id, urls) in wanted {
            match peers.get(&id) {
                Some(peer) => {
                    peer.urls.send_if_modified(|known| {
                        let changed = *known != urls;
                        *known = urls;
                        changed
                    });
                }
                None => {
                    let peer = self.peer(id, urls);
                    peers.insert(id, peer);
                }
            }
        }
    }
}
