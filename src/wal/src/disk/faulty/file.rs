//! The bytes of one file in the faulty disk: what readers see, what the platter has, and what lies between.

use std::collections::BTreeMap;
use std::io;

pub(super) const SECTOR: usize = 512;

/// Decides what survives a power loss.
pub(super) trait Choose {
    /// Which of `unsynced` states, oldest first, has reached the platter; `None` if none has.
    fn choose(&mut self, unsynced: usize) -> Option<usize>;
}

#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    /// What readers see.
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Every state that a sector has had since it was last synced, oldest first.
    dirty: BTreeMap<usize, Vec<[u8; SECTOR]>>,
    /// The same for the length.
    lens: Vec<usize>,
}

impl Content {
    pub(super) fn len(&self) -> usize {
        self.now.len()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.now
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        read(&self.now, buf, offset)
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: usize) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len();
        if end > self.now.len() {
            self.set_len(end);
        }
        self.now[offset..end].copy_from_slice(bytes);
        for sector in offset / SECTOR..end.div_ceil(SECTOR) {
            let state = self.sector(sector);
            self.dirty.entry(sector).or_default().push(state);
        }
    }

    fn sector(&self, sector: usize) -> [u8; SECTOR] {
        let mut state = [0; SECTOR];
        let from = (sector * SECTOR).min(self.now.len());
        let to = (from + SECTOR).min(self.now.len());
        state[..to - from].copy_from_slice(&self.now[from..to]);
        state
    }

    pub(super) fn set_len(&mut self, len: usize) {
        let before = self.now.len();
        self.now.resize(len, 0);
        self.lens.push(len);
        // What a shorter file cut off is zero when it grows again, so the sectors on the edge change too.
        for edge in [before.min(len) / SECTOR, before.max(len) / SECTOR] {
            if edge * SECTOR < len {
                let state = self.sector(edge);
                self.dirty.entry(edge).or_default().push(state);
            }
        }
        if len < before {
            // Sectors wholly beyond the end are gone, however they come back.
            for sector in len.div_ceil(SECTOR)..before.div_ceil(SECTOR) {
                self.dirty.entry(sector).or_default().push([0; SECTOR]);
            }
        }
    }

    pub(super) fn sync(&mut self) {
        if !self.lens.is_empty() {
            self.durable.resize(self.now.len(), 0);
        }
        // Only what is dirty: what an earlier sync failed to write looks clean.
        for sector in std::mem::take(&mut self.dirty).into_keys() {
            let from = (sector * SECTOR).min(self.now.len());
            let to = (from + SECTOR).min(self.now.len());
            self.durable.resize(self.durable.len().max(to), 0);
            self.durable[from..to].copy_from_slice(&self.now[from..to]);
        }
        self.lens.clear();
    }

    /// What a sync that fails leaves behind: pages that look clean, and will not be written any more.
    pub(super) fn sync_failed(&mut self) {
        self.dirty.clear();
        self.lens.clear();
    }

    pub(super) fn lose_power(&mut self, choose: &mut dyn Choose) {
        let len = choose
            .choose(self.lens.len())
            .map_or(self.durable.len(), |at| self.lens[at]);
        self.durable.resize(len, 0);
        for (sector, states) in &self.dirty {
            let Some(state) = choose.choose(states.len()).map(|at| &states[at]) else {
                continue;
            };
            let from = (sector * SECTOR).min(len);
            let to = (from + SECTOR).min(len);
            self.durable[from..to].copy_from_slice(&state[..to - from]);
        }
        self.now.clone_from(&self.durable);
        self.dirty.clear();
        self.lens.clear();
    }

    /// Changes what both readers and the platter have, behind everyone's back.
    pub(super) fn corrupt(&mut self, change: impl Fn(&mut Vec<u8>)) {
        change(&mut self.now);
        change(&mut self.durable);
    }
}

pub(super) fn read(content: &[u8], buf: &mut [u8], offset: u64) -> io::Result<()> {
    let from = usize::try_from(offset).ok().filter(|from| *from <= content.len());
    match from.and_then(|from| content.get(from..from.checked_add(buf.len())?)) {
        Some(bytes) => {
            buf.copy_from_slice(bytes);
            Ok(())
        }
        None => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "read beyond the end of the file",
        )),
    }
}
