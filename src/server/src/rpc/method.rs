//! Every RPC that a client port serves, as one closed enum: routing, metrics and permission tables index by it and never
//! by the text that a client sent.

/// How many messages flow each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Unary,
    ServerStream,
    Bidi,
}

impl Kind {
    /// The value of the `grpc_type` label.
    pub const fn label(self) -> &'static str {
        match self {
            Kind::Unary => "unary",
            Kind::ServerStream => "server_stream",
            Kind::Bidi => "bidi_stream",
        }
    }
}

macro_rules! methods {
    ($($variant:ident = $kind:ident, $service:literal, $method:literal;)*) => {
        /// One RPC. The order is the order in which paths are compared, so the hot ones come first.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Method { $($variant,)* }

        impl Method {
            /// Every RPC; `Method::ALL[m.index()] == m`.
            pub const ALL: &[Method] = &[$(Method::$variant,)*];

            /// The RPC that this exact path names. A path without its leading slash names none.
            pub fn from_path(path: &str) -> Option<Method> {
                match path {
                    $(concat!("/", $service, "/", $method) => Some(Method::$variant),)*
                    _ => None,
                }
            }

            pub const fn kind(self) -> Kind {
                match self { $(Method::$variant => Kind::$kind,)* }
            }

            /// The full service name, such as `etcdserverpb.KV`.
            pub const fn service(self) -> &'static str {
                match self { $(Method::$variant => $service,)* }
            }

            pub const fn name(self) -> &'static str {
                match self { $(Method::$variant => $method,)* }
            }

            /// The `:path` of calls to it.
            pub const fn path(self) -> &'static str {
                match self { $(Method::$variant => concat!("/", $service, "/", $method),)* }
            }
        }
    };
}

methods! {
    KvPut = Unary, "etcdserverpb.KV", "Put";
    KvRange = Unary, "etcdserverpb.KV", "Range";
    KvTxn = Unary, "etcdserverpb.KV", "Txn";
    LeaseKeepAlive = Bidi, "etcdserverpb.Lease", "LeaseKeepAlive";
    Watch = Bidi, "etcdserverpb.Watch", "Watch";
    KvDeleteRange = Unary, "etcdserverpb.KV", "DeleteRange";
    LeaseGrant = Unary, "etcdserverpb.Lease", "LeaseGrant";
    LeaseRevoke = Unary, "etcdserverpb.Lease", "LeaseRevoke";
    KvRangeStream = ServerStream, "etcdserverpb.KV", "RangeStream";
    KvCompact = Unary, "etcdserverpb.KV", "Compact";
    LeaseTimeToLive = Unary, "etcdserverpb.Lease", "LeaseTimeToLive";
    LeaseLeases = Unary, "etcdserverpb.Lease", "LeaseLeases";
    ClusterMemberAdd = Unary, "etcdserverpb.Cluster", "MemberAdd";
    ClusterMemberRemove = Unary, "etcdserverpb.Cluster", "MemberRemove";
    ClusterMemberUpdate = Unary, "etcdserverpb.Cluster", "MemberUpdate";
    ClusterMemberList = Unary, "etcdserverpb.Cluster", "MemberList";
    ClusterMemberPromote = Unary, "etcdserverpb.Cluster", "MemberPromote";
    MaintenanceAlarm = Unary, "etcdserverpb.Maintenance", "Alarm";
    MaintenanceStatus = Unary, "etcdserverpb.Maintenance", "Status";
    MaintenanceDefragment = Unary, "etcdserverpb.Maintenance", "Defragment";
    MaintenanceHash = Unary, "etcdserverpb.Maintenance", "Hash";
    MaintenanceHashKv = Unary, "etcdserverpb.Maintenance", "HashKV";
    MaintenanceSnapshot = ServerStream, "etcdserverpb.Maintenance", "Snapshot";
    MaintenanceMoveLeader = Unary, "etcdserverpb.Maintenance", "MoveLeader";
    MaintenanceDowngrade = Unary, "etcdserverpb.Maintenance", "Downgrade";
    AuthEnable = Unary, "etcdserverpb.Auth", "AuthEnable";
    AuthDisable = Unary, "etcdserverpb.Auth", "AuthDisable";
    AuthStatus = Unary, "etcdserverpb.Auth", "AuthStatus";
    AuthAuthenticate = Unary, "etcdserverpb.Auth", "Authenticate";
    AuthUserAdd = Unary, "etcdserverpb.Auth", "UserAdd";
    AuthUserGet = Unary, "etcdserverpb.Auth", "UserGet";
    AuthUserList = Unary, "etcdserverpb.Auth", "UserList";
    AuthUserDelete = Unary, "etcdserverpb.Auth", "UserDelete";
    AuthUserChangePassword = Unary, "etcdserverpb.Auth", "UserChangePassword";
    AuthUserGrantRole = Unary, "etcdserverpb.Auth", "UserGrantRole";
    AuthUserRevokeRole = Unary, "etcdserverpb.Auth", "UserRevokeRole";
    AuthRoleAdd = Unary, "etcdserverpb.Auth", "RoleAdd";
    AuthRoleGet = Unary, "etcdserverpb.Auth", "RoleGet";
    AuthRoleList = Unary, "etcdserverpb.Auth", "RoleList";
    AuthRoleDelete = Unary, "etcdserverpb.Auth", "RoleDelete";
    AuthRoleGrantPermission = Unary, "etcdserverpb.Auth", "RoleGrantPermission";
    AuthRoleRevokePermission = Unary, "etcdserverpb.Auth", "RoleRevokePermission";
    HealthCheck = Unary, "grpc.health.v1.Health", "Check";
    HealthList = Unary, "grpc.health.v1.Health", "List";
    HealthWatch = ServerStream, "grpc.health.v1.Health", "Watch";
    ElectionCampaign = Unary, "v3electionpb.Election", "Campaign";
    ElectionProclaim = Unary, "v3electionpb.Election", "Proclaim";
    ElectionLeader = Unary, "v3electionpb.Election", "Leader";
    ElectionObserve = ServerStream, "v3electionpb.Election", "Observe";
    ElectionResign = Unary, "v3electionpb.Election", "Resign";
    LockLock = Unary, "v3lockpb.Lock", "Lock";
    LockUnlock = Unary, "v3lockpb.Lock", "Unlock";
}

impl Method {
    /// Position in [`Method::ALL`], for tables that are indexed instead of hashed.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Lock and election were added beside etcd's own services; metrics show them only once used.
    pub const fn is_concurrency_service(self) -> bool {
        matches!(
            self,
            Method::ElectionCampaign
                | Method::ElectionProclaim
                | Method::ElectionLeader
                | Method::ElectionObserve
                | Method::ElectionResign
                | Method::LockLock
                | Method::LockUnlock
        )
    }

    /// Whether any RPC belongs to this service.
    pub fn knows_service(service: &str) -> bool {
        Self::ALL.iter().any(|method| method.service() == service)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_found_by_its_path() {
        assert_eq!(Method::ALL.len(), 52);
        for (index, method) in Method::ALL.iter().enumerate() {
            assert_eq!(method.index(), index);
            assert_eq!(Method::from_path(method.path()), Some(*method));
            assert_eq!(method.path(), format!("/{}/{}", method.service(), method.name()));
        }
    }

    /// A41
    #[test]
    fn path_without_slash_reaches_no_handler() {
        for method in Method::ALL {
            assert_eq!(Method::from_path(&method.path()[1..]), None);
            assert_eq!(Method::from_path(&format!("/{}", method.path())), None);
            assert_eq!(Method::from_path(&format!("{}/", method.path())), None);
        }
    }

    #[test]
    fn kinds_are_those_of_the_service_definitions() {
        let streams: Vec<_> = Method::ALL
            .iter()
            .filter(|m| m.kind() != Kind::Unary)
            .map(|m| m.name())
            .collect();
        assert_eq!(
            streams,
            ["LeaseKeepAlive", "Watch", "RangeStream", "Snapshot", "Watch", "Observe"]
        );
        assert_eq!(Method::ALL.iter().filter(|m| !m.is_concurrency_service()).count(), 45);
    }
}
