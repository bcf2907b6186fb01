//! The order of it all: rounds, in each round the workloads, for each workload the servers, every other round reversed.
//! So what drifts on the machine (neighbours, disk, heat) meets all servers alike.

use std::fs;
use std::time::Instant;

use anyhow::{Context, bail};

use crate::args::Args;
use crate::cluster::Cluster;
use crate::data::Values;
use crate::node::Setting;
use crate::program::Program;
use crate::report::{self, Environment, Measured, Results};
use crate::targets;
use crate::tls;
use crate::workload::{Bench, Workload};

/// Returns how many measurements failed.
pub fn run_to_end(args: Args) -> anyhow::Result<usize> {
    let runtime = if args.threads == 1 {
        // One thread wakes no other: the cheapest client there is.
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    } else {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(args.threads)
            .enable_all()
            .build()
    };
    let runtime = runtime.context("start the client's runtime")?;
    // Nodes belong to this future, so giving up on it stops them.
    runtime.block_on(async {
        tokio::select! {
            result = run(&args) => result,
            signal = interrupted() => bail!("stopped by {}", signal?),
        }
    })
}

async fn interrupted() -> anyhow::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
    }
}

async fn run(args: &Args) -> anyhow::Result<usize> {
    let mut programs = Vec::new();
    for path in &args.etcds {
        programs.push(Program::etcd(path, &args.etcd_args)?);
    }
    programs.push(Program::ours(&args.ours, &args.ours_args)?);
    let labels: Vec<String> = programs.iter().map(|program| program.label.clone()).collect();
    if let Some(twice) = labels
        .iter()
        .enumerate()
        .find(|(at, label)| labels[..*at].contains(label))
    {
        bail!("two servers would both be called {:?}; give each version once", twice.1);
    }

    fs::create_dir_all(&args.dir).with_context(|| format!("create {}", args.dir.display()))?;
    let scratch = tempfile::Builder::new()
        .prefix("certs-")
        .tempdir_in(&args.dir)
        .context("make a directory")?;
    let material = if args.tls || args.peer_tls {
        Some(tls::generate(&scratch.path().canonicalize()?)?)
    } else {
        None
    };
    let setting = Setting {
        clients: material.clone().filter(|_| args.tls),
        peers: material.filter(|_| args.peer_tls),
        election: args.election,
    };
    let values = Values::new();
    let mut results = Results::new(labels, Environment::look(args));

    for round in 0..args.rounds {
        for &workload in &args.workloads {
            let mut order: Vec<&Program> = programs.iter().collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for program in order {
                if !workload.runs_on(program.version) {
                    results.note_absent(workload, &program.label);
                    continue;
                }
                eprint!(
                    "round {} of {}: {:16} {:12} ",
                    round + 1,
                    args.rounds,
                    workload.name(),
                    program.label
                );
                let began = Instant::now();
                let cluster = Cluster::start(program, &args.dir, args.members, &setting).await;
                let failure = match cluster {
                    Ok(cluster) => one(args, &values, cluster, workload, round, &program.label, &mut results)
                        .await
                        .err(),
                    Err(error) => Some(error),
                };
                eprintln!("{:5.1} s", began.elapsed().as_secs_f64());
                if let Some(error) = failure {
                    eprintln!("  failed: {error:#}");
                    results.failures.push(format!(
                        "{}, {}, round {}: {error:#}",
                        workload.name(),
                        program.label,
                        round + 1
                    ));
                }
            }
        }
    }

    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report::json(&results)).context("write JSON")?;
        fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    print!("{}", report::render(&results, args.markdown));
    if args.targets {
        print!("\n{}", targets::render(&results, args.markdown));
    }
    Ok(results.failures.len())
}

async fn one(
    args: &Args,
    values: &Values,
    cluster: Cluster,
    workload: Workload,
    round: usize,
    server: &str,
    results: &mut Results,
) -> anyhow::Result<()> {
    let mut bench = Bench {
        args,
        values: values.clone(),
        cluster,
        workload,
        samples: Vec::new(),
    };
    let mut result = bench.run().await;
    if let Err(dead) = bench.cluster.check_alive() {
        result = Err(dead); // the cause; what the clients saw is the consequence
    }
    let server = server.to_owned();
    results
        .measured
        .extend(bench.samples.into_iter().map(|sample| Measured {
            round,
            server: server.clone(),
            sample,
        }));
    result
}
