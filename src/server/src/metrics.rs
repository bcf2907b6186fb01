//! The node's metrics: etcd's names, so that its dashboards and alerts work unchanged.
//!
//! * [`disk`] — log and backend, counted on their own threads;
//! * [`rpc`] — calls and bytes of clients, by method;
//! * [`counts`] — what requests did and took;
//! * [`applied`] — what apply did;
//! * [`timed`] — histograms by kind and success;
//! * [`peers`] — links to other members, their traffic, snapshots and heartbeats;
//! * [`log`] — lines of the log that reached nobody;
//! * [`live`] — what is read from the member when somebody asks;
//! * [`absent`] — families that dashboards expect of parts that are not here: they stand at zero, which is how often
//!   those parts have run.

pub mod absent;
pub mod applied;
pub mod counts;
pub mod disk;
pub mod live;
pub mod log;
pub mod peers;
pub mod rpc;
pub mod timed;
