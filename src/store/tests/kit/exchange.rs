//! One file taking the place of another, with a loss of power at every write of the new one.

use quorate_store::backend::disk::Place;
use quorate_store::testing::{ALL_CASES, MemDisk, MemPlace, Replay, Rng};
use quorate_store::{Applier, Store};

use super::whole::{Feed, Picture, options, picture};

pub fn open_in(place: &MemPlace) -> (Store, Applier) {
    Store::open_in(Box::new(place.clone()), options(), Box::new(())).unwrap()
}

/// What was recorded of it.
pub struct Exchange {
    place: MemPlace,
    incoming: MemDisk,
    /// What the old file has, and what that shows.
    old: Vec<u8>,
    before: Picture,
    /// What the new file began as.
    start: Vec<u8>,
    /// The entry that is there from which point of the trace on, ascending.
    promises: Vec<(usize, u64)>,
    /// What some entries left.
    states: Vec<(u64, Picture)>,
}

impl Exchange {
    /// Records what is done to the file that the place has and to the next one, by whoever has the store.
    pub fn begin(place: &MemPlace, before: Picture) -> Self {
        let incoming = MemDisk::default();
        let start = incoming.start_trace();
        place.make_next_of(incoming.clone());
        place.disk().start_trace();
        Self {
            place: place.clone(),
            incoming,
            old: place.disk().image(),
            before,
            start,
            promises: Vec::new(),
            states: Vec::new(),
        }
    }

    /// The new file has the name, with what the store shows. Entries follow, and their loss of power as well.
    pub fn go_on(&mut self, store: &Store, applier: &mut Applier, feed: &mut Feed) {
        let renamed_at = self.place.renamed_at().unwrap();
        assert!(renamed_at > 20, "{renamed_at} writes");
        self.promises.push((renamed_at, feed.index));
        self.states.push((feed.index, picture(store)));
        for _ in 0..3 {
            feed.steps(4, store, applier);
            store.flush().unwrap();
            self.states.push((feed.index, picture(store)));
            self.promises.push((self.incoming.trace_len(), feed.index));
        }
        assert!(self.incoming.trace_len() > renamed_at);
    }

    /// Until the new file has the name the old one is there, whole; from then on the new one, with what was promised.
    pub fn survives_power_loss(&self) {
        let trace = self.incoming.trace();
        let renamed_at = self.promises[0].0;
        let mut replay = Replay::new(self.start.clone());
        for cut in 0..=trace.len() {
            for survives in ALL_CASES {
                let what = format!("cut at {cut} of {}, {survives:?}", trace.len());
                let image = replay.power_loss(survives, &mut Rng(cut as u64));
                if cut <= renamed_at {
                    // The name is still the old file's, or that is what the folder remembers.
                    let place = MemPlace::with(MemDisk::with_image(self.old.clone()));
                    place.make_next_of(MemDisk::with_image(image.clone()));
                    place.incoming().unwrap();
                    let (store, _) = open_in(&place);
                    assert_eq!(picture(&store), self.before, "{what}");
                    assert!(!place.has_incoming(), "{what}");
                }
                if cut >= renamed_at {
                    self.check_new(image, cut, &what);
                }
                if !replay.has_unsynced() {
                    break;
                }
            }
            if let Some(op) = trace.get(cut) {
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
