//! Consensus glue around openraft: the log over [`quorate_wal`], the state machine over [`quorate_store`], and what
//! the server needs of both.
//!
//! ```text
//!  propose ─► batcher ─► openraft ─► log store ─► wal (one fdatasync a batch)
//!                            │                      │ flushed
//!                            ▼                      ▼
//!     answers ◄─ flights ◄─ state machine ◄─── committed
//! ```
//!
//! * [`types`] — the type parameters: batches as entries, member ids as node ids, one leader per term;
//! * [`batch`] — the entry payload, encoded once for log and peers;
//! * [`log_store`], [`state_machine`] — openraft's two storage traits;
//! * [`proposer`] — commands in, batches out; what arrives while one is being written joins the next;
//! * `flights` — batches on their way, and who waits for them;
//! * `space` — which commands a full disk still takes;
//! * [`barrier`] — the point in the log behind which a linearizable read may run;
//! * [`lessor`] — the leader's clock over leases;
//! * [`runtime`] — where tasks run;
//! * [`observer`] — what is applied, as it is counted;
//! * [`peer`] — what members say to each other;
//! * [`leadership`] — who leads, as it is known here;
//! * [`node`] — starts all of it, in order, and ends it.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod alone;
pub mod barrier;
pub mod batch;
mod flights;
pub mod leadership;
pub mod lessor;
pub mod log_store;
pub mod node;
pub mod observer;
pub mod peer;
pub mod proposer;
pub mod runtime;
mod space;
pub mod state_machine;
pub mod types;

pub use node::{LeaseError, Node, Options, RaftStatus, StartError};
pub use observer::{Observer, Op};
pub use proposer::ProposeError;
