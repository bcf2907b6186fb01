//! One world: its members, who uses it, what goes wrong, and what must hold at the end.

use crate::clients::{Asked, Client};
use crate::dice::Dice;
use crate::leases::{Lease, SLACK};
use crate::machine::{Crash, ELECTION, Ending, Life, Machine, QUICK, Surroundings};
use crate::net::Net;
use crate::plan::Plan;
use crate::tap::Tap;
use crate::trace::Trace;
use crate::{faults, leases, operator, several, watchers};
use parking_lot::Mutex;
use quorate_api::MemberId;
use quorate_api::proto::etcdserverpb::{Member, PutRequest};
use quorate_kit::check::{self, History, Watcher};
use quorate_raft::Node;
use quorate_store::command::Command;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// After everything is healed, a write through any member is done within so many election timeouts.
const PROGRESS_ELECTIONS: u32 = 16;

pub struct World {
    pub plan: Plan,
    pub around: Arc<Surroundings>,
    pub machines: Mutex<BTreeMap<u64, Machine>>,
    pub clients: Dice,
    pub faults: Dice,
    pub history: Mutex<History>,
    pub seen: Mutex<Vec<Seen>>,
    pub several: Mutex<Vec<several::Done>>,
    pub watchers: Mutex<Vec<Watcher>>,
    pub leases: Mutex<Vec<Lease>>,
    /// Members whose removal was asked for, and not refused.
    pub removing: Mutex<BTreeSet<u64>>,
    over: AtomicBool,
    /// What every watcher has to be told.
    last: AtomicI64,
    given_up: AtomicBool,
}

/// An answer's revision, at the member that gave it.
pub struct Seen {
    pub member: u64,
    pub boot: u64,
    pub called: u64,
    pub returned: u64,
    pub revision: i64,
}

/// How a world went.
#[derive(Default)]
pub struct Report {
    pub seed: u64,
    pub failure: Option<String>,
    pub last: Vec<String>,
    pub hash: u64,
    pub done: usize,
    pub unknown: usize,
    pub revisions: i64,
    pub terms: usize,
    pub snapshots: u64,
    pub defragmented: u64,
}

thread_local! {
    static PANICKED: RefCell<Option<String>> = const { RefCell::new(None) };
    static QUIET: RefCell<bool> = const { RefCell::new(false) };
}

/// A task that panics is silent to all but who waits for it. In a world that is a failure.
fn hear_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if QUIET.with_borrow(|quiet| *quiet) {
                PANICKED.with_borrow_mut(|panicked| _ = panicked.get_or_insert(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
}

/// Lives through the world of a seed, as its plan is after `change`.
pub fn run_changed(seed: u64, print: bool, change: impl FnOnce(&mut Plan)) -> Report {
    hear_panics();
    PANICKED.set(None);
    QUIET.set(true);
    let mut report = in_world(seed, print, change, World::live);
    QUIET.set(false);
    report.seed = seed;
    if let Some(panicked) = PANICKED.take() {
        report.failure = Some(format!("panicked: {panicked}"));
    }
    report
}

/// The same for what goes on in it.
pub fn in_world<T, L: Future<Output = T>>(
    seed: u64,
    print: bool,
    change: impl FnOnce(&mut Plan),
    live: impl FnOnce(Arc<World>) -> L,
) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        // From here on the time stands at whole milliseconds of the runtime's own.
        sleep(Duration::from_millis(1)).await;
        live(World::new(seed, print, change)).await
    })
}

pub fn run(seed: u64, print: bool) -> Report {
    run_changed(seed, print, |_| {})
}

impl World {
    fn new(seed: u64, print: bool, change: impl FnOnce(&mut Plan)) -> Arc<Self> {
        let root = Dice::new(seed);
        let mut plan = Plan::new(&root);
        change(&mut plan);
        plan.settle();
        let trace = Arc::new(Trace::new(print));
        trace.note(format_args!("{plan:?}"));
        let net = Net::new(
            Dice::new(root.seed()),
            trace.clone(),
            plan.duplicates,
            plan.snapshots_cut,
        );
        let around = Arc::new(Surroundings {
            net,
            tap: Arc::new(Tap::new(trace.clone())),
            trace,
            dice: Dice::new(root.seed()),
            leaders: Mutex::default(),
            ending: Notify::new(),
            defragmented: AtomicU64::new(0),
            snapshot_count: plan.snapshot_count,
            catchup_entries: plan.catchup_entries,
        });
        let founders: BTreeSet<u64> = (1..=plan.members).collect();
        let machine = |id: &u64| {
            let machine = Machine::new(*id, around.dice.seed() | 1, founders.clone(), founders.clone());
            (*id, machine)
        };
        Arc::new(Self {
            machines: Mutex::new(founders.iter().map(machine).collect()),
            plan,
            clients: Dice::new(root.seed()),
            faults: Dice::new(root.seed()),
            around,
            history: Mutex::default(),
            seen: Mutex::default(),
            several: Mutex::default(),
            watchers: Mutex::default(),
            leases: Mutex::default(),
            removing: Mutex::default(),
            over: AtomicBool::new(false),
            last: AtomicI64::new(0),
            given_up: AtomicBool::new(false),
        })
    }

    async fn live(self: Arc<Self>) -> Report {
        let ended = tokio::spawn(self.clone().bury());
        let founders: Vec<u64> = self.machines.lock().keys().copied().collect();
        for id in founders {
            let world = self.clone();
            let late = self.faults.millis(0..200);
            tokio::spawn(async move {
                sleep(late).await;
                world.start(id);
            });
        }
        sleep(Duration::from_millis(800)).await;
        let mut users: Vec<JoinHandle<()>> = Vec::new();
        for number in 0..self.plan.clients {
            users.push(tokio::spawn(Client::new(number, self.clone()).run()));
        }
        for number in 0..self.plan.several {
            users.push(tokio::spawn(several::run(self.clone(), number)));
        }
        for number in 0..self.plan.leases {
            users.push(tokio::spawn(leases::run(self.clone(), number + 1)));
        }
        let mut watching: Vec<JoinHandle<()>> = Vec::new();
        for number in 0..self.plan.watchers {
            watching.push(tokio::spawn(watchers::run(self.clone(), number)));
        }
        let terms = self.around.leaders.lock().len();
        let trouble = self.trouble();
        sleep(Duration::from_millis(self.plan.trouble_ms)).await;
        trouble.iter().for_each(JoinHandle::abort);
        self.heal();
        let verdict = self.end(users, watching).await;
        let later = self.around.leaders.lock().len() - terms;
        if self.plan.quiet && later > 0 {
            let why = "leaders were deposed by members that had been cut off";
            self.around.trace.fail(format_args!("{why}, {later} times"));
        }
        if let Err(what) = verdict {
            self.around.trace.fail(what);
        }
        ended.abort();
        self.report()
    }

    /// Everything that goes on beside the clients.
    fn trouble(self: &Arc<Self>) -> Vec<JoinHandle<()>> {
        let plan = &self.plan;
        let mut trouble = vec![tokio::spawn(faults::run(self.clone()))];
        if plan.compacts {
            trouble.push(tokio::spawn(operator::compact(self.clone())));
        }
        if plan.transfers {
            trouble.push(tokio::spawn(operator::transfer(self.clone())));
        }
        if plan.reconfigures {
            trouble.push(tokio::spawn(operator::reconfigure(self.clone())));
        }
        if plan.loses_disk {
            trouble.push(tokio::spawn(operator::lose_disk(self.clone())));
        }
        trouble
    }

    fn report(&self) -> Report {
        let machines = &mut *self.machines.lock();
        for machine in machines.values_mut() {
            machine.crash(&self.around, Crash::Kill);
        }
        let trace = &self.around.trace;
        let history = self.history.lock();
        let unknown = |op: &&check::Op| op.outcome == check::Outcome::Unknown;
        let unknown = history.ops.iter().filter(unknown).count();
        Report {
            failure: trace.failure(),
            last: trace.last(),
            hash: trace.hash(),
            done: history.ops.len() - unknown,
            unknown,
            revisions: self.around.tap.newest(),
            terms: self.around.leaders.lock().len(),
            snapshots: self.around.net.snapshots(),
            defragmented: self.around.defragmented.load(Ordering::Relaxed),
            ..Report::default()
        }
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// What the newest state of the members table that anybody has says.
    pub fn table(&self) -> Option<Vec<Member>> {
        let machines = self.machines.lock();
        let lives = machines.values().filter_map(|machine| machine.life.as_ref());
        let newest = lives.max_by_key(|life| life.store.applied_index())?;
        newest.store.cluster_id()?;
        Some(newest.store.members())
    }

    pub fn leader(&self) -> Option<u64> {
        let machines = self.machines.lock();
        let serving = machines.values().filter_map(Machine::serving);
        let leads = |(_, node): &(_, Arc<Node>)| node.leader() == Some(node.member());
        serving
            .filter(leads)
            .max_by_key(|(_, node)| node.term())
            .map(|(_, node)| node.member())
    }

    /// How many members say that `leader` leads.
    pub fn followed(&self, leader: u64) -> usize {
        let machines = self.machines.lock();
        let serving = machines.values().filter_map(Machine::serving);
        serving.filter(|(_, node)| node.leader() == Some(leader)).count()
    }

    /// Whether every member knows whose data directory `member` has.
    pub fn all_know(&self, member: u64) -> bool {
        let machines = self.machines.lock();
        let mut others = machines
            .values()
            .filter(|machine| machine.id != member && !machine.gone);
        others.all(|machine| {
            let store = machine.life.as_ref().map(|life| &life.store);
            store.is_some_and(|store| store.incarnation(MemberId(member)).is_some())
        })
    }

    /// The revision that every watcher has to come to, when it is known.
    pub fn final_revision(&self) -> Option<i64> {
        Some(self.last.load(Ordering::Relaxed)).filter(|last| *last > 0)
    }

    pub fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    pub fn serving(&self, member: u64) -> Option<(Arc<Life>, Arc<Node>)> {
        self.machines.lock().get(&member)?.serving()
    }

    pub fn some_member(&self) -> u64 {
        let ids: Vec<u64> = self.machines.lock().keys().copied().collect();
        self.clients.pick(&ids).copied().unwrap_or(1)
    }

    pub fn start(&self, member: u64) {
        let table = self.table();
        let mut machines = self.machines.lock();
        if let Some(machine) = machines.get_mut(&member)
            && machine.life.is_none()
            && !machine.gone
        {
            // One that joins is told who is there.
            if let Some(table) = table.filter(|_| machine.boot == 0 && machine.founders.is_empty()) {
                machine.known.extend(table.iter().map(|member| member.id));
            }
            machine.start(&self.around);
        }
    }

    pub fn crash(&self, member: u64, how: Crash) {
        if let Some(machine) = self.machines.lock().get_mut(&member) {
            machine.crash(&self.around, how);
        }
    }

    /// Ends processes that want to end.
    async fn bury(self: Arc<Self>) {
        loop {
            self.around.ending.notified().await;
            for machine in self.machines.lock().values_mut() {
                let Some(ending) = machine.life.as_ref().and_then(|life| life.ending.lock().clone()) else {
                    continue;
                };
                let expected = match &ending {
                    Ending::Fatal(_) => machine.failing,
                    Ending::Removed => self.removing.lock().contains(&machine.id),
                    Ending::Refused(_) => machine.wiped || self.removing.lock().contains(&machine.id),
                };
                if !expected {
                    self.around.trace.fail(format_args!("{} ended: {ending:?}", machine.id));
                }
                let how = if machine.failing { Crash::Power } else { Crash::Kill };
                let again = machine.failing;
                machine.gone |= !again;
                machine.crash(&self.around, how);
                if again {
                    let (world, id) = (self.clone(), machine.id);
                    tokio::spawn(async move {
                        sleep(Duration::from_millis(300)).await;
                        world.start(id);
                    });
                }
            }
        }
    }

    /// Nothing is wrong any more, and everybody who may runs.
    fn heal(&self) {
        self.around.trace.note("all is well again");
        self.around.net.heal();
        let all: Vec<u64> = {
            let machines = self.machines.lock();
            for machine in machines.values() {
                machine.pace.send_replace(QUICK);
                machine.log.fail_sync(u64::MAX / 2);
                if let Some(life) = &machine.life {
                    life.process.go_on();
                }
            }
            machines.keys().copied().collect()
        };
        all.into_iter().for_each(|id| self.start(id));
    }

    /// Those that are members, and have all that they should have.
    pub fn whole(&self) -> Vec<u64> {
        let machines = self.machines.lock();
        // One whose removal is under way may end at any time.
        let removing = self.removing.lock();
        let whole = machines
            .values()
            .filter(|machine| !machine.gone && !machine.wiped && !removing.contains(&machine.id));
        whole.map(|machine| machine.id).collect()
    }

    async fn end(self: &Arc<Self>, users: Vec<JoinHandle<()>>, watching: Vec<JoinHandle<()>>) -> Result<(), String> {
        self.progress().await?;
        self.over.store(true, Ordering::Relaxed);
        for user in users {
            user.await.map_err(|error| error.to_string())?;
        }
        let ttl = self.leases.lock().iter().map(|lease| lease.ttl).max();
        sleep(ttl.map_or(Duration::ZERO, |ttl| ttl + SLACK)).await;
        self.settle().await?;
        self.last.store(self.around.tap.newest(), Ordering::Relaxed);
        let world = self.clone();
        let patience = tokio::spawn(async move {
            sleep(ELECTION * PROGRESS_ELECTIONS).await;
            world.given_up.store(true, Ordering::Relaxed);
        });
        for watcher in watching {
            watcher.await.map_err(|error| error.to_string())?;
        }
        patience.abort();
        let begun = Instant::now();
        while let Err(what) = self.judge_members() {
            // Whoever was removed hears of it when it asks.
            if begun.elapsed() > ELECTION * PROGRESS_ELECTIONS {
                return Err(what);
            }
            sleep(Duration::from_millis(100)).await;
        }
        self.judge_leases()?;
        self.judge()
    }

    /// Those that were removed or have lost their disk have ended; all others are there.
    fn judge_members(&self) -> Result<(), String> {
        let table = self.table().ok_or("there is no members table")?;
        let machines = self.machines.lock();
        // Who knows only members that are gone, as one that was away for long may, has nobody to hear it from.
        let may_hear = |machine: &Machine| {
            let told = machine.life.iter().flat_map(|life| life.store.members());
            let mut known = told.map(|member| member.id).chain(machine.known.iter().copied());
            known.any(|id| {
                let is_there = machines.get(&id).is_some_and(|other| other.life.is_some());
                is_there && table.iter().any(|member| member.id == id)
            })
        };
        for machine in machines.values() {
            let is_member = table.iter().any(|member| member.id == machine.id);
            if is_member && !machine.wiped && machine.life.is_none() {
                return Err(format!("{} is a member and has ended", machine.id));
            }
            let must_end = machine.wiped || !is_member && may_hear(machine);
            if must_end && machine.life.is_some() {
                return Err(format!("{} is no member (any more) and goes on", machine.id));
            }
        }
        Ok(())
    }

    /// Every member takes a write.
    async fn progress(self: &Arc<Self>) -> Result<(), String> {
        let healed = Instant::now();
        for member in self.whole() {
            loop {
                let put = Command::Put(PutRequest {
                    key: format!("progress/{member}").into(),
                    ..Default::default()
                });
                if let Asked::Done(Ok(_)) = self.command(member, ELECTION * PROGRESS_ELECTIONS, put).await {
                    break;
                }
                if healed.elapsed() > ELECTION * PROGRESS_ELECTIONS {
                    return Err(format!(
                        "no write through {member} within {:?} of healing",
                        healed.elapsed()
                    ));
                }
                sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    /// All members come to the same state.
    async fn settle(self: &Arc<Self>) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            let pictures = self.pictures();
            let same = pictures.windows(2).all(|two| two[0].1 == two[1].1);
            if same && pictures.len() == self.whole().len() {
                return Ok(());
            }
            if begun.elapsed() > ELECTION * PROGRESS_ELECTIONS {
                return Err(format!("members differ for good: {pictures:#?}"));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// What each shows.
    fn pictures(&self) -> Vec<(u64, String)> {
        let picture = |member: &u64| {
            let (_, node) = self.serving(*member)?;
            let store = node.store();
            let hash = store.hash_kv(0).ok()?;
            let leases = store.leases();
            let attached: Vec<_> = leases.iter().map(|lease| store.lease_keys(lease.id)).collect();
            let members = store.members();
            Some((*member, format!("{hash:?} {leases:?} {attached:?} {members:?}")))
        };
        self.whole().iter().filter_map(picture).collect()
    }

    fn judge(&self) -> Result<(), String> {
        let truth = self.around.tap.truth().map_err(|error| error.to_string())?;
        let history = self.history.lock();
        let watchers = self.watchers.lock();
        check::all(&history, Some(&truth), &watchers).map_err(|error| error.to_string())?;
        let several = self.several.lock();
        self.around
            .tap
            .with_all(|applied| several::judge(&several, applied.iter()))?;
        never_back(&mut self.seen.lock())
    }
}

/// What a member said is never followed there by something older, from start to end of its process.
fn never_back(seen: &mut [Seen]) -> Result<(), String> {
    seen.sort_by_key(|seen| (seen.member, seen.boot, seen.returned));
    for life in seen.chunk_by(|a, b| (a.member, a.boot) == (b.member, b.boot)) {
        let mut newest = Vec::with_capacity(life.len());
        let mut so_far = 0;
        for one in life {
            so_far = so_far.max(one.revision);
            newest.push(so_far);
        }
        for one in life {
            let before = life.partition_point(|other| other.returned < one.called);
            if let Some(before) = before.checked_sub(1)
                && newest[before] > one.revision
            {
                return Err(format!(
                    "{} answered with revision {} and later with {}",
                    one.member, newest[before], one.revision
                ));
            }
        }
    }
    Ok(())
}
