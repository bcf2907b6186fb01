//! Counters per gRPC method. All series of the core services exist, as zeros, from the start, as rate queries need a
//! first point before the first event.
//!
//! A handler asks for its method's [`MethodMetrics`] once; counting is then one relaxed add on a cache line that no
//! other method shares.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::core::Metric as _;
use prometheus::{Histogram, HistogramOpts, Result};

use super::{Kind, Page, Source, buckets, labels};

/// Names of the gRPC status codes, at the index of their number.
pub const GRPC_CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
const UNKNOWN: usize = 2;

const UNARY: &str = "unary";
const BIDI: &str = "bidi_stream";
const SERVER: &str = "server_stream";

/// service, pre-filled with zeros, methods
type Service = (&'static str, bool, &'static [(&'static str, &'static str)]);

const SERVICES: [Service; 9] = [
    (
        "etcdserverpb.KV",
        true,
        &[
            ("Range", UNARY),
            ("RangeStream", SERVER),
            ("Put", UNARY),
            ("DeleteRange", UNARY),
            ("Txn", UNARY),
            ("Compact", UNARY),
        ],
    ),
    ("etcdserverpb.Watch", true, &[("Watch", BIDI)]),
    (
        "etcdserverpb.Lease",
        true,
        &[
            ("LeaseGrant", UNARY),
            ("LeaseRevoke", UNARY),
            ("LeaseKeepAlive", BIDI),
            ("LeaseTimeToLive", UNARY),
            ("LeaseLeases", UNARY),
        ],
    ),
    (
        "etcdserverpb.Cluster",
        true,
        &[
            ("MemberAdd", UNARY),
            ("MemberRemove", UNARY),
            ("MemberUpdate", UNARY),
            ("MemberList", UNARY),
            ("MemberPromote", UNARY),
        ],
    ),
    (
        "etcdserverpb.Maintenance",
        true,
        &[
            ("Alarm", UNARY),
            ("Status", UNARY),
            ("Defragment", UNARY),
            ("Hash", UNARY),
            ("HashKV", UNARY),
            ("Snapshot", SERVER),
            ("MoveLeader", UNARY),
            ("Downgrade", UNARY),
        ],
    ),
    (
        "etcdserverpb.Auth",
        true,
        &[
            ("AuthEnable", UNARY),
            ("AuthDisable", UNARY),
            ("AuthStatus", UNARY),
            ("Authenticate", UNARY),
            ("UserAdd", UNARY),
            ("UserGet", UNARY),
            ("UserList", UNARY),
            ("UserDelete", UNARY),
            ("UserChangePassword", UNARY),
            ("UserGrantRole", UNARY),
            ("UserRevokeRole", UNARY),
            ("RoleAdd", UNARY),
            ("RoleGet", UNARY),
            ("RoleList", UNARY),
            ("RoleDelete", UNARY),
            ("RoleGrantPermission", UNARY),
            ("RoleRevokePermission", UNARY),
        ],
    ),
    (
        "grpc.health.v1.Health",
        true,
        &[("Check", UNARY), ("Watch", SERVER), ("List", UNARY)],
    ),
    ("v3lockpb.Lock", false, &[("Lock", UNARY), ("Unlock", UNARY)]),
    (
        "v3electionpb.Election",
        false,
        &[
            ("Campaign", UNARY),
            ("Proclaim", UNARY),
            ("Leader", UNARY),
            ("Observe", SERVER),
            ("Resign", UNARY),
        ],
    ),
];

/// What is counted about one method.
#[derive(Debug)]
#[repr(align(64))]
pub struct MethodMetrics {
    started: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    handled: [AtomicU64; GRPC_CODES.len()],
    /// With `--metrics=extensive` only.
    seconds: Option<Histogram>,
    /// Shown before anything was counted.
    prefilled: bool,
    labels: String,
}

impl MethodMetrics {
    pub fn started(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    /// Messages that came from the client.
    pub fn received(&self, messages: u64) {
        self.received.fetch_add(messages, Ordering::Relaxed);
    }

    /// Messages that went to the client.
    pub fn sent(&self, messages: u64) {
        self.sent.fetch_add(messages, Ordering::Relaxed);
    }

    /// The call is over. Numbers that are no gRPC code count as `Unknown`.
    pub fn handled(&self, code: i32, took: Duration) {
        let index = usize::try_from(code)
            .ok()
            .filter(|index| *index < GRPC_CODES.len())
            .unwrap_or(UNKNOWN);
        self.handled[index].fetch_add(1, Ordering::Relaxed);
        if let Some(seconds) = &self.seconds {
            seconds.observe(took.as_secs_f64());
        }
    }

    fn shown(&self) -> bool {
        self.prefilled || self.started.load(Ordering::Relaxed) > 0
    }
}

/// The `grpc_server_*` families of a node.
#[derive(Debug)]
pub struct GrpcMetrics {
    /// In the order of the page: by method, then service.
    methods: Vec<Arc<MethodMetrics>>,
    by_path: HashMap<String, Arc<MethodMetrics>>,
    /// Code numbers in alphabetical order of their names.
    codes: [usize; GRPC_CODES.len()],
    extensive: bool,
}

impl GrpcMetrics {
    /// `extensive` adds the latency histogram.
    pub fn new(extensive: bool) -> Result<Self> {
        let mut methods = Vec::new();
        let mut by_path = HashMap::new();
        for (service, prefilled, names) in SERVICES {
            for (name, kind) in names {
                let seconds = if extensive { Some(latency()?) } else { None };
                let metrics = Arc::new(MethodMetrics {
                    started: AtomicU64::new(0),
                    received: AtomicU64::new(0),
                    sent: AtomicU64::new(0),
                    handled: Default::default(),
                    seconds,
                    prefilled,
                    labels: labels(&[("grpc_method", name), ("grpc_service", service), ("grpc_type", kind)]),
                });
                by_path.insert(format!("/{service}/{name}"), metrics.clone());
                methods.push(metrics);
            }
        }
        methods.sort_by(|a, b| a.labels.cmp(&b.labels));
        let mut codes = std::array::from_fn(|index| index);
        codes.sort_by_key(|code| GRPC_CODES[*code]);
        Ok(Self {
            methods,
            by_path,
            codes,
            extensive,
        })
    }

    /// `path` as on the wire: `/etcdserverpb.KV/Put`. For start-up, not for every call.
    pub fn method(&self, path: &str) -> Option<Arc<MethodMetrics>> {
        self.by_path.get(path).cloned()
    }

    fn shown(&self) -> impl Iterator<Item = &MethodMetrics> {
        self.methods.iter().map(Arc::as_ref).filter(|method| method.shown())
    }

    fn write_plain(&self, page: &mut Page, name: &'static str, help: &str, value: fn(&MethodMetrics) -> &AtomicU64) {
        let mut family = page.family(name, help, Kind::Counter);
        for method in self.shown() {
            family.sample(&method.labels, value(method).load(Ordering::Relaxed) as f64);
        }
    }
}

fn latency() -> Result<Histogram> {
    Histogram::with_opts(HistogramOpts::new("grpc_server_handling_seconds", "latency").buckets(buckets::B11.to_vec()))
}

impl Source for GrpcMetrics {
    fn write(&self, page: &mut Page) {
        self.write_plain(
            page,
            "grpc_server_started_total",
            "Calls that began on the server.",
            |m| &m.started,
        );
        let help = "Messages received from clients.";
        self.write_plain(page, "grpc_server_msg_received_total", help, |m| &m.received);
        self.write_plain(page, "grpc_server_msg_sent_total", "Messages sent to clients.", |m| {
            &m.sent
        });

        let help = "Calls that ended on the server, by status code.";
        let mut family = page.family("grpc_server_handled_total", help, Kind::Counter);
        for code in self.codes {
            let code_label = labels(&[("grpc_code", GRPC_CODES[code])]);
            for method in self.shown() {
                let count = method.handled[code].load(Ordering::Relaxed);
                if method.prefilled || count > 0 {
                    family.sample_parts(&[&code_label, &method.labels], count as f64);
                }
            }
        }
        if self.extensive {
            let help = "Seconds from the start of a call to its end.";
            let mut family = page.family("grpc_server_handling_seconds", help, Kind::Histogram);
            for method in self.shown() {
                let Some(seconds) = &method.seconds else {
                    continue;
                };
                let metric = seconds.metric();
                let histogram = metric.get_histogram();
                let bounds = histogram
                    .get_bucket()
                    .iter()
                    .map(|b| (b.upper_bound(), b.cumulative_count()));
                family.histogram(
                    &method.labels,
                    bounds,
                    histogram.get_sample_sum(),
                    histogram.get_sample_count(),
                );
            }
        }
    }
}
