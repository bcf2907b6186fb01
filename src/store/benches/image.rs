//! What does a snapshot cost, at both ends? A store of `KEYS` values of 1 KiB is read, pushed into another, and finished
//! there, each by itself. One thread; the disk is the one that temporary files are on.

#![allow(clippy::unwrap_used)]

mod measure;

use std::time::Instant;

use bytes::Bytes;
use measure::{cpu, key};
use quorate_api::proto::etcdserverpb::PutRequest;
use quorate_store::backend::Applied;
use quorate_store::command::Command;
use quorate_store::{Options, Store};

const VALUE_LEN: usize = 1024;
const BATCH: u64 = 100;

fn put(n: u64) -> Command {
    Command::Put(PutRequest {
        key: key(n).into(),
        value: Bytes::from(vec![n as u8; VALUE_LEN]),
        ..Default::default()
    })
}

fn timed<T>(what: &str, bytes: u64, work: impl FnOnce() -> T) -> T {
    let (wall, on_cpu) = (Instant::now(), cpu());
    let done = work();
    let (wall, on_cpu) = (wall.elapsed(), cpu() - on_cpu);
    let rate = bytes as f64 / f64::from(1 << 20) / wall.as_secs_f64();
    println!("{what:<10} {wall:>9.2?}, {on_cpu:>9.2?} of CPU, {rate:>6.0} MiB/s");
    done
}

fn main() {
    let keys = std::env::var("KEYS").ok().and_then(|keys| keys.parse().ok());
    let keys: u64 = keys.unwrap_or(500_000);
    let folder = tempfile::tempdir().unwrap();
    let open = |name: &str| Store::open(&folder.path().join(name), Options::default(), Box::new(())).unwrap();
    let (from, mut applier) = open("from");
    for (batch, first) in (0..keys).step_by(BATCH as usize).enumerate() {
        let entry = Applied {
            index: batch as u64 + 1,
            term: 1,
        };
        let commands = (first..(first + BATCH).min(keys)).map(put).collect();
        applier.apply(entry, commands, &mut Vec::new()).unwrap();
    }
    from.flush().unwrap();
    let image = from.image().unwrap();
    let bytes = image.read().map(|piece| piece.unwrap().len() as u64).sum();
    println!("{keys} keys, {} MiB", bytes >> 20);
    timed("read", bytes, || image.read().for_each(|piece| drop(piece.unwrap())));
    let pieces: Vec<Bytes> = image.read().map(Result::unwrap).collect();
    let (to, mut applier) = open("to");
    let mut incoming = to.receive().unwrap();
    timed("receive", bytes, || {
        pieces.into_iter().for_each(|piece| incoming.push(piece).unwrap());
    });
    let received = timed("finish", bytes, || incoming.finish().unwrap());
    timed("install", bytes, || applier.install(received).unwrap());
    assert_eq!(to.revision(), from.revision());
}
