//! Clusters of several real members: how they come together, who is in them, and who is kept out.
//!
//! - [`founding`]: static bootstrap, whatever the order of starts; what a normal life leaves in the log;
//! - [`changes`]: members added, promoted, updated, removed;
//! - [`growth`]: from one to five and back under a load that is checked, and snapshots for those who lag;
//! - [`strangers`]: members with the wrong disk, the wrong cluster, the wrong program;
//! - [`forged`]: a peer that lies.

mod changes;
mod forged;
mod founding;
mod growth;
mod strangers;

use std::time::Duration;

use quorate_kit::cluster::Options;
use quorate_kit::{Cluster, Etcdctl, Node};

use crate::support::binary;

/// What a process does by itself takes less.
const SOON: Duration = Duration::from_secs(15);

/// Founding members that elect within a second.
fn of(size: usize) -> Options {
    Cluster::of(&binary()).members(size).heartbeat_ms(50).election_ms(500)
}

/// An etcdctl that knows this member only.
fn ctl(cluster: &Cluster, member: usize) -> Etcdctl {
    cluster[member].etcdctl()
}

fn put(cluster: &Cluster, member: usize, key: &str, value: &str) {
    assert_eq!(ctl(cluster, member).ok(&["put", key, value]), "OK\n");
}

fn assert_has(cluster: &Cluster, member: usize, key: &str, value: &str) {
    assert_eq!(
        ctl(cluster, member).ok(&["get", key, "--print-value-only"]),
        format!("{value}\n")
    );
}

/// `member list`, one line each: id, status, name, peer URLs, client URLs, is learner.
fn listed(ctl: &Etcdctl) -> Vec<Vec<String>> {
    let words = |line: &str| line.split(", ").map(str::to_owned).collect();
    ctl.ok(&["member", "list"]).lines().map(words).collect()
}

fn hex(id: u64) -> String {
    format!("{id:x}")
}

/// The texts of what this start has logged at these levels, with the whole line.
fn logged(node: &Node, levels: &[&str]) -> Vec<(String, String)> {
    let log = node.log();
    let records = log.lines().filter_map(|line| {
        let record: serde_json::Value = serde_json::from_str(line).ok()?;
        let level = record["level"].as_str()?;
        levels
            .contains(&level)
            .then(|| (record["msg"].as_str().unwrap_or_default().to_owned(), line.to_owned()))
    });
    records.collect()
}

/// Nothing at a level that means somebody has to look.
fn assert_quiet(node: &Node) {
    let loud = logged(node, &["error", "fatal", "panic", "dpanic"]);
    assert!(loud.is_empty(), "{} says {loud:#?}", node.config.name);
}

/// How a start that can't go on says why.
fn fatal(node: &Node) -> String {
    let last = logged(node, &["fatal"]).pop();
    let (_, line) = last.unwrap_or_else(|| panic!("{} ended without a reason: {}", node.config.name, node.tail()));
    let record: serde_json::Value = serde_json::from_str(&line).unwrap();
    record["error"].as_str().unwrap_or_default().to_owned()
}
