//! One file taking the place of another, with a loss of power at every write of the new one.

use quorate_store::Store;
use quorate_store::backend::disk::Place;
use quorate_store::testing::{ALL_CASES, MemDisk, MemPlace, Op, Replay, Rng};

use super::whole::{Picture, options, picture};

pub fn open_in(place: &MemPlace) -> (Store, quorate_store::Applier) {
    Store::open_in(Box::new(place.clone()), options(), Box::new(())).unwrap()
}

/// What was recorded of it.
pub struct Exchange {
    /// What the old file had, and what that shows.
    pub old: Vec<u8>,
    pub before: Picture,
    /// What the new file began as, and all that was done to it, with what was applied after the exchange.
    pub start: Vec<u8>,
    pub trace: Vec<Op>,
    pub renamed_at: usize,
    /// The entry that is there from which point of the trace on, ascending.
    pub promises: Vec<(usize, u64)>,
    /// What some entries left.
    pub states: Vec<(u64, Picture)>,
}

impl Exchange {
    /// Until the new file has the name the old one is there, whole; from then on the new one, with what was promised.
    pub fn survives_power_loss(&self) {
        let mut replay = Replay::new(self.start.clone());
        for cut in 0..=self.trace.len() {
            for survives in ALL_CASES {
                let what = format!("cut at {cut} of {}, {survives:?}", self.trace.len());
                let image = replay.power_loss(survives, &mut Rng(cut as u64));
                if cut <= self.renamed_at {
                    // The name is still the old file's, or that is what the folder remembers.
                    let place = MemPlace::with(MemDisk::with_image(self.old.clone()));
                    place.make_next_of(MemDisk::with_image(image.clone()));
                    place.incoming().unwrap();
                    let (store, _) = open_in(&place);
                    assert_eq!(picture(&store), self.before, "{what}");
                    assert!(!place.has_incoming(), "{what}");
                }
                if cut >= self.renamed_at {
                    self.check_new(image, cut, &what);
                }
                if !replay.has_unsynced() {
                    break;
                }
            }
            if let Some(op) = self.trace.get(cut) {
                replay.step(op);
            }
        }
    }

    fn check_new(&self, image: Vec<u8>, cut: usize, what: &str) {
        let (store, _) = open_in(&MemPlace::with(MemDisk::with_image(image)));
        let index = store.applied_index();
        let promised = self.promises.iter().rev().find(|(from, _)| *from <= cut).unwrap().1;
        assert!(index >= promised, "{what}: entry {index}, promised {promised}");
        let now = picture(&store);
        // Commits are cut between entries, perhaps before a flush was through.
        if let Some((_, state)) = self.states.iter().find(|(of, _)| *of == index) {
            assert_eq!(&now, state, "{what}");
        }
    }
}
