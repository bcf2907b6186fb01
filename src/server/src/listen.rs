//! placeholder
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How the tasks of a listener learn that it is over.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    pub drain: CancellationToken,
    pub kill: CancellationToken,
    pub tasks: TaskTracker,
}
