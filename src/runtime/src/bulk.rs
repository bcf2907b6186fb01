//! Work that is large and can wait: on a thread of its own, which gives way to all that somebody waits for.

use tokio::sync::oneshot;

/// As far as a thread can step back without stopping when the machine is busy: about a ninth of what another one gets.
const NICE: i32 = 10;

/// Runs `work` to its end; what comes of it is received, or an error if it panicked or no thread was to be had. A receiver
/// that is dropped changes nothing.
pub fn spawn<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
    let (tell, told) = oneshot::channel();
    let run = move || {
        // One thread at a time has a niceness on Linux. Where it can't be set the work is only less polite.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
        let _ = tell.send(work());
    };
    if let Err(error) = std::thread::Builder::new().name(name.to_owned()).spawn(run) {
        tracing::warn!(name, %error, "no thread to be had");
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_on_a_thread_that_gives_way() {
        let nice = || rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap();
        let before = nice();
        assert_eq!(spawn("bulk", nice).blocking_recv(), Ok(NICE.max(before)));
        assert_eq!(nice(), before, "nobody else's changes");
    }

    #[test]
    fn work_that_panics_is_told() {
        let told = spawn("bulk", || panic!("on purpose"));
        assert!(told.blocking_recv().is_err());
    }
}
