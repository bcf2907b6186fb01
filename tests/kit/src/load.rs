//! Many clients at work on a few keys, everything recorded, and judged when they are done.
//!
//! ```no_run
//! # use quorate_kit::{Binary, Cluster, Load};
//! let mut cluster = Cluster::of(&Binary::oracle()).members(3).start();
//! let load = Load::on(&cluster).clients(12).watchers(3).start();
//! load.wait_acknowledged(200);
//! let leader = cluster.wait_leader();
//! cluster[leader].kill();
//! load.wait_acknowledged(200);
//! cluster[leader].restart();
//! load.finish().check();
//! ```
//!
//! Clients put, get, compare-and-swap and delete under a prefix of their own, each with one request under way, and each
//! at one member, so that every member serves some. A watcher of everything is the record of what happened;
//! [`crate::check`] compares it, and those of the test, with what the clients were told.

mod act;
mod watching;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use quorate_api::proto::etcdserverpb::RangeRequest;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;

use crate::check::{self, Answer, History, Keys, Kv, Op, Outcome, Request, Truth, Watcher};
use crate::client::Client;
use crate::node::Config;
use crate::wait::{until, until_async};
use crate::{Cluster, background};

pub use watching::Watching;

/// Sets the seed of loads that are not given one.
const SEED: &str = "QUORATE_SEED";
/// What a cluster that is well again does with the last requests, and with watchers that lag behind.
const END_LIMIT: Duration = Duration::from_secs(30);
/// After a failure, so that a client of a dead member does not spin.
const AFTER_FAILURE: Duration = Duration::from_millis(20);

/// What a load is made of.
#[derive(Clone, Debug)]
pub struct Load {
    members: Vec<Config>,
    clients: usize,
    keys: usize,
    watchers: usize,
    think: Duration,
    timeout: Duration,
    retries: bool,
    seed: u64,
    /// Where the history goes when something is wrong with it.
    dir: PathBuf,
}

/// A load at work. It ends when dropped; [`Self::finish`] gives what it recorded.
#[derive(Debug)]
pub struct Running {
    load: Load,
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
    /// How each of them, and each watcher, gets at the members.
    ways: Vec<Way>,
    reference: Watching,
    watchers: Vec<Watching>,
}

/// A client of one member, or of all of them beginning with one.
#[derive(Debug)]
struct Way {
    client: Client,
    first: usize,
    all: bool,
}

#[derive(Debug)]
struct Shared {
    prefix: String,
    began: Instant,
    stop: AtomicBool,
    acknowledged: AtomicU64,
    recorded: Mutex<Recorded>,
}

#[derive(Debug, Default)]
struct Recorded {
    ops: Vec<Op>,
    errors: Vec<String>,
}

/// What happened.
#[derive(Debug)]
pub struct Record {
    pub history: History,
    /// What was said of each operation that failed or whose fate is unknown.
    pub errors: Vec<String>,
    pub watchers: Vec<Watcher>,
    reference: Watcher,
    seed: u64,
    dir: PathBuf,
}

impl Load {
    /// Through all members of `cluster`.
    pub fn on(cluster: &Cluster) -> Self {
        Self::through(cluster, &cluster.members())
    }

    /// Through these members only.
    pub fn through(cluster: &Cluster, members: &[usize]) -> Self {
        Self {
            members: members.iter().map(|member| cluster[*member].config.clone()).collect(),
            clients: 12,
            keys: 5,
            watchers: 0,
            think: Duration::from_millis(4),
            timeout: Duration::from_secs(3),
            retries: false,
            seed: std::env::var(SEED)
                .ok()
                .and_then(|seed| seed.parse().ok())
                .unwrap_or_else(rand::random),
            dir: cluster.dir().to_owned(),
        }
    }

    pub fn clients(mut self, clients: usize) -> Self {
        self.clients = clients;
        self
    }

    pub fn keys(mut self, keys: usize) -> Self {
        self.keys = keys;
        self
    }

    /// Besides the one that is always there, each at one member first.
    pub fn watchers(mut self, watchers: usize) -> Self {
        self.watchers = watchers;
        self
    }

    /// How long each client waits between an answer and the next request.
    pub fn thinking(mut self, think: Duration) -> Self {
        self.think = think;
        self
    }

    /// After which a request's fate counts as unknown.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Every client knows all members and retries as etcd's does.
    pub fn retrying(mut self) -> Self {
        self.retries = true;
        self
    }

    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// # Panics
    /// When no member serves within half a minute.
    pub fn start(self) -> Running {
        background::wait_for(self.begin())
    }

    async fn begin(self) -> Running {
        let unique = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos());
        let prefix = format!("load/{:x}-{unique:x}/", self.seed);
        let keys = Keys::prefix(prefix.clone());
        let all = self.client(0);
        let revision = until_async("a member to say its revision", END_LIMIT, || async {
            let range = RangeRequest {
                key: keys.first.clone(),
                ..RangeRequest::default()
            };
            all.range(&range).await.ok()?.header.map(|header| header.revision)
        })
        .await;
        let shared = Arc::new(Shared {
            prefix,
            began: Instant::now(),
            stop: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            recorded: Mutex::default(),
        });
        let mut ways = Vec::new();
        let mut way = |first, all| {
            let client = match all {
                true => self.client(first),
                false => self.client_at(first).without_retries(),
            };
            let known = client.clone();
            ways.push(Way {
                client: known,
                first,
                all,
            });
            client
        };
        let mut watch = |name: String, first| Watching::start(name, way(first, true), keys.clone(), revision + 1);
        let reference = watch("of everything".to_owned(), 0);
        let watchers = (0..self.watchers)
            .map(|number| watch(format!("{number}"), number))
            .collect();
        let clients = (0..self.clients)
            .map(|number| {
                let worker = Worker {
                    number,
                    client: way(number, self.retries).within(self.timeout),
                    random: StdRng::seed_from_u64(self.seed.wrapping_add(number as u64)),
                    keys: self.keys,
                    think: self.think,
                    shared: shared.clone(),
                    known: vec![None; self.keys],
                    written: 0,
                };
                tokio::spawn(worker.run())
            })
            .collect();
        Running {
            load: self,
            shared,
            clients,
            ways,
            reference,
            watchers,
        }
    }

    /// Of all members, beginning with one.
    fn client(&self, first: usize) -> Client {
        let members = self.members.iter().cycle().skip(first % self.members.len());
        Client::new(members.take(self.members.len()).map(Config::rpc).collect())
    }

    fn client_at(&self, member: usize) -> Client {
        Client::new(vec![self.members[member % self.members.len()].rpc()])
    }
}

impl Running {
    /// Requests that were answered so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until that many more are.
    pub fn wait_acknowledged(&self, more: u64) {
        let enough = self.acknowledged() + more;
        until(&format!("{more} more answers"), END_LIMIT, || {
            (self.acknowledged() >= enough).then_some(())
        });
    }

    /// Members have come or gone: clients go to those that are there now.
    pub fn follow(&mut self, cluster: &Cluster) {
        let members = cluster.members();
        self.load.members = members.iter().map(|member| cluster[*member].config.clone()).collect();
        let _runtime = background::handle().enter();
        for way in &self.ways {
            let from = self.load.members.iter().cycle().skip(way.first % members.len());
            let known = if way.all { members.len() } else { 1 };
            way.client.set_endpoints(from.take(known).map(Config::rpc).collect());
        }
    }

    /// Ends all clients, looks at every key once more, and waits until the watchers have seen everything. The cluster
    /// has to be well again.
    pub fn finish(mut self) -> Record {
        self.shared.stop.store(true, Ordering::Relaxed);
        let clients = std::mem::take(&mut self.clients);
        background::wait_for(async move {
            for client in clients {
                client.await.unwrap();
            }
        });
        let number = self.load.clients;
        let mut last = Worker {
            number,
            client: {
                let _runtime = background::handle().enter();
                self.load.client(0)
            },
            random: StdRng::seed_from_u64(self.load.seed),
            keys: self.load.keys,
            think: Duration::ZERO,
            shared: self.shared.clone(),
            known: vec![None; self.load.keys],
            written: 0,
        };
        let end = background::wait_for(async move {
            for key in 0..last.keys {
                last.perform(key, Request::Get { serializable: false }).await;
            }
            // a change that every watcher sees
            let deadline = Instant::now() + END_LIMIT;
            loop {
                let value = last.new_value();
                if let Outcome::Done(revision, _) = last.perform(0, Request::Put(value)).await {
                    return revision;
                }
                assert!(
                    Instant::now() < deadline,
                    "no write was acknowledged after the load for {END_LIMIT:?}"
                );
            }
        });
        let reference = self.reference.wait_until(end, END_LIMIT);
        let watchers = self
            .watchers
            .iter()
            .map(|watcher| watcher.wait_until(end, END_LIMIT))
            .collect();
        let recorded = std::mem::take(&mut *lock(&self.shared.recorded));
        Record {
            history: History { ops: recorded.ops },
            errors: recorded.errors,
            watchers,
            reference,
            seed: self.load.seed,
            dir: self.load.dir.clone(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for client in &self.clients {
            client.abort();
        }
    }
}

impl Record {
    /// # Panics
    /// When no correct store can have answered so. The history is then written to the cluster's directory.
    pub fn check(&self) {
        let truth = Truth::from_watcher(&self.reference);
        let judged = truth.and_then(|truth| check::all(&self.history, Some(&truth), &self.watchers));
        if let Err(violation) = judged {
            let path = self.dir.join("history.txt");
            let written = std::fs::write(&path, self.text());
            panic!(
                "{violation}\nseed {}, history in {}: {written:?}",
                self.seed,
                path.display()
            );
        }
        assert!(self.answered() > 0, "nothing was answered: {:?}", self.errors.first());
    }

    pub fn answered(&self) -> usize {
        let answered = |op: &&Op| matches!(op.outcome, Outcome::Done(..));
        self.history.ops.iter().filter(answered).count()
    }

    /// Operations that certainly did nothing.
    pub fn failed(&self) -> usize {
        self.history
            .ops
            .iter()
            .filter(|op| op.outcome == Outcome::Failed)
            .count()
    }

    /// Operations of which nobody knows whether they were done.
    pub fn unknown(&self) -> usize {
        self.history
            .ops
            .iter()
            .filter(|op| op.outcome == Outcome::Unknown)
            .count()
    }

    /// The longest time in which no change was acknowledged.
    pub fn longest_pause(&self) -> Duration {
        let changes = self.history.ops.iter().filter(|op| op.changed_at().is_some());
        let mut returns: Vec<u64> = changes.map(|op| op.returned).collect();
        returns.sort_unstable();
        let pauses = returns.windows(2).map(|pair| pair[1] - pair[0]);
        Duration::from_nanos(pauses.max().unwrap_or(0))
    }

    /// Everything, one to a line: operations by their call, then what the watchers got.
    fn text(&self) -> String {
        let mut ops: Vec<&Op> = self.history.ops.iter().collect();
        ops.sort_by_key(|op| op.called);
        let mut text: String = ops.into_iter().map(|op| format!("{op:?}\n")).collect();
        for watcher in std::iter::once(&self.reference).chain(&self.watchers) {
            text += &format!("watcher {} from {}\n", watcher.name, watcher.from);
            for batch in &watcher.batches {
                text += &format!("@{} {:?}\n", batch.revision, batch.events);
            }
        }
        text
    }
}

/// One client.
struct Worker {
    number: usize,
    client: Client,
    random: StdRng,
    keys: usize,
    think: Duration,
    shared: Arc<Shared>,
    /// The modification revision of each key as this client last saw it.
    known: Vec<Option<i64>>,
    written: u64,
}

impl Worker {
    async fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let key = self.random.random_range(0..self.keys);
            let request = match self.random.random_range(0..100) {
                0..35 => Request::Get { serializable: false },
                35..40 => Request::Get { serializable: true },
                40..70 => Request::Put(self.new_value()),
                70..92 => Request::Swap(self.known[key], self.new_value()),
                _ => Request::Delete,
            };
            let pause = match self.perform(key, request).await {
                Outcome::Done(..) => self.think,
                Outcome::Failed | Outcome::Unknown => self.think.max(AFTER_FAILURE),
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Every value is written once.
    fn new_value(&mut self) -> Bytes {
        self.written += 1;
        format!("{}-{}", self.number, self.written).into()
    }

    async fn perform(&mut self, number: usize, request: Request) -> Outcome {
        let key = Bytes::from(format!("{}{number}", self.shared.prefix));
        let called = self.shared.now();
        let done = act::perform(&self.client, &key, &request).await;
        let returned = self.shared.now();
        let outcome = match &done {
            Ok((revision, answer)) => {
                self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                self.known[number] = known(*revision, answer);
                Outcome::Done(*revision, answer.clone())
            }
            Err(status) if crate::client::nothing_was_done(status) || matches!(request, Request::Get { .. }) => {
                Outcome::Failed
            }
            Err(_) => Outcome::Unknown,
        };
        let mut recorded = lock(&self.shared.recorded);
        let op = Op {
            client: self.number,
            key,
            called,
            returned,
            request,
            outcome: outcome.clone(),
        };
        if let Err(status) = done {
            recorded.errors.push(format!("{op:?}: {status:?}"));
        }
        recorded.ops.push(op);
        outcome
    }
}

/// What the client now knows of the key's modification revision.
fn known(revision: i64, answer: &Answer) -> Option<i64> {
    match answer {
        Answer::Got(found) | Answer::NotSwapped(found) => found.as_ref().map(|kv: &Kv| kv.mod_revision),
        Answer::Put(_) | Answer::Swapped => Some(revision),
        Answer::Deleted(_) | Answer::NotDeleted => None,
    }
}

impl Shared {
    fn now(&self) -> check::Time {
        self.began.elapsed().as_nanos() as u64
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
