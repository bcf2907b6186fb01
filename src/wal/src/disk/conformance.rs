//! What every [`Disk`] has to do, whichever it is: each implementation runs this whole suite.

use std::io::ErrorKind;
use std::path::Path;

use super::{Disk, File};

/// Runs every check, each in a directory of its own below `root`, and panics at the first broken promise.
pub fn check_all(disk: &dyn Disk, root: &Path) {
    let checks: [(&str, Check); 10] = [
        ("directories", directories_can_be_made_twice),
        ("bytes", bytes_are_read_back),
        ("overwrite", overwriting_changes_only_what_is_written),
        ("end", reading_beyond_the_end_is_an_error),
        ("length", a_file_grows_with_zeros_and_shrinks_for_good),
        ("names", names_are_exclusive_and_missing_ones_told),
        ("rename", renaming_replaces_and_keeps_handles),
        ("remove", removed_files_stay_readable_through_handles),
        ("read only", a_file_opened_for_reading_stays_as_it_is),
        ("free", there_is_space_to_be_told_of),
    ];
    for (name, check) in checks {
        let dir = root.join(name);
        disk.create_dir_all(&dir).expect("create directory");
        check(disk, &dir);
    }
}

type Check = fn(&dyn Disk, &Path);

fn read(file: &dyn File, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    file.read_at(&mut bytes, offset).expect("read");
    bytes
}

fn directories_can_be_made_twice(disk: &dyn Disk, dir: &Path) {
    let nested = dir.join("a/b");
    disk.create_dir_all(&nested).expect("create");
    disk.create_dir_all(&nested).expect("create again");
    assert!(disk.list(&nested).expect("list").is_empty());
    assert!(disk.list(dir).expect("list").is_empty(), "directories are not files");
    disk.sync_dir(dir).expect("sync directory");
}

fn bytes_are_read_back(disk: &dyn Disk, dir: &Path) {
    let path = dir.join("f");
    let file = disk.create(&path).expect("create");
    assert!(file.is_empty().expect("length"));
    file.write_at(b"hello", 0).expect("write");
    file.write_at(b"far", 5000).expect("write");
    assert_eq!(file.len().expect("length"), 5003);
    assert_eq!(read(&*file, 0, 5), b"hello");
    assert_eq!(read(&*file, 5, 4995), vec![0; 4995], "what lies between is zero");
    file.sync().expect("sync");
    disk.sync_dir(dir).expect("sync directory");
    let again = disk.open(&path).expect("open");
    assert_eq!(read(&*again, 4999, 4), b"\0far");
    file.write_at(b"HE", 0).expect("write");
    assert_eq!(
        read(&*again, 0, 5),
        b"HEllo",
        "handles see each other's unsynced writes"
    );
}

fn overwriting_changes_only_what_is_written(disk: &dyn Disk, dir: &Path) {
    let file = disk.create(&dir.join("f")).expect("create");
    file.write_at(&[1; 3000], 0).expect("write");
    file.write_at(&[2; 1000], 700).expect("write");
    file.write_at(&[], 100_000).expect("write nothing");
    assert_eq!(
        read(&*file, 0, 3000),
        [vec![1; 700], vec![2; 1000], vec![1; 1300]].concat()
    );
    assert_eq!(file.len().expect("length"), 3000);
}

fn reading_beyond_the_end_is_an_error(disk: &dyn Disk, dir: &Path) {
    let file = disk.create(&dir.join("f")).expect("create");
    file.write_at(&[1; 10], 0).expect("write");
    for (offset, len) in [(0, 11), (10, 1), (9, 2), (1 << 40, 1)] {
        let told = file.read_at(&mut vec![0; len], offset).expect_err("beyond the end");
        assert_eq!(told.kind(), ErrorKind::UnexpectedEof, "{len} at {offset}");
    }
    file.read_at(&mut [], 10).expect("nothing at the end");
}

fn a_file_grows_with_zeros_and_shrinks_for_good(disk: &dyn Disk, dir: &Path) {
    let file = disk.create(&dir.join("f")).expect("create");
    file.write_at(&[9; 2000], 0).expect("write");
    file.set_len(700).expect("shrink");
    assert_eq!(file.len().expect("length"), 700);
    file.set_len(3000).expect("grow");
    assert_eq!(read(&*file, 0, 3000), [vec![9; 700], vec![0; 2300]].concat());
    file.sync().expect("sync");
}

fn names_are_exclusive_and_missing_ones_told(disk: &dyn Disk, dir: &Path) {
    let (path, missing) = (dir.join("f"), dir.join("missing"));
    drop(disk.create(&path).expect("create"));
    assert_eq!(disk.create(&path).expect_err("exists").kind(), ErrorKind::AlreadyExists);
    assert_eq!(disk.list(dir).expect("list"), ["f"]);
    assert_eq!(disk.open(&missing).expect_err("missing").kind(), ErrorKind::NotFound);
    assert_eq!(disk.remove(&missing).expect_err("missing").kind(), ErrorKind::NotFound);
    assert_eq!(
        disk.rename(&missing, &path).expect_err("missing").kind(),
        ErrorKind::NotFound
    );
    assert_eq!(disk.list(&missing).expect_err("missing").kind(), ErrorKind::NotFound);
}

fn renaming_replaces_and_keeps_handles(disk: &dyn Disk, dir: &Path) {
    let (from, to) = (dir.join("from"), dir.join("to"));
    let file = disk.create(&from).expect("create");
    file.write_at(b"new", 0).expect("write");
    let old = disk.create(&to).expect("create");
    old.write_at(b"old", 0).expect("write");
    disk.rename(&from, &to).expect("rename");
    disk.sync_dir(dir).expect("sync directory");
    assert_eq!(disk.list(dir).expect("list"), ["to"]);
    assert_eq!(read(&*disk.open(&to).expect("open"), 0, 3), b"new");
    file.write_at(b"NEW", 0).expect("write through the handle");
    assert_eq!(read(&*disk.open(&to).expect("open"), 0, 3), b"NEW");
    assert_eq!(read(&*old, 0, 3), b"old");
}

fn removed_files_stay_readable_through_handles(disk: &dyn Disk, dir: &Path) {
    let path = dir.join("f");
    let file = disk.create(&path).expect("create");
    file.write_at(b"still", 0).expect("write");
    disk.remove(&path).expect("remove");
    assert!(disk.list(dir).expect("list").is_empty());
    assert_eq!(read(&*file, 0, 5), b"still");
}

fn a_file_opened_for_reading_stays_as_it_is(disk: &dyn Disk, dir: &Path) {
    let path = dir.join("f");
    assert_eq!(disk.open_read(&path).expect_err("missing").kind(), ErrorKind::NotFound);
    disk.create(&path).expect("create").write_at(b"kept", 0).expect("write");
    let file = disk.open_read(&path).expect("open for reading");
    file.write_at(b"lost", 0).expect_err("write");
    file.set_len(1).expect_err("change the length");
    assert_eq!(read(&*file, 0, 4), b"kept");
}

fn there_is_space_to_be_told_of(disk: &dyn Disk, dir: &Path) {
    assert!(disk.free_bytes(dir).expect("free bytes") > 1 << 16);
}
