//! The real binary over real sockets, driven by unmodified clients and by hostile ones.
//!
//! - [`ctl`]: Debian's etcdctl; [`crate_client`]: the `etcd-client` crate; [`http`]: the HTTP endpoints;
//! - [`bootstrap`]: a place that a member can not have;
//! - [`members`]: they come and go, as far as one process goes; [`metrics`]: what the page of `/metrics` counts;
//! - [`membership`]: clusters of several members, and how they change;
//! - [`life`]: start, identity, signals, files; [`flags`]: what they change and how they are refused; [`data_dir`]: ones
//!   that can't be used; [`handover`]: one process takes over from another; [`crash`]: kill -9 under load;
//! - [`leases`]: three members, of which one is killed or stands still;
//! - [`watch`]: what watchers are owed when compaction, starvation and the future get in the way;
//! - [`hostile`], [`connections`]: requests and connections that no client would make; [`load`]: memory and latency under too much;
//! - [`faults`]: a full disk, a log that nobody reads;
//! - [`cluster`]: several members, and what happens to them.
//!
//! Tests that measure run alone ([`turn`]). Every test starts its own node on free loopback ports, waits for conditions, and is bounded in time.
#![allow(clippy::unwrap_used)]

mod bootstrap;
mod cluster;
mod connections;
mod crash;
mod crate_client;
mod ctl;
mod data_dir;
mod faults;
mod flags;
mod handover;
mod hostile;
mod http;
mod leases;
mod life;
mod load;
mod members;
mod membership;
mod metrics;
mod mounts;
mod support;
mod turn;
mod watch;
