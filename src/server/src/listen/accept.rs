//! One task per listener: takes connections and gives each a task of its own.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_runtime::tls::ServerTls;
use tokio::sync::Semaphore;
use tracing::warn;

use super::limits::{HalfOpen, ListenLimits};
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
    pub(super) stop: Stop,
    pub(super) service: Service<A>,
}

/// Accepts until told to stop. Errors are waited out: those of a single connection cost nothing, and running out of
/// descriptors passes when connections end.
pub(super) async fn run<A: Api>(binding: Binding, listener: Arc<Listener<A>>) {
    let slots = Arc::new(Semaphore::new(
        listener.limits.connections_max.clamp(1, Semaphore::MAX_PERMITS),
    ));
    let drain = listener.stop.drain.clone();
    let mut backoff = BACKOFF_MIN;
    let mut reported: Option<Instant> = None;
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await.ok();
            (binding.accept().await, slot)
        };
        let (accepted, slot) = tokio::select! {
            biased;
            () = drain.cancelled() => return,
            next = next => next,
        };
        match accepted {
            Ok((socket, address)) => {
                backoff = BACKOFF_MIN;
                let listener = Arc::clone(&listener);
                listener.stop.tasks.clone().spawn(async move {
                    connection::run(&listener, socket, address).await;
                    drop(slot);
                });
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                if reported.is_none_or(|last| last.elapsed() >= REPORT_INTERVAL) {
                    reported = Some(Instant::now());
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

/// The peer was gone before we looked.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}
