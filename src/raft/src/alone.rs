//! Whether this member is the only voter and leads, so that it may read without asking anybody.
//!
//! Who finds that out looks at what consensus reports, which may be older than the log. So it names the membership that it
//! has looked at, and the answer holds only as long as no newer one is in the log.

use std::sync::atomic::{AtomicU64, Ordering};

/// The position of the newest membership in the log, and whether this member is alone by it.
#[derive(Default)]
pub struct Alone(AtomicU64);

/// No position: what was not appended by this process.
const FOUND: u64 = 0;
/// No position: what is newest is not known, until another is appended.
const DOUBTED: u64 = u64::MAX - 1;
/// No position: it does not matter any more.
const ENDED: u64 = u64::MAX - 3;

const IS_ALONE: u64 = 1;

impl Alone {
    pub fn is_alone(&self) -> bool {
        self.0.load(Ordering::Acquire) & IS_ALONE != 0
    }

    /// There is another membership in the log from here on. To be said *before* anybody else can have it.
    pub(crate) fn membership_appended(&self, position: u64) {
        self.change(position << 1);
    }

    /// Local state may be behind what others acknowledged.
    pub(crate) fn doubt(&self) {
        self.change(DOUBTED);
    }

    pub(crate) fn end(&self) {
        self.0.store(ENDED, Ordering::Release);
    }

    fn change(&self, new: u64) {
        let unless_ended = |before| (before != ENDED).then_some(new);
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, unless_ended);
    }

    /// This member has won its election, has applied what it found in its log, and is the only voter by the membership at
    /// `position`, which is committed.
    pub(crate) fn found_alone(&self, position: u64) {
        let now = position << 1;
        let unless_newer = |before| (before == now || before == FOUND).then_some(now | IS_ALONE);
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, unless_newer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_membership_tells() {
        let alone = Alone::default();
        alone.found_alone(7);
        assert!(alone.is_alone(), "found at the start");
        alone.membership_appended(9);
        assert!(!alone.is_alone());
        alone.found_alone(7);
        assert!(!alone.is_alone(), "by what was reported before the append");
        alone.found_alone(9);
        assert!(alone.is_alone());
    }

    #[test]
    fn doubt_lasts_until_the_next_membership() {
        let alone = Alone::default();
        alone.found_alone(7);
        alone.doubt();
        alone.found_alone(7);
        assert!(!alone.is_alone());
        alone.membership_appended(12);
        alone.found_alone(12);
        assert!(alone.is_alone());
    }

    #[test]
    fn the_end_is_the_end() {
        let alone = Alone::default();
        alone.found_alone(7);
        alone.end();
        alone.membership_appended(8);
        alone.found_alone(8);
        assert!(!alone.is_alone());
    }
}
