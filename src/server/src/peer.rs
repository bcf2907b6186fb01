//! Other members: connections to them and from them, and what is said on them.
//!
//! ```text
//!   consensus ─► Links ─► lane: control, log ─► dial ══ HTTP/2 ══► listener ─► serve ─► Service (consensus)
//!                     └─► snapshot, on a connection of its own
//! ```
//!
//! * [`dial`] — one dialler for everything that connects to a peer;
//! * [`link`] — links to all other members, kept up: the real network of consensus;
//! * [`lane`] — one lane of a link, on the side that asks;
//! * [`send_snapshot`], [`receive_snapshot`] — a snapshot on its way out, and in;
//! * [`serve`] — the side that is asked;
//! * [`frames`] — messages on an HTTP/2 stream.

pub mod dial;
pub mod frames;
pub mod lane;
pub mod link;
pub mod receive_snapshot;
pub mod send_snapshot;
pub mod serve;
