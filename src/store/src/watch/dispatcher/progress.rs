//! Progress: how far a client that hears nothing may take itself to be. A promise about what was sent, so it is only
//! made for watchers that have been given everything, and goes through the same outbox as the events.

use super::super::inbox::StreamId;
use super::super::outbox::Place;
use super::super::response::Response;
use super::Dispatcher;
use quorate_api::Revision;

/// A client's question for the progress of its stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) stream: StreamId,
    /// Not answered before the dispatcher has come here: where the store was when the question came. So the answer
    /// covers every write that was acknowledged before.
    pub(super) target: Revision,
}

enum Verdict {
    Tell,
    /// Some watcher is not up to date (or does not begin until later): no answer at all, the client asks again.
    Silent,
    /// All are, some by history even beyond what was dispatched.
    WaitFor(Revision),
}

impl Dispatcher {
    /// Takes a question. Whoever joins the stream after it has no part in the answer, so what already rules one out is
    /// judged now.
    pub(super) fn ask_progress(&mut self, stream: StreamId) {
        let target = self.revision();
        if self.may_tell(stream, target) {
            self.asked.push(Asked { stream, target });
        } else {
            self.answer_asked(stream, Verdict::Silent);
        }
    }

    /// Answers what the present watchers of the stream allow to be answered, since another is about to join them.
    pub(super) fn answer_before_create(&mut self, stream: StreamId) {
        let mut at = 0;
        while let Some(asked) = self.asked.get(at).copied() {
            let tell = asked.stream == stream
                && asked.target <= self.dispatched
                && matches!(self.stream_progress(stream), Verdict::Tell);
            if tell {
                self.asked.remove(at);
                self.answer_asked(stream, Verdict::Tell);
            } else {
                at += 1;
            }
        }
    }

    /// The stream has watchers, all of them alive and begun by `target`.
    fn may_tell(&self, stream: StreamId, target: Revision) -> bool {
        let Some(Some(stream)) = self.streams.get(stream as usize) else {
            return false;
        };
        // A watcher that compaction ended keeps its id until the client cancels it, and until then etcd takes it for one
        // that is behind.
        let begun = |at: &Option<_>| {
            at.and_then(|at| self.watchers.get(at))
                .is_some_and(|watcher| watcher.start <= target)
        };
        !stream.ids.is_empty() && stream.ids.values().all(begun)
    }

    pub(super) fn answer_progress(&mut self) {
        let mut at = 0;
        while let Some(Asked { stream, target }) = self.asked.get(at).copied() {
            if target > self.dispatched {
                at += 1;
                continue;
            }
            let verdict = self.stream_progress(stream);
            if let Verdict::WaitFor(revision) = verdict {
                self.asked[at].target = revision;
                at += 1;
                continue;
            }
            self.asked.remove(at);
            self.answer_asked(stream, verdict);
        }
    }

    fn answer_asked(&mut self, stream: StreamId, verdict: Verdict) {
        let revision = self.dispatched;
        let Some(open) = self.stream_mut(stream) else {
            return;
        };
        match verdict {
            Verdict::Tell => open.outbox.answer_progress(Response::progress(-1, revision)),
            Verdict::Silent | Verdict::WaitFor(_) => open.outbox.settle(),
        }
        self.touch(stream);
    }

    fn stream_progress(&self, stream: StreamId) -> Verdict {
        let Some(Some(stream)) = self.streams.get(stream as usize) else {
            return Verdict::Silent;
        };
        // Ended by compaction since the question came: as in `may_tell`.
        if stream.ids.values().any(Option::is_none) {
            return Verdict::Silent;
        }
        let mut watchers = stream
            .ids
            .values()
            .flatten()
            .filter_map(|at| self.watchers.get(*at))
            .peekable();
        if watchers.peek().is_none() {
            return Verdict::Silent;
        }
        let mut next = Revision::default();
        for watcher in watchers {
            if watcher.state != super::State::Synced || watcher.start > self.dispatched {
                return Verdict::Silent;
            }
            next = next.max(watcher.next);
        }
        if next > self.dispatched.next() {
            Verdict::WaitFor(Revision(next.0 - 1))
        } else {
            Verdict::Tell
        }
    }

    /// The progress interval has elapsed.
    pub(super) fn notify_progress(&mut self) {
        let revision = self.dispatched;
        let Self {
            watchers,
            streams,
            touched,
            ..
        } = self;
        for (_, watcher) in watchers.iter_mut().filter(|(_, watcher)| watcher.notify) {
            if std::mem::take(&mut watcher.sent) || !watcher.has_all_through(revision) {
                continue;
            }
            let Some(Some(stream)) = streams.get_mut(watcher.stream as usize) else {
                continue;
            };
            if stream.outbox.notice(Response::progress(watcher.id, revision)).is_ok() {
                watcher.last_place = Place::default(); // later events may not move before the notice
                if !stream.touched {
                    stream.touched = true;
                    touched.push(watcher.stream);
                }
            }
        }
    }
}
