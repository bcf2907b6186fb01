//! Start and stop, in order.
//!
//! ```text
//! settings ─► logging ─► TCP ports (silent) ─► who founds what ─► data directory, locked ─► unix sockets (silent)
//!                                                                                                   │
//!   ┌────────────────────────────────── serve ◄─ hub ◄─ log, store, consensus ◄──────────────────────┘
//!   └─ SIGTERM, SIGINT ─► ports closed ─► what was accepted is answered ─► log and store closed ─► exit
//! ```
//!
//! Nothing is written before all settings are known to be good.
//!
//! * [`start`] — files opened, consensus begun; [`opening`] — given up meanwhile;
//! * [`same_data`] — compared with the others, if that is wanted;
//! * [`introduce`] — this member makes itself known to the cluster;
//! * [`hub`] — watches: start, clock, complaints;
//! * [`ports`] — bound and served;
//! * [`notify`] — systemd.

mod hub;
mod introduce;
mod notify;
mod opening;
mod ports;
mod same_data;
mod start;

use crate::api::v3::Services;
use crate::bootstrap;
use crate::bootstrap::addresses::{RESOLVE_PATIENCE, system_resolve};
use crate::bootstrap::data_dir::DataDir;
use crate::bootstrap::peers::http::HttpPeers;
use crate::config::{self, Config, Exit, Loaded, MetricsLevel};
use crate::http::{NodeState, Ops};
use crate::listen::{Gate, ListenLimits, Server};
use crate::member::{Limits, Member};
use crate::metrics::{self, counts::Counts};
use crate::peer::dial::Dialer;
use crate::peer::serve::PeerPort;
use crate::rpc::{self, Rpc};
use crate::state::State;
use crate::tls;
use anyhow::{Context, anyhow};
use opening::Opening;
use ports::Ports;
use quorate_raft::node::Threads;
use quorate_runtime::metrics::Registry;
use quorate_runtime::telemetry::{FLUSH_PATIENCE, Level, Record, Telemetry};
use quorate_store::validate;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{info, warn};

/// From the signal to the end, all of it takes less than the 1.5 s that etcd's own suites allow: calls get this long,
/// log and store what is left of [`CLOSE_BY`], the rest is for threads and the last lines of the log.
const DRAIN_PATIENCE: Duration = Duration::from_millis(300);
/// The next leader is known within this time, or nobody can take over.
const HAND_OVER_PATIENCE: Duration = Duration::from_millis(400);
const CLOSE_BY: Duration = Duration::from_millis(1000);

/// Then the process ends wherever it is. What was acknowledged is in the log.
const END_BY: Duration = Duration::from_millis(1300);

/// How often the log is looked at for what can be purged.
const PURGE_INTERVAL: Duration = Duration::from_secs(1);

/// Descriptors that are not for clients.
const DESCRIPTORS_RESERVED: u64 = 150;

/// gRPC takes messages this much larger than `--max-request-bytes`.
const MESSAGE_OVERHEAD: usize = 512 << 10;

/// The process. Everything that ends it before it serves is said in etcd's words and with etcd's exit codes.
pub fn main() -> ExitCode {
    let Loaded { config, notices } = match config::load(std::env::args_os(), std::env::vars_os()) {
        Ok(loaded) => loaded,
        Err(exit) => return exit.emit(),
    };
    let telemetry = match Telemetry::open(&config.log).and_then(|telemetry| telemetry.install().map(|()| telemetry)) {
        Ok(telemetry) => telemetry,
        Err(error) => return Exit::refused(error).emit(),
    };
    notices.iter().for_each(|notice| telemetry.record(notice));
    let opening = Arc::default();
    let ended = serve(&config, &telemetry, &opening);
    match &ended {
        Ok(Ended::Signal(signal)) => info!(signal, "stopped"),
        Ok(Ended::Fatal(reason)) => fatal(&telemetry, "the node can't go on", reason),
        Ok(Ended::Removed) => warn!("this member has been removed from the cluster; stopping"),
        Err(error) => fatal(&telemetry, "discovery failed", &format!("{error:#}")),
    }
    telemetry.flush(FLUSH_PATIENCE);
    match ended {
        Ok(Ended::Signal(signal)) => die_by(signal),
        Ok(Ended::Removed) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn fatal(telemetry: &Telemetry, msg: &'static str, error: &str) {
    telemetry.record(&Record::new(Level::Fatal, msg).field("error", error.to_owned()));
}

/// Ends by the signal that asked for it, so that whoever waits for the process sees why. Init has nobody to tell.
fn die_by(signal: i32) -> ExitCode {
    if rustix::process::getpid().as_raw_nonzero().get() != 1 {
        let _ = signal_hook::low_level::emulate_default_handler(signal);
    }
    ExitCode::SUCCESS
}

/// Why a node has ended.
#[derive(Clone)]
enum Ended {
    Signal(i32),
    Fatal(String),
    /// The cluster goes on without this member, for good.
    Removed,
}

/// Ends the process if it has not ended by itself when its time is up: a disk may hang in a call that nobody can end.
fn end_in_time(telemetry: &Telemetry, ended: Ended) {
    let telemetry = telemetry.clone();
    let watch = move || {
        std::thread::sleep(END_BY);
        warn!("the end takes too long: leaving what is open to the next start");
        if let Ended::Fatal(reason) = &ended {
            fatal(&telemetry, "the node can't go on", reason);
        }
        telemetry.flush(FLUSH_PATIENCE / 2);
        match ended {
            Ended::Signal(signal) => {
                die_by(signal);
                std::process::exit(0)
            }
            Ended::Removed => std::process::exit(0),
            Ended::Fatal(_) => std::process::exit(1),
        }
    };
    if let Err(error) = std::thread::Builder::new().name("end".into()).spawn(watch) {
        warn!(%error, "nobody watches over the end");
    }
}

fn serve(config: &Config, telemetry: &Telemetry, opening: &Arc<Opening>) -> anyhow::Result<Ended> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("serve")
        .enable_all()
        .build()
        .context("start the runtime")?;
    let ended = start(config, telemetry, &runtime, opening);
    // Blocking reads that are still running hold nothing that has to be closed.
    runtime.shutdown_timeout(Duration::from_millis(100));
    ended
}

fn start(config: &Config, telemetry: &Telemetry, runtime: &Runtime, opening: &Arc<Opening>) -> anyhow::Result<Ended> {
    telemetry.record(&config.start_record(DataDir::is_initialized(&config.data_dir)));
    let _in_runtime = runtime.enter();
    check_descriptors(descriptor_limit())?;
    let tls = tls::client_listeners(config)?;
    let peer_tls = tls::peer_listeners(config)?;
    let dialer = Dialer::new(config)?;
    // Checked and bound first, so that a taken port or a bad certificate leaves no trace on disk.
    let bound = ports::bind_tcp(config)?;
    let (died_tx, mut died) = mpsc::unbounded_channel();
    let removed_tx = died_tx.clone();
    let on_fatal: Arc<dyn Fn(String) + Send + Sync> = Arc::new(move |reason| drop(died_tx.send(Ended::Fatal(reason))));
    let on_removed: Arc<dyn Fn() + Send + Sync> = Arc::new(move || drop(removed_tx.send(Ended::Removed)));
    // Consensus and its links have threads of their own, so that heartbeats never starve behind requests.
    let threads = Threads::start()?;

    let registry = Arc::new(Registry::new());
    let peer_metrics = Arc::new(metrics::peers::Peers::new(&registry, config.heartbeat_interval)?);
    let peers = PeerPort::new(peer_metrics.clone());
    let disk_metrics = Arc::new(metrics::disk::Disk::new(&registry, on_fatal.clone())?);
    let rpc_metrics = Arc::new(metrics::rpc::Rpc::new(
        &registry,
        config.metrics == MetricsLevel::Extensive,
        config.warning_unary_request_duration,
    )?);
    let counts = Arc::new(Counts::new(&registry)?);
    let applied = Arc::new(metrics::applied::Applied::new(
        &registry,
        config.warning_apply_duration,
        counts.ranges.clone(),
        counts.txns.clone(),
    )?);
    registry.add_source(Arc::new(metrics::log::Log(telemetry.clone())));
    let state = Arc::new(State::new(&registry)?);
    metrics::absent::register(&registry)?;
    registry.add_source(Arc::new(metrics::live::Live {
        state: state.clone(),
        quota_bytes: config.quota_backend.map(|quota| quota.0),
        gates: config.gates.clone(),
    }));

    let (key, gate) = Gate::closed();
    let ops = ops(config, &state, &registry);
    let server = Server::new(listen_limits());
    let ports = Ports {
        peer_server: server.beside(),
        server,
        rpc: Rpc::new(Arc::new(Services::new(state.clone())), rpc_metrics, rpc_limits(config)),
        http: ports::client_http(config, ops.clone(), message_bytes_max(config)),
        split: !config.listen_client_http_urls.is_empty(),
        ops,
        tls,
        peer_tls,
        gate,
        peers: peers.clone(),
        peer_runtime: threads.handle().clone(),
    };
    ports.serve(bound);

    let mut terminate = signal(SignalKind::terminate()).context("catch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catch SIGINT")?;
    let starting = async {
        let settings = config.clone();
        let asked = HttpPeers::new(runtime.handle().clone(), dialer.clone());
        let prepare = move || bootstrap::prepare(&settings, &system_resolve, &asked, RESOLVE_PATIENCE);
        let prepared = tokio::task::spawn_blocking(prepare)
            .await
            .context("start the member")??;
        let was_here = prepared.start == bootstrap::Start::Restart;
        ports.serve(ports::bind_unix(config)?);
        let starting = start::Starting {
            config: config.clone(),
            state: state.clone(),
            disk: disk_metrics,
            counts,
            applied,
            peer_metrics,
            dialer,
            threads,
            on_fatal,
            on_removed,
        };
        let opening = opening.clone();
        let open = move || {
            let (member, data_dir) = starting.open(prepared)?;
            opening.done(&member, data_dir);
            Ok::<_, anyhow::Error>(member)
        };
        let member = tokio::task::spawn_blocking(open).await.context("start the member")??;
        // Others need this member in order to elect anybody, and it needs them.
        peers.ready(member.node.service());
        if was_here && config.gates.is_on(config::INITIAL_CORRUPT_CHECK) {
            same_data::check(&member).await?;
        }
        introduce::introduce(&member, config).await?;
        Ok::<_, anyhow::Error>(member)
    };
    let ended = runtime.block_on(async {
        tokio::select! {
            started = starting => match started {
                Ok(member) => Early::Serves(member),
                Err(error) => Early::Failed(error),
            },
            _ = terminate.recv() => Early::Ended(Ended::Signal(libc_signal::TERM)),
            _ = interrupt.recv() => Early::Ended(Ended::Signal(libc_signal::INT)),
            Some(ended) = died.recv() => Early::Ended(ended),
        }
    });
    let member = opening.end();
    let ended = match ended {
        Early::Failed(error) => {
            if let Some(member) = member {
                member.node.stop(CLOSE_BY);
            }
            // What failed first is why the rest did.
            return match died.try_recv() {
                Ok(Ended::Fatal(why)) => Err(error.context(why)),
                Ok(ended) => Ok(ended),
                Err(_) => Err(error),
            };
        }
        Early::Ended(ended) => ended,
        Early::Serves(member) => {
            state.ready(member.clone());
            key.open();
            notify::ready();
            let progress = runtime.spawn(hub::tick(member.hub.clone(), config.watch_progress_notify_interval));
            let ended = runtime.block_on(async {
                tokio::select! {
                    _ = terminate.recv() => Ended::Signal(libc_signal::TERM),
                    _ = interrupt.recv() => Ended::Signal(libc_signal::INT),
                    Some(ended) = died.recv() => ended,
                }
            });
            progress.abort();
            ended
        }
    };
    let Some(member) = member else {
        // There is nothing to hand over or to answer; the log takes care of the rest.
        return Ok(ended);
    };
    let asked = Instant::now();
    end_in_time(telemetry, ended.clone());
    if let Ended::Removed = ended {
        // Whoever has asked for that gets an answer.
        member.node.leave();
    }
    if let Ended::Signal(number) = ended {
        let name = if number == libc_signal::TERM {
            "terminated"
        } else {
            "interrupt"
        };
        info!(signal = name, "received signal; shutting down");
        // Before the ports close: whoever is asked meanwhile knows the next leader, and what is under way ends there.
        runtime.block_on(member.node.hand_over(HAND_OVER_PATIENCE));
    }
    // What clients have brought is answered by this member's own apply, so peers are served until consensus ends, with
    // whose threads their connections go.
    runtime.block_on(ports.server.shutdown(DRAIN_PATIENCE));
    member.node.stop(CLOSE_BY.saturating_sub(asked.elapsed()));
    runtime.block_on(ports.peer_server.shutdown(Duration::ZERO));
    member.hub.stop();
    Ok(ended)
}

/// How a start went on.
enum Early {
    Serves(Arc<Member>),
    Failed(anyhow::Error),
    Ended(Ended),
}

/// The numbers are the same on every system that this runs on.
mod libc_signal {
    pub const INT: i32 = 2;
    pub const TERM: i32 = 15;
}

fn limits(config: &Config) -> Limits {
    let election_ms = u64::try_from(config.election_timeout.as_millis()).unwrap_or(u64::MAX);
    let heartbeat_ms = u64::try_from(config.heartbeat_interval.as_millis())
        .unwrap_or(u64::MAX)
        .max(1);
    Limits {
        request_bytes: usize::try_from(config.max_request.0).unwrap_or(usize::MAX),
        txn_ops: config.max_txn_ops,
        strict_reconfig: config.strict_reconfig_check,
        max_learners: config.max_learners,
        quota_bytes: config.quota_backend.map(|quota| quota.0),
        request_timeout: Duration::from_secs(5) + config.election_timeout * 2,
        election_timeout: config.election_timeout,
        not_serving_in_defrag: config.gates.is_on(config::STOP_GRPC_SERVICE_ON_DEFRAG),
        lease_ttl_min_secs: validate::lease_ttl_min(election_ms / heartbeat_ms, heartbeat_ms),
    }
}

fn message_bytes_max(config: &Config) -> usize {
    usize::try_from(config.max_request.0)
        .unwrap_or(usize::MAX)
        .saturating_add(MESSAGE_OVERHEAD)
}

fn rpc_limits(config: &Config) -> rpc::Limits {
    rpc::Limits {
        message_bytes_max: message_bytes_max(config),
        concurrent_streams_max: config.max_concurrent_streams,
        keepalive_interval: config.grpc_keepalive_interval,
        keepalive_timeout: config.grpc_keepalive_timeout,
        ping_interval_min: config.grpc_keepalive_min_time,
        ..Default::default()
    }
}

fn descriptor_limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .unwrap_or(u64::MAX)
}

fn check_descriptors(limit: u64) -> anyhow::Result<()> {
    if limit <= DESCRIPTORS_RESERVED {
        return Err(anyhow!(
            "file descriptor limit[{limit}] of the process is too low, and should be set higher than \
             {DESCRIPTORS_RESERVED} to ensure internal usage"
        ));
    }
    Ok(())
}

fn listen_limits() -> ListenLimits {
    let connections = descriptor_limit().saturating_sub(DESCRIPTORS_RESERVED);
    let connections_max = usize::try_from(connections).unwrap_or(usize::MAX);
    ListenLimits {
        connections_max,
        connections_per_address: connections_max.div_ceil(2),
        ..Default::default()
    }
}

fn ops(config: &Config, state: &Arc<State>, registry: &Arc<Registry>) -> Ops {
    let node: Arc<dyn NodeState> = state.clone();
    let registry = registry.clone();
    let page = move || {
        let content_type = quorate_runtime::metrics::CONTENT_TYPE.to_owned();
        (content_type, bytes::Bytes::from(registry.scrape()))
    };
    Ops {
        node,
        metrics: Arc::new(page),
        probe_deadline: Duration::from_secs(5) + config.election_timeout * 2,
        fd_limit: descriptor_limit(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_descriptors_end_the_process() {
        let text = check_descriptors(DESCRIPTORS_RESERVED).unwrap_err().to_string();
        assert!(
            text.contains("limit[150]") && text.contains("higher than 150"),
            "{text}"
        );
        check_descriptors(DESCRIPTORS_RESERVED + 1).unwrap();
    }
}
