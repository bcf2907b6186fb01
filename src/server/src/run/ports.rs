//! The member's ports: bound as the settings say, and served through one constructor.

use crate::api::v3::Services;
use crate::config::{Config, Url};
use crate::http::{Cors, HostWhitelist, HttpService, Ops};
use crate::listen::{self, BindError, Binding, Gate, ListenUrl, Server, Service, SocketOptions};
use crate::peer::serve::PeerPort;
use crate::rpc::Rpc;
use quorate_runtime::tls::ServerTls;
use std::sync::Arc;
use tokio::runtime::Handle;

/// Bound places, not served yet.
pub(super) struct Bound {
    peers: Vec<Binding>,
    clients: Vec<Binding>,
    client_http: Vec<Binding>,
    probes: Vec<Binding>,
}

/// Binds TCP ports: a taken one is refused before anything is written.
pub(super) fn bind_tcp(config: &Config) -> Result<Bound, BindError> {
    bind(config, |url| !url.scheme.is_unix())
}

/// Binds unix sockets. Whoever calls has the data directory's lock, so that a file in the way was left behind.
pub(super) fn bind_unix(config: &Config) -> Result<Bound, BindError> {
    bind(config, |url| url.scheme.is_unix())
}

fn bind(config: &Config, wanted: impl Fn(&Url) -> bool) -> Result<Bound, BindError> {
    let of = |urls: &[Url]| {
        let urls: Vec<ListenUrl> = urls.iter().filter(|url| wanted(url)).map(ListenUrl::from).collect();
        listen::bind(&urls, SocketOptions::default())
    };
    Ok(Bound {
        peers: of(&config.listen_peer_urls)?,
        clients: of(&config.listen_client_urls)?,
        client_http: of(&config.listen_client_http_urls)?,
        probes: of(&config.listen_metrics_urls)?,
    })
}

/// What stands behind the ports.
pub(super) struct Ports {
    pub server: Server,
    /// Of the peer ports, which outlast the others: what clients still wait for comes through them.
    pub peer_server: Server,
    pub ops: Ops,
    pub rpc: Arc<Rpc<Services>>,
    pub tls: Option<Arc<ServerTls>>,
    pub peer_tls: Option<Arc<ServerTls>>,
    /// Client ports are silent until it opens.
    pub gate: Gate,
    pub http: HttpService,
    /// HTTP has client ports of its own.
    pub split: bool,
    /// What other members are served by, and where.
    pub peers: PeerPort,
    pub peer_runtime: Handle,
}

impl Ports {
    pub(super) fn serve(&self, bound: Bound) {
        let Bound {
            peers,
            clients,
            client_http,
            probes,
        } = bound;
        let entered = self.peer_runtime.enter();
        for binding in peers {
            let http = HttpService::peer(self.ops.clone());
            let service = Service::peer(self.peers.clone(), http, self.peer_tls.clone());
            self.peer_server.serve(binding, service);
        }
        drop(entered);
        for binding in probes {
            let http = HttpService::metrics(self.ops.clone());
            self.server.serve(binding, Service::metrics(http, self.tls.clone()));
        }
        for binding in clients {
            let (rpc, http) = (self.rpc.clone(), (!self.split).then(|| self.http.clone()));
            let service = Service::client(rpc, http, self.tls.clone(), self.gate.clone());
            self.server.serve(binding, service);
        }
        for binding in client_http {
            let service = Service::client_http(self.http.clone(), self.tls.clone(), self.gate.clone());
            self.server.serve(binding, service);
        }
    }
}

/// The HTTP half of client ports.
pub(super) fn client_http(config: &Config, ops: Ops, body_bytes_max: usize) -> HttpService {
    let cors = match &config.cors {
        None => Cors::Any,
        Some(only) => Cors::Only(only.iter().cloned().collect()),
    };
    let hosts = match &config.host_whitelist {
        None => HostWhitelist::Any,
        Some(only) => HostWhitelist::Only(only.iter().cloned().collect()),
    };
    HttpService::client(ops, axum::Router::new(), cors, hosts, body_bytes_max)
}
