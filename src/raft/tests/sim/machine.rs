//! A member: what stays of it on its disks, and one life after the other.

use crate::dice::Dice;
use crate::net::{Links, Net};
use crate::tap::Tap;
use crate::trace::Trace;
use parking_lot::Mutex;
use quorate_api::MemberId;
use quorate_api::proto::etcdserverpb::Member;
use quorate_api::proto::quorate::peer::Hello;
use quorate_api::proto::quorate::{ClusterInit, MemberPublish};
use quorate_raft::lessor::Clock;
use quorate_raft::node::Identity;
use quorate_raft::peer::{Network, PROTOCOL, Reason};
use quorate_raft::runtime::{Process, watch as cell};
use quorate_raft::{Node, Options};
use quorate_store::command::Command;
use quorate_store::event::EventBatch;
use quorate_store::testing::{ALL_CASES, MemDisk, MemPlace, Rng, Survives};
use quorate_store::watch::{self, Hub};
use quorate_store::{Applier, EventSink, Store, backend};
use quorate_wal::disk::{FaultyDisk, Tear};
use quorate_wal::{LogPos, Wal};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

pub const CLUSTER: u64 = 0xc1;
pub const HEARTBEAT: Duration = Duration::from_millis(100);
pub const ELECTION: Duration = Duration::from_millis(500);

/// What lives of all members have in common.
pub struct Surroundings {
    pub net: Arc<Net>,
    pub tap: Arc<Tap>,
    pub trace: Arc<Trace>,
    pub dice: Dice,
    /// Leaders, by their term.
    pub leaders: Mutex<std::collections::BTreeMap<u64, u64>>,
    /// A member's process wants to end.
    pub ending: Notify,
    /// Files that a copy without gaps has taken the place of.
    pub defragmented: AtomicU64,
    pub snapshot_count: u64,
    pub catchup_entries: u64,
}

/// How fast a member's disks are.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub sync_ms: u64,
    /// Between two commits of the store.
    pub commit_ms: u64,
    pub hangs: bool,
}

pub const QUICK: Pace = Pace {
    sync_ms: 3,
    commit_ms: 40,
    hangs: false,
};

/// A member's lease clock, which is a little fast or slow. Rates are in thousandths.
#[derive(Debug)]
pub struct Drifting(Mutex<(Instant, Duration, u32)>);

impl Drifting {
    pub fn new() -> Self {
        Self(Mutex::new((Instant::now(), Duration::ZERO, 1000)))
    }

    pub fn set(&self, thousandths: u32) {
        let now = self.now();
        *self.0.lock() = (Instant::now(), now, thousandths);
    }
}

impl Clock for Drifting {
    fn now(&self) -> Duration {
        let (since, then, rate) = *self.0.lock();
        then + since.elapsed() * rate / 1000
    }
}

/// Why a process wants to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    Fatal(String),
    Removed,
    Refused(String),
}

pub struct Machine {
    pub id: u64,
    /// Of the data directory.
    pub incarnation: u64,
    pub boot: u64,
    pub log: FaultyDisk,
    pub place: MemPlace,
    pub founders: BTreeSet<u64>,
    pub known: BTreeSet<u64>,
    pub pace: Arc<cell::Sender<Pace>>,
    pub clock: Arc<Drifting>,
    pub life: Option<Arc<Life>>,
    /// Its data is gone: it has to be refused.
    pub wiped: bool,
    /// It was removed, or told so, and is not started again.
    pub gone: bool,
    /// Its disk fails: that ends it, and may.
    pub failing: bool,
}

/// From one start to one end.
pub struct Life {
    pub process: Process,
    pub member: u64,
    pub boot: u64,
    pub store: Store,
    pub hub: Hub,
    pub node: OnceLock<Arc<Node>>,
    pub ending: Mutex<Option<Ending>>,
    pub serves: AtomicBool,
    log_stepper: Mutex<quorate_wal::Stepper>,
    store_stepper: quorate_store::Stepper,
}

/// How a process ends.
#[derive(Clone, Copy, Debug)]
pub enum Crash {
    /// What was written is there.
    Kill,
    /// What was not synced is lost, or some of it, or torn.
    Power,
}

struct Sink {
    member: u64,
    tap: Arc<Tap>,
    hub: Arc<OnceLock<Hub>>,
}

impl EventSink for Sink {
    fn publish(&self, batches: Vec<Arc<EventBatch>>) {
        self.tap.applied(self.member, &batches);
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

pub fn name(member: u64) -> String {
    format!("m{member}")
}

fn url(member: u64) -> String {
    format!("http://m{member}:1")
}

pub fn founding(ids: &BTreeSet<u64>) -> Vec<Member> {
    let member = |id: &u64| Member {
        id: *id,
        name: name(*id),
        peer_ur_ls: vec![url(*id)],
        ..Default::default()
    };
    ids.iter().map(member).collect()
}

pub fn peer_urls(member: u64) -> Vec<String> {
    vec![url(member)]
}

impl Machine {
    pub fn new(id: u64, incarnation: u64, founders: BTreeSet<u64>, known: BTreeSet<u64>) -> Self {
        Self {
            id,
            incarnation,
            boot: 0,
            log: FaultyDisk::new(),
            place: MemPlace::crashable(),
            founders,
            known,
            pace: Arc::new(cell::Sender::new(QUICK)),
            clock: Arc::new(Drifting::new()),
            life: None,
            wiped: false,
            gone: false,
            failing: false,
        }
    }

    /// Its process, where it runs and serves.
    pub fn serving(&self) -> Option<(Arc<Life>, Arc<Node>)> {
        let life = self.life.as_ref()?;
        let node = life.node.get()?;
        life.serves
            .load(Ordering::Relaxed)
            .then(|| (life.clone(), node.clone()))
    }

    pub fn start(&mut self, around: &Arc<Surroundings>) {
        assert!(self.life.is_none());
        self.boot += 1;
        let (id, boot) = (self.id, self.boot);
        around.trace.note(format_args!("{id} starts, boot {boot}"));
        match self.open(around) {
            Ok(life) => self.life = Some(life),
            Err(error) => around
                .trace
                .fail(format_args!("{id} can't open what is on its disks: {error}")),
        }
    }

    fn open(&self, around: &Arc<Surroundings>) -> Result<Arc<Life>, String> {
        let id = self.id;
        let process = Process::new(around.dice.seed());
        let ending = Arc::<OnceLock<std::sync::Weak<Life>>>::default();
        let ends = {
            let (around, ending) = (around.clone(), ending.clone());
            move |how: Ending| {
                let Some(life) = ending.get().and_then(std::sync::Weak::upgrade) else {
                    return;
                };
                around.trace.note(format_args!("{} wants to end: {how:?}", life.member));
                life.ending.lock().get_or_insert(how);
                around.ending.notify_one();
            }
        };
        let hub_cell = Arc::<OnceLock<Hub>>::default();
        let sink = Sink {
            member: id,
            tap: around.tap.clone(),
            hub: hub_cell.clone(),
        };
        let stored = quorate_store::Options {
            backend: backend::Options {
                reserve_bytes: 0,
                cache_bytes: 1 << 20,
                ..backend::Options::default()
            },
            value_cache_bytes: 16 << 10,
            ..quorate_store::Options::default()
        };
        let store_work = Arc::new(Notify::new());
        let wake = |work: &Arc<Notify>| {
            let work = work.clone();
            move || work.notify_one()
        };
        let (store, applier, store_stepper) =
            Store::open_stepped(Box::new(self.place.clone()), stored, Box::new(sink), wake(&store_work))
                .map_err(|error| format!("store: {error:?}"))?;
        let durable = store.durable().last;
        let log_may_end_before = store.installed() == Some(durable);
        let log_options = quorate_wal::Options {
            segment_bytes: 16 << 10,
            cache_bytes: 32 << 10,
            owner: self.incarnation,
            applied: (durable.index > 0 && !log_may_end_before).then_some(LogPos {
                term: durable.term,
                index: durable.index,
            }),
            on_fatal: {
                let ends = ends.clone();
                Arc::new(move |error| ends(Ending::Fatal(format!("log: {error}"))))
            },
            ..quorate_wal::Options::new("/wal")
        };
        let log_work = Arc::new(Notify::new());
        let (wal, _, log_stepper) = Wal::open_stepped(log_options, Arc::new(self.log.clone()), wake(&log_work))
            .map_err(|error| format!("log: {error:?}"))?;
        let hub_work = Arc::new(Notify::new());
        let hub_options = watch::Options {
            outbox_bytes_max: 4 << 10,
            inbox_bytes_max: 32 << 10,
            response_bytes: 2 << 10,
            recent_batches: 8,
            ..watch::Options::default()
        };
        let (hub, hub_stepper) = Hub::stepped(Arc::new(store.clone()), hub_options, wake(&hub_work));
        let _ = hub_cell.set(hub.clone());
        let life = Arc::new(Life {
            process: process.clone(),
            member: id,
            boot: self.boot,
            store: store.clone(),
            hub,
            node: OnceLock::new(),
            ending: Mutex::default(),
            serves: AtomicBool::new(false),
            log_stepper: Mutex::new(log_stepper),
            store_stepper: store_stepper.clone(),
        });
        let _ = ending.set(Arc::downgrade(&life));
        process.spawn(turn_log(life.clone(), around.clone(), self.pace.subscribe(), log_work));
        process.spawn(turn_store(
            (store_stepper, store.clone(), self.place.clone()),
            around.clone(),
            self.pace.subscribe(),
            store_work,
        ));
        process.spawn(turn_hub(hub_stepper, hub_work));
        let (network, options) = self.options(around, &process, &store, ends);
        let known = self.known.clone();
        let incarnation = self.incarnation;
        let running = life.clone();
        let around = around.clone();
        process.spawn(async move {
            running
                .run(around, options, network, wal, applier, known, incarnation)
                .await
        });
        Ok(life)
    }

    fn options(
        &self,
        around: &Arc<Surroundings>,
        process: &Process,
        store: &Store,
        ends: impl Fn(Ending) + Clone + Send + Sync + 'static,
    ) -> (Arc<Links>, Options) {
        let known = self.known.clone();
        let book_store = store.clone();
        let on_refused = {
            let ends = ends.clone();
            move |reason: Reason, text: &str| match reason {
                Reason::Removed => ends(Ending::Removed),
                Reason::OtherIncarnation => ends(Ending::Refused(text.to_owned())),
                _ => {}
            }
        };
        let network = Arc::new(Links {
            net: around.net.clone(),
            process: process.clone(),
            hello: Hello {
                protocol: PROTOCOL,
                cluster_id: CLUSTER,
                from: self.id,
                to: 0,
                incarnation: self.incarnation,
                boot: self.boot,
            },
            incarnation_of: {
                let store = store.clone();
                Arc::new(move |member| store.incarnation(MemberId(member)))
            },
            book: Arc::new(move |counted| match book_store.cluster_id() {
                Some(_) => {
                    let members = book_store.members_and_leaving(counted);
                    members.into_iter().map(|member| member.id).collect()
                }
                None => known.clone(),
            }),
            on_refused: Arc::new(on_refused),
            peers: Mutex::default(),
        });
        let fatal = ends.clone();
        let options = Options {
            identity: Identity {
                cluster: CLUSTER,
                member: self.id,
                incarnation: self.incarnation,
                boot: self.boot,
                known: self.known.clone(),
            },
            founders: self.founders.clone(),
            heartbeat: HEARTBEAT,
            election: ELECTION,
            snapshot_count: around.snapshot_count,
            catchup_entries: around.catchup_entries,
            purge_interval: Duration::from_millis(200),
            on_fatal: Arc::new(move |reason| fatal(Ending::Fatal(reason))),
            on_removed: Arc::new(move || ends(Ending::Removed)),
            network: network.clone(),
            clock: self.clock.clone(),
            ..Options::alone(self.id)
        };
        (network, options)
    }

    /// Ends its process, however it stands.
    pub fn crash(&mut self, around: &Surroundings, how: Crash) {
        let Some(life) = self.life.take() else { return };
        around.trace.note(format_args!("{} ends: {how:?}", self.id));
        around.net.detach(self.id);
        life.process.stop();
        if matches!(how, Crash::Power) && around.dice.chance(60) {
            // In the middle of a write, to the log or to the store.
            self.log.cut_power_after(around.dice.below(4));
            life.log_stepper.lock().step();
            self.place.disk().fail_write_after(around.dice.below(12));
            let _ = life.store_stepper.commit();
        }
        life.log_stepper.lock().kill();
        life.process.end();
        let (tear, survives) = match how {
            Crash::Kill => (Tear::Keep, Survives::All),
            Crash::Power => {
                let tears = [
                    Tear::Lose,
                    Tear::LoseFirst,
                    Tear::LoseLast,
                    Tear::Mix(around.dice.seed()),
                ];
                let tear = tears[around.dice.below(4) as usize];
                (tear, ALL_CASES[around.dice.below(5) as usize])
            }
        };
        self.log.power_loss(tear);
        self.place = self.place.power_loss(survives, &mut Rng(around.dice.seed()));
        self.failing = false;
    }

    /// Everything that it had is gone, and it comes back under its old id.
    pub fn wipe(&mut self, around: &Surroundings) {
        self.crash(around, Crash::Kill);
        self.log = FaultyDisk::new();
        self.place = MemPlace::crashable();
        self.incarnation = around.dice.seed() | 1;
        self.wiped = true;
    }
}

impl Life {
    #[allow(clippy::too_many_arguments, reason = "taken apart at once")]
    async fn run(
        self: Arc<Self>,
        around: Arc<Surroundings>,
        options: Options,
        network: Arc<Links>,
        wal: Wal,
        applier: Applier,
        known: BTreeSet<u64>,
        incarnation: u64,
    ) {
        network.members_changed(&BTreeSet::new());
        let id = self.member;
        let node = match Node::launch(options, wal, self.store.clone(), applier).await {
            Ok(node) => node,
            Err(error) => return around.trace.fail(format_args!("{id} does not start: {error}")),
        };
        let _ = self.node.set(node.clone());
        around.net.attach(id, self.process.clone(), node.service());
        self.process.spawn(watch_leaders(node.clone(), around.clone()));
        if let Err(error) = introduce(&node, &known, incarnation).await {
            around
                .trace
                .note(format_args!("{id} can't make itself known: {error:?}"));
            self.ending
                .lock()
                .get_or_insert(Ending::Refused(error.text().to_owned()));
            around.ending.notify_one();
            return;
        }
        self.serves.store(true, Ordering::Relaxed);
        around.trace.note(format_args!("{id} serves"));
    }
}

/// As the server does before it serves clients.
async fn introduce(node: &Arc<Node>, known: &BTreeSet<u64>, incarnation: u64) -> Result<(), quorate_api::Error> {
    const PATIENCE: Duration = Duration::from_secs(6);
    let (store, id) = (node.store(), node.member());
    while !matches!(timeout(PATIENCE, node.barrier().pass()).await, Ok(Ok(()))) {
        sleep(Duration::from_millis(100)).await;
    }
    if store.cluster_id().is_none() {
        let init = ClusterInit {
            cluster_id: CLUSTER,
            members: founding(known),
        };
        patiently(node, &Command::ClusterInit(init)).await?;
    }
    let same = store
        .member(MemberId(id))
        .is_some_and(|member| !member.client_ur_ls.is_empty());
    if !same || store.incarnation(MemberId(id)) != Some(incarnation) {
        let publish = MemberPublish {
            id,
            name: name(id),
            client_urls: vec![format!("http://m{id}:2")],
            incarnation,
        };
        patiently(node, &Command::MemberPublish(publish)).await?;
    }
    Ok(())
}

async fn patiently(node: &Arc<Node>, command: &Command) -> Result<(), quorate_api::Error> {
    loop {
        match timeout(Duration::from_secs(6), node.propose(command)).await {
            Ok(Ok(outcome)) => return outcome.result.map(drop),
            _ => sleep(Duration::from_millis(100)).await,
        }
    }
}

/// One leader a term, whoever is asked.
async fn watch_leaders(node: Arc<Node>, around: Arc<Surroundings>) {
    let mut led = node.led();
    loop {
        let now = *led.borrow_and_update();
        if let Some(leader) = now.leader {
            let mut leaders = around.leaders.lock();
            let known = *leaders.entry(now.term).or_insert_with(|| {
                around.trace.note(format_args!("{leader} leads term {}", now.term));
                leader
            });
            if known != leader {
                around.trace.fail(format_args!(
                    "{known} and {leader} lead term {}, says {}",
                    now.term,
                    node.member()
                ));
            }
        }
        if led.changed().await.is_err() {
            return;
        }
    }
}

async fn turn_log(life: Arc<Life>, around: Arc<Surroundings>, mut pace: cell::Receiver<Pace>, work: Arc<Notify>) {
    loop {
        work.notified().await;
        loop {
            let sync_ms = pace.borrow_and_update().sync_ms;
            sleep(around.dice.millis(0..sync_ms + 1)).await;
            if pace.wait_for(|pace| !pace.hangs).await.is_err() {
                return;
            }
            around.trace.mark(&[8, life.member]);
            let more = life.log_stepper.lock().step();
            if !more {
                break;
            }
        }
    }
}

async fn turn_store(
    (stepper, store, place): (quorate_store::Stepper, Store, MemPlace),
    around: Arc<Surroundings>,
    mut pace: cell::Receiver<Pace>,
    work: Arc<Notify>,
) {
    loop {
        // Reads stand in the way of compaction, and nobody tells when they are gone.
        let _ = timeout(Duration::from_millis(500), work.notified()).await;
        let commit_ms = pace.borrow_and_update().commit_ms;
        sleep(around.dice.millis(1..commit_ms + 2)).await;
        if pace.wait_for(|pace| !pace.hangs).await.is_err() {
            return;
        }
        let done = stepper.commit().and_then(|more| Ok(stepper.compact(5)? | more));
        if around.dice.chance(2) {
            defragment(&store, &place, &around);
        }
        match done {
            Ok(true) => work.notify_one(),
            Ok(false) => {}
            // What it means for the process is said by who needs the file.
            Err(_) => return,
        }
    }
}

/// Now and then on a disk that fails meanwhile, which is no business of the store's.
fn defragment(store: &Store, place: &MemPlace, around: &Surroundings) {
    const NEVER: u64 = 1 << 60;
    if around.dice.chance(30) && !place.has_incoming() {
        let disk = MemDisk::crashable();
        disk.fail_write_after(around.dice.below(30));
        place.make_next_of(disk);
    }
    if store.defragment().is_ok() {
        place.disk().fail_write_after(NEVER);
        around.defragmented.fetch_add(1, Ordering::Relaxed);
    }
}

async fn turn_hub(mut stepper: watch::Stepper, work: Arc<Notify>) {
    loop {
        work.notified().await;
        while stepper.step() {
            let _ = timeout(Duration::from_millis(50), work.notified()).await;
        }
    }
}
