//! Data directories that can't be used: each is named, with what is wrong, before anything else happens.

use std::fs;
use std::path::Path;
use std::time::Duration;

use quorate_kit::wait::until;
use quorate_kit::{Config, Node};

use crate::mounts::{Tmpfs, fill_up, read_only};
use crate::support::{Own, Place, binary, start, start_with};

/// A node that has written something and was stopped in order.
fn stopped() -> Own {
    let mut own = start();
    let ctl = own.node.etcdctl();
    ctl.ok(&["put", "first", "the-first-value"]);
    for n in 0..20 {
        ctl.ok(&["put", &format!("key/{n}"), "1"]);
    }
    own.node.terminate();
    own
}

/// What a start says before it ends with exit code 1. A panic would fail in the kit.
fn refusal(node: &mut Node) -> String {
    let status = node.wait_end(Duration::from_secs(10));
    let log = node.log();
    assert_eq!(status.code(), Some(1), "{log}");
    let fatal: Vec<&str> = log.lines().filter(|line| line.contains(r#""level":"fatal""#)).collect();
    assert_eq!(fatal.len(), 1, "one record says why: {log}");
    fatal[0].to_owned()
}

fn refused(own: &mut Own) -> String {
    own.node.relaunch();
    refusal(&mut own.node)
}

fn assert_names(said: &str, what: &[&str]) {
    for what in what {
        assert!(said.contains(what), "{what:?} is missing in: {said}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn an_unusable_data_dir_is_named_of_a_newer_format() {
    let mut own = stopped();
    let identity = own.node.config.data_dir().join("member/identity.json");
    let mut content: serde_json::Value = serde_json::from_slice(&fs::read(&identity).unwrap()).unwrap();
    content["format"] = 9.into();
    fs::write(&identity, content.to_string()).unwrap();
    let said = refused(&mut own);
    assert_names(&said, &[text(&identity), "format 9", "newer version"]);
}

#[test]
fn an_unusable_data_dir_is_named_of_two_clusters() {
    let (mut own, other) = (stopped(), stopped());
    let store = own.node.config.data_dir().join("member/store.redb");
    fs::copy(other.node.config.data_dir().join("member/store.redb"), &store).unwrap();
    let said = refused(&mut own);
    assert_names(&said, &[text(&store), "data of cluster", "do not belong together"]);
}

/// A flipped byte with acknowledged batches behind it is not the torn end of a log.
#[test]
fn an_unusable_data_dir_is_named_with_damage_in_the_log() {
    let mut own = stopped();
    let wal = own.node.config.data_dir().join("member/wal");
    let segment = wal.join("0000000000000001.wal");
    let mut bytes = fs::read(&segment).unwrap();
    let value = b"the-first-value";
    let at = bytes
        .windows(value.len())
        .position(|window| window == value)
        .expect("the log holds what was written");
    bytes[at] ^= 0x01;
    fs::write(&segment, &bytes).unwrap();
    let said = refused(&mut own);
    assert_names(
        &said,
        &[text(&wal), "log segment 0000000000000001 is damaged at offset "],
    );
    let offset = said.split("at offset ").nth(1).unwrap();
    let offset: String = offset.chars().take_while(char::is_ascii_digit).collect();
    let offset: usize = offset.parse().unwrap();
    assert!(offset <= at && at - offset < 1024, "byte {at} was flipped: {said}");
    assert_eq!(fs::read(&segment).unwrap(), bytes, "what is damaged is left as it is");
}

fn cut(store: &Path, left: u64) {
    fs::File::options()
        .write(true)
        .open(store)
        .unwrap()
        .set_len(left)
        .unwrap();
}

#[test]
fn an_unusable_data_dir_is_named_with_a_cut_store() {
    let mut own = stopped();
    let store = own.node.config.data_dir().join("member/store.redb");
    cut(&store, fs::metadata(&store).unwrap().len() / 2);
    let said = refused(&mut own);
    assert_names(&said, &[text(&store)]);
}

/// A store cut so short that it looks like one that was never finished. As long as the log goes back to the beginning
/// it could be made again; where the log was purged, its data is gone, and that must not pass for an empty store.
#[test]
fn an_unusable_data_dir_is_named_with_next_to_no_store() {
    let mut own = start_with(|config| config.flag("--snapshot-count=10"));
    let data = own.node.config.data_dir();
    let (store, first) = (
        data.join("member/store.redb"),
        data.join("member/wal/0000000000000001.wal"),
    );
    let ctl = own.node.etcdctl();
    let value = "v".repeat(1 << 20);
    until("the log to be purged", Duration::from_secs(30), || {
        assert!(ctl.call_with_input(&["put", "a"], &value).ok);
        (!first.exists()).then_some(())
    });
    own.node.terminate();
    for left in [4096, 100, 0] {
        cut(&store, left);
        let said = refused(&mut own);
        assert_names(&said, &[text(&data)]);
    }
}

#[test]
fn an_unusable_data_dir_is_named_without_its_log() {
    let mut own = stopped();
    let wal = own.node.config.data_dir().join("member/wal");
    for entry in fs::read_dir(&wal).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let said = refused(&mut own);
    assert_names(&said, &[text(&wal)]);
}

#[test]
fn an_unusable_data_dir_is_named_that_is_read_only() {
    let mut own = stopped();
    let data = own.node.config.data_dir();
    own.node.config.wrapper = read_only(&data);
    let said = refused(&mut own);
    assert_names(&said, &[text(&data), "Read-only file system"]);
}

#[test]
fn an_unusable_data_dir_is_named_on_a_full_disk() {
    let dir = Place::new();
    let log = Place::new();
    let small = Tmpfs::mount(dir.path(), 8);
    fill_up(&dir.path().join("ballast"));
    let mut config = Config::new(binary(), log.path());
    let data = dir.path().join("data");
    config.extra.push(format!("--data-dir={}", data.display()));
    let mut node = Node::launch(config);
    let said = refusal(&mut node);
    assert_names(&said, &[text(&data), "No space left on device"]);
    drop(node);
    drop(small);
}
