//! One to seven members that found a cluster together, and what can happen to them.
//!
//! ```no_run
//! # use quorate_kit::{Binary, Cluster};
//! let mut cluster = Cluster::of(&Binary::oracle()).members(3).with_links().start();
//! let leader = cluster.wait_leader();
//! cluster[leader].kill();
//! let next = cluster.wait_leader();
//! cluster[leader].restart();
//! cluster.links().isolate(next);
//! let third = cluster.wait_leader_without(&[next]);
//! cluster.links().heal_all();
//! cluster.wait_equal();
//! ```
//!
//! Members are numbered in the order in which they came, from 0, and keep their number for good, also when they are
//! removed. `cluster[n]` is the [`Node`]: kill it, pause it, stop it, wipe it, start it again there.

mod ask;
mod change;
mod options;
mod place;

use std::collections::{BTreeSet, HashMap};
use std::ops::{Index, IndexMut};
use std::path::Path;
use std::time::Duration;

use crate::client::Client;
use crate::links::Links;
use crate::node::{Config, Node};
use crate::tls::Material;
use crate::{Binary, Etcdctl, Rpc, ports};

pub use options::Options;
use place::Place;

/// Whatever a cluster does by itself (an election, catching up) is done within this, or the test fails.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Its processes end when it is dropped, also while a test panics; then logs and data are kept and the place is told.
#[derive(Debug)]
pub struct Cluster {
    /// Ended before their links and their directory go.
    nodes: Vec<Node>,
    links: Option<Links>,
    options: Options,
    client_tls: Option<Material>,
    peer_tls: Option<Material>,
    removed: BTreeSet<usize>,
    /// One lasting connection for each member that was asked something.
    connections: HashMap<usize, Rpc>,
    place: Place,
}

impl Cluster {
    /// A cluster of `binary`; [`Options::start`] starts it.
    pub fn of(binary: &Binary) -> Options {
        Options::new(binary)
    }

    fn found(options: Options) -> Self {
        let place = Place::new();
        let material =
            |wanted: bool, name: &str| wanted.then(|| Material::create(&place.path().join("tls").join(name)));
        let mut cluster = Self {
            nodes: Vec::new(),
            links: options.links.then(Links::new),
            client_tls: material(options.client_tls, "clients"),
            peer_tls: material(options.peer_tls, "peers"),
            removed: BTreeSet::new(),
            connections: HashMap::new(),
            place,
            options,
        };
        let founders: Vec<Config> = (0..cluster.options.size).map(|number| cluster.config(number)).collect();
        let all: Vec<String> = founders
            .iter()
            .map(|config| format!("{}={}", config.name, config.advertised_peer_url()))
            .collect();
        for mut config in founders {
            config.initial_cluster = all.join(",");
            cluster.join(config);
        }
        cluster
    }

    /// What every member, founding or added, is started with.
    fn config(&self, number: usize) -> Config {
        let mut config = Config::new(self.options.binary.clone(), self.place.path());
        config.name = format!("m{number}");
        config.tls = self.client_tls.clone();
        config.peer_tls = self.peer_tls.clone();
        // where clients need certificates, `/health` is asked on a port that needs none
        config.metrics_port = self.client_tls.as_ref().map(|_| ports::free());
        config.advertised_peer_port = self.links.as_ref().map(|_| ports::free());
        config.extra = self.options.flags.clone();
        let own = self.options.flags_of.iter().filter(|(member, _)| *member == number);
        config.extra.extend(own.map(|(_, flag)| flag.clone()));
        config
    }

    /// Takes a member in that does not run yet.
    fn join(&mut self, config: Config) -> usize {
        let number = self.nodes.len();
        let (target, advertised) = (config.peer_port, config.advertised_peer_port);
        let node = Node::prepare(config);
        if let (Some(links), Some(port)) = (&mut self.links, advertised) {
            links.put_before_at(number, target, node.running_pid(), port);
        }
        self.nodes.push(node);
        number
    }

    /// How many members there have ever been.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The network between the members.
    ///
    /// # Panics
    /// When the cluster was not started with links.
    pub fn links(&self) -> &Links {
        self.links
            .as_ref()
            .unwrap_or_else(|| panic!("the cluster was started without links"))
    }

    /// Where logs and data are.
    pub fn dir(&self) -> &Path {
        self.place.path()
    }

    /// What clients need where clients need certificates.
    pub fn client_tls(&self) -> Option<&Material> {
        self.client_tls.as_ref()
    }

    pub fn peer_tls(&self) -> Option<&Material> {
        self.peer_tls.as_ref()
    }

    /// Members that are not removed.
    pub fn members(&self) -> Vec<usize> {
        (0..self.nodes.len())
            .filter(|member| !self.removed.contains(member))
            .collect()
    }

    /// Those of them whose process runs and is not paused.
    pub fn running(&mut self) -> Vec<usize> {
        let members = self.members();
        members
            .into_iter()
            .filter(|member| self.nodes[*member].is_running() && !self.nodes[*member].is_paused())
            .collect()
    }

    /// The client URLs of all members, as `etcdctl --endpoints` wants them.
    pub fn endpoints(&self) -> String {
        let members = self.members();
        let urls: Vec<String> = members.iter().map(|member| self[*member].config.client_url()).collect();
        urls.join(",")
    }

    /// An etcdctl that knows all members.
    pub fn etcdctl(&self) -> Etcdctl {
        let plain = Etcdctl::new(&self.endpoints());
        match &self.client_tls {
            Some(material) => plain.with_tls(material),
            None => plain,
        }
    }

    /// A client that knows all members and retries as etcd's does.
    pub fn client(&self) -> Client {
        self.client_of(&self.members())
    }

    /// One that knows only these.
    pub fn client_of(&self, members: &[usize]) -> Client {
        Client::new(members.iter().map(|member| self[*member].rpc()).collect())
    }

    /// kill -9 for all of them at the same time.
    pub fn kill_all(&mut self) {
        for node in &mut self.nodes {
            node.kill();
        }
    }

    /// Starts every member that does not run, and waits until all serve.
    pub fn start_all(&mut self) {
        let members = self.members();
        let idle: Vec<usize> = members
            .into_iter()
            .filter(|member| !self.nodes[*member].is_running())
            .collect();
        for member in &idle {
            self.nodes[*member].relaunch();
        }
        for member in idle {
            self.nodes[member].wait_ready();
        }
    }
}

impl Index<usize> for Cluster {
    type Output = Node;

    fn index(&self, member: usize) -> &Node {
        &self.nodes[member]
    }
}

impl IndexMut<usize> for Cluster {
    fn index_mut(&mut self, member: usize) -> &mut Node {
        &mut self.nodes[member]
    }
}
