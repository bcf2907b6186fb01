//! Which unsynced sectors survive.

use super::file::{Choose, Content};

/// What becomes of unsynced sectors and names when the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tear {
    /// Nothing unsynced survives.
    Lose,
    /// Everything does, in its last state.
    Keep,
    /// All but the first sector: later bytes without earlier ones.
    LoseFirst,
    /// All but the last sector.
    LoseLast,
    /// Each sector on its own, in any state it has had since the last sync; by this seed.
    Mix(u64),
}

/// Sectors and lengths that a power loss has to decide on.
fn count(content: &Content) -> usize {
    struct Counter(usize);
    impl Choose for Counter {
        fn choose(&mut self, unsynced: usize) -> Option<usize> {
            self.0 += usize::from(unsynced > 0);
            None
        }
    }
    let mut counter = Counter(0);
    content.clone().lose_power(&mut counter);
    counter.0
}

pub(super) struct Chooser {
    tear: Tear,
    seed: u64,
    at: usize,
    unsynced: usize,
}

impl Chooser {
    pub(super) fn new<'a>(tear: Tear, files: impl Iterator<Item = &'a Content>) -> Self {
        let seed = if let Tear::Mix(seed) = tear { seed } else { 0 };
        Self {
            tear,
            seed,
            at: 0,
            unsynced: files.map(count).sum(),
        }
    }

    /// splitmix64: small, and good enough to spread choices.
    pub(super) fn next(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Choose for Chooser {
    fn choose(&mut self, unsynced: usize) -> Option<usize> {
        let last = unsynced.checked_sub(1)?;
        self.at += 1;
        match self.tear {
            Tear::Lose => None,
            Tear::Keep => Some(last),
            Tear::LoseFirst => (self.at > 1).then_some(last),
            Tear::LoseLast => (self.at < self.unsynced).then_some(last),
            Tear::Mix(_) => {
                let pick = (self.next() % (unsynced as u64 + 1)) as usize;
                pick.checked_sub(1)
            }
        }
    }
}
