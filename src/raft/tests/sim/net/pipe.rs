//! One direction of a connection.

use super::Net;
use quorate_raft::runtime::watch;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

pub fn pipe<T>(net: &Arc<Net>, from: u64, to: u64) -> (Sender<T>, Receiver<T>) {
    let (tx, rx) = mpsc::unbounded_channel();
    let cut = Arc::<AtomicBool>::default();
    let sender = Sender {
        net: net.clone(),
        from,
        to,
        tx,
        last: Instant::now(),
        cut: cut.clone(),
    };
    let receiver = Receiver {
        net: net.clone(),
        from,
        to,
        rx,
        front: None,
        cut,
        changed: net.changed.subscribe(),
    };
    (sender, receiver)
}

pub struct Sender<T> {
    net: Arc<Net>,
    from: u64,
    to: u64,
    tx: mpsc::UnboundedSender<(Instant, T)>,
    last: Instant,
    cut: Arc<AtomicBool>,
}

impl<T> Sender<T> {
    pub fn send(&mut self, what: T) {
        // Never before what was sent earlier.
        self.last = self.last.max(Instant::now() + self.net.latency(self.from, self.to));
        let _ = self.tx.send((self.last, what));
    }

    /// Nothing that is on its way arrives any more.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }
}

pub struct Receiver<T> {
    net: Arc<Net>,
    from: u64,
    to: u64,
    rx: mpsc::UnboundedReceiver<(Instant, T)>,
    front: Option<(Instant, T)>,
    cut: Arc<AtomicBool>,
    changed: watch::Receiver<u64>,
}

impl<T> Receiver<T> {
    /// The next to arrive; `None` when the other end is gone and everything has arrived. May be dropped and called again.
    pub async fn next(&mut self) -> Option<T> {
        if self.front.is_none() {
            self.front = self.rx.recv().await;
        }
        loop {
            while !self.net.passes(self.from, self.to) {
                // Its sender is the net.
                let _ = self.changed.changed().await;
            }
            let Some((at, _)) = &self.front else { return None };
            if self.cut.load(Ordering::Relaxed) {
                return None;
            }
            if *at <= Instant::now() {
                return self.front.take().map(|(_, what)| what);
            }
            sleep_until(*at).await;
        }
    }
}
