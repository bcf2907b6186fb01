//! A store without threads: commits and compaction when somebody says so, on that one's thread.
//!
//! ```text
//!  apply, compact ──► queue, walk ──► on_work ··► somebody's task ──► Stepper::commit, Stepper::compact
//! ```
//!
//! For simulations, in which all of a cluster runs on one thread and every run of a seed is the same run. The work is
//! done by the code that the threads run; what differs is who waits. Nobody does here: who asks for a flush, or finds
//! the queue full, makes the commits on the spot.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[cfg(any(test, feature = "testing"))]
pub use self::stepper::Stepper;

/// Called when there may be something to do for a store without threads.
#[derive(Clone)]
pub(crate) struct OnWork(Arc<dyn Fn() + Send + Sync>);

impl OnWork {
    #[cfg(any(test, feature = "testing"))]
    pub fn new(call: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(call))
    }

    pub fn call(&self) {
        (self.0)();
    }
}

impl fmt::Debug for OnWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnWork")
    }
}

/// Measures what observers are told. Where every run has to be like the one before, that is nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch(Option<Instant>);

impl Stopwatch {
    pub fn start(on_work: Option<&OnWork>) -> Self {
        Self(on_work.is_none().then(Instant::now))
    }

    pub fn elapsed(self) -> Duration {
        self.0.map_or(Duration::ZERO, |start| start.elapsed())
    }
}

#[cfg(any(test, feature = "testing"))]
mod stepper {
    use std::sync::{Arc, Weak};

    use parking_lot::Mutex;

    use crate::apply::{Applier, Writer};
    use crate::backend::disk::Place;
    use crate::error::Error;
    use crate::store::{EventSink, Options, Root, Store};

    use super::OnWork;

    impl Store {
        /// As [`Store::open_in`], without threads of any kind, for simulations. `on_work` is called, on the thread of
        /// whoever made the work and perhaps under locks of the store, when there may be something for the [`Stepper`]:
        /// it must only wake somebody up.
        ///
        /// Nobody waits for space on the disk either: a commit that finds none fails, and that is final.
        /// [`Options::background_compaction`], the interval of commits and their size go unheeded.
        pub fn open_stepped(
            place: Box<dyn Place>,
            options: Options,
            sink: Box<dyn EventSink>,
            on_work: impl Fn() + Send + Sync + 'static,
        ) -> Result<(Store, Applier, Stepper), Error> {
            let (store, applier) = Self::open_with(place, options, sink, Some(OnWork::new(on_work)))?;
            let stepper = Stepper {
                root: Arc::downgrade(store.root()),
                writer: Arc::downgrade(applier.writer()),
            };
            Ok((store, applier, stepper))
        }
    }

    /// Does the work of a store's threads, piece by piece. It keeps nothing open: with the last [`Store`] and its
    /// [`Applier`] there is nothing left to do.
    #[derive(Clone)]
    pub struct Stepper {
        root: Weak<Root>,
        writer: Weak<Mutex<Writer>>,
    }

    impl Stepper {
        /// Commits what is queued, up to the size of one commit. False when nothing was.
        pub fn commit(&self) -> Result<bool, Error> {
            let Some(root) = self.root.upgrade() else {
                return Ok(false);
            };
            let shared = root.current.load_full();
            Ok(shared.backend.commit_step()?)
        }

        /// As [`Applier::compact_step`], for who does not have the applier. Where open reads stand in the way, nobody
        /// tells when they are gone: ask again now and then.
        pub fn compact(&self, keys_max: usize) -> Result<bool, Error> {
            match self.writer.upgrade() {
                Some(writer) => Writer::compact_step(&writer, keys_max),
                None => Ok(false),
            }
        }
    }
}
