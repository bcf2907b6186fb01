//! The state machine on a disk that fails.

#![allow(clippy::unwrap_used)]

mod kit;

use bytes::Bytes;
use quorate_api::proto::etcdserverpb::{PutRequest, RangeRequest};
use quorate_store::backend::{self, Applied};
use quorate_store::command::Command;
use quorate_store::testing::{MemDisk, MemPlace};
use quorate_store::{Applier, Error, Options, Store};

fn open(disk: &MemDisk) -> (Store, Applier) {
    let options = Options {
        backend: backend::Options {
            reserve_bytes: 0,
            cache_bytes: 64 << 10,
            ..backend::Options::default()
        },
        value_cache_bytes: 0,
        ..Options::default()
    };
    Store::open_in(Box::new(MemPlace::with(disk.clone())), options, Box::new(())).unwrap()
}

fn put(value: &'static str) -> Command {
    Command::Put(PutRequest {
        key: Bytes::from_static(b"key"),
        value: Bytes::from_static(value.as_bytes()),
        prev_kv: true,
        ..Default::default()
    })
}

fn read(store: &Store) -> Result<Vec<Bytes>, Error> {
    let request = RangeRequest {
        key: Bytes::from_static(b"key"),
        ..Default::default()
    };
    let pairs = store.range(&request)?.into_kvs()?;
    Ok(pairs.into_iter().map(|pair| pair.value).collect())
}

/// D6: what can't be read is an error, never "not there"; and who could not apply an entry applies no other.
#[test]
fn read_error_returns_no_wrong_data() {
    let disk = MemDisk::default();
    let (store, mut applier) = open(&disk);
    let entry = |index| Applied { index, term: 1 };
    // Enough around it that opening the file does not happen to read its page.
    let filler = |n| {
        Command::Put(PutRequest {
            key: format!("filler {n}").into(),
            value: vec![b'x'; 4000].into(),
            ..Default::default()
        })
    };
    let commands = (0..500).map(filler).chain([put("one")]).chain((500..1000).map(filler));
    let commands = commands.collect();
    applier.apply(entry(1), commands, &mut Vec::new()).unwrap();
    applier.close().unwrap();
    drop(store);

    let (store, mut applier) = open(&disk);
    disk.fail_reads(true);
    assert!(matches!(read(&store), Err(Error::Backend(_))));
    let failed = applier.apply(entry(2), vec![put("two")], &mut Vec::new());
    assert!(matches!(failed, Err(Error::Backend(_))), "{failed:?}");
    disk.fail_reads(false);
    let after = applier.apply(entry(3), vec![put("three")], &mut Vec::new());
    assert!(matches!(after, Err(Error::Poisoned)));
    drop((store, applier));

    // The log has what is missing.
    let (store, mut applier) = open(&disk);
    assert_eq!(read(&store).unwrap(), ["one"]);
    for (index, value) in [(2, "two"), (3, "three")] {
        applier.apply(entry(index), vec![put(value)], &mut Vec::new()).unwrap();
    }
    assert_eq!(read(&store).unwrap(), ["three"]);
    assert_eq!(applier.applied(), Some(entry(3)));
}
