//! Every flag there is. Command line, environment, configuration file, `--help` and the refusal of what this release
//! can't do yet all read this one table, so they can't disagree.
//!
//! Names and defaults are etcd 3.7.1's.

use super::value::Kind;
use FileKey::{At, Nowhere, Same};
use Section::{Auth, Clustering, Limits, Logging, Member, Monitoring, Process, Security, Unsafe, Upkeep};
use Support::{Dropped, Full, NotYet};

/// One setting.
#[derive(Debug)]
pub(super) struct Flag {
    pub name: &'static str,
    pub kind: Kind,
    /// As one would write it on the command line.
    pub default: &'static str,
    pub file: FileKey,
    pub section: Section,
    pub support: Support,
    /// For `--help`: what it is, with unit and special values.
    pub help: &'static str,
}

/// Where the configuration file has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileKey {
    /// Under the flag's own name.
    Same,
    /// Under this path of keys.
    At(&'static [&'static str]),
    Nowhere,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Support {
    /// Takes effect.
    Full,
    /// Understood; any value but the default is refused.
    NotYet,
    /// Understood, without effect here as in etcd; using it draws a warning.
    Dropped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Process,
    Member,
    Limits,
    Clustering,
    Security,
    Auth,
    Monitoring,
    Logging,
    Upkeep,
    Unsafe,
}

impl Section {
    pub const ALL: [Section; 10] = [
        Process, Member, Limits, Clustering, Security, Auth, Monitoring, Logging, Upkeep, Unsafe,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Process => "Process",
            Member => "Member",
            Limits => "Limits and connections",
            Clustering => "Clustering",
            Security => "TLS and HTTP access",
            Auth => "Authentication",
            Monitoring => "Metrics and tracing",
            Logging => "Logging",
            Upkeep => "Compaction and checks",
            Unsafe => "Unsafe: these give up guarantees",
        }
    }
}

impl Flag {
    pub fn env_name(&self) -> String {
        format!("ETCD_{}", self.name.to_uppercase().replace('-', "_"))
    }

    /// Its value must not be shown to anyone.
    pub fn is_secret(&self) -> bool {
        matches!(self.name, "discovery-user" | "discovery-password" | "discovery-token")
    }
}

pub(super) fn find(name: &str) -> Option<usize> {
    TABLE.iter().position(|flag| flag.name == name)
}

const fn flag(
    section: Section,
    support: Support,
    name: &'static str,
    kind: Kind,
    default: &'static str,
    file: FileKey,
    help: &'static str,
) -> Flag {
    Flag {
        name,
        kind,
        default,
        file,
        section,
        support,
        help,
    }
}

/// etcd parses these and forgets them.
const fn dropped(name: &'static str) -> Flag {
    flag(Process, Dropped, name, Kind::Anything, "", Nowhere, "")
}

const LOG_ROTATION: &str = r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#;

macro_rules! at {
    ($($key:literal).+) => { At(&[$($key),+]) };
}

#[rustfmt::skip] // a table is read by columns
pub(super) static TABLE: &[Flag] = &[
    flag(Process, Full, "config-file", Kind::Text, "", Nowhere,
        "YAML or JSON file with all settings. Other flags and variables are ignored then. Durations in it are integers, in nanoseconds; heartbeat and election in milliseconds."),
    flag(Process, Full, "version", Kind::Bool, "false", Nowhere, "Print versions and exit."),

    flag(Member, Full, "name", Kind::Text, "default", Same, "Name of this member, unique in its cluster."),
    flag(Member, Full, "data-dir", Kind::Text, "", Same, "Folder for the data. Empty: <name>.etcd in the working directory."),
    flag(Member, Full, "wal-dir", Kind::Text, "", Same, "Folder for the write-ahead log, if it should be elsewhere. Empty: inside the data folder."),
    flag(Member, Full, "snapshot-count", Kind::Uint, "10000", Same, "Applied entries after which the raft log is trimmed. 0: 10000."),
    flag(Member, Full, "snapshot-catchup-entries", Kind::Uint, "5000", Same, "Entries kept in the raft log for followers that are behind."),
    flag(Member, Full, "heartbeat-interval", Kind::Uint, "100", Same, "Milliseconds between a leader's heartbeats."),
    flag(Member, Full, "election-timeout", Kind::Uint, "1000", Same, "Milliseconds without a heartbeat before an election; at least 5 heartbeats, at most 50000."),
    flag(Member, NotYet, "initial-election-tick-advance", Kind::Bool, "true", Same, "Shorten the wait before the first election."),
    flag(Member, NotYet, "max-snapshots", Kind::Uint, "5", Same, "Snapshot files to keep. Deprecated."),
    flag(Member, NotYet, "max-wals", Kind::Uint, "5", Same, "Log files to keep."),
    flag(Member, NotYet, "memory-mlock", Kind::Bool, "false", Same, "Keep the database's pages in RAM."),
    flag(Member, NotYet, "backend-bbolt-freelist-type", Kind::Text, "", Same, "Free list of etcd's bbolt: array or map."),
    flag(Member, NotYet, "backend-batch-interval", Kind::Duration, "0s", Same, "Longest time between backend commits. 0: automatic."),
    flag(Member, NotYet, "backend-batch-limit", Kind::Int, "0", Same, "Most operations in a backend commit. 0: automatic."),
    flag(Member, NotYet, "raft-read-timeout", Kind::Duration, "5s", Nowhere, "Time limit for reads on peer connections."),
    flag(Member, NotYet, "raft-write-timeout", Kind::Duration, "5s", Nowhere, "Time limit for writes on peer connections."),
    flag(Member, Full, "feature-gates", Kind::Gates, "", Same,
        "Features to switch, as A=true,B=false. InitialCorruptCheck: a member that was started before compares its data with the others' before it serves, and refuses to serve what differs. StopGRPCServiceOnDefrag: the gRPC health service says NOT_SERVING while the member is defragmented. LeaseCheckpoint, LeaseCheckpointPersist: always so. FastLeaseKeepAlive: no difference, renewals are certain and fast."),
    flag(Member, Full, "listen-peer-urls", Kind::Urls, "http://localhost:2380", Same, "Comma-separated URLs to serve other members on."),
    flag(Member, Full, "listen-client-urls", Kind::Urls, "http://localhost:2379", Same, "Comma-separated URLs to serve clients on. Setting it makes --advertise-client-urls mandatory."),
    flag(Member, Full, "listen-client-http-urls", Kind::Urls, "", Same, "Comma-separated URLs for HTTP only; the client URLs then serve gRPC only."),

    flag(Limits, Full, "quota-backend-bytes", Kind::Int, "0", Same, "Bytes of data after which writes are refused. 0: 2 GiB; negative: no limit."),
    flag(Limits, Full, "max-txn-ops", Kind::Uint, "128", Same, "Operations allowed in a transaction."),
    flag(Limits, Full, "max-request-bytes", Kind::Uint, "1572864", Same, "Bytes allowed in a client request."),
    flag(Limits, Full, "max-concurrent-streams", Kind::Uint32, "4294967295", Same, "Requests a client may have open at a time on one connection."),
    flag(Limits, Full, "grpc-keepalive-min-time", Kind::Duration, "5s", Same, "Shortest time between a client's pings."),
    flag(Limits, Full, "grpc-keepalive-interval", Kind::Duration, "2h", Same, "Time between our pings to a client. 0: none."),
    flag(Limits, Full, "grpc-keepalive-timeout", Kind::Duration, "20s", Same, "Time to wait for the answer to a ping before closing. 0: for ever."),
    flag(Limits, NotYet, "socket-reuse-port", Kind::Bool, "false", at!("socket-options"."reuse-port"), "Set SO_REUSEPORT on listeners."),
    flag(Limits, NotYet, "socket-reuse-address", Kind::Bool, "false", at!("socket-options"."reuse-address"), "Set SO_REUSEADDR on listeners."),
    flag(Limits, NotYet, "enable-grpc-gateway", Kind::Bool, "true", Same, "Serve the JSON gateway."),

    flag(Clustering, Full, "initial-advertise-peer-urls", Kind::Urls, "http://localhost:2380", Same, "Comma-separated URLs at which other members reach this one."),
    flag(Clustering, Full, "advertise-client-urls", Kind::Urls, "http://localhost:2379", Same, "Comma-separated URLs at which clients reach this member."),
    flag(Clustering, Full, "initial-cluster", Kind::Text, "default=http://localhost:2380", Same, "First members, as name=peer-url pairs; left alone with another --name: this member alone. Ignored once data exists, as are the next two."),
    flag(Clustering, Full, "initial-cluster-state", Kind::ClusterState, "new", Same, "new or existing."),
    flag(Clustering, Full, "initial-cluster-token", Kind::Text, "etcd-cluster", Same, "Text that tells clusters with equal URLs apart."),
    flag(Clustering, Full, "strict-reconfig-check", Kind::Bool, "true", Same, "Refuse membership changes that would lose the quorum."),
    flag(Clustering, NotYet, "pre-vote", Kind::Bool, "true", Same, "Ask before an election, so that a member that was cut off does not disturb."),
    flag(Clustering, Full, "max-learners", Kind::Int, "1", Same, "Learners allowed in the cluster."),
    flag(Clustering, Dropped, "v2-deprecation", Kind::V2Deprecation, "write-only", Same, "Phase of the v2 store's removal. Deprecated, the default holds."),
    flag(Clustering, NotYet, "discovery-token", Kind::Text, "", at!("discovery-config"."token"), "v3 discovery: token of the cluster to be."),
    flag(Clustering, NotYet, "discovery-endpoints", Kind::List, "", at!("discovery-config"."client"."endpoints"), "v3 discovery: comma-separated endpoints of the service."),
    flag(Clustering, NotYet, "discovery-dial-timeout", Kind::Duration, "2s", at!("discovery-config"."client"."dial-timeout"), "v3 discovery: time limit to connect."),
    flag(Clustering, NotYet, "discovery-request-timeout", Kind::Duration, "5s", at!("discovery-config"."client"."request-timeout"), "v3 discovery: time limit of a request."),
    flag(Clustering, NotYet, "discovery-keepalive-time", Kind::Duration, "2s", at!("discovery-config"."client"."keepalive-time"), "v3 discovery: time between pings."),
    flag(Clustering, NotYet, "discovery-keepalive-timeout", Kind::Duration, "6s", at!("discovery-config"."client"."keepalive-timeout"), "v3 discovery: time to wait for the answer to a ping."),
    flag(Clustering, NotYet, "discovery-insecure-transport", Kind::Bool, "true", at!("discovery-config"."client"."secure"."insecure-transport"), "v3 discovery: no TLS."),
    flag(Clustering, NotYet, "discovery-insecure-skip-tls-verify", Kind::Bool, "false", at!("discovery-config"."client"."secure"."insecure-skip-tls-verify"), "v3 discovery: take any certificate."),
    flag(Clustering, NotYet, "discovery-cert", Kind::Text, "", at!("discovery-config"."client"."secure"."cert"), "v3 discovery: client certificate file."),
    flag(Clustering, NotYet, "discovery-key", Kind::Text, "", at!("discovery-config"."client"."secure"."key"), "v3 discovery: client key file."),
    flag(Clustering, NotYet, "discovery-cacert", Kind::Text, "", at!("discovery-config"."client"."secure"."cacert"), "v3 discovery: CA bundle file."),
    flag(Clustering, NotYet, "discovery-user", Kind::Text, "", at!("discovery-config"."client"."auth"."username"), "v3 discovery: user name."),
    flag(Clustering, NotYet, "discovery-password", Kind::Text, "", at!("discovery-config"."client"."auth"."password"), "v3 discovery: password."),
    flag(Clustering, NotYet, "discovery-fallback", Kind::DiscoveryFallback, "exit", Nowhere, "What to do when discovery fails."),
    flag(Clustering, NotYet, "discovery-srv", Kind::Text, "", Same, "DNS domain whose SRV records name the members."),
    flag(Clustering, NotYet, "discovery-srv-name", Kind::Text, "", Same, "Suffix of the SRV service names."),

    flag(Security, Full, "cert-file", Kind::Text, "", at!("client-transport-security"."cert-file"), "Certificate file for client connections."),
    flag(Security, Full, "key-file", Kind::Text, "", at!("client-transport-security"."key-file"), "Key file for client connections."),
    flag(Security, Full, "trusted-ca-file", Kind::Text, "", at!("client-transport-security"."trusted-ca-file"), "CA bundle that client certificates are checked against; makes them mandatory."),
    flag(Security, Full, "client-cert-auth", Kind::Bool, "false", at!("client-transport-security"."client-cert-auth"), "Demand client certificates."),
    flag(Security, NotYet, "client-cert-file", Kind::Text, "", at!("client-transport-security"."client-cert-file"), "Certificate file for our own client connections."),
    flag(Security, NotYet, "client-key-file", Kind::Text, "", at!("client-transport-security"."client-key-file"), "Key file for our own client connections."),
    flag(Security, Full, "client-crl-file", Kind::Text, "", Nowhere, "Revocation list for client certificates, PEM or DER."),
    flag(Security, Full, "client-cert-allowed-hostname", Kind::List, "", at!("client-transport-security"."allowed-hostname"), "Comma-separated names and addresses of which a client certificate must have one."),
    flag(Security, Full, "auto-tls", Kind::Bool, "false", at!("client-transport-security"."auto-tls"), "Make a certificate for client connections, in <data-dir>/fixtures/client. Not with --cert-file; client certificates are not asked for then."),
    flag(Security, Full, "peer-cert-file", Kind::Text, "", at!("peer-transport-security"."cert-file"), "Certificate file for the peer port; also shown to other members, unless --peer-client-cert-file is."),
    flag(Security, Full, "peer-key-file", Kind::Text, "", at!("peer-transport-security"."key-file"), "Key file for --peer-cert-file."),
    flag(Security, Full, "peer-trusted-ca-file", Kind::Text, "", at!("peer-transport-security"."trusted-ca-file"), "CA bundle that certificates of other members are checked against, on both ends; makes them mandatory on the peer port. Empty: the system's."),
    flag(Security, Full, "peer-client-cert-auth", Kind::Bool, "false", at!("peer-transport-security"."client-cert-auth"), "Demand certificates on the peer port."),
    flag(Security, Full, "peer-client-cert-file", Kind::Text, "", at!("peer-transport-security"."client-cert-file"), "Certificate file to show to other members instead of --peer-cert-file."),
    flag(Security, Full, "peer-client-key-file", Kind::Text, "", at!("peer-transport-security"."client-key-file"), "Key file for --peer-client-cert-file."),
    flag(Security, Full, "peer-crl-file", Kind::Text, "", Nowhere, "Revocation list for certificates of other members, PEM or DER; used on both ends."),
    flag(Security, Full, "peer-cert-allowed-cn", Kind::List, "", at!("peer-transport-security"."allowed-cn"), "Comma-separated common names of which a certificate of another member must have one, on both ends. Not with the next."),
    flag(Security, Full, "peer-cert-allowed-hostname", Kind::List, "", at!("peer-transport-security"."allowed-hostname"), "Comma-separated names and addresses of which a certificate of another member must have one, on both ends."),
    flag(Security, Full, "peer-auto-tls", Kind::Bool, "false", at!("peer-transport-security"."auto-tls"), "Make a certificate for peer connections, in <data-dir>/fixtures/peer. Not with --peer-cert-file. Encrypts; who another member is can't be verified then."),
    flag(Security, Full, "peer-skip-client-san-verification", Kind::Bool, "false", at!("peer-transport-security"."skip-client-san-verification"), "Let certificates with names and addresses connect to the peer port from elsewhere, too."),
    flag(Security, Full, "self-signed-cert-validity", Kind::Uint, "1", Same, "Years that certificates made by --auto-tls and --peer-auto-tls last."),
    flag(Security, Full, "cipher-suites", Kind::List, "", Same, "Comma-separated TLS 1.2 cipher suites. Empty: good ones. Unsafe ones are passed over."),
    flag(Security, Full, "tls-min-version", Kind::Text, "TLS1.2", Same, "Lowest TLS version: TLS1.2 or TLS1.3."),
    flag(Security, Full, "tls-max-version", Kind::Text, "", Same, "Highest TLS version. Empty: the highest there is."),
    flag(Security, Full, "cors", Kind::Cors, "*", Same, "Comma-separated origins that browsers may call from. *: any."),
    flag(Security, Full, "host-whitelist", Kind::Text, "*", Same, "Comma-separated host names accepted in plaintext HTTP. *: any."),

    flag(Auth, NotYet, "auth-token", Kind::Text, "simple", Same, "Kind of token: simple, or jwt with options."),
    flag(Auth, NotYet, "bcrypt-cost", Kind::Uint, "10", Same, "Cost of password hashes, 4 to 31."),
    flag(Auth, NotYet, "auth-token-ttl", Kind::Uint, "300", Same, "Seconds that a simple token lasts."),

    flag(Monitoring, Full, "metrics", Kind::Text, "basic", Same, "basic, or extensive to time every gRPC method."),
    flag(Monitoring, Full, "listen-metrics-urls", Kind::Urls, "", Same, "Comma-separated URLs for metrics and health alone; https uses the client certificate."),
    flag(Monitoring, NotYet, "enable-pprof", Kind::Bool, "false", Same, "Serve profiles."),
    flag(Monitoring, NotYet, "enable-distributed-tracing", Kind::Bool, "false", Same, "Send traces."),
    flag(Monitoring, NotYet, "distributed-tracing-address", Kind::Text, "localhost:4317", Same, "Collector of traces."),
    flag(Monitoring, NotYet, "distributed-tracing-service-name", Kind::Text, "etcd", Same, "Service name in traces."),
    flag(Monitoring, NotYet, "distributed-tracing-instance-id", Kind::Text, "", Same, "Instance in traces."),
    flag(Monitoring, NotYet, "distributed-tracing-sampling-rate", Kind::Int, "0", Same, "Traces per million requests."),

    flag(Logging, Full, "logger", Kind::Text, "zap", Same, "Style of the records; there is one, called zap."),
    flag(Logging, Full, "log-outputs", Kind::List, "default", Same, "default (stderr), stderr, stdout or file paths; comma-separated."),
    flag(Logging, Full, "log-level", Kind::Text, "info", Same, "debug, info, warn, error, dpanic, panic or fatal."),
    flag(Logging, Full, "log-format", Kind::Text, "json", Same, "json or console."),
    flag(Logging, NotYet, "enable-log-rotation", Kind::Bool, "false", Same, "Rotate the log file."),
    flag(Logging, NotYet, "log-rotation-config-json", Kind::Text, LOG_ROTATION, Same, "How to rotate."),
    flag(Logging, Full, "warning-apply-duration", Kind::Duration, "100ms", Same, "Applying that takes longer is logged."),
    flag(Logging, Full, "warning-unary-request-duration", Kind::Duration, "300ms", Same, "A unary request that takes longer is logged. 0: 300ms."),

    flag(Upkeep, NotYet, "auto-compaction-mode", Kind::Text, "periodic", Same, "periodic or revision."),
    flag(Upkeep, NotYet, "auto-compaction-retention", Kind::Text, "0", Same, "History to keep: a duration (a bare number is hours) or a count of revisions. 0: all."),
    flag(Upkeep, NotYet, "compaction-batch-limit", Kind::Int, "0", Same, "Revisions removed in one slice of a compaction. 0: 1000."),
    flag(Upkeep, NotYet, "compaction-sleep-interval", Kind::Duration, "0s", Same, "Pause between two slices. 0: 10ms."),
    flag(Upkeep, Full, "watch-progress-notify-interval", Kind::Duration, "0s", Same, "Time between progress notices to idle watchers. 0: 10m."),
    flag(Upkeep, NotYet, "corrupt-check-time", Kind::Duration, "0s", Same, "Time between comparisons of the members' data. 0: none."),
    flag(Upkeep, NotYet, "compact-hash-check-time", Kind::Duration, "1m", Same, "Time between comparisons of compaction hashes."),
    flag(Upkeep, NotYet, "downgrade-check-time", Kind::Duration, "5s", Same, "Time between looks at a downgrade in progress."),
    flag(Upkeep, NotYet, "bootstrap-defrag-threshold-megabytes", Kind::Uint, "0", Same, "Megabytes to be won for a defragmentation at start. 0: never."),

    flag(Unsafe, NotYet, "force-new-cluster", Kind::Bool, "false", Same, "Make this member the only one of its cluster."),
    flag(Unsafe, NotYet, "unsafe-no-fsync", Kind::Bool, "false", Same, "Do not wait for the disk."),

    dropped("cluster-active-size"),
    dropped("cluster-remove-delay"),
    dropped("cluster-sync-interval"),
    dropped("config"),
    dropped("force"),
    dropped("max-result-buffer"),
    dropped("max-retry-attempts"),
    dropped("peer-heartbeat-interval"),
    dropped("peer-election-timeout"),
    dropped("retry-interval"),
    dropped("snapshot"),
    dropped("v"),
    dropped("vv"),
    dropped("test.coverprofile"),
    dropped("test.outputdir"),
];
