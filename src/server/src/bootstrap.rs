//! How a member without data comes into the world. (One with data reads who it is from there, and the settings
//! used here mean nothing to it.)

pub mod identity;
pub mod initial_cluster;
