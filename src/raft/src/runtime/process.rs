//! A process of a simulation: tasks that stop, go on and end together.

use parking_lot::Mutex;
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;

thread_local! {
    /// Whose task is being polled.
    static CURRENT: RefCell<Option<Process>> = const { RefCell::new(None) };
}

/// Cheap to clone; clones are the same process.
#[derive(Clone, Debug)]
pub struct Process(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    random: u64,
    stopped: Option<Instant>,
    ended: bool,
    /// Of tasks that would have run while the process was stopped.
    held_up: Vec<Waker>,
    tasks: Vec<AbortHandle>,
    /// Tasks that have ended are forgotten when there are so many.
    tidy_at: usize,
}

impl Process {
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            random: seed,
            stopped: None,
            ended: false,
            held_up: Vec::new(),
            tasks: Vec::new(),
            tidy_at: 64,
        })))
    }

    /// The one that the task which calls this belongs to.
    pub fn current() -> Option<Self> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// A task of this process. One of a process that has ended is never polled.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let task = tokio::spawn(Inside {
            process: self.clone(),
            future: Box::pin(future),
        });
        let mut state = self.0.lock();
        if state.ended {
            task.abort();
            return task;
        }
        if state.tasks.len() >= state.tidy_at {
            state.tasks.retain(|task| !task.is_finished());
            state.tidy_at = 2 * state.tasks.len().max(32);
        }
        state.tasks.push(task.abort_handle());
        task
    }

    /// As SIGSTOP does: from now on none of its tasks runs. Time goes on, and what others do to it is done.
    pub fn stop(&self) {
        self.0.lock().stopped.get_or_insert_with(Instant::now);
    }

    /// As SIGCONT does: everything that came meanwhile comes at once.
    pub fn go_on(&self) {
        let held_up = {
            let mut state = self.0.lock();
            state.stopped = None;
            std::mem::take(&mut state.held_up)
        };
        held_up.into_iter().for_each(Waker::wake);
    }

    /// As SIGKILL does: none of its tasks runs any more, and what they held is let go of.
    pub fn end(&self) {
        let tasks = {
            let mut state = self.0.lock();
            state.ended = true;
            state.held_up.clear();
            std::mem::take(&mut state.tasks)
        };
        tasks.iter().for_each(AbortHandle::abort);
    }

    /// Since when it has been stopped, if it is.
    pub fn stopped_since(&self) -> Option<Instant> {
        self.0.lock().stopped
    }

    pub fn has_ended(&self) -> bool {
        self.0.lock().ended
    }

    /// SplitMix64.
    pub(super) fn random(&self) -> u64 {
        let mut state = self.0.lock();
        state.random = state.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Whether a task may run now. One that may not is woken when it may.
    fn lets_run(&self, cx: &Context<'_>) -> bool {
        let mut state = self.0.lock();
        if state.ended {
            return false;
        }
        if state.stopped.is_some() {
            state.held_up.push(cx.waker().clone());
            return false;
        }
        true
    }
}

struct Inside<F> {
    process: Process,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Inside<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        if !self.process.lets_run(cx) {
            return Poll::Pending;
        }
        let _entered = Entered(CURRENT.replace(Some(self.process.clone())));
        self.future.as_mut().poll(cx)
    }
}

/// Puts back the process from before, also when a task panics.
struct Entered(Option<Process>);

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;
    use tokio::time::sleep;

    fn counting(process: &Process) -> Arc<AtomicU32> {
        let count = Arc::<AtomicU32>::default();
        let counts = count.clone();
        process.spawn(async move {
            // Also what its tasks spawn belongs to it.
            super::super::spawn(async move {
                loop {
                    sleep(Duration::from_millis(1)).await;
                    counts.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        count
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_stops_and_goes_on_and_ends() {
        let process = Process::new(1);
        let count = counting(&process);
        let pass = || sleep(Duration::from_millis(100));
        pass().await;
        assert!(count.load(Ordering::Relaxed) > 90);
        process.stop();
        let before = count.load(Ordering::Relaxed);
        pass().await;
        assert_eq!(count.load(Ordering::Relaxed), before);
        process.go_on();
        pass().await;
        assert!(count.load(Ordering::Relaxed) > before + 90);
        process.end();
        pass().await;
        assert_eq!(Arc::strong_count(&count), 1, "what its tasks held is let go of");
    }
}
