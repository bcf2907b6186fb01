//! One task per listener: takes connections and gives each a task of its own.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_runtime::tls::ServerTls;
use tracing::warn;

use super::limits::{HalfOpen, ListenLimits};
use super::slots::Slots;
use super::{Binding, Service, Stop, connection};
use crate::rpc::Api;

const BACKOFF_MIN: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// An error that lasts is reported this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// What all connections of a listener share.
pub(super) struct Listener<A> {
    pub(super) plaintext: bool,
    pub(super) tls: Option<Arc<ServerTls>>,
    pub(super) limits: ListenLimits,
    pub(super) half_open: Arc<HalfOpen>,
    pub(super) slots: Arc<Slots>,
    pub(super) stop: Stop,
    pub(super) service: Service<A>,
}

/// Accepts until told to stop. Errors are waited out: those of a single connection cost nothing, and running out of
/// descriptors passes when connections end.
pub(super) async fn run<A: Api>(binding: Binding, listener: Arc<Listener<A>>) {
    let drain = listener.stop.drain.clone();
    let mut backoff = BACKOFF_MIN;
    let mut reported = None;
    let mut crowded = None;
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.cancelled() => return,
            accepted = binding.accept() => accepted,
        };
        match accepted {
            Ok((socket, address)) => {
                backoff = BACKOFF_MIN;
                // One connection waits here, the rest in the kernel's queue.
                let slot = tokio::select! {
                    biased;
                    () = drain.cancelled() => return,
                    slot = listener.slots.enter(address.map(|address| address.ip())) => slot,
                };
                let Some(slot) = slot else {
                    if is_due(&mut crowded) {
                        warn!(remote_addr = ?address, "too many connections of one address, closing new ones");
                    }
                    continue;
                };
                let listener = Arc::clone(&listener);
                listener.stop.tasks.clone().spawn(async move {
                    connection::run(&listener, socket, address).await;
                    drop(slot);
                });
            }
            Err(error) if is_of_one_connection(&error) => {}
            // That of the peers ends with consensus, before its ports are closed.
            Err(error) if tokio::runtime::is_rt_shutdown_err(&error) => return,
            Err(error) => {
                if is_due(&mut reported) {
                    warn!(%error, address = binding.address(), "accept failed, trying again");
                }
                tokio::select! {
                    () = drain.cancelled() => return,
                    () = tokio::time::sleep(backoff) => {}
                }
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
        }
    }
}

/// Whether something that lasts is to be reported again.
fn is_due(reported: &mut Option<Instant>) -> bool {
    let due = reported.is_none_or(|last| last.elapsed() >= REPORT_INTERVAL);
    if due {
        *reported = Some(Instant::now());
    }
    due
}

/// The peer was gone before we looked.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}
