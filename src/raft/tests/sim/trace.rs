//! What happened, in words for who reads it and as one number for who compares runs.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt::Display;
use tokio::time::Instant;

/// Lines that a failure shows.
const LAST: usize = 60;

/// Bytes of a line that are shown.
const SHOWN: usize = 400;

pub struct Trace(Mutex<Inner>);

struct Inner {
    start: Instant,
    hash: u64,
    last: VecDeque<String>,
    print: bool,
    marks_too: bool,
    failure: Option<String>,
    ticks: u64,
    marks: u64,
}

impl Inner {
    /// FNV-1a over words.
    fn mix(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
    }

    fn now_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }
}

impl Trace {
    pub fn new(print: bool) -> Self {
        Self(Mutex::new(Inner {
            start: Instant::now(),
            hash: 0xcbf2_9ce4_8422_2325,
            last: VecDeque::new(),
            print,
            marks_too: std::env::var_os("QUORATE_SIM_MARKS").is_some(),
            failure: None,
            ticks: 0,
            marks: 0,
        }))
    }

    pub fn note(&self, text: impl Display) {
        let mut inner = self.0.lock();
        let now = inner.now_us();
        let mut line = format!("{:>6}.{:03} {text}", now / 1000, now % 1000);
        for piece in line.as_bytes().chunks(8) {
            let word = piece.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
            inner.mix(word);
        }
        if line.len() > SHOWN {
            line.truncate(line.floor_char_boundary(SHOWN));
            line.push('…');
        }
        if inner.print {
            println!("{line}");
        }
        if inner.last.len() == LAST {
            inner.last.pop_front();
        }
        inner.last.push_back(line);
    }

    /// What happens too often for words.
    pub fn mark(&self, facts: &[u64]) {
        let mut inner = self.0.lock();
        let now = inner.now_us();
        inner.mix(now);
        facts.iter().for_each(|fact| inner.mix(*fact));
        if inner.print && inner.marks_too {
            println!("{:>6}     {facts:?}", now / 1000);
        }
        inner.marks += 1;
    }

    /// The next moment: of two events, which came first.
    pub fn tick(&self) -> u64 {
        let mut inner = self.0.lock();
        inner.ticks += 1;
        inner.ticks
    }

    /// The first one counts.
    pub fn fail(&self, what: impl Display) {
        self.note(format_args!("FAILED: {what}"));
        self.0.lock().failure.get_or_insert(what.to_string());
    }

    pub fn failure(&self) -> Option<String> {
        self.0.lock().failure.clone()
    }

    pub fn hash(&self) -> u64 {
        self.0.lock().hash
    }

    pub fn marks(&self) -> u64 {
        self.0.lock().marks
    }

    pub fn last(&self) -> Vec<String> {
        self.0.lock().last.iter().cloned().collect()
    }

    pub fn start(&self) -> Instant {
        self.0.lock().start
    }
}
