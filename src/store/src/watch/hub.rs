//! The hub's handle, its threads, and a way to run it by hand.

use super::catch_up::Jobs;
use super::dispatcher::Dispatcher;
use super::inbox::{Inbox, Woken};
use super::outbox::Totals;
use super::{History, Options, WatchStream};
use crate::event::EventBatch;
use crate::stepped::OnWork;
use crate::store::EventSink;
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long watchers wait before a failed read of history is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Handle of the watch hub. The hub runs until [`stop`](Hub::stop) or until the last handle is dropped.
#[derive(Clone, Debug)]
pub struct Hub {
    shared: Arc<Shared>,
    threads: Arc<Threads>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) inbox: Inbox,
    pub(super) jobs: Jobs,
    pub(super) options: Options,
    pub(super) counters: Counters,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) streams: AtomicU64,
    pub(super) watchers: AtomicU64,
    pub(super) behind: AtomicU64,
    pub(super) totals: Arc<Totals>,
}

/// Figures for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Open streams.
    pub streams: u64,
    /// Live watchers.
    pub watchers: u64,
    /// Of these, the ones that are not served live.
    pub behind: u64,
    /// Events that streams have handed out since the start, once for every watcher.
    pub events_total: u64,
    /// Events that wait for their streams to hand them out, once for every watcher.
    pub pending_events: usize,
    /// Bytes that wait in outboxes; an event is counted on each stream that it waits on.
    pub queued_bytes: usize,
}

impl Hub {
    /// Starts the threads `watch` and `watch-history`. Fails only if the system has no threads left.
    pub fn start(history: Arc<dyn History>, options: Options) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(options, None));
        let threads = Arc::new(Threads::new(&shared));
        let mut dispatcher = Dispatcher::new(Arc::clone(&history), Arc::clone(&shared));
        threads.spawn("watch", move || run(&mut dispatcher))?;
        let reader = Arc::clone(&shared);
        threads.spawn("watch-history", move || {
            while let Some(job) = reader.jobs.pop() {
                reader.inbox.reply(job.run(history.as_ref()));
            }
        })?;
        Ok(Self { shared, threads })
    }

    /// A hub without threads, which moves only when the stepper says so.
    pub fn manual(history: Arc<dyn History>, options: Options) -> (Self, Stepper) {
        Self::by_hand(history, options, None)
    }

    /// A hub without threads, for simulations: [`Stepper::step`] does all there is to do, and `on_work` is called, on the
    /// thread of whoever made it, when there is more. It must only wake somebody up.
    #[cfg(any(test, feature = "testing"))]
    pub fn stepped(
        history: Arc<dyn History>,
        options: Options,
        on_work: impl Fn() + Send + Sync + 'static,
    ) -> (Self, Stepper) {
        Self::by_hand(history, options, Some(OnWork::new(on_work)))
    }

    fn by_hand(history: Arc<dyn History>, options: Options, on_work: Option<OnWork>) -> (Self, Stepper) {
        let shared = Arc::new(Shared::new(options, on_work));
        let dispatcher = Dispatcher::new(history, Arc::clone(&shared));
        let threads = Arc::new(Threads::new(&shared));
        let stepper = Stepper {
            shared: Arc::clone(&shared),
            dispatcher,
        };
        (Self { shared, threads }, stepper)
    }

    /// Hands over what was applied, by ascending revision, after [`History::revision`] has come that far. Never
    /// waits, and costs no more than the queue's memory while the dispatcher is busy.
    pub fn publish(&self, batches: Vec<Arc<EventBatch>>) {
        self.shared.inbox.publish(batches);
    }

    pub fn stream(&self) -> WatchStream {
        WatchStream::open(&self.shared)
    }

    /// The progress interval has elapsed: watchers that asked for it and had no event since the last call get a
    /// notice.
    pub fn tick_progress(&self) {
        self.shared.inbox.tick();
    }

    /// A while has passed, long enough for a client to read what it was sent. If all streams together have too much
    /// waiting, then those on which something waits since before the last call let go of it: their watchers find it in
    /// history when the client reads on, and the other streams get their room back.
    pub fn tick_slow(&self) {
        self.shared.inbox.relieve();
    }

    /// Batches may have been missed, or the store was replaced by a newer snapshot: what was published
    /// before is void, all watchers catch up from history. To be called before anything newer is published.
    pub fn resync_all(&self) {
        self.shared.inbox.resync();
    }

    pub fn stats(&self) -> Stats {
        let Counters {
            streams,
            watchers,
            behind,
            totals,
        } = &self.shared.counters;
        Stats {
            streams: streams.load(Ordering::Relaxed),
            watchers: watchers.load(Ordering::Relaxed),
            behind: behind.load(Ordering::Relaxed),
            events_total: totals.taken.load(Ordering::Relaxed),
            pending_events: totals.waiting.load(Ordering::Relaxed),
            queued_bytes: totals.bytes.load(Ordering::Relaxed),
        }
    }

    /// Stops the threads and waits for them. Streams hand out what is queued, then end.
    pub fn stop(&self) {
        self.threads.stop();
    }
}

/// What is applied goes straight to the watchers.
impl EventSink for Hub {
    fn publish(&self, batches: Vec<Arc<EventBatch>>) {
        Hub::publish(self, batches);
    }

    fn replaced(&self) {
        self.resync_all();
    }
}

fn run(dispatcher: &mut Dispatcher) {
    let mut retry = false;
    loop {
        let busy = dispatcher.turn(retry);
        let at_most = if busy {
            Some(Duration::ZERO)
        } else {
            dispatcher.has_retries().then_some(RETRY_AFTER)
        };
        match dispatcher.wait(at_most) {
            Woken::Work => retry = false,
            Woken::Timeout => retry = !busy,
            Woken::Stop => return dispatcher.end(),
        }
    }
}

impl Shared {
    fn new(options: Options, on_work: Option<OnWork>) -> Self {
        Self {
            inbox: Inbox::new(options.inbox_bytes_max, on_work),
            jobs: Jobs::default(),
            options,
            counters: Counters::default(),
        }
    }
}

/// Owns the threads: stops and joins them, at the latest when the last handle goes.
#[derive(Debug)]
struct Threads {
    shared: Arc<Shared>,
    running: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
            running: Mutex::default(),
        }
    }

    fn spawn(&self, name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(body)?;
        self.running.lock().push(thread);
        Ok(())
    }

    fn stop(&self) {
        self.shared.inbox.stop();
        self.shared.jobs.stop();
        let running = std::mem::take(&mut *self.running.lock());
        for thread in running {
            // The last handle may be dropped by one of them (inside an observer): it can't wait for itself.
            if thread.thread().id() != thread::current().id() {
                // A panic has been reported by its hook already.
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs a hub by hand, one step at a time: for tests that want every interleaving to be their own choice.
#[derive(Debug)]
pub struct Stepper {
    shared: Arc<Shared>,
    dispatcher: Dispatcher,
}

impl Stepper {
    /// How many watchers are remembered as waiting for history, those that wait no longer included.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.dispatcher.waiting()
    }

    /// One round of the dispatcher.
    pub fn dispatch(&mut self) {
        self.dispatcher.turn(true);
    }

    /// One read of history; false when none is asked for.
    pub fn read_history(&mut self) -> bool {
        let Some(job) = self.shared.jobs.try_pop() else {
            return false;
        };
        let reply = job.run(self.dispatcher.history());
        self.shared.inbox.reply(reply);
        true
    }

    /// All that can be done now: until somebody publishes, asks for something or reads from a stream. After the hub has
    /// stopped that is to end the streams.
    ///
    /// True when watchers wait all the same, because history could not be read or has not come as far as what was
    /// published: that is tried again by the next step, after a while, for which nobody is woken.
    #[cfg(any(test, feature = "testing"))]
    pub fn step(&mut self) -> bool {
        if self.shared.inbox.is_stopped() {
            self.dispatcher.end();
            return false;
        }
        let mut retry = true;
        while self.dispatcher.turn(retry) | self.read_history() | self.dispatcher.has_work() {
            retry = false;
        }
        self.dispatcher.has_retries()
    }

    /// Until nothing is left to do unless somebody reads from a stream, or for a good while if history stands in the
    /// way (it fails, or has not come as far as what was published).
    pub fn settle(&mut self) {
        const ROUNDS_MAX: usize = 5_000;
        let mut idle = 0;
        for _ in 0..ROUNDS_MAX {
            let busy = self.dispatcher.turn(true) | self.read_history() | self.dispatcher.has_work();
            idle = if busy { 0 } else { idle + 1 };
            if idle == 2 {
                return;
            }
        }
    }
}
