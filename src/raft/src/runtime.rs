//! Where tasks run: on tokio.
//!
//! For simulations (feature `testing`) a task may belong to a [`Process`], and so does every task that it spawns. A
//! process is what a simulation has in the place of a process of the system: it can be stopped and can go on, it can end
//! with all its tasks at once, and what is random in it comes from its seed. A task of no process runs as without the
//! feature.

#[cfg(feature = "testing")]
mod process;
#[cfg(feature = "testing")]
mod simulated;
#[cfg(feature = "testing")]
pub mod watch;

#[cfg(feature = "testing")]
pub use process::Process;
#[cfg(feature = "testing")]
pub use simulated::{Runtime, spawn, spawn_blocking};

#[cfg(not(feature = "testing"))]
pub use openraft::TokioRuntime as Runtime;
#[cfg(not(feature = "testing"))]
pub use tokio::{spawn, sync::watch, task::spawn_blocking};
