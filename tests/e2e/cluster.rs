//! Several members, real processes, and what happens to them.
//!
//! - [`serves`]: any member serves, and all hold the same;
//! - [`leaders`]: leadership that moves, ends and is lost, and what requests under way hear of it;
//! - [`faults`]: kills, pauses and cut links under a checked load;
//! - [`snapshots`]: members that have missed more than the log holds;
//! - [`same_data`]: a member that holds something else than the others;
//! - [`defrag`]: files that get smaller meanwhile.

mod defrag;
mod faults;
mod leaders;
mod same_data;
mod serves;
mod snapshots;

use std::time::Duration;

use prost::Message;
use quorate_api::proto::etcdserverpb::{MoveLeaderRequest, MoveLeaderResponse};
use quorate_kit::background::wait_for;
use quorate_kit::cluster::Options;
use quorate_kit::{Cluster, Rpc};
use tonic::Status;

use crate::support::binary;

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
