//! Every rule of the settings, through [`load`] alone.

use std::io::Write as _;

use quorate_runtime::telemetry::{Format, Output};
use serde_json::Value as Json;

use super::*;

mod command_line;
mod environment;
mod file;
mod refusals;
mod values;

fn load_with(args: &[&str], env: &[(&str, &str)]) -> Result<Loaded, Exit> {
    let args = std::iter::once("quorate")
        .chain(args.iter().copied())
        .map(OsString::from);
    let env = env
        .iter()
        .map(|(name, value)| (OsString::from(name), OsString::from(value)));
    load(args, env)
}

fn config(args: &[&str]) -> Config {
    load_with(args, &[]).unwrap().config
}

fn refused(args: &[&str]) -> Exit {
    load_with(args, &[]).unwrap_err()
}

fn from_file(text: &str) -> Result<Loaded, Exit> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    load_with(&["--config-file", file.path().to_str().unwrap()], &[])
}

fn messages(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| record.msg.as_ref()).collect()
}

/// Ends with code 1, and this reason in a record of this message.
#[track_caller]
fn assert_refused(exit: &Exit, message: &str, reason: &str) {
    assert_eq!(
        (exit.code, exit.stdout.as_str(), exit.stderr.as_str()),
        (1, "", ""),
        "{exit:?}"
    );
    let last = exit.records.last().unwrap();
    assert_eq!((last.msg.as_ref(), exit.error().unwrap()), (message, reason));
}

/// Ends with code 2, this first line and the usage.
#[track_caller]
fn assert_usage(exit: &Exit, line: &str) {
    assert_eq!((exit.code, exit.stdout.as_str()), (2, ""));
    let (first, rest) = exit.stderr.split_once('\n').unwrap();
    assert_eq!(first, line);
    assert!(rest.starts_with("Usage:\n"), "{rest}");
    assert!(exit.records.is_empty());
}
