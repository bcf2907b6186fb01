//! Opens what is on disk and begins consensus.

use super::{PURGE_INTERVAL, hub, limits, message_bytes_max};
use crate::bootstrap::Prepared;
use crate::bootstrap::data_dir::{DataDir, Origin};
use crate::budget::Budget;
use crate::config::{Config, Url};
use crate::member::Member;
use crate::metrics::{self, counts::Counts};
use crate::peer::dial::Dialer;
use crate::peer::link::{self, Book, Links};
use crate::state::{Roster, State};
use anyhow::{Context, anyhow};
use quorate_api::MemberId;
use quorate_api::proto::etcdserverpb as pb;
use quorate_raft::Node;
use quorate_raft::lessor::Monotonic;
use quorate_raft::node::Threads;
use quorate_raft::peer::Reason;
use quorate_store::event::EventBatch;
use quorate_store::watch::Hub;
use quorate_store::{EventSink, Store};
use quorate_wal::{LogPos, RealDisk, Wal};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use tracing::{info, warn};

/// Memory for answers that are being put together, all requests together.
const ANSWER_BYTES: usize = 256 << 20;

/// What a member is made of, besides what is on disk.
pub(super) struct Starting {
    pub config: Config,
    pub state: Arc<State>,
    pub disk: Arc<metrics::disk::Disk>,
    pub counts: Arc<Counts>,
    pub applied: Arc<metrics::applied::Applied>,
    pub peer_metrics: Arc<metrics::peers::Peers>,
    pub dialer: Dialer,
    /// Become the node's own.
    pub threads: Threads,
    pub on_fatal: Arc<dyn Fn(String) + Send + Sync>,
    pub on_removed: Arc<dyn Fn() + Send + Sync>,
}

impl Starting {
    /// Opens what is on disk, replays what the log has, and begins to talk to the others. Blocks.
    pub(super) fn open(self, prepared: Prepared) -> anyhow::Result<(Arc<Member>, DataDir)> {
        let Prepared {
            data_dir,
            identity,
            start: _,
            origin,
        } = prepared;
        let config = &self.config;
        let hub: Arc<OnceLock<Hub>> = Arc::default();
        let (store, applier) = open_store(&data_dir, self.disk.clone(), hub.clone(), self.counts.clone())?;
        if let Some(cluster) = store.cluster_id().filter(|cluster| *cluster != identity.cluster) {
            return Err(anyhow!(
                "{} holds data of cluster {cluster}, and this member is of cluster {}: the files in the data directory do \
                 not belong together",
                data_dir.store().display(),
                identity.cluster
            ));
        }
        self.state.opened(Roster {
            cluster: identity.cluster,
            told: origin.members().to_vec(),
            store: store.clone(),
        });
        let wal = open_wal(
            &data_dir,
            identity.incarnation,
            &store,
            self.disk,
            self.on_fatal.clone(),
        )?;
        data_dir.mark_log_made()?;
        let ids = |members: &[pb::Member]| members.iter().map(|member| member.id).collect::<BTreeSet<u64>>();
        let founders = match &origin {
            Origin::Founded(members) => ids(members),
            Origin::Joined(_) => BTreeSet::new(),
        };
        let network = Links::new(
            link::Identity {
                cluster: identity.cluster.0,
                member: identity.member.0,
                incarnation: identity.incarnation,
                boot: identity.boot,
                on_refused: on_refused(self.on_fatal.clone(), self.on_removed.clone()),
                is_known: is_known(store.clone()),
            },
            self.dialer,
            self.peer_metrics,
            book(store.clone(), origin.members().to_vec()),
            config.election_timeout,
            self.threads.handle().clone(),
        );
        let options = quorate_raft::Options {
            identity: quorate_raft::node::Identity {
                cluster: identity.cluster.0,
                member: identity.member.0,
                incarnation: identity.incarnation,
                boot: identity.boot,
                known: ids(origin.members()),
            },
            founders,
            heartbeat: config.heartbeat_interval,
            election: config.election_timeout,
            snapshot_count: config.snapshot_count,
            catchup_entries: config.snapshot_catchup_entries,
            observer: self.applied,
            purge_interval: PURGE_INTERVAL,
            lease_checkpoint_period: quorate_raft::lessor::CHECKPOINT_PERIOD,
            on_fatal: self.on_fatal,
            on_removed: self.on_removed,
            network: Arc::new(network),
            clock: Arc::new(Monotonic::default()),
        };
        let node = Node::start(self.threads, options, wal, store.clone(), applier)
            .with_context(|| format!("recover from the data in {}", config.data_dir.display()))?;
        let hub = hub::start(Arc::new(store), hub::options(message_bytes_max(config)), &hub)?;
        let member = Member::new(
            identity,
            origin.members().to_vec(),
            node,
            hub,
            limits(config),
            self.counts,
            Budget::new(ANSWER_BYTES),
        );
        Ok((Arc::new(member), data_dir))
    }
}

/// Where the other members are: as the table says, and before there is one, as this member was told.
fn book(store: Store, told: Vec<pb::Member>) -> Book {
    Arc::new(move |counted| {
        let members = match store.cluster_id() {
            Some(_) => store.members_and_leaving(counted),
            None => told.clone(),
        };
        let urls = |member: pb::Member| {
            let urls = member.peer_ur_ls.iter().filter_map(|url| Url::parse(url).ok());
            (member.id, urls.collect())
        };
        members.into_iter().map(urls).collect::<BTreeMap<_, _>>()
    })
}

/// Until the table says which incarnation it is, any may be the first.
fn is_known(store: Store) -> link::IsKnown {
    Arc::new(move |member, incarnation| {
        let known = store.incarnation(MemberId(member));
        known.is_none_or(|known| known == incarnation)
    })
}

/// What it means for this member when a peer refuses it.
fn on_refused(on_fatal: Arc<dyn Fn(String) + Send + Sync>, on_removed: Arc<dyn Fn() + Send + Sync>) -> link::OnRefused {
    Arc::new(move |reason, text| match reason {
        Reason::Removed => {
            info!(reason = text, "a peer says that this member has been removed");
            on_removed();
        }
        Reason::OtherIncarnation => on_fatal(text.to_owned()),
        _ => {}
    })
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
