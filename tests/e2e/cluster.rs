//! Clusters of several real members: how they come together, who is in them, and who is kept out.
//!
//! - [`founding`]: static bootstrap, whatever the order of starts; what a normal life leaves in the log;
//! - [`changes`]: members added, promoted, updated, removed;
//! - [`growth`]: from one to five and back under a load that is checked, and snapshots for those who lag;
//! - [`strangers`]: members with the wrong disk, the wrong cluster, the wrong program;
//! - [`forged`]: a peer that lies;
//! - [`serves`]: any member serves, and all hold the same;
//! - [`leaders`]: leadership that moves, ends and is lost, and what requests under way hear of it;
//! - [`faults`]: kills, pauses and cut links under a checked load;
//! - [`snapshots`]: members that have missed more than the log holds.

mod changes;
mod faults;
mod forged;
mod founding;
mod growth;
mod leaders;
mod serves;
mod snapshots;
mod strangers;

use std::time::Duration;

use prost::Message;
use quorate_api::proto::etcdserverpb::{MoveLeaderRequest, MoveLeaderResponse};
use quorate_kit::background::wait_for;
use quorate_kit::cluster::Options;
use quorate_kit::{Cluster, Etcdctl, Node, Rpc};
use tonic::Status;

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

/// Members that elect within a second.
fn members(size: usize) -> Options {
    Cluster::of(&binary()).members(size).heartbeat_ms(50).election_ms(500)
}

/// Asks from a test that has no runtime of its own.
fn ask<A>(rpc: &Rpc, path: &'static str, request: &(impl Message + Clone + 'static)) -> Result<A, Status>
where
    A: Message + Default + 'static,
{
    let (rpc, request) = (rpc.clone(), request.clone());
    wait_for(async move { rpc.unary(path, &request).await })
}

/// The members but one.
fn others(cluster: &Cluster, one: usize) -> Vec<usize> {
    cluster.members().into_iter().filter(|member| *member != one).collect()
}

const MOVE_LEADER: &str = "/etcdserverpb.Maintenance/MoveLeader";

fn move_leader(cluster: &Cluster, at: usize, target_id: u64) -> Result<MoveLeaderResponse, Status> {
    ask(&cluster[at].rpc(), MOVE_LEADER, &MoveLeaderRequest { target_id })
}

/// Moves leadership from one member to another.
fn move_to(cluster: &mut Cluster, leader: usize, target: usize) {
    let target_id = cluster.member_id(target);
    move_leader(cluster, leader, target_id).unwrap();
    assert_eq!(cluster.wait_leader(), target);
}

fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
