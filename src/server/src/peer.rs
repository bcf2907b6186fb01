//! Other members: how they are reached.
//!
//! * [`dial`] — one dialler for everything that connects to a peer.

pub mod dial;
