//! The network between the members of a cluster, one pair and one direction at a time.
//!
//! ```text
//!   member 0 ──dials──▶ link port of 1 ┐             ┌─▶ peer port of 1 ── member 1
//!                                      ├─ this module ┤
//!   member 2 ──dials──▶ link port of 1 ┘             └─▶ peer port of 1
//! ```
//!
//! The peer URL that a member advertises is the port of a proxy in front of it. All members dial the same URL, so the
//! proxy asks the kernel which process a connection belongs to ([`owner`]), once per connection, and so knows both
//! ends. Faults belong to an *ordered* pair, whoever dialled: what is cut from 0 to 1 stops both on connections that 0
//! opened and as the answers on connections that 1 opened. Bytes are only moved, so TLS passes untouched, unless bits are
//! to be flipped.
//!
//! Cut bytes are not lost but late, as TCP makes it: they are sent when the link heals, if both ends still want the
//! connection. A connection dialled into a cut hangs; nobody hears about an end that lies beyond a cut. Connections of
//! processes that are no members (a test's own) pass as if there were no faults.

mod owner;
mod pump;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::node::RunningPid;
use crate::{background, ports};
use owner::Owner;
use pump::End;

/// How often a connection that waits for a healed link looks whether its dialler still waits.
const HANG_UP_POLL: Duration = Duration::from_millis(200);

/// What happens to bytes on the way from one member to another. The default is: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// Bytes stop; connections are neither closed nor answered.
    pub cut: bool,
    /// Connections are closed, and new ones as soon as they are made.
    pub refuse: bool,
    pub delay: Duration,
    /// Up to this much more delay, each time. Bytes stay in order.
    pub jitter: Duration,
    /// All connections of the pair together.
    pub bytes_per_s: Option<u32>,
    /// In one of so many parts, as they come off the socket, a bit is flipped.
    pub flips_one_in: Option<u32>,
}

/// All proxies of a cluster. They end when this is dropped.
#[derive(Debug)]
pub struct Links {
    shared: Arc<Shared>,
    proxies: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    pairs: Mutex<HashMap<(usize, usize), Arc<Pair>>>,
    members: Mutex<HashMap<usize, RunningPid>>,
}

/// One direction between two members.
#[derive(Debug)]
struct Pair {
    /// On connections that the sender dialled, and on those that the other did.
    lines: [watch::Sender<Line>; 2],
    carried: AtomicU64,
    /// When the last byte that was let through has passed, at the rate allowed.
    passed: Mutex<Instant>,
}

/// Who dialled the connection that bytes are on.
#[derive(Clone, Copy, Debug)]
enum Dialled {
    BySender,
    ByReceiver,
}

#[derive(Clone, Copy, Debug, Default)]
struct Line {
    fault: Fault,
    /// Connections made before the last of these are closed.
    resets: u64,
}

impl Default for Links {
    fn default() -> Self {
        Self::new()
    }
}

impl Links {
    pub fn new() -> Self {
        Self {
            shared: Arc::default(),
            proxies: Vec::new(),
        }
    }

    /// Puts a proxy before `member`, which listens on `target`, and gives the port to advertise instead.
    pub fn put_before(&mut self, member: usize, target: u16, process: RunningPid) -> u16 {
        let port = ports::free();
        self.put_before_at(member, target, process, port);
        port
    }

    /// The same when the port to advertise is chosen already.
    pub fn put_before_at(&mut self, member: usize, target: u16, process: RunningPid, port: u16) {
        lock(&self.shared.members).insert(member, process);
        let shared = self.shared.clone();
        let listener = background::wait_for(async move { TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await });
        let listener = listener.unwrap_or_else(|error| panic!("listen on link port {port}: {error}"));
        let proxy = shared.clone().serve(listener, port, member, target);
        self.proxies.push(background::handle().spawn(proxy));
    }

    /// Sets what happens from `from` to `to`; `change` starts from what is set already.
    pub fn set(&self, from: usize, to: usize, change: impl Fn(&mut Fault)) {
        self.shared.pair(from, to).modify(|line| change(&mut line.fault));
    }

    pub fn fault(&self, from: usize, to: usize) -> Fault {
        self.shared.pair(from, to).line(Dialled::BySender).borrow().fault
    }

    /// Nothing that `from` sends arrives at `to`. The other way stays as it is.
    pub fn cut(&self, from: usize, to: usize) {
        self.set(from, to, |fault| fault.cut = true);
    }

    /// Nothing passes between the two.
    pub fn cut_between(&self, one: usize, other: usize) {
        self.cut(one, other);
        self.cut(other, one);
    }

    /// Nothing passes between any of `these` and any of `those`.
    pub fn partition(&self, these: &[usize], those: &[usize]) {
        for (one, other) in these
            .iter()
            .flat_map(|one| those.iter().map(move |other| (*one, *other)))
        {
            self.cut_between(one, other);
        }
    }

    /// Nothing passes between `member` and all others.
    pub fn isolate(&self, member: usize) {
        self.partition(&[member], &self.others(member));
    }

    /// Nobody hears `member`, which hears everybody.
    pub fn mute(&self, member: usize) {
        for other in self.others(member) {
            self.cut(member, other);
        }
    }

    /// `member` hears nobody, but is heard.
    pub fn deafen(&self, member: usize) {
        for other in self.others(member) {
            self.cut(other, member);
        }
    }

    /// Nothing passes on connections that were dialled to `member`, as when its peer port is blocked; on those that it
    /// dials, everything does.
    pub fn shut(&self, member: usize) {
        for other in self.others(member) {
            let cut = |from, to, dialled| {
                let pair = self.shared.pair(from, to);
                pair.line(dialled).send_modify(|line| line.fault.cut = true);
            };
            cut(other, member, Dialled::BySender);
            cut(member, other, Dialled::ByReceiver);
        }
    }

    /// Closes all connections between the two, once. New ones are let through.
    pub fn reset(&self, one: usize, other: usize) {
        for (from, to) in [(one, other), (other, one)] {
            self.shared.pair(from, to).modify(|line| line.resets += 1);
        }
    }

    /// Closes all connections between the two and every new one.
    pub fn refuse(&self, one: usize, other: usize) {
        self.set(one, other, |fault| fault.refuse = true);
        self.set(other, one, |fault| fault.refuse = true);
    }

    /// Each byte from `from` takes `delay` and up to `jitter` more to reach `to`.
    pub fn delay(&self, from: usize, to: usize, delay: Duration, jitter: Duration) {
        self.set(from, to, |fault| {
            fault.delay = delay;
            fault.jitter = jitter;
        });
    }

    /// Delays everything between all members.
    pub fn delay_all(&self, delay: Duration, jitter: Duration) {
        self.each_pair(|from, to| self.delay(from, to, delay, jitter));
    }

    pub fn throttle(&self, from: usize, to: usize, bytes_per_s: u32) {
        assert_ne!(bytes_per_s, 0, "a rate of nothing is a cut");
        self.set(from, to, |fault| fault.bytes_per_s = Some(bytes_per_s));
    }

    /// Flips a bit in one of so many parts between any two members.
    pub fn flip_all(&self, one_in: u32) {
        self.each_pair(|from, to| self.set(from, to, |fault| fault.flips_one_in = Some(one_in)));
    }

    /// Ends every fault from `from` to `to`.
    pub fn heal(&self, from: usize, to: usize) {
        self.set(from, to, |fault| *fault = Fault::default());
    }

    /// Ends every fault.
    pub fn heal_all(&self) {
        self.each_pair(|from, to| self.heal(from, to));
    }

    /// Bytes that have passed from `from` to `to` since the links were made.
    pub fn carried_bytes(&self, from: usize, to: usize) -> u64 {
        self.shared.pair(from, to).carried.load(Ordering::Relaxed)
    }

    fn others(&self, member: usize) -> Vec<usize> {
        let members = lock(&self.shared.members);
        members.keys().copied().filter(|other| *other != member).collect()
    }

    fn each_pair(&self, each: impl Fn(usize, usize)) {
        let members: Vec<usize> = lock(&self.shared.members).keys().copied().collect();
        for from in &members {
            for to in members.iter().filter(|to| *to != from) {
                each(*from, *to);
            }
        }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        for proxy in &self.proxies {
            proxy.abort(); // its connections are its own and end with it
        }
    }
}

impl Shared {
    fn pair(&self, from: usize, to: usize) -> Arc<Pair> {
        lock(&self.pairs).entry((from, to)).or_default().clone()
    }

    async fn serve(self: Arc<Self>, listener: TcpListener, port: u16, member: usize, target: u16) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, dialler)) => {
                        connections.spawn(self.clone().carry(stream, dialler, port, member, target));
                    }
                    // out of descriptors, or the dialler is gone already
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    async fn carry(self: Arc<Self>, stream: TcpStream, dialler: SocketAddr, port: u16, member: usize, target: u16) {
        let (forth, back) = match self.dialler(dialler, port).await {
            Some(Owner::Member(from)) => (self.pair(from, member), self.pair(member, from)),
            // a pair of its own, on which nobody sets anything
            Some(Owner::Other) => Default::default(),
            None => return reset(&stream),
        };
        let lines = [forth.line(Dialled::BySender), back.line(Dialled::ByReceiver)];
        let resets = lines.map(|line| line.borrow().resets);
        if !lets_through(lines[0].subscribe(), &stream).await {
            return reset(&stream);
        }
        let Ok(onward) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else {
            return reset(&stream); // nobody listens there
        };
        let _ = stream.set_nodelay(true);
        let _ = onward.set_nodelay(true);
        let (from_dialler, mut to_dialler) = stream.into_split();
        let (from_member, mut to_member) = onward.into_split();
        let there = pump::pump(&from_dialler, &mut to_member, &forth, lines[0].subscribe(), resets[0]);
        let here = pump::pump(&from_member, &mut to_dialler, &back, lines[1].subscribe(), resets[1]);
        if !both(there, here).await {
            reset(from_dialler.as_ref());
            reset(from_member.as_ref());
            to_dialler.forget(); // no polite end before the reset
            to_member.forget();
        }
    }

    /// Which process dialled; none when that can't be told any more.
    async fn dialler(&self, dialler: SocketAddr, port: u16) -> Option<Owner> {
        let members: Vec<(usize, i32)> = lock(&self.members)
            .iter()
            .filter_map(|(member, process)| process.get().map(|pid| (*member, pid)))
            .collect();
        let found = tokio::task::spawn_blocking(move || owner::of(dialler, port, &members));
        found.await.ok().flatten()
    }
}

impl Pair {
    fn line(&self, dialled: Dialled) -> &watch::Sender<Line> {
        &self.lines[dialled as usize]
    }

    fn modify(&self, change: impl Fn(&mut Line)) {
        for line in &self.lines {
            line.send_modify(&change);
        }
    }

    /// How many of `bytes` may pass now, or when some may.
    fn admit(&self, bytes: usize, rate: Option<u32>) -> Result<usize, Instant> {
        let Some(rate) = rate else { return Ok(bytes) };
        let now = Instant::now();
        let mut passed = lock(&self.passed);
        if *passed > now {
            return Err(*passed);
        }
        // about 10 ms of the rate at once: smooth, yet few steps
        let part = bytes.min((rate / 100).max(1) as usize);
        *passed = now + Duration::from_secs_f64(part as f64 / f64::from(rate));
        Ok(part)
    }
}

impl Default for Pair {
    fn default() -> Self {
        Self {
            lines: [(); 2].map(|()| watch::Sender::new(Line::default())),
            carried: AtomicU64::new(0),
            passed: Mutex::new(Instant::now()),
        }
    }
}

/// Waits while nothing passes; false when the connection ends instead.
async fn lets_through(mut line: watch::Receiver<Line>, stream: &TcpStream) -> bool {
    loop {
        let fault = line.borrow_and_update().fault;
        if fault.refuse {
            return false;
        }
        if !fault.cut {
            return true;
        }
        tokio::select! {
            changed = line.changed() => if changed.is_err() { return false },
            () = tokio::time::sleep(HANG_UP_POLL) => {
                let ready = stream.ready(Interest::READABLE).now_or_never();
                if ready.is_some_and(|ready| ready.map_or(true, |ready| ready.is_read_closed())) {
                    return false;
                }
            }
        }
    }
}

/// Until both directions have ended, each in its own time, or one of them ends the connection: then false.
async fn both(there: impl Future<Output = End>, here: impl Future<Output = End>) -> bool {
    let (mut there, mut here) = (std::pin::pin!(there), std::pin::pin!(here));
    let (mut there_open, mut here_open) = (true, true);
    while there_open || here_open {
        let end = tokio::select! {
            end = &mut there, if there_open => { there_open = false; end }
            end = &mut here, if here_open => { here_open = false; end }
        };
        match end {
            // what became of a sink that failed is told by what is read from it, when the link lets that through
            End::Finished | End::SinkFailed => {}
            End::SourceFailed | End::Reset => return false,
        }
    }
    true
}

/// The connection ends with RST when it is dropped, as that of a process that is gone.
fn reset(stream: &TcpStream) {
    let _: io::Result<()> = stream.set_zero_linger(); // dropped without it, the end is only politer
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
