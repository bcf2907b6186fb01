//! The one that writes the file: it gathers changes until the interval is over, there are enough bytes, or someone
//! asks; commits them as one transaction; publishes the new state; lets go of rows that nobody needs from memory any
//! more. It works in turns, on a thread of its own; in a simulation they are taken by hand.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redb::Database;

use super::database::{self, Facts};
use super::error::Error;
use super::shared::{Control, Queued, Role, Shared, Stop};
use super::successor::{Handover, Successor};
use super::view::{InUse, Published};
use super::{CommitStats, Options};
use crate::stepped::Stopwatch;

pub(super) struct Committer {
    pub db: Database,
    pub in_use: Arc<InUse>,
    pub facts: Facts,
    pub shared: Arc<Shared>,
    pub options: Options,
    /// Files that a copy has taken the place of, which somebody still read when it did.
    pub replaced: Vec<(Arc<InUse>, Database)>,
}

enum Work {
    Commit(Vec<Queued>),
    TakeOver(Box<Handover>),
    /// Views were let go of, or it is time to look for space again.
    Tidy,
    Fail(Error),
    Stop,
}

/// How often a full disk is looked at again.
const SPACE_RETRY: Duration = Duration::from_secs(1);

impl Committer {
    /// Takes turns to the end.
    pub fn run(mut self) {
        loop {
            let work = self.next();
            if !self.turn(work) {
                break;
            }
        }
        self.shared.disk.load().space().leave();
        let mut control = self.shared.control.lock();
        if control.failed.is_none() {
            drop(control);
            return self.close();
        }
        // Poisoned: the file stays open for readers until the handle goes.
        while control.stop.is_none() {
            self.shared.work.wait(&mut control);
        }
    }

    /// One turn, without waiting for anything to do. True if that was a commit.
    pub fn step(&mut self) -> bool {
        let work = {
            let mut control = self.shared.control.lock();
            if control.failed.is_some() {
                return false;
            }
            let is_due = !control.queue.is_empty();
            self.pick(&mut control, is_due, self.shared.is_full())
        };
        match work {
            Some(work) => matches!(work, Work::Commit(_)) & self.turn(work),
            None => false,
        }
    }

    /// After the last turn, unless one failed.
    pub fn close(self) {
        // Later reads through a View that somebody kept answer `Closed`.
        self.shared.current.store(None);
        let closed = self
            .db
            .close()
            .map_err(|error| Error::database("close backend file")(error.into()));
        let mut control = self.shared.control.lock();
        control.failed = closed.err().map(Arc::new);
        drop(control);
        self.shared.progress.notify_all();
    }

    /// False: that was the last turn.
    fn turn(&mut self, work: Work) -> bool {
        let done = match work {
            Work::Commit(batch) => self.commit(batch),
            Work::TakeOver(handover) => return self.take_over(*handover),
            Work::Fail(error) => Err(error),
            Work::Tidy => {
                self.shared.pending.prune();
                self.close_replaced();
                self.look_for_space();
                Ok(())
            }
            Work::Stop => return false,
        };
        done.inspect_err(|error| self.fail(error)).is_ok()
    }

    /// Sleeps until there is something to do.
    fn next(&self) -> Work {
        let mut control = self.shared.control.lock();
        let wants_space = control.role == Role::Current && self.shared.is_full();
        let space_due = wants_space.then(|| Instant::now() + SPACE_RETRY);
        loop {
            let due = self.commit_due(&control);
            let now = Instant::now();
            let is_over = |due: Option<Instant>| due.is_some_and(|due| due <= now);
            if let Some(work) = self.pick(&mut control, is_over(due), is_over(space_due)) {
                return work;
            }
            match [due, space_due].into_iter().flatten().min() {
                Some(due) => drop(self.shared.work.wait_until(&mut control, due)),
                None => self.shared.work.wait(&mut control),
            }
        }
    }

    /// What there is to do, given whether it is time to commit and to look for space.
    fn pick(&self, control: &mut Control, commit: bool, space: bool) -> Option<Work> {
        if control.stop == Some(Stop::Abandon) {
            return Some(Work::Stop);
        }
        if let Some(error) = control.read_failure.take() {
            return Some(Work::Fail(error));
        }
        if control.stop.is_none()
            && control.role != Role::Retired
            && let Some(handover) = control.handover.take()
        {
            return Some(Work::TakeOver(handover));
        }
        if commit {
            return Some(Work::Commit(self.take(control)));
        }
        if control.stop.is_some() {
            return Some(Work::Stop);
        }
        (std::mem::take(&mut control.prune) || space).then_some(Work::Tidy)
    }

    fn commit_due(&self, control: &Control) -> Option<Instant> {
        let oldest = control.oldest?;
        let at_once = control.stop.is_some()
            || control.flush_to > control.durable
            || control.queued_bytes >= self.options.commit_bytes;
        Some(if at_once {
            oldest
        } else {
            oldest + self.options.commit_interval
        })
    }

    /// At least one change, and no more than a commit should have.
    fn take(&self, control: &mut Control) -> Vec<Queued> {
        let mut bytes = 0;
        let mut count = 0;
        for change in &control.queue {
            bytes += change.bytes;
            #[cfg(feature = "planted")]
            if count > 0 && crate::planted::is(crate::planted::Bug::AppliedOutsideCommit) {
                break;
            }
            if count > 0 && bytes > self.options.commit_bytes {
                break;
            }
            count += 1;
        }
        let batch = control.queue.drain(..count).collect();
        // What stays has waited at least as long as what comes; it starts a new interval.
        control.oldest = (!control.queue.is_empty()).then(Instant::now);
        batch
    }

    fn commit(&mut self, batch: Vec<Queued>) -> Result<(), Error> {
        let started = Stopwatch::start(self.shared.on_work.as_ref());
        let facts = database::commit(&self.db, self.facts, &batch)?;
        self.facts = facts;
        self.publish()?;
        let bytes = batch.iter().map(|change| change.bytes).sum();
        {
            let mut control = self.shared.control.lock();
            // Not before it is published: who takes what was touched and then the newest commit has both of each.
            if let Some(touched) = &mut control.touched {
                touched.note(&batch);
            }
            control.durable += batch.len() as u64;
            let left = control.queued_bytes - bytes;
            self.shared.set_queued(&mut control, left);
            control.applied = facts.applied;
            control.applied_before = facts.applied_before;
        }
        self.shared.progress.notify_all();
        self.options.observer.committed(CommitStats {
            changes: batch.len(),
            bytes,
            took: started.elapsed(),
        });
        drop(batch);
        self.shared.pending.prune();
        self.close_replaced();
        self.look_for_space();
        Ok(())
    }

    /// A copy takes the place of the file, unless it turns out to be none. False, as for [`Self::turn`]: it is not
    /// certain which of the two has the name.
    fn take_over(&mut self, handover: Handover) -> bool {
        let Handover { successor, adopt, tell } = handover;
        let (done, goes_on) = match self.complete(successor) {
            Ok(successor) => {
                let done = adopt().and_then(|()| self.stand_on(successor));
                let goes_on = done.as_ref().inspect_err(|error| self.fail(error)).is_ok();
                (done, goes_on)
            }
            error => (error.map(drop), true),
        };
        // Whoever waits may be gone.
        let _ = tell.send(done);
        goes_on
    }

    /// Nothing is committed between this and the end of the turn.
    fn complete(&self, mut successor: Successor) -> Result<Successor, Error> {
        let touched = self.shared.control.lock().touched.take().unwrap_or_default();
        successor.follow(&self.shared.image()?, touched, &|| Ok(()))?;
        successor.is_of(&self.facts)?;
        Ok(successor)
    }

    fn stand_on(&mut self, successor: Successor) -> Result<(), Error> {
        let Successor { db, disk, .. } = successor;
        let before = std::mem::replace(&mut self.db, db);
        let in_use = std::mem::replace(&mut self.in_use, Arc::new(InUse));
        self.replaced.push((in_use, before));
        {
            let control = self.shared.control.lock();
            let before = self.shared.disk.swap(Arc::new(disk));
            before.space().leave();
            if control.stop.is_none() && self.shared.on_work.is_none() {
                self.shared.disk.load().settle();
            }
        }
        self.shared.disk.load().replenish();
        self.publish()?;
        self.close_replaced();
        Ok(())
    }

    /// What nobody reads any more gives its space back.
    fn close_replaced(&mut self) {
        self.replaced.retain(|(in_use, _)| Arc::strong_count(in_use) > 1);
    }

    pub fn publish(&self) -> Result<(), Error> {
        let view = Arc::new(Published::new(&self.db, self.in_use.clone(), self.facts, &self.shared)?);
        self.shared.in_use.store(self.facts.in_use, Ordering::Relaxed);
        self.shared.pending.track(self.facts.bound, &view);
        self.shared.current.store(Some(view));
        Ok(())
    }

    fn look_for_space(&self) {
        if self.shared.is_full() {
            self.shared.disk.load().replenish();
        }
    }

    fn fail(&self, error: &Error) {
        let expected = {
            let mut control = self.shared.control.lock();
            control.failed = Some(Arc::new(error.clone()));
            control.stop.is_some() || control.role != Role::Current
        };
        self.shared.progress.notify_all();
        // While stopping, whoever stops us is told; a full disk is then no reason for alarm. Nor does the store stand on
        // a file that is not its own yet, or not any more.
        if !expected {
            self.options.observer.fatal(error);
        }
    }
}
