use super::*;
use quorate_api::ClusterId;
use quorate_api::proto::etcdserverpb::Member;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

fn new_record() -> Record {
    Record {
        cluster: ClusterId(0xc1),
        member: MemberId(0x8e9),
        incarnation: 7,
        log_made: false,
        origin: Origin::Joined(vec![
            Member {
                id: 0x8e9,
                peer_ur_ls: vec!["http://10.0.0.1:2380".to_owned()],
                is_learner: true,
                ..Default::default()
            },
            Member {
                id: u64::MAX,
                name: "b".to_owned(),
                peer_ur_ls: vec!["http://10.0.0.2:2380".to_owned()],
                client_ur_ls: vec!["http://10.0.0.2:2379".to_owned()],
                is_learner: false,
            },
        ]),
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Every name below `root`, with its mode.
fn picture(root: &Path) -> Vec<(PathBuf, u32)> {
    let mut seen = vec![(root.to_path_buf(), mode(root))];
    if root.is_dir() {
        for entry in fs::read_dir(root).unwrap() {
            seen.extend(picture(&entry.unwrap().path()));
        }
    }
    seen.sort();
    seen
}

/// A3
#[test]
fn data_dir_modes_are_checked_at_start() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("data");
    fs::create_dir(&root).unwrap();
    set_mode(&root, 0o775);
    let dir = DataDir::open(&root, None).unwrap();
    dir.write_record(&new_record()).unwrap();
    dir.count_boot(false).unwrap();
    fs::write(dir.store(), b"data").unwrap();
    fs::write(dir.wal().join("0000000000000001.wal"), b"data").unwrap();
    let wal = dir.wal().to_path_buf();
    drop(dir);

    let dirs = [root.clone(), root.join("member"), wal.clone()];
    let files = [
        root.join("lock"),
        root.join("member/boot"),
        root.join("member/identity.json"),
        root.join("member/store.redb"),
        wal.join("wal.lock"),
        wal.join("0000000000000001.wal"),
    ];
    // what a volume with a group set does to them between two starts
    dirs.iter().for_each(|dir| set_mode(dir, 0o2775));
    files.iter().for_each(|file| set_mode(file, 0o664));
    drop(DataDir::open(&root, None).unwrap());
    for dir in &dirs {
        assert_eq!(mode(dir), 0o700, "{}", dir.display());
    }
    for file in &files {
        assert_eq!(mode(file), 0o600, "{}", file.display());
    }
}

/// A3
#[test]
fn a_foreign_owner_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let owner = fs::metadata(temp.path()).unwrap().uid();
    let refused = private::check_owner_for(owner + 1, temp.path()).unwrap_err();
    assert!(matches!(refused, Error::Owner { owner: found, user, .. } if found == owner && user == owner + 1));
    private::check_owner_for(owner, temp.path()).unwrap();
    private::check_owner_for(owner + 1, &temp.path().join("nothing")).unwrap();
}

/// A3
#[test]
fn a_directory_that_is_not_only_a_members_keeps_its_mode() {
    let temp = tempfile::tempdir().unwrap();
    let shared = temp.path().join("tmp");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("somebody's"), b"").unwrap();
    set_mode(&shared, 0o777);
    // neither does what is above, which is somebody else's to mend
    set_mode(temp.path(), 0o777);
    let dir = DataDir::open(&shared, None).unwrap();
    assert_eq!((mode(&shared), mode(temp.path())), (0o777, 0o777));
    assert_eq!((mode(&shared.join("member")), mode(dir.wal())), (0o700, 0o700));
}

#[test]
fn a_fresh_file_system_is_an_empty_directory() {
    let temp = tempfile::tempdir().unwrap();
    let (root, wal) = (temp.path().join("data"), temp.path().join("wal"));
    for dir in [&root, &wal] {
        fs::create_dir_all(dir.join("lost+found")).unwrap();
        set_mode(dir, 0o755);
    }
    assert!(DataDir::is_new(&root, Some(&wal)).unwrap());
    let dir = DataDir::open(&root, Some(&wal)).unwrap();
    assert_eq!(dir.record().unwrap(), None);
    assert_eq!((mode(&root), mode(&wal)), (0o700, 0o700));
}

#[test]
fn the_log_may_lie_in_the_data_directory_itself() {
    let temp = tempfile::tempdir().unwrap();
    let dir = DataDir::open(temp.path(), Some(temp.path())).unwrap();
    assert_eq!(dir.record().unwrap(), None);
    dir.write_record(&new_record()).unwrap();
    assert_eq!(dir.record().unwrap(), Some(new_record()));
}

#[test]
fn identity_is_read_back_and_its_loss_is_noticed() {
    let temp = tempfile::tempdir().unwrap();
    let dir = DataDir::open(temp.path(), None).unwrap();
    assert_eq!(dir.record().unwrap(), None);
    dir.write_record(&new_record()).unwrap();
    assert_eq!(dir.record().unwrap(), Some(new_record()));

    fs::write(dir.store(), b"data").unwrap();
    fs::remove_file(&dir.places.identity).unwrap();
    assert!(matches!(dir.record(), Err(Error::IdentityLost { .. })));
}

#[test]
fn a_log_that_is_elsewhere_is_not_founded_again() {
    let temp = tempfile::tempdir().unwrap();
    let (root, wal) = (temp.path().join("data"), temp.path().join("wal"));
    let dir = DataDir::open(&root, Some(&wal)).unwrap();
    fs::write(wal.join("0000000000000001.wal"), b"data").unwrap();
    dir.write_record(&new_record()).unwrap();
    dir.mark_log_made().unwrap();
    let marked = Record {
        log_made: true,
        ..new_record()
    };
    assert_eq!(dir.record().unwrap(), Some(marked));
    drop(dir);

    let before = picture(temp.path());
    let text = DataDir::is_new(&root, None).unwrap_err().to_string();
    assert_eq!(DataDir::open(&root, None).unwrap_err().to_string(), text);
    assert_eq!(picture(temp.path()), before);
    let place = root.join("member/wal");
    let wanted = format!(
        "the log of member 8e9 is not in {}: was --wal-dir given before?",
        place.display()
    );
    assert_eq!(text, wanted);
}

#[test]
fn a_newer_or_damaged_identity_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let dir = DataDir::open(temp.path(), None).unwrap();
    for newer in [
        r#"{"format": 9, "cluster_id": "1", "member_id": "2", "incarnation": "3"}"#,
        r#"{"format": 9, "ids": {"cluster": 1}}"#,
    ] {
        fs::write(&dir.places.identity, newer).unwrap();
        let refused = dir.record().unwrap_err();
        assert!(matches!(refused, Error::Newer { found: 9, .. }), "{refused}");
        assert!(refused.to_string().contains("newer version"), "{refused}");
    }
    for damaged in ["{", r#"{"format": 1}"#] {
        fs::write(&dir.places.identity, damaged).unwrap();
        assert!(matches!(dir.record(), Err(Error::Damaged { .. })));
    }
}

#[test]
fn the_first_format_told_of_a_founder_alone() {
    let temp = tempfile::tempdir().unwrap();
    let dir = DataDir::open(temp.path(), None).unwrap();
    let old = r#"{"format": 1, "cluster_id": "c1", "member_id": "8e9", "incarnation": "7", "log_made": false}"#;
    fs::write(&dir.places.identity, old).unwrap();
    let wanted = Record {
        origin: Origin::Founded(Vec::new()),
        ..new_record()
    };
    assert_eq!(dir.record().unwrap(), Some(wanted));
}

#[test]
fn data_of_etcd_is_not_touched() {
    for (segment, wal_dir) in [
        ("member/snap/db", None),
        ("wal/0000000000000000-0000000000000000.wal", Some("wal")),
    ] {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join(segment);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, b"theirs").unwrap();
        set_mode(temp.path(), 0o755);
        let before = picture(temp.path());
        let wal_dir = wal_dir.map(|name| temp.path().join(name));
        assert!(matches!(
            DataDir::is_new(temp.path(), wal_dir.as_deref()),
            Err(Error::Foreign { .. })
        ));
        assert!(matches!(
            DataDir::open(temp.path(), wal_dir.as_deref()),
            Err(Error::Foreign { .. })
        ));
        assert_eq!(picture(temp.path()), before);
    }
}

#[test]
fn looking_changes_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("a/b");
    assert!(DataDir::is_new(&root, Some(&temp.path().join("wal"))).unwrap());
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);

    drop(DataDir::open(&root, None).unwrap());
    assert!(DataDir::is_new(&root, None).unwrap(), "locks alone are no member");
    let before = picture(temp.path());
    fs::write(root.join("member/store.redb"), b"").unwrap();
    assert!(matches!(DataDir::is_new(&root, None), Err(Error::IdentityLost { .. })));
    fs::remove_file(root.join("member/store.redb")).unwrap();
    assert_eq!(picture(temp.path()), before);
}

fn waits_for(first: DataDir, second: impl FnOnce() -> Result<DataDir, Error> + Send + 'static) {
    let second = std::thread::spawn(move || second().map(drop));
    std::thread::sleep(Duration::from_millis(50));
    assert!(!second.is_finished());
    drop(first);
    let begun = Instant::now();
    second.join().unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_second_process_waits_for_the_lock() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().to_path_buf();
    let first = DataDir::open(&path, None).unwrap();
    waits_for(first, move || DataDir::open(&path, None));
}

#[test]
fn a_second_process_waits_for_the_log_of_another() {
    let temp = tempfile::tempdir().unwrap();
    let [one, two, wal] = ["one", "two", "wal"].map(|name| temp.path().join(name));
    let first = DataDir::open(&one, Some(&wal)).unwrap();
    waits_for(first, move || DataDir::open(&two, Some(&wal)));
}
