//! `quoratectl`: the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    quorate_ctl::run(
        std::env::args_os().skip(1),
        &mut std::io::stdout(),
        &mut std::io::stderr(),
    )
}
