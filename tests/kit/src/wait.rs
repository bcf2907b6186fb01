//! Waiting for conditions, never for time alone.

use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(5);

/// Asks `check` until it gives a value.
///
/// # Panics
/// When `limit` passes first; the message names `what`.
pub fn until<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain for: {what}");
        std::thread::sleep(POLL);
    }
}

/// The same inside an async test.
pub async fn until_async<T, F>(what: &str, limit: Duration, mut check: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain for: {what}");
        tokio::time::sleep(POLL).await;
    }
}
