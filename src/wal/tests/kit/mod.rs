//! A log on a faulty disk, next to a naive model of what may be found after each way of going down.
#![allow(dead_code)] // each test binary uses its part

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_wal::disk::{FaultyDisk, Tear};
use quorate_wal::{Done, Entry, Error, LogPos, Options, Recovered, Stepper, Wal};

pub const DIR: &str = "/member/wal";
pub const OWNER: u64 = 0x1122_3344_5566_7788;

pub fn pos(term: u64, index: u64) -> LogPos {
    LogPos { term, index }
}

/// An entry whose payload depends on its position and size alone.
pub fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let mut seed = term.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index.wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ bytes as u64;
    let payload: Vec<u8> = (0..bytes)
        .map(|_| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 56) as u8
        })
        .collect();
    Entry {
        pos: pos(term, index),
        payload: payload.into(),
    }
}

pub fn options() -> Options {
    Options {
        segment_bytes: 4096,
        cache_bytes: 300,
        prepare_ahead: false,
        owner: OWNER,
        ..Options::new(DIR)
    }
}

/// Cases of a property: as many as the environment variable QUORATE_CASES says, for longer runs.
pub fn cases(usual: u32) -> u32 {
    std::env::var("QUORATE_CASES").map_or(usual, |cases| cases.parse().expect("QUORATE_CASES is a number"))
}

/// Calls and waits for the answer.
pub fn wait(call: impl FnOnce(Done)) -> Result<(), Error> {
    let (tell, told) = mpsc::channel();
    call(Box::new(move |outcome| drop(tell.send(outcome))));
    told.recv().unwrap()
}

/// Waits until `what` holds; a condition, not a time.
pub fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what} never came true");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn open(disk: &FaultyDisk) -> Result<(Wal, Recovered), Error> {
    Wal::open(options(), Arc::new(disk.clone()))
}

pub fn segment(number: u64) -> std::path::PathBuf {
    Path::new(DIR).join(format!("{number:016x}.wal"))
}

pub fn all(wal: &Wal) -> Vec<Entry> {
    wal.read(0..u64::MAX, usize::MAX).unwrap()
}

/// What a log may be found to hold.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct State {
    pub vote: Option<Bytes>,
    pub purged: Option<LogPos>,
    pub entries: Vec<Entry>,
}

impl fmt::Debug for State {
    /// Positions only; payloads follow from them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries: Vec<_> = self
            .entries
            .iter()
            .map(|entry| format!("{}+{}", entry.pos, entry.payload.len()))
            .collect();
        write!(
            f,
            "{{purged {:?}, vote {:?}, entries {entries:?}}}",
            self.purged, self.vote
        )
    }
}

impl State {
    pub fn last(&self) -> Option<LogPos> {
        self.entries.last().map(|entry| entry.pos).or(self.purged)
    }

    pub fn next(&self) -> u64 {
        self.last().map_or(0, |last| last.index + 1)
    }

    fn seen(wal: &Wal, found: &Recovered) -> Result<Self, Error> {
        let seen = Self {
            vote: wal.vote(),
            purged: wal.state().0,
            entries: wal.read(0..u64::MAX, usize::MAX)?,
        };
        assert_eq!((seen.purged, seen.last()), (found.purged, found.last));
        assert_eq!(seen.vote, found.vote);
        assert_eq!(wal.committed(), found.committed);
        Ok(seen)
    }
}

#[derive(Clone, Debug)]
pub enum Step {
    Append {
        entries: u8,
        bytes: u16,
        new_term: bool,
    },
    Vote(u8),
    Commit(u8),
    Truncate(u8),
    Purge(u8),
    Reset(u8),
    /// For all answers.
    Wait,
    Close,
    Drop,
    Power(Tear),
    FailSync(u8),
    FailWrite(u8),
    /// Of a stepped log: one batch.
    Turn,
    /// Of a stepped log: the process dies with what is queued.
    Kill,
}

/// Who does the log's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    /// The writer thread, and one that prepares segments meanwhile.
    Ahead,
    /// The writer thread alone.
    Between,
    /// This thread, when it is told to.
    Stepped,
}

/// A log, its disk, and every state that it may be found in.
pub struct World {
    pub disk: FaultyDisk,
    wal: Option<Wal>,
    /// What has been asked for since the log was opened, one state after each record; the first is what it opened with.
    states: Vec<State>,
    /// The committed position that is safe once the state of the same number is.
    committed_floor: Vec<Option<LogPos>>,
    committed: Option<LogPos>,
    /// The newest state acknowledged.
    acked: Arc<AtomicUsize>,
    waiting: Vec<mpsc::Receiver<Result<(), Error>>>,
    term: u64,
    runs: Runs,
    stepper: Option<Stepper>,
    /// Every answer, and everything that recovery told, as they came.
    pub heard: Arc<Mutex<Vec<String>>>,
    /// A fault was asked for since the log was opened: from some point on it refuses everything.
    faulted: bool,
}

impl World {
    pub fn new(disk: FaultyDisk, runs: Runs) -> Self {
        Self {
            disk,
            wal: None,
            states: vec![State::default()],
            committed_floor: vec![None],
            committed: None,
            acked: Arc::default(),
            waiting: Vec::new(),
            term: 1,
            runs,
            stepper: None,
            heard: Arc::default(),
            faulted: false,
        }
    }

    pub fn state(&self) -> &State {
        self.states.last().unwrap()
    }

    fn options(&self) -> Options {
        Options {
            prepare_ahead: self.runs == Runs::Ahead,
            ..options()
        }
    }

    /// Another world that goes on from the same disk.
    pub fn fork(&self) -> Self {
        Self {
            disk: self.disk.fork(),
            wal: None,
            states: self.states.clone(),
            committed_floor: self.committed_floor.clone(),
            acked: Arc::new(AtomicUsize::new(self.acked.load(Ordering::SeqCst))),
            waiting: Vec::new(),
            stepper: None,
            heard: Arc::default(),
            ..*self
        }
    }

    /// Opens the log and checks what it found against what it may find.
    pub fn open(&mut self) -> Result<Recovered, Error> {
        let disk = Arc::new(self.disk.clone());
        let (wal, found) = if self.runs == Runs::Stepped {
            let (wal, found, stepper) = Wal::open_stepped(self.options(), disk, || {})?;
            self.stepper = Some(stepper);
            (wal, found)
        } else {
            Wal::open(self.options(), disk)?
        };
        self.heard.lock().unwrap().push(format!("{found:?}"));
        let seen = match State::seen(&wal, &found) {
            // The power may go after the log is open, while the next segment is being prepared.
            Err(error) if self.disk.is_off() => return Err(error),
            seen => seen.unwrap(),
        };
        let acked = self.acked.load(Ordering::SeqCst);
        let at = self.states[acked..].iter().position(|state| *state == seen);
        let Some(at) = at else {
            panic!(
                "found {seen:?}\nwhich is none of {:?}\nacknowledged: {:?}",
                &self.states[acked..],
                self.states[acked]
            );
        };
        assert!(
            found.committed >= self.committed_floor[acked] && found.committed <= self.committed,
            "committed {:?} is not within {:?} and {:?}",
            found.committed,
            self.committed_floor[acked],
            self.committed
        );
        self.states = vec![self.states.swap_remove(acked + at)];
        self.committed = found.committed;
        self.committed_floor = vec![found.committed];
        self.acked = Arc::default();
        self.term = self.term.max(seen.last().map_or(1, |last| last.term));
        self.wal = Some(wal);
        self.faulted = false;
        Ok(found)
    }

    pub fn down(&mut self) {
        self.wal = None;
        self.waiting.clear();
    }

    /// Answers come in the order of the calls: an acknowledgement is for all states up to its own.
    fn done(&mut self) -> Done {
        let (tell, told) = mpsc::channel();
        self.waiting.push(told);
        let (state, acked) = (self.states.len() - 1, self.acked.clone());
        let heard = self.heard.clone();
        Box::new(move |outcome| {
            heard.lock().unwrap().push(format!("state {state}: {outcome:?}"));
            if outcome.is_ok() {
                assert!(acked.swap(state, Ordering::SeqCst) <= state, "answers out of order");
            }
            let _ = tell.send(outcome);
        })
    }

    fn push(&mut self, state: State) {
        let reached = self
            .committed
            .filter(|pos| state.last().is_some_and(|last| last.index >= pos.index));
        self.committed_floor
            .push(reached.max(self.committed_floor.last().copied().flatten()));
        self.states.push(state);
    }

    /// Waits for all answers; false if any was an error.
    pub fn wait(&mut self) -> bool {
        while self.stepper.as_mut().is_some_and(Stepper::step) {}
        let told: Vec<_> = self.waiting.drain(..).map(|told| told.recv().unwrap()).collect();
        told.iter().all(Result::is_ok)
    }

    /// Waits until all is answered and nothing is being prepared either, whoever does that.
    pub fn settle(&mut self) {
        self.wait();
        // What is refused writes nothing, and hears so after all that was to be done before it. The second time because
        // a segment that could not be made is tried again in between.
        for _ in 0..2 {
            let (tell, told) = mpsc::channel();
            let refused = vec![entry(0, u64::MAX, 0)];
            let done = Box::new(move |outcome: Result<(), Error>| tell.send(outcome).unwrap());
            self.wal.as_ref().unwrap().append(refused, done);
            while self.stepper.as_mut().is_some_and(Stepper::step) {}
            told.recv().unwrap().unwrap_err();
        }
    }

    /// An index in the log, by a fraction of 255.
    fn pick(&self, part: u8) -> Option<Entry> {
        let entries = &self.state().entries;
        entries.get(entries.len() * usize::from(part) / 256).cloned()
    }

    /// Takes one step. Steps that go down come up again.
    pub fn step(&mut self, step: &Step) {
        let Some(wal) = self.wal.clone() else {
            panic!("the log is not open")
        };
        match *step {
            Step::Append {
                entries,
                bytes,
                new_term,
            } => {
                self.term += u64::from(new_term);
                let mut state = self.state().clone();
                let entries: Vec<_> = (0..u64::from(entries))
                    .map(|i| entry(self.term, self.state().next() + i, usize::from(bytes)))
                    .collect();
                for entry in &entries {
                    state.entries.push(entry.clone());
                    self.push(state.clone());
                }
                let done = self.done();
                wal.append(entries, done);
                if !self.faulted && !self.disk.is_off() {
                    assert_eq!(wal.state().1, self.state().last(), "appended entries are seen at once");
                }
            }
            Step::Vote(vote) => {
                let vote = Bytes::from(vec![vote; 1 + usize::from(vote) % 40]);
                self.push(State {
                    vote: Some(vote.clone()),
                    ..self.state().clone()
                });
                let done = self.done();
                wal.save_vote(vote, done);
            }
            Step::Commit(part) => {
                if let Some(entry) = self
                    .pick(part)
                    .filter(|e| self.committed.is_none_or(|c| c.index < e.pos.index))
                {
                    self.committed = Some(entry.pos);
                    wal.save_committed(entry.pos);
                }
            }
            Step::Truncate(part) => {
                let Some(Entry { pos, .. }) = self.pick(part) else {
                    return;
                };
                if self.committed.is_some_and(|committed| pos.index < committed.index) {
                    return;
                }
                if Some(pos) == self.state().last() {
                    return; // writes nothing
                }
                let mut state = self.state().clone();
                state.entries.retain(|entry| entry.pos.index <= pos.index);
                self.push(state);
                let done = self.done();
                wal.truncate_after(Some(pos.index), done);
                self.term += 1;
            }
            Step::Purge(part) => {
                let Some(Entry { pos, .. }) = self.pick(part) else {
                    return;
                };
                let mut state = self.state().clone();
                state.purged = Some(pos);
                state.entries.retain(|entry| entry.pos.index > pos.index);
                self.push(state);
                let done = self.done();
                wal.purge(pos, done);
            }
            Step::Reset(ahead) => {
                let upto = pos(self.term, self.state().next() + u64::from(ahead));
                self.push(State {
                    purged: Some(upto),
                    entries: Vec::new(),
                    vote: self.state().vote.clone(),
                });
                let done = self.done();
                wal.reset(upto, done);
            }
            Step::Wait => {
                if self.wait() && !self.faulted {
                    match wal.read(0..u64::MAX, usize::MAX) {
                        Ok(found) => assert!(
                            found == self.state().entries,
                            "{found:?} is not what {:?} holds",
                            self.state()
                        ),
                        Err(error) => assert!(self.disk.is_off(), "{error:?}"),
                    }
                }
            }
            Step::Close => {
                drop(wal);
                let closed = self.wal.take().unwrap().close();
                if self.wait() && closed.is_ok() {
                    let saved = self.committed;
                    assert!(self.open().unwrap().clean_stop);
                    assert_eq!(self.committed, saved, "closing saves the committed position");
                } else {
                    self.open().unwrap();
                }
            }
            Step::Drop => {
                drop(wal);
                self.down();
                self.open().unwrap();
            }
            Step::Power(tear) => {
                self.disk.cut_power_after(0);
                drop(wal);
                self.down();
                self.disk.power_loss(tear);
                self.open().unwrap();
            }
            Step::Turn => {
                if let Some(stepper) = &mut self.stepper {
                    stepper.step();
                }
            }
            Step::Kill => {
                if let Some(stepper) = &mut self.stepper {
                    stepper.kill();
                    drop(wal);
                    self.down();
                    self.open().unwrap();
                }
            }
            Step::FailSync(nth) => {
                self.faulted = true;
                self.disk.fail_sync(1 + u64::from(nth));
            }
            Step::FailWrite(nth) => {
                self.faulted = true;
                self.disk.fail_write(1 + u64::from(nth));
            }
        }
    }
}
