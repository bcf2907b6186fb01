//! Side-by-side measurement of etcd and Quorate: the same clients, flags, disk and data, in alternating rounds.
//!
//! * [`args`] — the command line; [`scale`] — how large everything is;
//! * [`program`] — what is measured; [`process`] — never left behind; [`ports`] — where they listen;
//! * [`node`] — one member: its command line, start, restart, kill; [`cluster`] — all of them, and who leads;
//! * [`procfs`] — what a process has used: CPU time and resident memory;
//! * [`tls`] — certificates for `--tls` and `--peer-tls`;
//! * [`grpc`], [`deframe`], [`wire`] — a client that costs little, since it shares the cores with the server;
//! * [`retrying`] — a client over all members that retries as etcd's does;
//! * [`load`] — closed-loop clients and the clock;
//! * [`meter`] — one measured window: rate, latency, CPU and memory of the server;
//! * [`data`] — keys and values;
//! * [`workload`] — what the clients do; [`scenario`] — measurements that are no closed loop;
//! * [`suite`] — the order in which all of it runs;
//! * [`report`] — medians, ratios and the table; [`targets`] — which figures are aimed at, and which are met.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod args;
pub mod cluster;
pub mod data;
pub mod deframe;
pub mod grpc;
pub mod load;
#[cfg(test)]
mod made_up;
pub mod meter;
pub mod node;
pub mod ports;
pub mod process;
pub mod procfs;
pub mod program;
pub mod report;
pub mod retrying;
pub mod scale;
pub mod scenario;
pub mod suite;
pub mod targets;
pub mod tls;
pub mod wire;
pub mod workload;

use std::process::ExitCode;

/// The whole program: 0 when every measurement succeeded, 1 when one failed, 2 for a bad command line.
pub fn main() -> ExitCode {
    let args = match args::Args::parse(std::env::args().skip(1)) {
        Ok(Some(args)) => args,
        Ok(None) => {
            print!("{}", args::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("compare: {error}\nTry --help.");
            return ExitCode::from(2);
        }
    };
    process::kill_on_panic();
    match suite::run_to_end(args) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failures) => {
            eprintln!("compare: {failures} measurements failed; they are listed below the table");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("compare: {error:#}");
            ExitCode::FAILURE
        }
    }
}
