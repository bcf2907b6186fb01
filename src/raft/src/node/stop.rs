//! Ends a node, within a time: everything that was acknowledged is in the log, so nothing waits for longer than it is
//! worth.

use super::{Node, Parts};
use crate::proposer::ProposeError;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tracing::warn;

/// Threads of the runtime may take this long to come to an end.
const THREADS_PATIENCE: Duration = Duration::from_millis(100);

/// What peers have asked for takes a write to the log.
const PEERS_PATIENCE: Duration = Duration::from_millis(200);

impl Node {
    /// Answers what was accepted, then closes log and store. What is not done within `limit` is left to the next start.
    /// Blocks; call it off the async threads.
    pub fn stop(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let left = || deadline.saturating_duration_since(Instant::now());
        let Some(runtime) = self.threads.lock().take().and_then(|mut threads| threads.take()) else {
            return;
        };
        self.parts.proposer.close();
        let _closed = runtime.block_on(async {
            self.drain(limit / 2).await;
            self.parts.stopping.store(true, Ordering::Release);
            self.parts.barrier.close();
            self.tasks.lock().drain(..).for_each(|task| task.abort());
            // Consensus calls it an error to be asked when it has ended, and this is none.
            let closed = timeout(left().min(PEERS_PATIENCE), self.parts.door.write()).await;
            if timeout(left(), self.parts.raft.shutdown()).await.is_err() {
                warn!("raft did not end in time");
            }
            closed
        });
        self.parts.proposer.abandon(ProposeError::Stopped);
        runtime.shutdown_timeout(left().min(THREADS_PATIENCE));
        self.parts.close_files(deadline);
    }

    async fn drain(&self, patience: Duration) {
        let drained = async {
            while !self.parts.proposer.is_idle() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if timeout(patience, drained).await.is_err() {
            let commands = self.parts.proposer.pending();
            warn!(commands, "commands left without an outcome at stop");
        }
    }
}

impl Parts {
    /// A disk may hang, and a store has up to hundreds of MiB to write: both are left to themselves after `deadline`.
    fn close_files(&self, deadline: Instant) {
        let (wal, store) = (self.wal.clone(), self.store.clone());
        let (tell, told) = mpsc::channel();
        let close = move || {
            let _ = tell.send(wal.close().map_err(|error| error.to_string()));
            let flushed = store.flush().map(drop).map_err(|error| error.to_string());
            // Let go of before it is told: whoever hears of it may open the file anew.
            drop(store);
            let _ = tell.send(flushed);
        };
        if let Err(error) = std::thread::Builder::new().name("close".into()).spawn(close) {
            warn!(%error, "log and store not closed; the next start will replay the log");
            return;
        }
        for what in ["log", "store"] {
            let closed = told.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            if let Err(error) = closed.unwrap_or_else(|_| Err("no time left".to_owned())) {
                warn!(what, error, "not closed in order; the next start will replay the log");
            }
        }
    }
}
