//! Metrics of one node: where they are registered and the page a scraper reads.
//!
//! ```text
//!  components ── counter, gauge, histogram ──► prometheus::Registry ─┐
//!  gRPC counters (plain atomics), process, go ── Source ─────────────┼─► Page: sorted families ─► text
//! ```
//!
//! A component asks [`Registry`] for its metrics once and keeps the handles; nothing looks up a name or a label while
//! serving. Names, types, labels and buckets are etcd's wherever etcd has the metric, so that its dashboards and
//! alerts work unchanged. A registry belongs to a node, not to the process: two nodes in one test don't mix.

pub mod buckets;
mod exposition;
mod go_float;
mod grpc;
mod process;
mod registry;

pub use exposition::{Family, Kind, Page, labels};
pub use go_float::GoFloat;
pub use grpc::{GRPC_CODES, GrpcMetrics, MethodMetrics};
pub use registry::{Registry, Source};

/// etcd reports the Go release it was built with, and tools look for it. We say which one we stand in for.
pub const GO_VERSION: &str = "go1.26";

/// Goes with every page [`Registry::scrape`] returns.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";
