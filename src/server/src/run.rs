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
//! * [`hub`] — watches: start, clock, complaints;
//! * [`ports`] — bound and served;
//! * [`notify`] — systemd.

mod hub;
mod notify;
mod ports;

use crate::api::v3::Services;
use crate::bootstrap::data_dir::{DataDir, Identity};
use crate::bootstrap::initial_cluster::{self, InitialCluster};
use crate::bootstrap::{self, Prepared};
use crate::budget::Budget;
use crate::config::{self, Config, Exit, Loaded, MetricsLevel, Url};
use crate::http::{NodeState, Ops};
use crate::listen::{Gate, ListenLimits, Server};
use crate::member::{Limits, Member};
use crate::metrics::{self, counts::Counts};
use crate::rpc::{self, Rpc};
use crate::state::State;
use anyhow::{Context, anyhow};
use ports::Ports;
use quorate_api::proto::etcdserverpb as pb;
use quorate_api::proto::quorate::{ClusterInit, MemberPublish};
use quorate_raft::Node;
use quorate_runtime::metrics::Registry;
use quorate_runtime::telemetry::{FLUSH_PATIENCE, Level, Record, Telemetry};
use quorate_runtime::tls::{ServerTls, ServerTlsOptions};
use quorate_store::command::Command;
use quorate_store::event::EventBatch;
use quorate_store::watch::Hub;
use quorate_store::{EventSink, Store, validate};
use quorate_wal::{LogPos, RealDisk, Wal};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{info, warn};

/// From the signal to the end, all of it takes less than the 1.5 s that etcd's own suites allow: calls get this long,
/// log and store what is left of [`CLOSE_BY`], the rest is for threads and the last lines of the log.
const DRAIN_PATIENCE: Duration = Duration::from_millis(500);
const CLOSE_BY: Duration = Duration::from_millis(1000);

/// Then the process ends wherever it is. What was acknowledged is in the log.
const END_BY: Duration = Duration::from_millis(1300);

/// How often the log is looked at for what can be purged.
const PURGE_INTERVAL: Duration = Duration::from_secs(1);

/// Memory for answers that are being put together, all requests together.
const ANSWER_BYTES: usize = 256 << 20;

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
    // Until the process is gone: whoever waits for the locks opens the files at once, and the last thread to have them
    // open may be the last to end.
    let mut locked = None;
    let ended = serve(&config, &telemetry, &mut locked);
    match &ended {
        Ok(Ended::Signal(signal)) => info!(signal, "stopped"),
        Ok(Ended::Fatal(reason)) => fatal(&telemetry, "the node can't go on", reason),
        Err(error) => fatal(&telemetry, "discovery failed", &format!("{error:#}")),
    }
    telemetry.flush(FLUSH_PATIENCE);
    match ended {
        Ok(Ended::Signal(signal)) => die_by(signal),
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

/// Why a node that served has ended.
#[derive(Clone)]
enum Ended {
    Signal(i32),
    Fatal(String),
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
            Ended::Fatal(_) => std::process::exit(1),
        }
    };
    if let Err(error) = std::thread::Builder::new().name("end".into()).spawn(watch) {
        warn!(%error, "nobody watches over the end");
    }
}

fn serve(config: &Config, telemetry: &Telemetry, locked: &mut Option<DataDir>) -> anyhow::Result<Ended> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("serve")
        .enable_all()
        .build()
        .context("start the runtime")?;
    let ended = start(config, telemetry, &runtime, locked);
    // Blocking reads that are still running hold nothing that has to be closed.
    runtime.shutdown_timeout(Duration::from_millis(100));
    ended
}

fn start(
    config: &Config,
    telemetry: &Telemetry,
    runtime: &Runtime,
    locked: &mut Option<DataDir>,
) -> anyhow::Result<Ended> {
    telemetry.record(&config.start_record(DataDir::is_initialized(&config.data_dir)));
    let _in_runtime = runtime.enter();
    check_descriptors(descriptor_limit())?;
    let tls = load_tls(config)?;
    // Checked and bound first, so that a taken port or a bad certificate leaves no trace on disk.
    let bound = ports::bind_tcp(config)?;
    let (died_tx, mut died) = mpsc::unbounded_channel();
    let on_fatal: Arc<dyn Fn(String) + Send + Sync> = Arc::new(move |reason| drop(died_tx.send(reason)));

    let registry = Arc::new(Registry::new());
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
    }));

    let (key, gate) = Gate::closed();
    let ops = ops(config, &state, &registry);
    let ports = Ports {
        server: Server::new(listen_limits()),
        rpc: Rpc::new(Arc::new(Services::new(state.clone())), rpc_metrics, rpc_limits(config)),
        http: ports::client_http(config, ops.clone(), message_bytes_max(config)),
        ops,
        tls,
        gate,
    };
    ports.serve(bound);

    let mut terminate = signal(SignalKind::terminate()).context("catch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catch SIGINT")?;
    let starting = async {
        let settings = config.clone();
        let prepare = move || {
            let resolve = &initial_cluster::system_resolve;
            bootstrap::prepare(&settings, resolve, initial_cluster::RESOLVE_PATIENCE)
        };
        let prepared = tokio::task::spawn_blocking(prepare)
            .await
            .context("start the member")??;
        ports.serve(ports::bind_unix(config)?);
        let (config, disk) = (config.clone(), disk_metrics);
        tokio::task::spawn_blocking(move || start_member(&config, prepared, disk, counts, applied, on_fatal))
            .await
            .context("start the member")?
    };
    let (signal, reason) = (
        |signal: i32| Ok(Ended::Signal(signal)),
        |reason| Ok(Ended::Fatal(reason)),
    );
    let (member, data_dir) = match runtime.block_on(async {
        tokio::select! {
            started = starting => Either::Left(started),
            _ = terminate.recv() => Either::Right(libc_signal::TERM),
            _ = interrupt.recv() => Either::Right(libc_signal::INT),
        }
    }) {
        Either::Left(started) => match started {
            Ok(started) => started,
            // What failed first is why the rest did.
            Err(error) => {
                return Err(match died.try_recv() {
                    Ok(why) => error.context(why),
                    Err(_) => error,
                });
            }
        },
        // Before it serves there is nothing to hand over or to answer; the log takes care of the rest.
        Either::Right(number) => return signal(number),
    };
    *locked = Some(data_dir);
    state.ready(member.clone());
    key.open();
    notify::ready();
    let progress = runtime.spawn(hub::tick(member.hub.clone(), config.watch_progress_notify_interval));

    let ended = runtime.block_on(async {
        tokio::select! {
            _ = terminate.recv() => signal(libc_signal::TERM),
            _ = interrupt.recv() => signal(libc_signal::INT),
            Some(why) = died.recv() => reason(why),
        }
    })?;
    let asked = Instant::now();
    end_in_time(telemetry, ended.clone());
    if let Ended::Signal(number) = ended {
        let name = if number == libc_signal::TERM {
            "terminated"
        } else {
            "interrupt"
        };
        info!(signal = name, "received signal; shutting down");
    }
    progress.abort();
    runtime.block_on(ports.server.shutdown(DRAIN_PATIENCE));
    member.node.stop(CLOSE_BY.saturating_sub(asked.elapsed()));
    member.hub.stop();
    Ok(ended)
}

enum Either<L, R> {
    Left(L),
    Right(R),
}

/// The numbers are the same on every system that this runs on.
mod libc_signal {
    pub const INT: i32 = 2;
    pub const TERM: i32 = 15;
}

/// Opens what is on disk, replays what the log has, and makes itself known.
fn start_member(
    config: &Config,
    prepared: Prepared,
    disk: Arc<metrics::disk::Disk>,
    counts: Arc<Counts>,
    applied: Arc<metrics::applied::Applied>,
    on_fatal: Arc<dyn Fn(String) + Send + Sync>,
) -> anyhow::Result<(Arc<Member>, DataDir)> {
    let Prepared {
        data_dir,
        identity,
        founded,
    } = prepared;
    let hub: Arc<OnceLock<Hub>> = Arc::default();
    let (store, applier) = open_store(&data_dir, disk.clone(), hub.clone(), counts.clone())?;
    if let Some(cluster) = store.cluster_id().filter(|cluster| *cluster != identity.cluster) {
        return Err(anyhow!(
            "{} holds data of cluster {cluster}, and this member is of cluster {}: the files in the data directory do \
             not belong together",
            data_dir.store().display(),
            identity.cluster
        ));
    }
    let wal = open_wal(&data_dir, identity.incarnation, &store, disk, on_fatal.clone())?;
    if !identity.log_made {
        data_dir.write_identity(Identity {
            log_made: true,
            ..identity
        })?;
    }
    let options = quorate_raft::Options {
        member: identity.member.0,
        heartbeat: config.heartbeat_interval,
        election: config.election_timeout,
        snapshot_count: config.snapshot_count,
        catchup_entries: config.snapshot_catchup_entries,
        observer: applied,
        purge_interval: PURGE_INTERVAL,
        on_fatal,
    };
    let node = Node::start(options, wal, store.clone(), applier)
        .with_context(|| format!("recover from the data in {}", config.data_dir.display()))?;
    let hub = hub::start(Arc::new(store), hub::options(message_bytes_max(config)), &hub)?;
    let budget = Budget::new(ANSWER_BYTES);
    let member = Arc::new(Member::new(
        identity.member,
        identity.cluster,
        node,
        hub,
        limits(config),
        counts,
        budget,
    ));
    tokio::runtime::Handle::current().block_on(introduce(&member, config, identity.incarnation, founded))?;
    Ok((member, data_dir))
}

fn open_store(
    data_dir: &DataDir,
    disk: Arc<metrics::disk::Disk>,
    hub: Arc<OnceLock<Hub>>,
    counts: Arc<Counts>,
) -> anyhow::Result<(Store, quorate_store::Applier)> {
    let mut options = quorate_store::Options::default();
    options.backend.observer = disk;
    let path = data_dir.store();
    Store::open(&path, options, Box::new(ToHub { hub, counts })).with_context(|| format!("open {}", path.display()))
}

fn open_wal(
    data_dir: &DataDir,
    owner: u64,
    store: &Store,
    disk: Arc<metrics::disk::Disk>,
    on_fatal: Arc<dyn Fn(String) + Send + Sync>,
) -> anyhow::Result<Wal> {
    let mut options = quorate_wal::Options::new(data_dir.wal());
    options.owner = owner;
    options.observer = disk;
    // With its causes: the text of an error has its own part only.
    options.on_fatal = Arc::new(move |error| on_fatal(format!("log: {:#}", anyhow::Error::new(error.clone()))));
    let durable = store.durable().last;
    let log_may_end_before = store.installed() == Some(durable);
    options.applied = (durable.index > 0 && !log_may_end_before).then_some(LogPos {
        term: durable.term,
        index: durable.index,
    });
    let (wal, recovered) = Wal::open(options, Arc::new(RealDisk))
        .with_context(|| format!("open the log in {}", data_dir.wal().display()))?;
    if let Some(torn) = recovered.torn {
        let (segment, offset) = (torn.segment, torn.offset);
        warn!(%segment, offset, what = torn.what, "cut off a write that was never acknowledged");
    }
    Ok(wal)
}

/// Events from apply to the hub. None are missed for coming before the hub is there: watchers start from history.
struct ToHub {
    hub: Arc<OnceLock<Hub>>,
    counts: Arc<Counts>,
}

impl EventSink for ToHub {
    fn publish(&self, batches: Vec<Arc<EventBatch>>) {
        self.counts.applied(&batches);
        if let Some(hub) = self.hub.get() {
            hub.publish(batches);
        }
    }

    fn replaced(&self) {
        if let Some(hub) = self.hub.get() {
            hub.resync_all();
        }
    }
}

/// Puts the founding members into the replicated table, and this member's name, client URLs and data directory.
async fn introduce(
    member: &Arc<Member>,
    config: &Config,
    incarnation: u64,
    founded: Option<InitialCluster>,
) -> anyhow::Result<()> {
    if member.store.cluster_id().is_none() {
        let urls: Vec<String> = config
            .initial_advertise_peer_urls
            .iter()
            .map(|url| url.raw.clone())
            .collect();
        let itself = pb::Member {
            id: member.id.0,
            peer_ur_ls: urls,
            ..Default::default()
        };
        let members = founded.map_or_else(|| vec![itself], founders);
        let init = ClusterInit {
            cluster_id: member.cluster.0,
            members,
        };
        member
            .propose(&Command::ClusterInit(init))
            .await
            .context("found the cluster")?;
    }
    let client_urls: Vec<String> = config.advertise_client_urls.iter().map(|url| url.raw.clone()).collect();
    let known = member.store.member(member.id);
    let is_new = member.store.incarnation(member.id) != Some(incarnation);
    if is_new || known.is_none_or(|known| known.name != config.name || known.client_ur_ls != client_urls) {
        let publish = MemberPublish {
            id: member.id.0,
            name: config.name.clone(),
            client_urls,
            incarnation,
        };
        let outcome = member.propose(&Command::MemberPublish(publish)).await;
        let published = outcome.context("publish name and client URLs")?.result;
        published.context("publish name and client URLs")?;
    }
    info!("member-id" = %member.id, "cluster-id" = %member.cluster, name = config.name, "published local member to cluster");
    Ok(())
}

fn founders(cluster: InitialCluster) -> Vec<pb::Member> {
    let member = |founder: initial_cluster::FoundingMember| pb::Member {
        id: founder.id,
        peer_ur_ls: founder.peer_urls.iter().map(|url| url.raw.clone()).collect(),
        ..Default::default()
    };
    cluster.members.into_iter().map(member).collect()
}

fn load_tls(config: &Config) -> anyhow::Result<Option<Arc<ServerTls>>> {
    let files = &config.client_tls;
    let (Some(cert_file), Some(key_file)) = (files.cert_file.clone(), files.key_file.clone()) else {
        return Ok(None);
    };
    let urls = config.listen_client_urls.iter().chain(&config.listen_metrics_urls);
    if !urls.into_iter().any(Url::is_tls) {
        warn!("certificates are given and no URL to listen on is https: they are not used");
        return Ok(None);
    }
    let options = ServerTlsOptions {
        cert_file,
        key_file,
        trusted_ca_file: files.trusted_ca_file.clone(),
        client_cert_auth: files.client_cert_auth,
        ..Default::default()
    };
    Ok(Some(Arc::new(
        ServerTls::load(options).context("load TLS certificates")?,
    )))
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
