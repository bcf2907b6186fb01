//! Hooks through which the transport tells metrics what happens. They are called on the hot path, so an implementation
//! looks nothing up by name: [`Method::index`] leads straight to the counters.

use std::time::Duration;

use quorate_api::Code;

use super::{CallContext, Method};

/// Hears about every call of a known method. All hooks default to nothing.
pub trait RpcObserver: Send + Sync + 'static {
    /// The headers of a call were read.
    fn started(&self, _method: Method, _call: &CallContext) {}

    /// A whole request message was read; `bytes` counts the message without its prefix.
    fn received(&self, _method: Method, _bytes: usize) {}

    /// Reply messages were handed to the connection; `bytes` counts them without their prefixes.
    fn sent(&self, _method: Method, _messages: usize, _bytes: usize) {}

    /// A call ended; exactly once per `started`. Calls that the client abandoned end as [`Code::Canceled`].
    fn handled(&self, _method: Method, _code: Code, _took: Duration) {}
}

/// Hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl RpcObserver for NoObserver {}
