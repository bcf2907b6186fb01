//! The log through its public face, on real files.
#![allow(clippy::unwrap_used)]

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_wal::{Disk, Done, Entry, Error, File, LogPos, Options, RealDisk, Recovered, Wal};

fn pos(term: u64, index: u64) -> LogPos {
    LogPos { term, index }
}

fn entry(term: u64, index: u64) -> Entry {
    Entry {
        pos: pos(term, index),
        payload: format!("{term}/{index}").into(),
    }
}

fn options(dir: &Path) -> Options {
    Options {
        segment_bytes: 16 << 10,
        cache_bytes: 200,
        ..Options::new(dir)
    }
}

fn open(dir: &Path) -> (Wal, Recovered) {
    Wal::open(options(dir), Arc::new(RealDisk)).unwrap()
}

/// Calls and waits for the answer.
fn wait(call: impl FnOnce(Done)) -> Result<(), Error> {
    let (tell, told) = mpsc::channel();
    call(Box::new(move |outcome| tell.send(outcome).unwrap()));
    told.recv().unwrap()
}

fn append(wal: &Wal, entries: Vec<Entry>) {
    wait(|done| wal.append(entries, done)).unwrap();
}

fn read(wal: &Wal) -> Vec<Entry> {
    wal.read(0..u64::MAX, usize::MAX).unwrap()
}

#[test]
fn a_closed_log_comes_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, found) = open(dir.path());
    assert_eq!((found.last, found.vote, found.clean_stop), (None, None, true));
    append(&wal, (0..50).map(|i| entry(1, i)).collect());
    wait(|done| wal.save_vote(Bytes::from_static(b"me, term 1"), done)).unwrap();
    wal.save_committed(pos(1, 30));
    wal.close().unwrap();
    let (wal, found) = open(dir.path());
    assert_eq!(found.last, Some(pos(1, 49)));
    assert_eq!(found.vote.as_deref(), Some(&b"me, term 1"[..]));
    assert_eq!(found.committed, Some(pos(1, 30)));
    assert!(found.clean_stop && found.torn.is_none());
    assert_eq!(read(&wal), (0..50).map(|i| entry(1, i)).collect::<Vec<_>>());
}

#[test]
fn entries_are_readable_when_append_returns() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path());
    for i in 0..2000 {
        wal.append(vec![entry(1, i)], Box::new(|outcome| outcome.unwrap()));
        assert_eq!(wal.read(i..i + 1, 0).unwrap(), [entry(1, i)]);
    }
    assert_eq!(read(&wal).len(), 2000);
}

#[test]
fn purged_segments_are_reused_and_the_rest_survives() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path());
    let mut most = 0;
    for i in (0..3000).step_by(10) {
        append(&wal, (i..i + 10).map(|i| entry(1, i)).collect());
        if i % 100 == 90 {
            wait(|done| wal.purge(pos(1, i - 11), done)).unwrap();
            most = most.max(std::fs::read_dir(dir.path()).unwrap().count());
        }
    }
    assert!(most <= 5, "{most} files for a log of one segment");
    drop(wal);
    let (wal, found) = open(dir.path());
    assert_eq!((found.purged, found.last), (Some(pos(1, 2979)), Some(pos(1, 2999))));
    assert!(!found.clean_stop);
    assert_eq!(read(&wal), (2980..3000).map(|i| entry(1, i)).collect::<Vec<_>>());
}

#[test]
fn a_truncated_end_is_replaced_and_stays_so() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path());
    append(&wal, (0..20).map(|i| entry(1, i)).collect());
    wal.truncate_after(Some(9), Box::new(|_| {}));
    wal.append((10..15).map(|i| entry(2, i)).collect(), Box::new(|_| {}));
    wait(|done| wal.truncate_after(Some(12), done)).unwrap();
    let expect: Vec<_> = (0..10)
        .map(|i| entry(1, i))
        .chain((10..13).map(|i| entry(2, i)))
        .collect();
    assert_eq!(read(&wal), expect);
    drop(wal);
    let (wal, _) = open(dir.path());
    assert_eq!(read(&wal), expect);
    wait(|done| wal.truncate_after(None, done)).unwrap();
    assert_eq!(wal.state(), (None, None));
    append(&wal, vec![entry(3, 0)]);
    assert_eq!(read(&wal), [entry(3, 0)]);
}

#[test]
fn a_reset_log_goes_on_after_the_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path());
    append(&wal, (0..20).map(|i| entry(1, i)).collect());
    wait(|done| wal.reset(pos(4, 100), done)).unwrap();
    assert_eq!(wal.state(), (Some(pos(4, 100)), Some(pos(4, 100))));
    append(&wal, vec![entry(4, 101)]);
    drop(wal);
    let (wal, found) = open(dir.path());
    assert_eq!((found.purged, found.last), (Some(pos(4, 100)), Some(pos(4, 101))));
    assert_eq!(read(&wal), [entry(4, 101)]);
}

#[test]
fn an_entry_larger_than_a_segment_gets_one_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path());
    let large = Entry {
        pos: pos(1, 1),
        payload: vec![7; 100_000].into(),
    };
    append(&wal, vec![entry(1, 0), large.clone(), entry(1, 2)]);
    assert_eq!(wal.read(1..2, 1).unwrap(), std::slice::from_ref(&large));
    wal.close().unwrap();
    let (wal, _) = open(dir.path());
    assert_eq!(read(&wal), [entry(1, 0), large, entry(1, 2)]);
}

/// A19
#[test]
fn a_caller_that_leaves_a_gap_is_told_and_nothing_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path());
    append(&wal, vec![entry(2, 0)]);
    for bad in [
        vec![entry(2, 2)],
        vec![entry(1, 1)],
        vec![entry(2, 1), entry(2, 3)],
        vec![entry(2, 0)],
    ] {
        let told = wait(|done| wal.append(bad, done));
        assert!(matches!(told, Err(Error::NotNext { .. })), "{told:?}");
    }
    assert_eq!(read(&wal), [entry(2, 0)]);
}

#[test]
fn committed_entries_can_not_be_truncated() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path());
    append(&wal, (0..20).map(|i| entry(1, i)).collect());
    wal.save_committed(pos(1, 10));
    let told = wait(|done| wal.truncate_after(Some(9), done));
    assert!(matches!(told, Err(Error::TruncatesCommitted { .. })), "{told:?}");
    wait(|done| wal.truncate_after(Some(10), done)).unwrap();
    assert_eq!(read(&wal).len(), 11);
}

#[test]
fn writing_to_a_closed_log_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path());
    let other = wal.clone();
    wal.close().unwrap();
    assert!(matches!(
        wait(|done| other.append(vec![entry(1, 0)], done)),
        Err(Error::Closed)
    ));
}

#[test]
fn the_bytes_of_an_answer_are_bounded_but_for_its_first_entry() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path());
    let entries: Vec<_> = (0..10)
        .map(|i| Entry {
            pos: pos(1, i),
            payload: vec![1; 1000].into(),
        })
        .collect();
    append(&wal, entries);
    assert_eq!(wal.read(0..10, 3500).unwrap().len(), 3);
    assert_eq!(wal.read(0..10, 0).unwrap().len(), 1);
    assert_eq!(wal.read(7..7, 100).unwrap(), []);
    assert_eq!(wal.read(10..20, 100).unwrap(), []);
}

/// Each name on the way to the log is in a directory that was synced after it was made.
#[test]
fn a_new_directory_is_durable_with_all_its_parents() {
    #[derive(Debug)]
    struct Watched(Mutex<Vec<PathBuf>>);
    impl Disk for Watched {
        fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
            self.0.lock().clear(); // what was synced before does not count
            RealDisk.create_dir_all(dir)
        }
        fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
            RealDisk.list(dir)
        }
        fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
            RealDisk.create(path)
        }
        fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
            RealDisk.open(path)
        }
        fn open_read(&self, path: &Path) -> io::Result<Arc<dyn File>> {
            RealDisk.open_read(path)
        }
        fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
            RealDisk.free_bytes(dir)
        }
        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            RealDisk.rename(from, to)
        }
        fn remove(&self, path: &Path) -> io::Result<()> {
            RealDisk.remove(path)
        }
        fn sync_dir(&self, dir: &Path) -> io::Result<()> {
            self.0.lock().push(dir.to_path_buf());
            RealDisk.sync_dir(dir)
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let disk = Arc::new(Watched(Mutex::default()));
    let (wal, _) = Wal::open(options(&root.join("a/b/wal")), disk.clone()).unwrap();
    let synced = disk.0.lock().clone();
    for parent in ["", "a", "a/b", "a/b/wal"] {
        assert!(
            synced.contains(&root.join(parent)),
            "{parent:?} is not among {synced:?}"
        );
    }
    drop(wal);
}

/// A disk that is only read may be mounted so.
#[test]
fn checking_a_log_needs_no_right_to_write() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path());
    append(&wal, vec![entry(1, 0)]);
    wal.close().unwrap();
    let report = quorate_wal::check::check(&ReadOnly, dir.path(), None).unwrap().unwrap();
    assert_eq!(report.entries, 1);
}

/// Root may write to any file, so it is the disk that refuses.
#[derive(Debug)]
struct ReadOnly;

impl ReadOnly {
    fn refuse<T>() -> io::Result<T> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

impl Disk for ReadOnly {
    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Self::refuse()
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(dir)
    }
    fn create(&self, _: &Path) -> io::Result<Arc<dyn File>> {
        Self::refuse()
    }
    fn open(&self, _: &Path) -> io::Result<Arc<dyn File>> {
        Self::refuse()
    }
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        RealDisk.open_read(path)
    }
    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Self::refuse()
    }
    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        Self::refuse()
    }
    fn remove(&self, _: &Path) -> io::Result<()> {
        Self::refuse()
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Self::refuse()
    }
}

#[test]
fn files_are_for_the_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(&dir.path().join("member/wal"));
    append(&wal, vec![entry(1, 0)]);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir.path().join("member/wal")), 0o700);
    assert_eq!(mode(&dir.path().join("member/wal/0000000000000001.wal")), 0o600);
}
