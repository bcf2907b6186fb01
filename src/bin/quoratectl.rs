//! `quoratectl`: the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    quorate_ctl::run(std::env::args().skip(1))
}
