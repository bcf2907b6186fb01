//! The command line. For now it says what it is; its commands come with the client library.

#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

const HELP: &str = "\
quoratectl: the command line of Quorate

Usage:
  quoratectl version    print the versions
  quoratectl --help     print this

There are no other commands yet. Every etcd client works against a Quorate node, etcdctl among them:
  ETCDCTL_API=3 etcdctl --endpoints=http://127.0.0.1:2379 get --prefix /
";

/// Runs one command; `args` are without the program's name. What can't be printed, since nobody listens any more, is a
/// failure and no more.
pub fn run(args: impl Iterator<Item = OsString>, out: &mut impl Write, err: &mut impl Write) -> ExitCode {
    // Commands are text; what is none is unknown, and shown as far as it can be.
    let args: Vec<String> = args.map(|word| word.to_string_lossy().into_owned()).collect();
    let printed = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] | ["help" | "--help" | "-h"] => print(out, HELP),
        ["version" | "--version"] => print(out, &versions()),
        [unknown, ..] => {
            let text = format!("quoratectl: unknown command \"{unknown}\"; see quoratectl --help\n");
            // The exit code says it too.
            let _ = print(err, &text);
            return ExitCode::from(2);
        }
    };
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn print(to: &mut impl Write, text: &str) -> io::Result<()> {
    to.write_all(text.as_bytes())?;
    to.flush()
}

fn versions() -> String {
    use quorate_api::version::{CLUSTER_VERSION, QUORATE_VERSION};
    format!("quoratectl version: {QUORATE_VERSION}\nAPI version: {CLUSTER_VERSION}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    /// An output whose reader has gone.
    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn words(words: &[&str]) -> impl Iterator<Item = OsString> {
        words.iter().map(OsString::from).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn versions_name_both_the_program_and_the_api() {
        let mut out = Vec::new();
        run(words(&["version"]), &mut out, &mut Closed);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            format!("quoratectl version: {}\nAPI version: 3.7\n", env!("CARGO_PKG_VERSION"))
        );
    }

    #[test]
    fn outputs_that_went_away_are_failures_and_no_more() {
        let code = |code: ExitCode| format!("{code:?}");
        let closed = run(words(&["--help"]), &mut Closed, &mut Closed);
        assert_eq!(code(closed), code(ExitCode::FAILURE));
        let unknown = run(words(&["nope"]), &mut Closed, &mut Closed);
        assert_eq!(code(unknown), code(ExitCode::from(2)));
    }

    #[test]
    fn words_that_are_no_text_are_unknown_commands() {
        let mut err = Vec::new();
        let word = OsString::from_vec(b"ver\xff".to_vec());
        run(std::iter::once(word), &mut Closed, &mut err);
        assert!(
            String::from_utf8(err)
                .unwrap()
                .contains("unknown command \"ver\u{fffd}\"")
        );
    }
}
