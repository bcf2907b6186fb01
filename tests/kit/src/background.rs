//! The threads on which the kit's own tasks run: link proxies, recorded loads, questions to members.
//!
//! Tests are plain functions that do one thing after the other, while proxies and loads go on beside them. Were those
//! on the test's own runtime, a test that waits (or a runtime with a single thread) would stop the network of the
//! cluster it waits for.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::OnceLock;
use std::sync::mpsc;

use futures_util::FutureExt;
use tokio::runtime::{Builder, Handle, Runtime};

static RUNTIME: OnceLock<Runtime> = OnceLock::new();

/// Where background tasks are spawned.
pub fn handle() -> &'static Handle {
    let runtime = RUNTIME.get_or_init(|| {
        Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("kit")
            .enable_all()
            .build()
            .unwrap()
    });
    runtime.handle()
}

/// Runs `future` there and waits for it, from any thread, also from one that drives another runtime.
///
/// # Panics
/// When `future` does.
pub fn wait_for<F>(future: F) -> F::Output
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let (send, done) = mpsc::sync_channel(1);
    handle().spawn(async move {
        let ended = AssertUnwindSafe(future).catch_unwind().await;
        // nobody waits any more: nobody wants to know
        let _ = send.send(ended);
    });
    match done.recv() {
        Ok(Ok(value)) => value,
        Ok(Err(panic)) => resume_unwind(panic),
        Err(_) => panic!("the kit's runtime is gone"),
    }
}

#[cfg(test)]
mod tests {
    use super::wait_for;

    #[tokio::test]
    async fn a_test_with_a_runtime_of_its_own_can_wait_too() {
        assert_eq!(wait_for(async { 7 }), 7);
    }

    #[test]
    fn a_panic_there_is_a_panic_here() {
        let panic = std::panic::catch_unwind(|| wait_for(async { panic!("told") })).unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"told"));
    }
}
