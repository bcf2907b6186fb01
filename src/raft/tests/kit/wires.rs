//! Three members in this process and the wires between them, which can be cut.

use super::{Disks, options, runtime, until};
use futures_util::FutureExt;
use quorate_api::proto::quorate::peer::Hello;
use quorate_raft::node::Identity;
use quorate_raft::peer::service::Service;
use quorate_raft::peer::{Answer, BoxFuture, Lane, Network, PROTOCOL, PeerError, Reply, Request, Snapshot};
use quorate_raft::types::Vote;
use quorate_raft::{Node, Options};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

pub const ELECTION: Duration = Duration::from_millis(400);

type Call = (Request, oneshot::Sender<Result<Answer, PeerError>>);

#[derive(Default)]
struct Wires {
    services: Mutex<BTreeMap<u64, Service>>,
    cut_off: Mutex<BTreeSet<u64>>,
}

impl Wires {
    fn service(&self, from: u64, to: u64) -> Option<Service> {
        let cut_off = self.cut_off.lock().unwrap();
        if cut_off.contains(&from) || cut_off.contains(&to) {
            return None;
        }
        self.services.lock().unwrap().get(&to).cloned()
    }
}

/// One member's end.
struct Ends {
    wires: Arc<Wires>,
    from: u64,
    runtime: Handle,
    lanes: Mutex<HashMap<(u64, Lane), mpsc::UnboundedSender<Call>>>,
}

impl Ends {
    /// Carries a lane's calls in their order; answers come as they are ready.
    fn lane(&self, to: u64) -> mpsc::UnboundedSender<Call> {
        let (tx, mut calls) = mpsc::unbounded_channel::<Call>();
        let (wires, from) = (self.wires.clone(), self.from);
        let hello = Hello {
            protocol: PROTOCOL,
            cluster_id: 1,
            from,
            to,
            incarnation: from,
            boot: 1,
        };
        self.runtime.spawn(async move {
            while let Some((request, answer)) = calls.recv().await {
                let Some(service) = wires.service(from, to) else {
                    let reason = "cut off".to_owned();
                    let _ = answer.send(Err(PeerError::Unreachable { to, reason }));
                    continue;
                };
                let back = wires.clone();
                let mut asked = Box::pin(async move {
                    let given = match service.handle(&hello, request).await {
                        Answer::Refused(refused) => Err(PeerError::Refused {
                            to,
                            reason: refused.reason(),
                            text: refused.text,
                        }),
                        given => Ok(given),
                    };
                    let arrives = back.service(to, from).is_some();
                    let _ = answer.send(if arrives { given } else { Err(PeerError::Lost { to }) });
                });
                if (&mut asked).now_or_never().is_none() {
                    tokio::spawn(asked);
                }
            }
        });
        tx
    }
}

impl Network for Ends {
    fn call(&self, to: u64, lane: Lane, request: Request) -> Reply {
        let (tx, rx) = oneshot::channel();
        let mut lanes = self.lanes.lock().unwrap();
        let calls = lanes.entry((to, lane)).or_insert_with(|| self.lane(to));
        let _ = calls.send((request, tx));
        rx
    }

    fn snapshot(&self, to: u64, _vote: Vote, _snapshot: Snapshot) -> BoxFuture<Result<Vote, PeerError>> {
        Box::pin(std::future::ready(Err(PeerError::Lost { to })))
    }

    fn connected(&self, _since: Duration) -> BTreeSet<u64> {
        BTreeSet::from([1, 2, 3])
    }

    fn members_changed(&self, _counted: &BTreeSet<u64>) {}
}

pub struct Trio {
    pub nodes: BTreeMap<u64, Arc<Node>>,
    pub runtime: tokio::runtime::Runtime,
    wires: Arc<Wires>,
}

impl Trio {
    pub fn start(checkpoint_period: Duration) -> Self {
        let (runtime, wires) = (runtime(), Arc::new(Wires::default()));
        let all = BTreeSet::from([1, 2, 3]);
        let start = |member: u64| {
            let ends = Ends {
                wires: wires.clone(),
                from: member,
                runtime: runtime.handle().clone(),
                lanes: Mutex::default(),
            };
            let identity = Identity {
                cluster: 1,
                member,
                incarnation: member,
                boot: 1,
                known: all.clone(),
            };
            let options = Options {
                identity,
                founders: all.clone(),
                heartbeat: ELECTION / 10,
                election: ELECTION,
                lease_checkpoint_period: checkpoint_period,
                network: Arc::new(ends),
                ..options()
            };
            let node = Disks::default().try_start(options).unwrap();
            wires.services.lock().unwrap().insert(member, node.service());
            (member, node)
        };
        let nodes = all.iter().map(|member| start(*member)).collect();
        Self { nodes, runtime, wires }
    }

    /// Waits until all that are not cut off follow one of them, which keeps the time of leases.
    pub fn wait_leader(&self) -> u64 {
        let leader = || {
            let cut_off = self.wires.cut_off.lock().unwrap().clone();
            let mut reached = self.nodes.iter().filter(|(member, _)| !cut_off.contains(member));
            let leader = reached
                .clone()
                .next()?
                .1
                .leader()
                .filter(|leader| !cut_off.contains(leader))?;
            let agree = reached.all(|(_, node)| node.leader() == Some(leader));
            (agree && self.nodes[&leader].lessor().term().is_some()).then_some(leader)
        };
        until("a leader", || leader().is_some());
        leader().unwrap_or_else(|| self.wait_leader())
    }

    pub fn followers(&self) -> Vec<u64> {
        let leader = self.wait_leader();
        self.nodes.keys().copied().filter(|member| *member != leader).collect()
    }

    /// Nothing reaches a member any more, and nothing of its own arrives.
    pub fn cut_off(&self, member: u64) {
        self.wires.cut_off.lock().unwrap().insert(member);
    }

    pub fn heal(&self) {
        self.wires.cut_off.lock().unwrap().clear();
    }

    pub fn stop(self) {
        for node in self.nodes.values() {
            node.stop(Duration::from_secs(1));
        }
    }
}
