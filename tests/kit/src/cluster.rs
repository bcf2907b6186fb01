//! One to seven nodes that found a cluster together.

use std::path::Path;

use crate::binary::Binary;
use crate::node::{Config, Node};

/// Founding members, by name `m0`, `m1`, …
#[derive(Debug)]
pub struct Cluster {
    pub nodes: Vec<Node>,
}

impl Cluster {
    /// Starts `size` members at the same time and waits until all of them serve. `adjust` sees each config first.
    pub fn start(binary: &Binary, dir: &Path, size: usize, adjust: impl Fn(Config) -> Config) -> Self {
        assert!(
            (1..=7).contains(&size),
            "a cluster has one to seven members, not {size}"
        );
        let mut configs: Vec<Config> = (0..size)
            .map(|index| {
                let mut config = Config::new(binary.clone(), dir);
                config.name = format!("m{index}");
                adjust(config)
            })
            .collect();
        let all: Vec<String> = configs
            .iter()
            .map(|config| format!("{}={}", config.name, config.peer_url()))
            .collect();
        for config in &mut configs {
            config.initial_cluster = all.join(",");
        }
        let mut nodes: Vec<Node> = configs.into_iter().map(Node::launch).collect();
        for node in &mut nodes {
            node.wait_ready();
        }
        Self { nodes }
    }

    /// Every member's client URL, as `etcdctl --endpoints` wants them.
    pub fn endpoints(&self) -> String {
        let urls: Vec<String> = self.nodes.iter().map(|node| node.config.client_url()).collect();
        urls.join(",")
    }
}
