//! The worked example of FORMAT.md is what the log really writes.
#![allow(clippy::unwrap_used)]

mod kit;

use bytes::Bytes;
use kit::{open, pos, segment, wait};
use quorate_wal::Entry;
use quorate_wal::disk::FaultyDisk;

#[test]
fn the_worked_example_is_what_is_written() {
    let disk = FaultyDisk::new();
    let (wal, _) = open(&disk).unwrap();
    let entry = Entry {
        pos: pos(1, 0),
        payload: Bytes::from_static(b"hello"),
    };
    wait(|done| wal.append(vec![entry], done)).unwrap();
    let bytes = disk.contents(&segment(1)).unwrap();
    let dump: Vec<String> = bytes
        .chunks(16)
        .enumerate()
        .take_while(|(line, _)| *line < 21)
        .map(|(line, chunk)| {
            let hex: Vec<String> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{:04x}  {}", line * 16, hex.join(" "))
        })
        .collect();
    for line in &dump {
        assert!(
            include_str!("../FORMAT.md").contains(line.as_str()),
            "FORMAT.md lacks a line of\n{}",
            dump.join("\n")
        );
    }
}
