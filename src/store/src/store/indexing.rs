//! The index of a snapshot that is coming in, made beside the writing of its rows.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use crate::backend::{Error, OnRows, StreamRow, decode_meta};
use crate::mvcc::index::Index;
use crate::mvcc::restoring::Restoring;

/// Commits whose rows may wait. Each has some MiB.
const COMMITS: usize = 2;

/// Begins with the first rows, on a thread that has the niceness of the one that brings them.
#[derive(Clone, Default)]
pub(super) struct Indexing(Arc<Mutex<Option<Worker>>>);

struct Worker {
    rows: SyncSender<Vec<StreamRow>>,
    thread: JoinHandle<Result<Index, Error>>,
}

impl Indexing {
    pub fn takes(self) -> OnRows {
        Box::new(move |rows| {
            if rows.is_empty() {
                return Ok(());
            }
            let mut worker = self.0.lock();
            let worker = match &mut *worker {
                Some(worker) => worker,
                none => none.insert(Worker::start()?),
            };
            // One that is gone has found an error, and tells it at the end.
            let _ = worker.rows.send(rows);
            Ok(())
        })
    }

    /// All rows have come.
    pub fn finish(self) -> Result<Index, Error> {
        let Some(Worker { rows, thread }) = self.0.lock().take() else {
            return Ok(Index::default());
        };
        drop(rows);
        match thread.join() {
            Ok(index) => index,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Worker {
    fn start() -> Result<Self, Error> {
        let (rows, brought) = sync_channel::<Vec<StreamRow>>(COMMITS);
        let work = move || {
            let mut index = Restoring::default();
            for row in brought.iter().flatten() {
                index.add(&decode_meta(row.id, &row.meta)?);
            }
            Ok(index.finish())
        };
        let thread = std::thread::Builder::new().name("index".into()).spawn(work);
        let thread = thread.map_err(|source| Error::Disk {
            doing: "start a thread",
            source: Arc::new(source),
        })?;
        Ok(Self { rows, thread })
    }
}
