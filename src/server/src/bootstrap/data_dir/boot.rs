//! `boot`: how often this member was started.
//!
//! Batches that a member hands to others are told apart by the start that they come from, so no two starts may have the
//! same number, whatever was lost in between. Every start writes, so it writes in place: a full disk takes that, where
//! a file to be renamed would keep the member from starting.
//!
//! ```text
//! 0    boot 000000000000000c 000000000000000c ⏎     even starts
//! 512  boot 000000000000000b 000000000000000b ⏎     odd starts
//! 1024
//! ```
//!
//! A start overwrites the older number, which nobody needs any more. Torn, the two halves of a record differ, and the
//! number before it is in a sector of its own.

use super::{Error, durable};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const SLOT: usize = 512;
const FILE: usize = 2 * SLOT;

/// Counts this start, durably, and gives its number: 1 for the first. `expected`: there were starts before, and the
/// file was there.
pub(super) fn count(path: &Path, expected: bool) -> Result<u64, Error> {
    let damaged = |reason: &str| Error::Damaged {
        path: path.to_path_buf(),
        reason: reason.to_owned(),
    };
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !expected => {
            let mut content = vec![0; FILE];
            put(&mut content, 1);
            durable::replace(path, &content).map_err(Error::io("write", path))?;
            return Ok(1);
        }
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    let last = [0, SLOT]
        .into_iter()
        .filter_map(|at| parse(content.get(at..at + SLOT)?))
        .max();
    let last = last.ok_or_else(|| damaged("neither of its two records is whole"))?;
    let boot = last.checked_add(1).ok_or_else(|| damaged("its number can't grow"))?;
    let write = || -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(path)?;
        file.write_all_at(record(boot).as_bytes(), at(boot) as u64)?;
        file.sync_data()
    };
    write().map_err(Error::io("write", path))?;
    Ok(boot)
}

fn record(boot: u64) -> String {
    format!("boot {boot:016x} {boot:016x}\n")
}

fn at(boot: u64) -> usize {
    if boot.is_multiple_of(2) { 0 } else { SLOT }
}

fn put(content: &mut [u8], boot: u64) {
    let record = record(boot);
    content[at(boot)..][..record.len()].copy_from_slice(record.as_bytes());
}

fn parse(slot: &[u8]) -> Option<u64> {
    let line = slot.split(|byte| *byte == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let (word, one, other) = (words.next()?, words.next()?, words.next()?);
    let whole = word == "boot" && one == other && one.len() == 16;
    whole.then(|| u64::from_str_radix(one, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_start_has_a_number_of_its_own() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("boot");
        let mut expected = false;
        for boot in 1..=20 {
            assert_eq!(count(&path, expected).unwrap(), boot);
            assert_eq!(fs::metadata(&path).unwrap().len(), FILE as u64);
            expected = true;
        }
        fs::remove_file(&path).unwrap();
        assert!(
            matches!(count(&path, true), Err(Error::Io { .. })),
            "a lost count is not begun again"
        );
    }

    #[test]
    fn a_torn_write_loses_no_number_that_was_used() {
        for used in 1..=3u64 {
            let next = record(used + 1);
            for cut in 0..=next.len() {
                let temp = tempfile::tempdir().unwrap();
                let path = temp.path().join("boot");
                let mut expected = false;
                for boot in 1..=used {
                    assert_eq!(count(&path, expected).unwrap(), boot);
                    expected = true;
                }
                // power fails while the next start writes
                let file = OpenOptions::new().write(true).open(&path).unwrap();
                file.write_all_at(&next.as_bytes()[..cut], at(used + 1) as u64).unwrap();
                let boot = count(&path, true).unwrap();
                assert!(boot > used, "{boot} after {used}, torn at {cut}");
            }
        }
    }

    #[test]
    fn damage_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("boot");
        let full = format!("{:0<512}", record(u64::MAX));
        for content in ["", "boot 1 1\n", &"x".repeat(FILE), full.as_str()] {
            fs::write(&path, content).unwrap();
            let refused = count(&path, true).unwrap_err();
            assert!(matches!(refused, Error::Damaged { .. }), "{content:?}: {refused}");
        }
    }
}
