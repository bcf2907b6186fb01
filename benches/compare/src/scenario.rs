//! Measurements that are no closed loop: each gives a column of its own figures per server.

pub mod memory;
pub mod watchers;
