//! The servers under test: one member or several on loopback, founded together from a static list.
//!
//! A cluster of one is the plain server, so every workload runs on a [`Cluster`] and need not know how many there are.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use quorate_api::proto::etcdserverpb::{MemberAddRequest, MemberAddResponse};

use crate::grpc::{Caller, Endpoint, Rpc};
use crate::node::{Founding, Node, Setting, Site, Stop};
use crate::procfs;
use crate::program::Program;

const AGREE_MAX: Duration = Duration::from_secs(60);
const CATCH_UP_MAX: Duration = Duration::from_secs(1800);
const HEALTHY_MAX: Duration = Duration::from_secs(30);
const HEALTHY_PAUSE: Duration = Duration::from_millis(200);
const UNHEALTHY: &str = "etcdserver: unhealthy cluster";
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// Which members the clients are connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Leader,
    /// Connections go round over all members; the first one is to the leader.
    All,
    /// One member that is not the leader.
    Follower,
}

impl Via {
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "leader" => Some(Self::Leader),
            "all" => Some(Self::All),
            "follower" => Some(Self::Follower),
            _ => None,
        }
    }

    pub fn words(self) -> &'static str {
        match self {
            Self::Leader => "the leader alone",
            Self::All => "all members, one after the other",
            Self::Follower => "one follower alone",
        }
    }
}

/// Who leads, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// Index in [`Cluster::nodes`].
    pub leader: usize,
    pub term: u64,
}

pub struct Cluster {
    program: Program,
    setting: Setting,
    parent: PathBuf,
    /// `--initial-cluster` as a member that starts now has to be told.
    members: String,
    nodes: Vec<Node>,
}

impl Cluster {
    /// Starts all members on fresh directories under `parent` and waits until each answers a linearizable read.
    pub async fn start(program: &Program, parent: &Path, members: usize, setting: &Setting) -> anyhow::Result<Self> {
        let sites = (0..members)
            .map(|member| Site::prepare(parent, format!("m{member}")))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let words: Vec<_> = sites.iter().map(|site| site.founding_word(setting)).collect();
        let founding = Founding {
            members: words.join(","),
            existing: false,
        };
        let nodes = sites
            .into_iter()
            .map(|site| Node::spawn(program, setting, site, founding.clone()))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let mut cluster = Self {
            program: program.clone(),
            setting: setting.clone(),
            parent: parent.to_owned(),
            members: founding.members,
            nodes,
        };
        for node in &mut cluster.nodes {
            node.wait_until_serving(None).await?;
        }
        cluster.leadership().await?;
        Ok(cluster)
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn node_mut(&mut self, at: usize) -> &mut Node {
        &mut self.nodes[at]
    }

    pub fn pids(&self) -> Vec<u32> {
        self.nodes.iter().map(Node::pid).collect()
    }

    /// A member, where it does not matter which.
    pub fn any(&self) -> Endpoint {
        self.nodes[0].endpoint()
    }

    /// CPU time of all members since each was started.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        procfs::cpu_time_of(&self.pids()).context("read the servers' CPU time")
    }

    /// Waits until all members name the same leader in the same term. All of them have to be running.
    pub async fn leadership(&self) -> anyhow::Result<Leadership> {
        let began = Instant::now();
        loop {
            match self.agreed().await {
                Ok(Some(leadership)) => return Ok(leadership),
                Ok(None) => ensure!(
                    began.elapsed() < AGREE_MAX,
                    "the members name no common leader after {AGREE_MAX:?}"
                ),
                Err(error) if began.elapsed() > AGREE_MAX => return Err(error),
                Err(_) => {}
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    async fn agreed(&self) -> anyhow::Result<Option<Leadership>> {
        let mut views = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let status = node.status().await?;
            let own = status.header.context("a status without a header")?.member_id;
            views.push((own, status.leader, status.raft_term));
        }
        let (_, leader, term) = views[0];
        let agreed = leader != 0 && views.iter().all(|view| (view.1, view.2) == (leader, term));
        let at = views.iter().position(|view| view.0 == leader);
        Ok(at.filter(|_| agreed).map(|leader| Leadership { leader, term }))
    }

    /// Where clients that go `via` are to connect; the leader comes first if it is among them.
    pub async fn endpoints(&self, via: Via) -> anyhow::Result<Vec<Endpoint>> {
        if self.nodes.len() == 1 {
            return Ok(vec![self.any()]);
        }
        let leader = self.leadership().await?.leader;
        let from_leader = (0..self.nodes.len()).map(|step| (leader + step) % self.nodes.len());
        let chosen: Vec<_> = match via {
            Via::Leader => from_leader.take(1).collect(),
            Via::All => from_leader.collect(),
            Via::Follower => from_leader.skip(1).take(1).collect(),
        };
        Ok(chosen.into_iter().map(|at| self.nodes[at].endpoint()).collect())
    }

    /// Ends all members at the same time; returns how long the last one took.
    pub async fn stop_all(&mut self, how: Stop) -> anyhow::Result<Duration> {
        let began = Instant::now();
        for node in &self.nodes {
            node.signal(how)?;
        }
        for node in &mut self.nodes {
            node.wait_for_exit().await?;
        }
        Ok(began.elapsed())
    }

    /// Starts all of them again on their data; returns the time until each answers a linearizable read that finds `key`.
    pub async fn restart_all(&mut self, key: &[u8]) -> anyhow::Result<Duration> {
        let began = Instant::now();
        for node in &mut self.nodes {
            node.respawn()?;
        }
        for node in &mut self.nodes {
            node.wait_until_serving(Some(key)).await?;
        }
        Ok(began.elapsed())
    }

    /// Starts the stopped member `at` again and waits until it serves, all agree on a leader, and it has caught up.
    pub async fn bring_back(&mut self, at: usize) -> anyhow::Result<()> {
        self.nodes[at].respawn()?;
        self.nodes[at].wait_until_serving(None).await?;
        let leader = self.leadership().await?.leader;
        self.wait_until_caught_up(at, leader).await
    }

    /// Waits until the member itself has come to the revision that `leader` had a moment before.
    pub async fn wait_until_caught_up(&mut self, at: usize, leader: usize) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            self.nodes[at].check_alive()?;
            // One that does not answer yet, or in time, is asked again.
            let goal = self.nodes[leader].own_revision().await;
            let own = self.nodes[at].own_revision().await;
            if let (Ok(goal), Ok(own)) = (&goal, &own)
                && own >= goal
            {
                return Ok(());
            }
            ensure!(
                began.elapsed() < CATCH_UP_MAX,
                "a member is at {own:?} where the leader is at {goal:?}, after {CATCH_UP_MAX:?}"
            );
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// `member add` at the leader, then the start of the process. Returns the new member's index, and when the call
    /// that succeeded began; the member does not serve yet.
    pub async fn add_member(&mut self) -> anyhow::Result<(usize, Instant)> {
        let leader = self.leadership().await?.leader;
        let site = Site::prepare(&self.parent, format!("m{}", self.nodes.len()))?;
        let request = MemberAddRequest {
            peer_ur_ls: vec![site.peer_url(&self.setting)],
            ..Default::default()
        };
        let mut caller = Caller::connect(&self.nodes[leader].endpoint()).await?;
        let asked = Instant::now();
        let began = loop {
            let began = Instant::now();
            match caller.unary::<MemberAddResponse>(Rpc::MemberAdd, &request).await {
                Ok(_) => break began,
                // Members have to have been connected for 5 s; a cluster that was just founded is refused until then.
                Err(error) if format!("{error:#}").contains(UNHEALTHY) && asked.elapsed() < HEALTHY_MAX => {
                    tokio::time::sleep(HEALTHY_PAUSE).await;
                }
                Err(error) => return Err(error.context("member add")),
            }
        };
        self.members = format!("{},{}", self.members, site.founding_word(&self.setting));
        let founding = Founding {
            members: self.members.clone(),
            existing: true,
        };
        self.nodes
            .push(Node::spawn(&self.program, &self.setting, site, founding)?);
        Ok((self.nodes.len() - 1, began))
    }

    /// Fails with the end of its log when a member has ended by itself.
    pub fn check_alive(&mut self) -> anyhow::Result<()> {
        self.nodes.iter_mut().try_for_each(Node::check_alive)
    }
}
