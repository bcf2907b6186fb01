//! What is random: all from one seed.

use parking_lot::Mutex;
use quorate_store::testing::Rng;
use std::ops::Range;
use std::time::Duration;

pub struct Dice(Mutex<Rng>);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(Rng(seed)))
    }

    pub fn seed(&self) -> u64 {
        self.0.lock().next()
    }

    pub fn below(&self, end: u64) -> u64 {
        self.0.lock().below(end)
    }

    pub fn chance(&self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn millis(&self, range: Range<u64>) -> Duration {
        Duration::from_millis(range.start + self.below(range.end - range.start))
    }

    pub fn pick<'a, T>(&self, from: &'a [T]) -> Option<&'a T> {
        match from.len() {
            0 => None,
            len => from.get(self.below(len as u64) as usize),
        }
    }
}
