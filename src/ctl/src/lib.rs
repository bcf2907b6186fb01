//! The command line. For now it says what it is; its commands come with the client library.

use std::process::ExitCode;

const HELP: &str = "\
quoratectl: the command line of Quorate

Usage:
  quoratectl version    print the versions
  quoratectl --help     print this

There are no other commands yet. Every etcd client works against a Quorate node, etcdctl among them:
  ETCDCTL_API=3 etcdctl --endpoints=http://127.0.0.1:2379 get --prefix /
";

/// Runs one command; `args` are without the program's name.
pub fn run(args: impl Iterator<Item = String>) -> ExitCode {
    let args: Vec<String> = args.collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] | ["help" | "--help" | "-h"] => print!("{HELP}"),
        ["version" | "--version"] => print!("{}", versions()),
        [unknown, ..] => {
            eprintln!("quoratectl: unknown command \"{unknown}\"; see quoratectl --help");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn versions() -> String {
    use quorate_api::version::{CLUSTER_VERSION, QUORATE_VERSION};
    format!("quoratectl version: {QUORATE_VERSION}\nAPI version: {CLUSTER_VERSION}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_name_both_the_program_and_the_api() {
        assert_eq!(
            versions(),
            format!("quoratectl version: {}\nAPI version: 3.7\n", env!("CARGO_PKG_VERSION"))
        );
    }
}
