//! The error catalogue: every text that etcd's clients match on, with its gRPC code. Clients recognise errors by the
//! text, so each must match byte for byte.

use crate::{Code, Status};

macro_rules! catalogue {
    ($($(#[$doc:meta])* $variant:ident = $code:ident, $text:literal;)*) => {
        /// An error with a fixed text. See the module for why the text is part of the API.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Error { $($(#[$doc])* $variant,)* }

        impl Error {
            /// Every error there is, in the order of the catalogue.
            pub const ALL: &[Error] = &[$(Error::$variant,)*];

            pub const fn code(self) -> Code {
                match self { $(Error::$variant => Code::$code,)* }
            }

            pub const fn text(self) -> &'static str {
                match self { $(Error::$variant => $text,)* }
            }
        }
    };
}

catalogue! {
    // Key-value and transactions.
    EmptyKey = InvalidArgument, "etcdserver: key is not provided";
    KeyNotFound = InvalidArgument, "etcdserver: key not found";
    ValueProvided = InvalidArgument, "etcdserver: value is provided";
    LeaseProvided = InvalidArgument, "etcdserver: lease is provided";
    TooManyOps = InvalidArgument, "etcdserver: too many operations in txn request";
    DuplicateKey = InvalidArgument, "etcdserver: duplicate key given in txn request";
    InvalidSortOption = InvalidArgument, "etcdserver: invalid sort option";
    Compacted = OutOfRange, "etcdserver: mvcc: required revision has been compacted";
    FutureRevision = OutOfRange, "etcdserver: mvcc: required revision is a future revision";
    NoSpace = ResourceExhausted, "etcdserver: mvcc: database space exceeded";
    RequestTooLarge = InvalidArgument, "etcdserver: request is too large";
    /// etcd's server sends Unknown here, though its client library also knows a ResourceExhausted form.
    TooManyRequests = Unknown, "etcdserver: too many requests";
    /// Ours: etcd puts the answer together whatever it takes. Clients of etcd see the text and know no better.
    AnswerTooLarge = ResourceExhausted, "the answer would take too much memory, so nothing was done: ask for fewer pairs at a time (a limit, fewer ranges in one transaction, no prev_kv), or again when others ask for less";
    /// Ours: etcd ends the process.
    AnswerUnreadable = DataLoss, "the request was executed, but its answer needs a value that can't be read from this member's disk: restore the member from its peers or from a snapshot";
    RangeStreamSort = Unimplemented, "RangeStream does not support custom sort orders";
    RangeStreamFilter = Unimplemented, "RangeStream does not support revision filters";

    // Leases and watches.
    LeaseNotFound = NotFound, "etcdserver: requested lease not found";
    LeaseExists = FailedPrecondition, "etcdserver: lease already exists";
    LeaseTtlTooLarge = OutOfRange, "etcdserver: too large lease TTL";
    NotPrimaryLessor = Unknown, "not a primary lessor";
    WatchCanceled = Canceled, "etcdserver: watch canceled";

    // Cluster.
    MemberExists = FailedPrecondition, "etcdserver: member ID already exist";
    PeerUrlExists = FailedPrecondition, "etcdserver: Peer URLs already exists";
    /// Mapped to no status inside etcd's server, hence Unknown.
    MemberNotEnoughStarted = Unknown, "etcdserver: re-configuration failed due to not enough started members";
    MemberBadUrls = InvalidArgument, "etcdserver: given member URLs are invalid";
    MemberNotFound = NotFound, "etcdserver: member not found";
    MemberNotLearner = FailedPrecondition, "etcdserver: can only promote a learner member";
    MemberLearnerNotReady = FailedPrecondition, "etcdserver: can only promote a learner member which is in sync with leader";
    TooManyLearners = FailedPrecondition, "etcdserver: too many learner members in cluster";
    UnhealthyCluster = Unavailable, "etcdserver: unhealthy cluster";
    /// Ours: etcd counts the member for what it has lost.
    MemberOtherData = FailedPrecondition, "the member has published from another data directory: its data was wiped, or it runs twice; remove the member and add it again";
    ClusterIdMismatch = FailedPrecondition, "etcdserver: cluster ID mismatch";

    // State of the server.
    NoLeader = Unavailable, "etcdserver: no leader";
    NotLeader = FailedPrecondition, "etcdserver: not leader";
    LeaderChanged = Unavailable, "etcdserver: leader changed";
    NotCapable = FailedPrecondition, "etcdserver: not capable";
    InvalidClientApiVersion = InvalidArgument, "etcdserver: invalid client api version";
    Stopped = Unavailable, "etcdserver: server stopped";
    Timeout = Unavailable, "etcdserver: request timed out";
    TimeoutLeaderFail = Unavailable, "etcdserver: request timed out, possibly due to previous leader failure";
    TimeoutConnectionLost = Unavailable, "etcdserver: request timed out, possibly due to connection lost";
    TimeoutAppliedIndex = Unavailable, "etcdserver: request timed out, waiting for the applied index took too long";
    TimeoutLeaderTransfer = Unknown, "etcdserver: request timed out, leader transfer took too long";
    RequestCanceled = Canceled, "etcdserver: request canceled";
    Corrupt = DataLoss, "etcdserver: corrupt cluster";
    NotSupportedForLearner = FailedPrecondition, "etcdserver: rpc not supported for learner";
    BadLeaderTransferee = FailedPrecondition, "etcdserver: bad leader transferee";
    ProposalDropped = Unknown, "raft proposal dropped";
    UnknownMethod = Unknown, "etcdserver: unknown method";
    DowngradeVersionFormat = InvalidArgument, "etcdserver: wrong downgrade target version format";
    DowngradeVersion = InvalidArgument, "etcdserver: invalid downgrade target version";
    ClusterVersionUnavailable = FailedPrecondition, "etcdserver: cluster version not found during downgrade";
    DowngradeInProgress = FailedPrecondition, "etcdserver: cluster has a downgrade job in progress";
    NoInflightDowngrade = FailedPrecondition, "etcdserver: no inflight downgrade job";
    UnknownHealthService = NotFound, "unknown service";
    DeadlineExceeded = DeadlineExceeded, "context deadline exceeded";
    CallerCanceled = Canceled, "context canceled";

    // Auth.
    RootUserNotExist = FailedPrecondition, "etcdserver: root user does not exist";
    RootRoleNotExist = FailedPrecondition, "etcdserver: root user does not have root role";
    UserExists = FailedPrecondition, "etcdserver: user name already exists";
    UserEmpty = InvalidArgument, "etcdserver: user name is empty";
    UserNotFound = FailedPrecondition, "etcdserver: user name not found";
    RoleExists = FailedPrecondition, "etcdserver: role name already exists";
    RoleNotFound = FailedPrecondition, "etcdserver: role name not found";
    RoleEmpty = InvalidArgument, "etcdserver: role name is empty";
    AuthFailed = InvalidArgument, "etcdserver: authentication failed, invalid user ID or password";
    NoPasswordUser = Unknown, "auth: authentication failed, password was given for no password user";
    PermissionNotGiven = InvalidArgument, "etcdserver: permission not given";
    PermissionDenied = PermissionDenied, "etcdserver: permission denied";
    RoleNotGranted = FailedPrecondition, "etcdserver: role is not granted to the user";
    PermissionNotGranted = FailedPrecondition, "etcdserver: permission is not granted to the role";
    AuthNotEnabled = FailedPrecondition, "etcdserver: authentication is not enabled";
    InvalidAuthToken = Unauthenticated, "etcdserver: invalid auth token";
    InvalidAuthManagement = InvalidArgument, "etcdserver: invalid auth management";
    AuthOldRevision = InvalidArgument, "etcdserver: revision of auth store is old";
    VerifyOnlyKey = Unknown, "auth: token signing attempted with verify-only key";
    PasswordTooLong = Unknown, "bcrypt: password length exceeds 72 bytes";

    // Election and lock.
    ElectionNoLeader = Unknown, "election: no leader";
    ElectionNotLeader = Unknown, "election: not leader";
    LeaderFieldMissing = Unknown, "\"leader\" field must be provided";
    SessionExpired = Unknown, "mutex: session is expired";
    LostWatcher = Unknown, "lost watcher waiting for delete";
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Status::new(error.code(), error.text())
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for Error {}

/// Texts with facts in them, and those that come from the transport rather than from etcd's code. A Rust stack says
/// other things by default; Go clients show these.
pub mod transport {
    use crate::{Code, Status};

    /// A message above the receive limit.
    pub fn message_too_large(got: usize, limit: usize) -> Status {
        Status::new(
            Code::ResourceExhausted,
            format!("grpc: received message larger than max ({got} vs. {limit})"),
        )
    }

    pub fn unknown_method(service: &str, method: &str) -> Status {
        Status::new(
            Code::Unimplemented,
            format!("unknown method {method} for service {service}"),
        )
    }

    pub fn unknown_service(service: &str) -> Status {
        Status::new(Code::Unimplemented, format!("unknown service {service}"))
    }

    /// Bytes that are no protobuf of the expected kind.
    pub fn bad_message(why: impl std::fmt::Display) -> Status {
        Status::new(Code::Internal, format!("grpc: error unmarshalling request: {why}"))
    }

    /// The same on a streaming call, where Go words it differently.
    pub fn bad_stream_message(why: impl std::fmt::Display) -> Status {
        Status::new(
            Code::Internal,
            format!("grpc: failed to unmarshal the received message: {why}"),
        )
    }
}

/// `cancel_reason` of watch responses. These are not stream errors.
pub mod watch_cancel {
    pub const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
    pub const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
    pub const COMPACTED: &str = super::Error::Compacted.text();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_text_is_given_once() {
        let texts: HashSet<&str> = Error::ALL.iter().map(|e| e.text()).collect();
        assert_eq!(texts.len(), Error::ALL.len());
    }

    #[test]
    fn a_status_prints_as_go_clients_print_it() {
        let status = Status::from(Error::PermissionDenied);
        assert_eq!(
            status.to_string(),
            "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
        );
        assert_eq!(watch_cancel::COMPACTED, Error::Compacted.text());
    }
}
