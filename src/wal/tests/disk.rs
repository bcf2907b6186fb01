//! Both disks keep the promises of the seam, and the faulty one breaks only those it is told to.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use quorate_wal::disk::{Disk, FaultyDisk, Tear, conformance};
use quorate_wal::{File, RealDisk};

#[test]
fn the_real_disk_conforms() {
    let dir = tempfile::tempdir().unwrap();
    conformance::check_all(&RealDisk, dir.path());
}

#[test]
fn the_faulty_disk_conforms_while_nothing_fails() {
    conformance::check_all(&FaultyDisk::new(), Path::new("/disk"));
}

const DIR: &str = "/disk";

fn disk_with(len: usize) -> (FaultyDisk, std::sync::Arc<dyn File>) {
    let disk = FaultyDisk::new();
    disk.create_dir_all(Path::new(DIR)).unwrap();
    let file = disk.create(&Path::new(DIR).join("f")).unwrap();
    file.write_at(&vec![1; len], 0).unwrap();
    file.sync().unwrap();
    disk.sync_dir(Path::new(DIR)).unwrap();
    (disk, file)
}

fn after(disk: &FaultyDisk, tear: Tear) -> Vec<u8> {
    let disk = disk.fork();
    disk.power_loss(tear);
    disk.contents(&Path::new(DIR).join("f")).unwrap()
}

#[test]
fn power_loss_keeps_synced_bytes_and_any_sectors_of_the_rest() {
    let (disk, file) = disk_with(2048);
    file.write_at(&[2; 2048], 0).unwrap();
    assert_eq!(after(&disk, Tear::Lose), [1; 2048]);
    assert_eq!(after(&disk, Tear::Keep), [2; 2048]);
    assert_eq!(after(&disk, Tear::LoseFirst), [vec![1; 512], vec![2; 1536]].concat());
    assert_eq!(after(&disk, Tear::LoseLast), [vec![2; 1536], vec![1; 512]].concat());
    let mixes: std::collections::BTreeSet<_> = (0..200).map(|seed| after(&disk, Tear::Mix(seed))).collect();
    assert_eq!(mixes.len(), 16, "every subset of four sectors turns up");
    assert!(
        mixes
            .iter()
            .all(|bytes| { bytes.chunks(512).all(|sector| sector.iter().all(|b| *b == sector[0])) })
    );
    file.sync().unwrap();
    assert_eq!(after(&disk, Tear::Lose), [2; 2048]);
}

#[test]
fn power_loss_may_bring_back_a_state_between_two_writes() {
    let (disk, file) = disk_with(512);
    file.write_at(&[2; 512], 0).unwrap();
    file.write_at(&[3; 512], 0).unwrap();
    let seen: std::collections::BTreeSet<_> = (0..50).map(|seed| after(&disk, Tear::Mix(seed))[0]).collect();
    assert_eq!(seen, [1, 2, 3].into());
}

#[test]
fn names_are_lost_until_the_directory_is_synced() {
    let (disk, file) = disk_with(10);
    let (f, g) = (Path::new(DIR).join("f"), Path::new(DIR).join("g"));
    disk.rename(&f, &g).unwrap();
    let lost = disk.fork();
    lost.power_loss(Tear::Lose);
    assert_eq!(lost.paths(), [f]);
    disk.sync_dir(Path::new(DIR)).unwrap();
    disk.power_loss(Tear::Lose);
    assert_eq!(disk.paths(), [g]);
    assert!(file.read_at(&mut [0], 0).is_err(), "handles die with the power");
}

#[test]
fn a_failed_sync_leaves_bytes_that_look_clean_and_are_not() {
    let (disk, file) = disk_with(512);
    file.write_at(&[2; 512], 0).unwrap();
    disk.fail_sync(1);
    assert!(file.sync().is_err());
    file.sync().unwrap();
    let mut seen = [0; 512];
    file.read_at(&mut seen, 0).unwrap();
    assert_eq!(seen, [2; 512]);
    assert_eq!(after(&disk, Tear::Keep), [1; 512]);
    file.write_at(&[2; 512], 0).unwrap();
    file.sync().unwrap();
    assert_eq!(after(&disk, Tear::Lose), [2; 512]);
}

#[test]
fn a_power_cut_stops_everything_until_the_power_is_back() {
    let (disk, file) = disk_with(512);
    disk.cut_power_after(1);
    file.write_at(&[2; 512], 0).unwrap();
    assert!(file.sync().is_err());
    assert!(disk.is_off() && file.read_at(&mut [0], 0).is_err() && disk.list(Path::new(DIR)).is_err());
    disk.power_loss(Tear::Keep);
    let file = disk.open(&Path::new(DIR).join("f")).unwrap();
    let mut seen = [0];
    file.read_at(&mut seen, 0).unwrap();
    assert_eq!(seen, [2]);
}

#[test]
fn a_full_disk_refuses_growth_and_nothing_else() {
    let (disk, file) = disk_with(512);
    disk.set_capacity(Some(600));
    file.write_at(&[3; 512], 0).unwrap();
    assert_eq!(
        file.write_at(&[3; 512], 512).unwrap_err().kind(),
        std::io::ErrorKind::StorageFull
    );
    file.write_at(&[3; 88], 512).unwrap();
    disk.set_capacity(None);
    file.write_at(&[3; 512], 600).unwrap();
}
