//! Logs that are not what they were: torn, flipped, forged, incomplete. What recovery may cut it cuts; the rest it
//! refuses, saying where; and it never serves a wrong byte.
#![allow(clippy::unwrap_used)]

mod kit;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use kit::{DIR, OWNER, all, cases, entry, open, options, pos, segment, until, wait};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use quorate_wal::check::check;
use quorate_wal::disk::{Disk, FaultyDisk, Tear};
use quorate_wal::{Entry, Error, Options, Wal};

const HEADER: usize = 64;

/// A log of several segments, and what it holds.
fn sample(close: bool) -> (FaultyDisk, Vec<Entry>) {
    let disk = FaultyDisk::new();
    let (wal, _) = open(&disk).unwrap();
    let entries: Vec<_> = (0..40).map(|i| entry(1 + i / 15, i, 20 + 13 * i as usize)).collect();
    wait(|done| wal.save_vote(Bytes::from_static(b"a vote"), done)).unwrap();
    for some in entries.chunks(3) {
        wait(|done| wal.append(some.to_vec(), done)).unwrap();
    }
    wal.save_committed(pos(2, 29));
    wait(|done| wal.save_vote(Bytes::from_static(b"the vote"), done)).unwrap();
    if close {
        wal.close().unwrap();
    }
    (disk, entries)
}

/// The records in a segment, up to the first place that holds none.
fn records(disk: &FaultyDisk, number: u64) -> Vec<Place> {
    let bytes = disk.contents(&segment(number)).unwrap();
    let mut found = Vec::new();
    let mut at = HEADER;
    while at + 16 <= bytes.len() {
        let body = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
        let place = Place {
            at,
            kind: bytes[at + 8],
            end: at + 16 + body,
        };
        if place.end > bytes.len() || bytes[at..at + 4] != checksum(&bytes, number, place) {
            break;
        }
        found.push(place);
        at = place.end.next_multiple_of(8);
    }
    found
}

fn checksum(bytes: &[u8], number: u64, place: Place) -> [u8; 4] {
    let mut covered = number.to_le_bytes().to_vec();
    covered.extend_from_slice(&(place.at as u64).to_le_bytes());
    covered.extend_from_slice(&bytes[place.at + 4..place.end]);
    crc32c::crc32c(&covered).to_le_bytes()
}

#[derive(Clone, Copy, Debug)]
struct Place {
    at: usize,
    kind: u8,
    end: usize,
}

const BATCH: u8 = 1;
const ENTRY: u8 = 3;
const OPEN: u8 = 9;

/// Makes the record at `place` sound again after its bytes were changed.
fn reseal(disk: &FaultyDisk, number: u64, place: Place) {
    let bytes = disk.contents(&segment(number)).unwrap();
    disk.overwrite(&segment(number), place.at, &checksum(&bytes, number, place));
}

fn last_segment(disk: &FaultyDisk) -> u64 {
    (1..)
        .take_while(|n| disk.contents(&segment(*n)).is_some())
        .filter(|n| !records(disk, *n).is_empty())
        .last()
        .unwrap()
}

fn refused(disk: &FaultyDisk) -> (u64, u64, String) {
    match open(disk) {
        Err(Error::Damage { segment, offset, what }) => (segment.0, offset, what),
        Err(other) => panic!("refused, but with {other:?}"),
        Ok((_, found)) => panic!("opened: {found:?}"),
    }
}

/// D3
#[test]
fn torn_tail_at_every_offset() {
    let disk = FaultyDisk::new();
    let (wal, _) = open(&disk).unwrap();
    let kept: Vec<_> = (0..3).map(|i| entry(1, i, 100)).collect();
    wait(|done| wal.append(kept.clone(), done)).unwrap();
    let before = disk.contents(&segment(1)).unwrap();
    let torn: Vec<_> = (3..11).map(|i| entry(2, i, 5 + 11 * i as usize)).collect();
    wait(|done| wal.append(torn.clone(), done)).unwrap();
    drop(wal);
    torn_everywhere(&disk, 1, &before, &kept, &torn);
}

/// D3: where the segment still holds the records of a former life.
#[test]
fn torn_tail_at_every_offset_of_a_recycled_segment() {
    let disk = FaultyDisk::new();
    let (wal, _) = open(&disk).unwrap();
    let mut next = 0;
    while current_segment(&disk) < 9 {
        wait(|done| wal.append(vec![entry(1, next, 300)], done)).unwrap();
        wait(|done| wal.purge(pos(1, next), done)).unwrap();
        next += 1;
    }
    let number = current_segment(&disk);
    let kept = [entry(1, next, 100)];
    wait(|done| wal.append(kept.to_vec(), done)).unwrap();
    let before = disk.contents(&segment(number)).unwrap();
    let end = records(&disk, number).last().unwrap().end.next_multiple_of(8);
    assert!(
        before[end..end + 100].iter().any(|byte| *byte != 0),
        "a former life's records follow"
    );
    let torn: Vec<_> = (next + 1..next + 7)
        .map(|i| entry(2, i, 5 + 11 * i as usize % 60))
        .collect();
    wait(|done| wal.append(torn.clone(), done)).unwrap();
    drop(wal);
    assert_eq!(current_segment(&disk), number);
    torn_everywhere(&disk, number, &before, &kept, &torn);
}

/// D3: the batch that begins a segment.
#[test]
fn torn_first_batch_of_a_segment_at_every_offset() {
    for recycled in [false, true] {
        let disk = FaultyDisk::new();
        let (wal, _) = open(&disk).unwrap();
        let mut next = 0;
        let mut append = |bytes| {
            wait(|done| wal.append(vec![entry(1, next, bytes)], done)).unwrap();
            next += 1;
        };
        while current_segment(&disk) < if recycled { 9 } else { 2 } {
            append(300);
            if recycled {
                wait(|done| wal.purge(wal.state().1.unwrap(), done)).unwrap();
            }
        }
        append(10);
        let number = current_segment(&disk);
        // Up to where there is no room for the next one.
        while records(&disk, number).last().unwrap().end + 1500 < 4096 - 1024 {
            append(100);
        }
        let before = disk.contents(&segment(number + 1)).unwrap();
        assert_eq!(before[HEADER..].iter().any(|byte| *byte != 0), recycled);
        let kept = all(&wal);
        let torn = [entry(2, next, 1500)];
        wait(|done| wal.append(torn.to_vec(), done)).unwrap();
        drop(wal);
        assert_eq!(current_segment(&disk), number + 1);
        assert_eq!(
            records(&disk, number + 1)
                .iter()
                .filter(|place| place.kind == BATCH)
                .count(),
            1
        );
        torn_everywhere(&disk, number + 1, &before, &kept, &torn);
    }
}

/// The segment that is written to, whether or not the first ones are still there.
fn current_segment(disk: &FaultyDisk) -> u64 {
    let number = |path: &PathBuf| u64::from_str_radix(path.file_name()?.to_str()?.strip_suffix(".wal")?, 16).ok();
    let all = disk.paths();
    let used = all.iter().filter_map(number).filter(|n| !records(disk, *n).is_empty());
    used.max().unwrap()
}

/// Tears the last batch, which wrote `torn` behind `kept`, at each of its bytes in several ways; the segment held `before`
/// what it holds now.
fn torn_everywhere(disk: &FaultyDisk, number: u64, before: &[u8], kept: &[Entry], torn: &[Entry]) {
    let after = disk.contents(&segment(number)).unwrap();
    let tail = records(disk, number)
        .iter()
        .rev()
        .find(|place| place.kind == BATCH)
        .unwrap()
        .at;
    let end = records(disk, number).last().unwrap().end;
    let entries = [kept, torn].concat();
    for cut in tail..end {
        let garbage = vec![0xa5; end - cut];
        let lost_end = [&after[tail..cut], &before[cut..end]].concat();
        let garbled_end = [&after[tail..cut], &garbage[..]].concat();
        let lost_start = [&before[tail..=cut], &after[cut + 1..end]].concat();
        for (what, bytes) in [
            ("end lost", lost_end),
            ("end garbled", garbled_end),
            ("start lost", lost_start),
        ] {
            if bytes == after[tail..end] {
                continue; // what was lost was zero anyway
            }
            let disk = disk.fork();
            disk.overwrite(&segment(number), tail, &bytes);
            for _ in 0..2 {
                let (wal, _) = open(&disk).unwrap_or_else(|e| panic!("{what} at {cut}: {e}"));
                let found = all(&wal);
                assert!(
                    found.len() >= kept.len() && entries.starts_with(&found),
                    "{what} at {cut}: {}",
                    found.len()
                );
                assert!(found.len() < entries.len(), "{what} at {cut}: a torn record was taken");
                drop(wal);
            }
        }
    }
}

/// B41
#[test]
fn damage_before_tail_is_refused() {
    let (disk, _) = sample(false);
    let last = last_segment(&disk);
    for number in 1..=last {
        let places = records(&disk, number);
        let tail = places.iter().rposition(|place| place.kind == BATCH).unwrap();
        for (at, place) in places.iter().enumerate() {
            if number == last && at >= tail {
                continue;
            }
            let disk = disk.fork();
            disk.flip(&segment(number), 8 * (place.end as u64 - 1) + 3);
            let before: Vec<_> = disk.paths().iter().map(|path| disk.contents(path)).collect();
            let (segment, offset, what) = refused(&disk);
            // The first two records are what tells that a segment is in use.
            let offset = if at < 2 { place.at as u64 } else { offset };
            assert_eq!((segment, offset), (number, place.at as u64), "{what}");
            let after: Vec<_> = disk.paths().iter().map(|path| disk.contents(path)).collect();
            assert!(before == after, "refusing changed something");
        }
    }
}

/// A log is refused in whose directory another member's files turn up, whichever they are, and nothing is changed.
#[test]
fn a_log_of_another_owner_is_refused() {
    let opened = |disk: &FaultyDisk, owner| {
        let before: Vec<_> = disk.paths().iter().map(|path| disk.contents(path)).collect();
        let told = Wal::open(Options { owner, ..options() }, Arc::new(disk.clone())).map(|(_, found)| found);
        if matches!(told, Err(Error::Owner { .. })) {
            let after: Vec<_> = disk.paths().iter().map(|path| disk.contents(path)).collect();
            assert!(before == after, "refusing changed something");
        }
        told
    };
    let (disk, _) = sample(false);
    match opened(&disk.fork(), 7) {
        Err(error @ Error::Owner { found, expected, .. }) => {
            assert_eq!((found, expected), (OWNER, 7));
            assert!(error.to_string().contains(DIR), "{error}");
        }
        other => panic!("{other:?}"),
    }
    opened(&disk.fork(), OWNER).unwrap();
    // Who does not say is taken for the owner, and what is written then is the owner's.
    let anyone = disk.fork();
    let (wal, _) = Wal::open(Options { owner: 0, ..options() }, Arc::new(anyone.clone())).unwrap();
    wait(|done| wal.append((40..80).map(|i| entry(3, i, 300)).collect(), done)).unwrap();
    drop(wal);
    opened(&anyone, OWNER).unwrap();

    // One file of another's: the prepared one too, and a spare.
    let other = FaultyDisk::new();
    let (wal, _) = Wal::open(Options { owner: 9, ..options() }, Arc::new(other.clone())).unwrap();
    wait(|done| wal.append((0..60).map(|i| entry(1, i, 300)).collect(), done)).unwrap();
    let prepared = last_segment(&disk) + 1;
    assert!(disk.contents(&segment(prepared)).is_some());
    for number in 1..=prepared {
        let foreign = other.contents(&segment(number)).unwrap();
        for owner in [OWNER, 0] {
            let disk = disk.fork();
            disk.overwrite(&segment(number), 0, &foreign);
            let told = opened(&disk, owner);
            assert!(matches!(told, Err(Error::Owner { .. })), "{number}: {told:?}");
        }
    }
    let spare = Path::new(DIR).join("0000000000000001.spare");
    disk.create(&spare).unwrap();
    disk.overwrite(&spare, 0, &other.contents(&segment(1)).unwrap());
    let told = opened(&disk, OWNER);
    assert!(matches!(told, Err(Error::Owner { found: 9, .. })), "{told:?}");
}

/// In a new log, which counts segments from 1 again, what a spare holds could be taken for its own.
#[test]
fn a_new_log_leaves_old_spares_alone() {
    let disk = FaultyDisk::new();
    let (wal, _) = open(&disk).unwrap();
    for i in 0..40 {
        wait(|done| wal.append(vec![entry(1, i, 300)], done)).unwrap();
        wait(|done| wal.purge(pos(1, i), done)).unwrap();
    }
    drop(wal);
    let is_spare = |path: &&PathBuf| path.extension().is_some_and(|ext| ext == "spare");
    assert_eq!(disk.paths().iter().filter(is_spare).count(), 1);
    for path in disk.paths().iter().filter(|path| !is_spare(path)) {
        disk.remove(path).unwrap();
    }
    let recycled = || disk.renames().iter().filter(|(from, _)| is_spare(&from)).count();
    let before = recycled();
    let (wal, found) = open(&disk).unwrap();
    assert_eq!(found.last, None);
    assert_eq!(disk.paths().iter().filter(is_spare).count(), 0);
    assert_eq!(recycled(), before, "it was removed, not put to use");
    drop(wal);
    // Nor does the power bring it back.
    disk.power_loss(Tear::Lose);
    assert_eq!(disk.paths().iter().filter(is_spare).count(), 0);
}

/// D5: reads that come from elsewhere, or from before, while the log is being opened.
#[test]
fn misdirected_reads_are_detected_while_opening() {
    let (disk, _) = sample(false);
    for number in 1..last_segment(&disk) {
        for by in [-512, -64, -8, 8, 64, 512] {
            let disk = disk.fork();
            disk.shifted_reads(&segment(number), by);
            let told = open(&disk).map(|(_, found)| found);
            // Reads beyond the end of the file are errors, as from a device.
            assert!(
                matches!(told, Err(Error::Damage { .. } | Error::Io { .. })),
                "segment {number} shifted by {by}: {told:?}"
            );
        }
    }
    // One segment's bytes in another's file, whole or from its header alone.
    for (one, other) in [(1, 2), (2, 3), (3, 1)] {
        let bytes = disk.contents(&segment(other)).unwrap();
        let whole = disk.fork();
        whole.overwrite(&segment(one), 0, &bytes);
        assert_eq!(refused(&whole).0, one);
        let header = disk.fork();
        header.overwrite(&segment(one), 0, &bytes[..HEADER]);
        let (number, _, what) = refused(&header);
        assert_eq!(number, one);
        assert!(what.contains(&format!("belongs to segment {other:016x}")), "{what}");
    }
}

/// D5
#[test]
fn stale_reads_are_detected_while_opening() {
    let mut refusals = 0;
    for from in 0..20 {
        let disk = FaultyDisk::new();
        let (wal, _) = open(&disk).unwrap();
        let mut stale = None;
        for i in 0..30 {
            wait(|done| wal.append(vec![entry(1, i, 300)], done)).unwrap();
            if i == from {
                let path = segment(current_segment(&disk));
                disk.stale_reads(&path);
                stale = disk.contents(&path).map(|bytes| (path, bytes));
            }
        }
        drop(wal);
        let (path, bytes) = stale.unwrap();
        assert!(segment(current_segment(&disk)) > path);
        if disk.contents(&path).unwrap() != bytes {
            refused(&disk);
            refusals += 1;
        }
        disk.heal_reads();
        assert_eq!(open(&disk).unwrap().1.last, Some(pos(1, 29)));
    }
    assert!(refusals > 10, "{refusals}");
}

/// A batch that shows a tail to be damaged is found behind a long stretch of zeros too.
#[test]
fn damage_is_told_from_a_torn_tail_across_blank_space() {
    let disk = FaultyDisk::new();
    let options = || Options {
        segment_bytes: 64 << 10,
        ..options()
    };
    let (wal, _) = Wal::open(options(), Arc::new(disk.clone())).unwrap();
    for i in 0..10 {
        wait(|done| wal.append(vec![entry(1, i, 5000)], done)).unwrap();
    }
    drop(wal);
    let places = records(&disk, 1);
    let batches: Vec<_> = places.iter().filter(|place| place.kind == BATCH).collect();
    let (lost, last) = (batches[2].at, batches.last().unwrap().at);
    for until in [
        last,
        last - 8,
        last - 4096,
        (last & !4095) + 8,
        (last & !4095),
        (last & !4095) - 8,
    ] {
        let disk = disk.fork();
        disk.overwrite(&segment(1), lost, &vec![0; until - lost]);
        match Wal::open(options(), Arc::new(disk)).map(|(_, found)| found) {
            Err(Error::Damage { segment, offset, .. }) => assert_eq!((segment.0, offset), (1, lost as u64)),
            other => panic!("zeros up to {until:x}: {other:?}"),
        }
    }
}

/// D4: one bit in each byte, in a log that was closed in order.
#[test]
fn bit_flip_is_never_served() {
    let (disk, entries) = sample(true);
    let mut refusals = 0;
    for number in 1..=last_segment(&disk) {
        let used = records(&disk, number).last().unwrap().end;
        for byte in 0..used {
            let disk = disk.fork();
            disk.flip(&segment(number), 8 * byte as u64 + (byte % 8) as u64);
            match open(&disk) {
                Ok((wal, found)) => {
                    assert!(
                        all(&wal) == entries,
                        "flip in byte {byte} of segment {number} lost or changed entries"
                    );
                    assert_eq!(found.vote.as_deref(), Some(&b"the vote"[..]));
                }
                Err(Error::Damage { .. }) => refusals += 1,
                Err(other) => panic!("flip in byte {byte} of segment {number}: {other:?}"),
            }
        }
    }
    assert!(refusals > 5000, "only {refusals} flips were noticed");
}

/// D4: the same under a running log.
#[test]
fn bit_flip_under_a_running_log_is_never_served() {
    let (disk, entries) = sample(false);
    let (wal, _) = open(&disk).unwrap();
    let (mut refusals, mut place) = (0, None);
    for number in 1..=last_segment(&disk) {
        for entry in records(&disk, number).into_iter().filter(|place| place.kind == ENTRY) {
            for byte in entry.at..entry.end {
                disk.flip(&segment(number), 8 * byte as u64);
                match wal.read(0..u64::MAX, usize::MAX) {
                    Ok(found) => {
                        assert!(found == entries, "flip in byte {byte} of segment {number}")
                    }
                    Err(Error::Damage { segment, offset, .. }) => {
                        refusals += 1;
                        place = Some((segment.0, offset));
                        assert_eq!(place, Some((number, entry.at as u64)));
                    }
                    Err(other) => panic!("{other:?}"),
                }
                disk.flip(&segment(number), 8 * byte as u64);
            }
        }
    }
    assert!(place.is_some() && refusals > 5000, "only {refusals} flips were noticed");
    assert!(all(&wal) == entries);
}

/// D5
#[test]
fn misdirected_read_is_detected() {
    let (disk, entries) = sample(false);
    let (wal, _) = open(&disk).unwrap();
    for by in [-512, -8, -1, 1, 8, 512] {
        disk.shifted_reads(&segment(2), by);
        let told = wal.read(0..u64::MAX, usize::MAX);
        assert!(matches!(told, Err(Error::Damage { .. })), "{by}: {told:?}");
        disk.heal_reads();
    }
    assert!(all(&wal) == entries);
}

/// D5: a read that returns what the place held before.
#[test]
fn stale_read_is_detected() {
    let disk = FaultyDisk::new();
    let (wal, _) = open(&disk).unwrap();
    wait(|done| wal.append(vec![entry(1, 0, 100), entry(1, 1, 100)], done)).unwrap();
    disk.stale_reads(&segment(1));
    wait(|done| wal.truncate_after(Some(0), done)).unwrap();
    wait(|done| wal.append(vec![entry(2, 1, 1000), entry(2, 2, 1000)], done)).unwrap();
    assert!(matches!(wal.read(1..2, 0), Err(Error::Damage { .. })));
    disk.heal_reads();
    assert_eq!(all(&wal), [entry(1, 0, 100), entry(2, 1, 1000), entry(2, 2, 1000)]);
}

/// B41: an unfinished batch may be cut, unless the backend already has what was in it.
#[test]
fn a_cut_below_the_applied_position_is_refused() {
    let disk = FaultyDisk::new();
    let (wal, _) = open(&disk).unwrap();
    wait(|done| wal.append((0..5).map(|i| entry(1, i, 50)).collect(), done)).unwrap();
    drop(wal);
    let place = *records(&disk, 1).last().unwrap();
    disk.flip(&segment(1), 8 * place.at as u64 + 200);
    let with = |applied| {
        Wal::open(Options { applied, ..options() }, Arc::new(disk.fork()))
            .map(|(wal, found)| (all(&wal).len(), found.torn))
    };
    let told = with(Some(pos(1, 4)));
    assert!(
        matches!(told, Err(Error::Damage { offset, .. }) if offset == place.at as u64),
        "{told:?}"
    );
    let (left, torn) = with(Some(pos(1, 3))).unwrap();
    assert_eq!((left, torn.unwrap().offset), (4, place.at as u64));
    assert!(with(None).is_ok());
    assert!(
        matches!(with(Some(pos(2, 3))), Err(Error::Damage { .. })),
        "another term is another entry"
    );
    let (wal, _) = open(&disk).unwrap();
    assert!(wal.check_against(pos(1, 4)).is_err());
    wal.check_against(pos(1, 3)).unwrap();
}

#[test]
fn an_empty_log_under_a_backend_with_data_is_refused() {
    let told = Wal::open(
        Options {
            applied: Some(pos(1, 4)),
            ..options()
        },
        Arc::new(FaultyDisk::new()),
    );
    assert!(matches!(told, Err(Error::Damage { .. })));
}

/// A6
#[test]
fn wal_rejects_entry_index_out_of_range() {
    let (disk, _) = sample(false);
    let places = records(&disk, 2);
    let place = *places.iter().filter(|place| place.kind == ENTRY).nth(2).unwrap();
    let index = |disk: &FaultyDisk| {
        let bytes = disk.contents(&segment(2)).unwrap();
        u64::from_le_bytes(bytes[place.at + 24..place.at + 32].try_into().unwrap())
    };
    for forged in [0, index(&disk) - 1, index(&disk) + 1, 1 << 40, u64::MAX - 1, u64::MAX] {
        let disk = disk.fork();
        disk.overwrite(&segment(2), place.at + 24, &forged.to_le_bytes());
        reseal(&disk, 2, place);
        let (number, offset, what) = refused(&disk);
        assert_eq!((number, offset), (2, place.at as u64), "{what}");
        assert!(what.contains(&forged.to_string()), "{what}");
    }
    for forged in [0u64, 1 << 40] {
        let disk = disk.fork();
        disk.overwrite(&segment(2), place.at + 16, &forged.to_le_bytes());
        reseal(&disk, 2, place);
        let (number, offset, _) = refused(&disk);
        // A term that is too low is seen at once, one that is too high at the next entry.
        assert!(number == 2 && offset >= place.at as u64);
    }
}

/// A6: the same in every other record that names a position. The last index of all is one too many.
#[test]
fn wal_rejects_positions_out_of_range() {
    let disk = FaultyDisk::new();
    let (wal, _) = open(&disk).unwrap();
    wait(|done| wal.append((0..5).map(|i| entry(1, i, 40)).collect(), done)).unwrap();
    wal.save_committed(pos(1, 1));
    wait(|done| wal.truncate_after(Some(3), done)).unwrap();
    wait(|done| wal.purge(pos(1, 1), done)).unwrap();
    wait(|done| wal.append((4..30).map(|i| entry(2, i, 300)).collect(), done)).unwrap();
    drop(wal);
    let reset = FaultyDisk::new();
    let (wal, _) = open(&reset).unwrap();
    wait(|done| wal.reset(pos(2, 40), done)).unwrap();
    drop(wal);
    // Kinds, and where in their records indexes are.
    let indexes: [(u8, &FaultyDisk, &[usize]); 6] = [
        (2, &disk, &[16 + 24, 16 + 40, 16 + 56]),
        (ENTRY, &disk, &[16 + 8]),
        (5, &disk, &[16 + 8]),
        (6, &disk, &[16 + 16]),
        (7, &disk, &[16 + 16]),
        (8, &reset, &[16 + 16]),
    ];
    for (kind, disk, indexes) in indexes {
        let mut found = 0;
        for number in 1..=last_segment(disk) {
            for place in records(disk, number).into_iter().filter(|place| place.kind == kind) {
                for index in indexes {
                    let disk = disk.fork();
                    disk.overwrite(&segment(number), place.at + index, &u64::MAX.to_le_bytes());
                    if kind == 2 {
                        disk.overwrite(&segment(number), place.at + 24, &[7]); // all three are known
                    }
                    reseal(&disk, number, place);
                    refused(&disk);
                    found += 1;
                }
            }
        }
        assert!(found > 0, "no record of kind {kind}");
    }
}

/// A6: callers are held to the same.
#[test]
fn positions_out_of_range_are_refused() {
    let disk = FaultyDisk::new();
    let (wal, _) = open(&disk).unwrap();
    wait(|done| wal.append(vec![entry(1, 0, 10)], done)).unwrap();
    let beyond = pos(1, u64::MAX);
    for told in [
        wait(|done| wal.purge(beyond, done)),
        wait(|done| wal.reset(beyond, done)),
    ] {
        assert!(matches!(told, Err(Error::OutOfRange { .. })), "{told:?}");
    }
    wal.save_committed(beyond);
    wait(|done| wal.truncate_after(Some(u64::MAX), done)).unwrap();
    assert_eq!(all(&wal), [entry(1, 0, 10)]);
}

/// A7
#[test]
fn wal_caps_record_length_before_allocating() {
    let (disk, _) = sample(false);
    for place in records(&disk, 2).into_iter().skip(2) {
        for forged in [u32::MAX, i32::MAX as u32, 4096, (4096 - place.at) as u32] {
            let disk = disk.fork();
            disk.overwrite(&segment(2), place.at + 4, &forged.to_le_bytes());
            let (number, offset, what) = refused(&disk);
            assert_eq!((number, offset), (2, place.at as u64));
            assert!(what.contains("length"), "{what}");
        }
    }
}

/// A7: counts and lengths that are sealed with a right checksum.
#[test]
fn forged_batch_headers_are_refused() {
    let (disk, _) = sample(false);
    let place = *records(&disk, 2)
        .iter()
        .filter(|place| place.kind == BATCH)
        .nth(1)
        .unwrap();
    // Synced place, batch length, record count: at 16, 24, 32 and 36 of the record.
    let bytes: [&[u8]; 3] = [&u32::MAX.to_le_bytes(), &0u32.to_le_bytes(), &8u32.to_le_bytes()];
    for (field, value) in [(16, &u64::MAX.to_le_bytes()[..]), (36, bytes[0]), (36, bytes[1])]
        .into_iter()
        .chain(bytes.into_iter().map(|value| (32, value)))
    {
        let disk = disk.fork();
        disk.overwrite(&segment(2), place.at + field, value);
        reseal(&disk, 2, place);
        assert_eq!(refused(&disk).0, 2);
    }
}

#[test]
fn a_missing_segment_is_named() {
    let (disk, _) = sample(true);
    let last = last_segment(&disk);
    assert!(last >= 4);
    // Of the very last one only the backend can know.
    for number in 1..last {
        let disk = disk.fork();
        disk.remove(&segment(number)).unwrap();
        let (found, _, what) = refused(&disk);
        // What lies above a gap has to be the whole log, and tells that it is not.
        assert_eq!((found, what.as_str()), (1, "the file is missing"), "without {number}");
    }
}

#[test]
fn a_segment_cut_short_is_refused() {
    let (disk, _) = sample(true);
    for number in 1..=last_segment(&disk) {
        for len in [0, 10, 64, 100, 2000] {
            let disk = disk.fork();
            disk.open(&segment(number)).unwrap().set_len(len).unwrap();
            refused(&disk);
        }
    }
}

#[test]
fn a_newer_format_is_named() {
    let (disk, _) = sample(true);
    disk.overwrite(&segment(2), 8, &2u32.to_le_bytes());
    let (number, _, what) = refused(&disk);
    assert!(
        number == 2 && what.contains("checksum"),
        "without its checksum it is a flipped bit: {what}"
    );
    let header = disk.contents(&segment(2)).unwrap();
    disk.overwrite(&segment(2), 60, &crc32c::crc32c(&header[..60]).to_le_bytes());
    match open(&disk) {
        Err(
            e @ Error::Version {
                found: 2, supported: 1, ..
            },
        ) => assert!(e.to_string().contains("newer program"), "{e}"),
        other => panic!("{:?}", other.map(|(_, found)| found)),
    }
}

/// B22
#[test]
fn offline_log_check_finds_flipped_bit() {
    let (disk, entries) = sample(true);
    let report = check(&disk, Path::new(DIR), None).unwrap().unwrap();
    assert_eq!(
        (report.entries, report.last),
        (40, entries.last().map(|entry| entry.pos))
    );
    assert!(report.clean_stop && report.segments >= 4);
    let calls = disk.calls();
    for number in 1..=3 {
        for place in records(&disk, number) {
            let disk = disk.fork();
            disk.flip(&segment(number), 8 * (place.at as u64 + 9));
            // A flip in the padding of the kind is covered too.
            let told = check(&disk, Path::new(DIR), None);
            assert!(
                matches!(told, Err(Error::Damage { .. })),
                "{number} {place:?}: {told:?}"
            );
        }
    }
    assert_eq!(disk.calls(), calls, "checking changes nothing");
    let empty = FaultyDisk::new();
    empty.create_dir_all(Path::new(DIR)).unwrap();
    assert_eq!(check(&empty, Path::new(DIR), None).unwrap(), None);
}

/// Damage that a torn tail could have left is cut once; the mark makes the cut itself part of the log.
#[test]
fn what_was_cut_never_comes_back() {
    let disk = FaultyDisk::new();
    let (wal, _) = open(&disk).unwrap();
    let empty = disk.contents(&segment(1)).unwrap();
    // One batch of an empty vote and entries: behind it, the first entry lies where the cut mark will end.
    disk.hold_syncs(true);
    wal.append(vec![entry(1, 0, 10)], Box::new(|_| {}));
    until("the batch is written", || disk.contents(&segment(1)).unwrap() != empty);
    wal.save_vote(Bytes::new(), Box::new(|_| {}));
    wal.append((1..6).map(|i| entry(1, i, 40)).collect(), Box::new(|_| {}));
    disk.hold_syncs(false);
    drop(wal);
    let whole = disk.contents(&segment(1)).unwrap();
    let batch = records(&disk, 1)
        .into_iter()
        .rev()
        .find(|place| place.kind == BATCH)
        .unwrap();
    disk.overwrite(&segment(1), batch.at, &[0; 16]);
    let (wal, found) = open(&disk).unwrap();
    assert_eq!(found.last, Some(pos(1, 0)));
    drop(wal);
    // The lost sectors turn up after all, behind the mark.
    let mark = batch.at + 40 + 16;
    assert!(
        records(&disk, 1)
            .iter()
            .any(|place| place.kind == OPEN && place.end == mark)
    );
    disk.overwrite(&segment(1), mark, &whole[mark..]);
    assert!(
        records(&disk, 1)
            .iter()
            .any(|place| place.kind == ENTRY && place.at == mark)
    );
    disk.power_loss(Tear::Lose);
    let (wal, found) = open(&disk).unwrap();
    assert_eq!(found.last, Some(pos(1, 0)));
    assert_eq!(all(&wal), [entry(1, 0, 10)]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(400), failure_persistence: None, rng_seed: RngSeed::Fixed(0x51ed), ..ProptestConfig::default() })]

    /// A13: whatever the files hold, opening answers.
    #[test]
    fn wal_open_survives_any_bytes(
        number in 1..6u64,
        at in 0..4096usize,
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        seal in any::<bool>(),
        whole in any::<bool>(),
    ) {
        let (disk, entries) = sample(true);
        if whole {
            disk.remove(&segment(number)).ok();
            disk.create(&segment(number)).unwrap().write_at(&bytes, 0).unwrap();
        } else {
            let place = records(&disk, number).into_iter().find(|place| place.at < at && at < place.end);
            disk.overwrite(&segment(number), at, &bytes[..bytes.len().min(4096 - at)]);
            if seal && let Some(place) = place {
                reseal(&disk, number, place);
            }
        }
        if let Ok((wal, _)) = open(&disk) {
            // Sealed bytes may say anything that makes sense, but unsealed ones must not be believed.
            let found = wal.read(0..u64::MAX, usize::MAX).unwrap();
            prop_assert!(seal || found == entries);
        }
    }
}
