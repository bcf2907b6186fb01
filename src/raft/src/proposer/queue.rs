//! Commands that wait for their batch to leave, and how many batches may be on their way.

use crate::batch::Batch;
use crate::flights::Waiter;
use bytes::BytesMut;
use quorate_store::command::{self, Command};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A batch closes when it holds this much: beyond, the cost of a sync is shared anyway and peers would need larger
/// messages. A single larger command is a batch of its own.
const BATCH_BYTES: usize = 1 << 20;

/// Buffer of the first batch; later ones begin as large as the last one became.
const BATCH_BYTES_MIN: usize = 4 << 10;

/// Batches between "handed to consensus" and "applied here": one being written while the one before is applied.
pub const BATCHES_IN_FLIGHT: usize = 2;

#[derive(Default)]
pub struct Queue {
    pub batches: VecDeque<Building>,
    pub commands: usize,
    pub bytes: usize,
    /// Bytes of batches that left the queue and are not answered.
    pub in_flight: usize,
    /// Bytes of the last batch that went.
    last: usize,
}

pub struct Building {
    pub buffer: BytesMut,
    pub waiters: Vec<Waiter>,
    /// One of the commands can make the store larger.
    pub grows_store: bool,
}

impl Queue {
    /// Bytes on their way into the log.
    pub fn outstanding(&self) -> usize {
        self.bytes + self.in_flight
    }

    pub fn push(&mut self, command: &Command, grows_store: bool, waiter: Waiter) {
        let full = |building: &Building| Batch::commands_len(&building.buffer) >= BATCH_BYTES;
        if self.batches.back().is_none_or(full) {
            self.batches.push_back(Building {
                buffer: Batch::buffer(self.last.clamp(BATCH_BYTES_MIN, BATCH_BYTES)),
                waiters: Vec::new(),
                grows_store: false,
            });
        }
        if let Some(building) = self.batches.back_mut() {
            let before = building.buffer.len();
            command::encode_into(&mut building.buffer, command);
            building.waiters.push(waiter);
            building.grows_store |= grows_store;
            self.commands += 1;
            self.bytes += building.buffer.len() - before;
        }
    }

    /// The next batch, which is in flight from now on.
    pub fn pop(&mut self) -> Option<Building> {
        let building = self.batches.pop_front()?;
        let bytes = Batch::commands_len(&building.buffer);
        self.commands -= building.waiters.len();
        self.bytes -= bytes;
        self.in_flight += bytes;
        self.last = bytes;
        Some(building)
    }
}

/// Slots for batches in flight. A plain semaphore would tie a slot to a future; here apply gives it back.
pub struct Slots {
    free: AtomicUsize,
}

impl Default for Slots {
    fn default() -> Self {
        Self {
            free: AtomicUsize::new(BATCHES_IN_FLIGHT),
        }
    }
}

impl Slots {
    pub fn give_back(&self) {
        self.free.fetch_add(1, Ordering::Release);
    }

    pub fn try_take(&self) -> bool {
        self.free
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |free| free.checked_sub(1))
            .is_ok()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::batch::Origin;
    use quorate_api::proto::etcdserverpb::PutRequest;
    use tokio::sync::oneshot;

    pub fn put(bytes: usize) -> Command {
        Command::Put(PutRequest {
            key: "k".into(),
            value: vec![0; bytes].into(),
            ..Default::default()
        })
    }

    #[test]
    fn commands_share_a_batch_until_it_is_full() {
        let mut queue = Queue::default();
        for _ in 0..3 {
            queue.push(&put(600 << 10), true, oneshot::channel().0);
        }
        assert_eq!(
            queue.batches.iter().map(|b| b.waiters.len()).collect::<Vec<_>>(),
            [2, 1]
        );
        while queue.pop().is_some() {}
        assert_eq!((queue.commands, queue.bytes), (0, 0));
        assert_eq!(queue.outstanding(), queue.in_flight, "until they are answered");
    }

    /// A batch keeps its buffer for as long as the log remembers it: one small command after a large batch must not
    /// keep as much.
    #[test]
    fn a_small_batch_after_a_large_one_keeps_little_memory() {
        let mut queue = Queue::default();
        queue.push(&put(900 << 10), true, oneshot::channel().0);
        queue.pop().unwrap();
        queue.push(&put(10), true, oneshot::channel().0);
        let small = queue.pop().unwrap();
        assert!(small.buffer.capacity() >= 900 << 10, "ready for another large one");
        let origin = Origin {
            member: 1,
            boot: 1,
            sequence: 1,
        };
        assert!(Batch::seal(small.buffer, origin).kept_bytes() < 8 << 10);
    }
}
