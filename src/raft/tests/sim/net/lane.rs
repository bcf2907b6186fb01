//! One lane of a link, on the side that asks.

use super::pipe::{Receiver, Sender, pipe};
use super::{Endpoint, IncarnationOf, Net, OnRefused, PATIENCE, serve};
use parking_lot::Mutex;
use quorate_api::proto::quorate::peer::{Hello, Ping, Refused};
use quorate_raft::peer::{Answer, PeerError, Reason, Request};
use quorate_store::planted::{self, Bug};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, interval, sleep, timeout};

/// As the real one's.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(250);
const WELCOME_PATIENCE: Duration = Duration::from_secs(5);

/// How often it is looked at whether the peer is there.
const LOOK_EVERY: Duration = Duration::from_millis(500);

type Answered = oneshot::Sender<Result<Answer, PeerError>>;
type Call = (Request, Answered);

/// Where calls enter.
#[derive(Default)]
pub struct Entrance(Mutex<Option<mpsc::UnboundedSender<Call>>>);

impl Entrance {
    pub fn call(&self, to: u64, request: Request, reply: Answered) {
        let unsent = match &*self.0.lock() {
            Some(calls) => match calls.send((request, reply)) {
                Ok(()) => return,
                Err(mpsc::error::SendError((_, reply))) => reply,
            },
            None => reply,
        };
        let _ = unsent.send(Err(unreachable(to)));
    }
}

fn unreachable(to: u64) -> PeerError {
    PeerError::Unreachable {
        to,
        reason: "not connected".to_owned(),
    }
}

pub struct Lane {
    pub net: Arc<Net>,
    /// Which of the lanes, for the trace.
    pub number: u64,
    pub hello: Hello,
    pub incarnation_of: IncarnationOf,
    pub entrance: Arc<Entrance>,
    pub up_since: Arc<Mutex<Option<Instant>>>,
    pub on_refused: OnRefused,
}

/// Why a connection ended or did not come about.
enum Ended {
    Refused(Refused),
    Gone,
}

struct Connection {
    requests: Sender<(u64, Request)>,
    answers: Receiver<(u64, Answer)>,
    peer: Endpoint,
}

impl Lane {
    /// Keeps the connection up until it is dropped.
    pub async fn run(self) {
        let mut pause = PAUSE_MIN;
        loop {
            let ended = match self.connect().await {
                Ok(connection) => {
                    pause = PAUSE_MIN;
                    let (calls, queue) = mpsc::unbounded_channel();
                    *self.entrance.0.lock() = Some(calls);
                    *self.up_since.lock() = Some(Instant::now());
                    self.session(connection, queue).await
                }
                Err(ended) => ended,
            };
            *self.entrance.0.lock() = None;
            *self.up_since.lock() = None;
            if let Ended::Refused(refused) = &ended {
                (self.on_refused)(refused.reason(), &refused.text);
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn connect(&self) -> Result<Connection, Ended> {
        let (from, to) = (self.hello.from, self.hello.to);
        sleep(self.net.latency(from, to)).await;
        if !self.net.passes(from, to) || !self.net.passes(to, from) {
            // Nobody answers.
            sleep(LOOK_EVERY).await;
            return Err(Ended::Gone);
        }
        let peer = self.net.endpoint(to).ok_or(Ended::Gone)?;
        let (requests, asked) = pipe(&self.net, from, to);
        let (answering, answers) = pipe(&self.net, to, from);
        let serving = serve::serve(self.net.clone(), self.number, peer.service.clone(), asked, answering);
        peer.process.spawn(serving);
        let mut connection = Connection {
            requests,
            answers,
            peer,
        };
        connection.requests.send((0, Request::Hello(self.hello)));
        match timeout(WELCOME_PATIENCE, connection.answers.next()).await {
            Ok(Some((_, Answer::Welcome(welcome)))) => {
                let known = (self.incarnation_of)(to);
                // Who came back without its data does not answer for what it had.
                let other = known.is_some_and(|known| known != welcome.incarnation);
                if other && !planted::is(Bug::WipedCounted) {
                    return Err(Ended::Gone);
                }
                Ok(connection)
            }
            Ok(Some((_, Answer::Refused(refused)))) => Err(Ended::Refused(refused)),
            _ => Err(Ended::Gone),
        }
    }

    async fn session(&self, mut connection: Connection, mut queue: mpsc::UnboundedReceiver<Call>) -> Ended {
        let (from, to) = (self.hello.from, self.hello.to);
        let mut waiting: BTreeMap<u64, Answered> = BTreeMap::new();
        let mut number = 0;
        let mut looks = interval(LOOK_EVERY);
        let reset = self.net.resets(from, to);
        let mut resets = std::pin::pin!(reset.notified());
        let ended = loop {
            tokio::select! {
                biased;
                () = &mut resets => break Ended::Gone,
                Some((request, reply)) = queue.recv() => {
                    number += 1;
                    waiting.insert(number, reply);
                    connection.requests.send((number, request));
                }
                answer = connection.answers.next() => {
                    let Some((number, answer)) = answer else { break Ended::Gone };
                    let reply = waiting.remove(&number);
                    let Answer::Refused(refused) = answer else {
                        reply.map(|reply| reply.send(Ok(answer)));
                        continue;
                    };
                    let reason = refused.reason();
                    let text = refused.text.clone();
                    reply.map(|reply| reply.send(Err(PeerError::Refused { to, reason, text })));
                    if !matches!(reason, Reason::Malformed | Reason::NotReady) {
                        break Ended::Refused(refused);
                    }
                    if reason == Reason::Malformed {
                        self.net.trace.fail(format_args!("{to} calls what {from} says malformed: {}", refused.text));
                    }
                }
                _ = looks.tick() => {
                    if self.is_silent(&connection.peer) {
                        break Ended::Gone;
                    }
                    // The answer may be that this member has been removed: who is let go of hears it in no other way.
                    number += 1;
                    connection.requests.send((number, Request::Ping(Ping {})));
                },
            }
        };
        // What is on its way may still arrive, though nobody hears of it any more.
        if self.net.dice.chance(50) {
            connection.requests.cut();
        }
        for (_, reply) in waiting {
            let _ = reply.send(Err(PeerError::Lost { to }));
        }
        queue.close();
        while let Ok((_, reply)) = queue.try_recv() {
            let _ = reply.send(Err(unreachable(to)));
        }
        ended
    }

    fn is_silent(&self, peer: &Endpoint) -> bool {
        let (from, to) = (self.hello.from, self.hello.to);
        let long = |since: Option<Instant>| since.is_some_and(|since| since.elapsed() > PATIENCE);
        long(self.net.way(from, to).cut) || long(self.net.way(to, from).cut) || long(peer.process.stopped_since())
    }
}
