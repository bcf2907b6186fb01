//! The backend as the store uses it, on a real file.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_store::backend::{Applied, Backend, Change, Error, Options, Row, RowId, SystemTable};

fn row(main: i64, value: &str) -> Row {
    Row {
        id: RowId { main, sub: 0 },
        key: format!("key {main}").into(),
        create: main,
        version: 1,
        lease: 0,
        tombstone: false,
        value: Bytes::copy_from_slice(value.as_bytes()),
    }
}

fn change(index: u64, rows: Vec<Row>) -> Change {
    let revision = rows.last().map_or(1, |row| row.id.main);
    Change {
        applied: Applied { index, term: 1 },
        revision,
        rows,
        ..Change::default()
    }
}

fn open(path: &Path) -> Backend {
    Backend::open(
        path,
        Options {
            reserve_bytes: 1 << 20,
            ..Options::default()
        },
    )
    .unwrap()
    .0
}

#[test]
fn what_was_pushed_is_readable_before_and_after_it_is_durable() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backend");
    let backend = open(&path);
    let old = backend.view().unwrap();
    backend.push(change(1, vec![row(2, "two"), row(3, "three")])).unwrap();
    let id = RowId { main: 2, sub: 0 };
    assert_eq!(old.value(id).unwrap(), "two");
    assert_eq!(backend.flush().unwrap().last.index, 1);
    let new = backend.view().unwrap();
    assert_eq!(new.applied().index, 1);
    assert_eq!(
        (old.value(id).unwrap(), new.value(id).unwrap()),
        ("two".into(), "two".into())
    );
    assert!(backend.sizes().pending_bytes > 0, "the old view pins its rows");
    drop((old, new));
    backend.push(change(2, vec![row(4, "four")])).unwrap();
    let mut seen = Vec::new();
    let ids = [4, 2, 3].map(|main| RowId { main, sub: 0 });
    backend
        .view()
        .unwrap()
        .values(&ids, |at, value| seen.push((at, value.to_vec())))
        .unwrap();
    assert_eq!(
        seen,
        [(0, b"four".to_vec()), (1, b"two".to_vec()), (2, b"three".to_vec())]
    );
    backend.close().unwrap();

    let (backend, recovered) = Backend::open(&path, Options::default()).unwrap();
    assert_eq!(
        (
            recovered.applied.index,
            recovered.applied_before.index,
            recovered.revision
        ),
        (2, 1, 4)
    );
    let mut keys = Vec::new();
    backend
        .view()
        .unwrap()
        .scan_meta(|row| keys.push((row.id.main, row.key.to_vec())))
        .unwrap();
    assert_eq!(keys.len(), 3);
    assert_eq!(keys[0], (2, b"key 2".to_vec()));
    assert_eq!(
        backend.view().unwrap().value(RowId { main: 4, sub: 0 }).unwrap(),
        "four"
    );
}

/// Whoever pushes wakes the committing thread seldom: only the first change after a commit does, and the one that makes
/// enough. Neither may be missed.
#[test]
fn enough_is_committed_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        commit_interval: Duration::from_secs(3600),
        commit_bytes: 32 << 10,
        reserve_bytes: 0,
        ..Options::default()
    };
    let (backend, _) = Backend::open(&folder.path().join("backend"), options).unwrap();
    let value = "v".repeat(1000);
    let mut index = 0;
    // Pushes meet the thread asleep, about to sleep and at work.
    for round in 0..50u64 {
        let enough = index + 40 + round % 7;
        while index < enough {
            index += 1;
            backend
                .push(change(index, vec![row(1 + index as i64, &value)]))
                .unwrap();
        }
        let start = Instant::now();
        while backend.durable().last.index + 32 < index {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "round {round}: nobody commits"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert_eq!(backend.flush().unwrap().last.index, index);
}

#[test]
fn system_records_are_set_replaced_and_taken_away() {
    let folder = tempfile::tempdir().unwrap();
    let backend = open(&folder.path().join("backend"));
    let system = |writes: &[(SystemTable, &'static str, Option<&'static str>)]| Change {
        system: writes
            .iter()
            .map(|(table, key, value)| (*table, (*key).into(), value.map(Bytes::from)))
            .collect(),
        ..change(1, vec![])
    };
    backend
        .push(system(&[
            (SystemTable::Lease, "a", Some("1")),
            (SystemTable::Lease, "b", Some("2")),
        ]))
        .unwrap();
    backend
        .push(system(&[
            (SystemTable::Lease, "a", None),
            (SystemTable::Member, "a", Some("m")),
        ]))
        .unwrap();
    backend.flush().unwrap();
    let view = backend.view().unwrap();
    let mut seen = Vec::new();
    view.scan_system(SystemTable::Lease, |key, value| {
        seen.push((key.to_vec(), value.to_vec()))
    })
    .unwrap();
    assert_eq!(seen, [(b"b".to_vec(), b"2".to_vec())]);
    assert_eq!(view.system(SystemTable::Member, b"a").unwrap(), Some("m".into()));
    assert_eq!(view.system(SystemTable::Member, b"b").unwrap(), None);
}

#[test]
fn removed_rows_are_gone_and_a_missing_row_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let backend = open(&folder.path().join("backend"));
    backend
        .push(change(1, (2..50).map(|main| row(main, "v")).collect()))
        .unwrap();
    backend.flush().unwrap();
    let old = backend.view().unwrap();
    let full = backend.sizes().in_use_bytes;
    let removed = (2..49).map(|main| RowId { main, sub: 0 }).collect();
    backend
        .push(Change {
            removed,
            compacted: 49,
            revision: 49,
            ..change(2, vec![])
        })
        .unwrap();
    backend.flush().unwrap();
    assert!(backend.sizes().in_use_bytes * 10 < full);
    assert_eq!(
        old.value(RowId { main: 5, sub: 0 }).unwrap(),
        "v",
        "a view stands still"
    );
    let new = backend.view().unwrap();
    assert!(matches!(
        new.value(RowId { main: 5, sub: 0 }),
        Err(Error::Corrupt { .. })
    ));
    assert!(matches!(
        new.values(&[RowId { main: 5, sub: 0 }], |_, _| ()),
        Err(Error::Corrupt { .. })
    ));
    let mut left = 0;
    new.scan_meta(|_| left += 1).unwrap();
    assert_eq!(left, 1);
}

#[test]
fn a_second_opener_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backend");
    let _backend = open(&path);
    assert!(matches!(
        Backend::open(&path, Options::default()),
        Err(Error::InUse { .. })
    ));
}

#[test]
fn dropping_the_handle_leaves_what_is_queued_to_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backend");
    let backend = open(&path);
    backend.push(change(1, vec![row(2, "durable")])).unwrap();
    backend.flush().unwrap();
    backend.push(change(2, vec![row(3, "queued")])).unwrap();
    drop(backend);
    let (_backend, recovered) = Backend::open(&path, Options::default()).unwrap();
    assert_eq!((recovered.applied.index, recovered.revision), (1, 2));
}

#[test]
fn a_view_kept_beyond_the_close_says_so_and_never_lies() {
    let folder = tempfile::tempdir().unwrap();
    let backend = open(&folder.path().join("backend"));
    backend
        .push(change(
            1,
            (2..2000).map(|main| row(main, &format!("value {main}"))).collect(),
        ))
        .unwrap();
    backend.flush().unwrap();
    let view = backend.view().unwrap();
    backend.close().unwrap();
    let mut refused = 0;
    for main in 2..2000 {
        match view.value(RowId { main, sub: 0 }) {
            Ok(value) => assert_eq!(value, format!("value {main}")),
            Err(Error::Closed) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(refused > 0);
}

/// The file is made whole or not at all: what an attempt left that was cut short is no obstacle.
#[test]
fn a_half_made_file_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backend");
    std::fs::write(folder.path().join("backend.incoming"), [7; 10_000]).unwrap();
    open(&path).close().unwrap();
    assert!(!folder.path().join("backend.incoming").exists());
    open(&path).close().unwrap();
}
