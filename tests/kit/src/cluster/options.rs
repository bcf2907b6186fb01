//! How a cluster is founded.

use std::ops::RangeInclusive;

use super::Cluster;
use crate::binary::Binary;

pub(super) const SIZES: RangeInclusive<usize> = 1..=7;

/// What is asked of a cluster before it starts. Members are numbered from 0 and called `m0`, `m1`, …
#[derive(Clone, Debug)]
pub struct Options {
    pub(super) binary: Binary,
    pub(super) size: usize,
    pub(super) links: bool,
    pub(super) client_tls: bool,
    pub(super) peer_tls: bool,
    pub(super) flags: Vec<String>,
    pub(super) flags_of: Vec<(usize, String)>,
}

impl Options {
    pub(super) fn new(binary: &Binary) -> Self {
        Self {
            binary: binary.clone(),
            size: 1,
            links: false,
            client_tls: false,
            peer_tls: false,
            flags: Vec::new(),
            flags_of: Vec::new(),
        }
    }

    pub fn members(mut self, size: usize) -> Self {
        assert!(SIZES.contains(&size), "a cluster has one to seven members, not {size}");
        self.size = size;
        self
    }

    /// Puts proxies between the members: [`Cluster::links`].
    pub fn with_links(mut self) -> Self {
        self.links = true;
        self
    }

    /// Mutual TLS for clients.
    pub fn with_client_tls(mut self) -> Self {
        self.client_tls = true;
        self
    }

    /// Mutual TLS between members, under an authority that clients know nothing of.
    pub fn with_peer_tls(mut self) -> Self {
        self.peer_tls = true;
        self
    }

    pub fn heartbeat_ms(self, ms: u32) -> Self {
        self.flag(&format!("--heartbeat-interval={ms}"))
    }

    pub fn election_ms(self, ms: u32) -> Self {
        self.flag(&format!("--election-timeout={ms}"))
    }

    /// For every member, also for those added later.
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// For one member, after those for all.
    pub fn flag_of(mut self, member: usize, flag: &str) -> Self {
        self.flags_of.push((member, flag.to_owned()));
        self
    }

    /// Starts all members at the same time and waits until all of them serve.
    pub fn start(self) -> Cluster {
        let mut cluster = self.launch();
        for node in &mut cluster.nodes {
            node.wait_ready();
        }
        cluster
    }

    /// Starts all members without waiting.
    pub fn launch(self) -> Cluster {
        let mut cluster = self.prepare();
        for node in &mut cluster.nodes {
            node.relaunch();
        }
        cluster
    }

    /// Starts nobody: for tests that start members one by one.
    pub fn prepare(self) -> Cluster {
        Cluster::found(self)
    }
}
