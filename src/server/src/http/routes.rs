//! Which path lives on which port, and the answers that belong to no endpoint.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, StatusCode, Uri};
use http_body_util::Limited;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use quorate_api::version::ETCD_VERSION;

use super::access::{Cors, CorsVerdict, HostWhitelist, allow_headers, misdirected_text};
use super::node::{NodeState, Probe};
use super::{checks, gzip, health, peer};

/// Produces the page of `/metrics`: its content type and its bytes.
pub type MetricsPage = Arc<dyn Fn() -> (String, Bytes) + Send + Sync>;

/// What the endpoints work with.
#[derive(Clone)]
pub struct Ops {
    pub node: Arc<dyn NodeState>,
    pub metrics: MetricsPage,
    /// Deadline of the read behind `/health`; etcd: 5 s + 2 × election timeout.
    pub probe_deadline: Duration,
    /// The process's limit on file descriptors, shown by `/debug/vars`.
    pub fd_limit: u64,
}

/// Rules of the client port that metrics ports do not have.
#[derive(Clone, Debug, Default)]
struct Access {
    cors: Cors,
    hosts: HostWhitelist,
}

/// A router together with the rules that hold for every path on its port.
#[derive(Clone)]
pub struct HttpService {
    router: Router,
    access: Option<Arc<Access>>,
    body_bytes_max: usize,
}

impl HttpService {
    /// The client port: all endpoints, and what else the server mounts there (the JSON gateway) as `more`.
    pub fn client(ops: Ops, more: Router, cors: Cors, hosts: HostWhitelist, body_bytes_max: usize) -> Self {
        let ops = Arc::new(ops);
        let router = probes()
            .route("/version", any(version))
            .route("/debug/vars", any(debug_vars))
            .with_state(ops)
            .merge(more)
            .fallback(not_found);
        Self {
            router,
            access: Some(Arc::new(Access { cors, hosts })),
            body_bytes_max,
        }
    }

    /// A peer port. What is not listed there is not found, probes and metrics included.
    pub fn peer(ops: Ops) -> Self {
        let router = Router::new()
            .route("/members", any(peer::members))
            .route("/version", any(version));
        Self {
            router: router.with_state(Arc::new(ops)).fallback(not_found),
            access: None,
            body_bytes_max: 64 * 1024,
        }
    }

    /// A metrics port: probes and metrics only, for everybody who reaches it.
    pub fn metrics(ops: Ops) -> Self {
        Self {
            router: probes().with_state(Arc::new(ops)).fallback(not_found),
            access: None,
            body_bytes_max: 64 * 1024,
        }
    }

    /// Answers one request. `plaintext` says that it came over HTTP/1 without TLS, where host names are checked.
    pub(crate) async fn call(&self, request: Request, plaintext: bool) -> Response {
        let Some(access) = &self.access else {
            return self.route(request).await;
        };
        if plaintext && let Some(host) = access.hosts.refused(&request) {
            return plain_error(StatusCode::MISDIRECTED_REQUEST, misdirected_text(&host).trim_end());
        }
        let verdict = access.cors.judge(&request);
        let mut response = match verdict {
            CorsVerdict::Forbid => plain_error(
                StatusCode::FORBIDDEN,
                "writes from pages of this origin are not allowed; add it to --cors to allow them",
            ),
            _ if request.method() == Method::OPTIONS => Response::new(Body::empty()),
            _ => self.route(request).await,
        };
        if let CorsVerdict::Allow(origin) = verdict {
            allow_headers(response.headers_mut(), origin);
        }
        response
    }

    async fn route(&self, request: Request) -> Response {
        let announced = request
            .headers()
            .get(CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let limit = self.body_bytes_max;
        if announced.is_some_and(|bytes| bytes > limit as u64) {
            return plain_error(
                StatusCode::PAYLOAD_TOO_LARGE,
                &format!("request body is larger than the {limit} bytes allowed"),
            );
        }
        let request = request.map(|body| Body::new(Limited::new(body, limit)));
        let answer: Result<Response, Infallible> = TowerToHyperService::new(self.router.clone()).call(request).await;
        answer.unwrap_or_else(|never| match never {})
    }
}

fn probes() -> Router<Arc<Ops>> {
    let mut router = Router::new()
        .route("/health", any(health::answer))
        .route("/metrics", any(metrics));
    for probe in [Probe::Livez, Probe::Readyz] {
        let all = move |state: State<Arc<Ops>>, request: Request| checks::answer_all(probe, state, request);
        router = router.route(&format!("/{}", probe.name()), any(all));
        for &check in probe.checks() {
            let one = move |state: State<Arc<Ops>>, request: Request| checks::answer_one(probe, check, state, request);
            router = router.route(&format!("/{}/{}", probe.name(), check.name()), any(one));
        }
    }
    router
}

async fn metrics(State(ops): State<Arc<Ops>>, request: Request) -> Response {
    let (content_type, page) = (ops.metrics)();
    let zipped = gzip::accepted(request.headers())
        .then(|| gzip::compress(&page))
        .and_then(Result::ok);
    let mut response = match zipped {
        Some(zipped) => {
            let mut response = Response::new(Body::from(zipped));
            let encoding = HeaderValue::from_static("gzip");
            response.headers_mut().insert(CONTENT_ENCODING, encoding);
            response
        }
        None => Response::new(Body::from(page)),
    };
    if let Ok(value) = HeaderValue::from_str(&content_type) {
        response.headers_mut().insert(CONTENT_TYPE, value);
    }
    response
}

async fn version(State(ops): State<Arc<Ops>>, request: Request) -> Response {
    if request.method() != Method::GET {
        return method_not_allowed();
    }
    let cluster = ops.node.cluster_version().unwrap_or_else(|| "not_decided".to_owned());
    let storage = ops.node.storage_version().unwrap_or_else(|| "unknown".to_owned());
    let body = format!(
        "{{\"etcdserver\":{},\"etcdcluster\":{},\"storage\":{}}}",
        serde_json::Value::from(ETCD_VERSION),
        serde_json::Value::from(cluster),
        serde_json::Value::from(storage)
    );
    typed(StatusCode::OK, "application/json", body)
}

/// Only the program's name of the command line: its arguments may hold secrets.
async fn debug_vars(State(ops): State<Arc<Ops>>, request: Request) -> Response {
    if request.method() != Method::GET {
        return method_not_allowed();
    }
    let vars = serde_json::json!({
        "cmdline": std::env::args().take(1).collect::<Vec<_>>(),
        "memstats": {},
        "file_descriptor_limit": ops.fd_limit,
        "raft.status": ops.node.raft_status(),
    });
    typed(StatusCode::OK, "application/json; charset=utf-8", format!("{vars}\n"))
}

async fn not_found() -> Response {
    plain_error(StatusCode::NOT_FOUND, "404 page not found")
}

pub(crate) fn method_not_allowed() -> Response {
    let mut response = plain_error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
    response
}

/// The form in which Go's library writes errors: text, a newline, and no guessing at the type.
pub(crate) fn plain_error(status: StatusCode, text: &str) -> Response {
    nosniff(plain(status, format!("{text}\n")))
}

pub(crate) fn plain(status: StatusCode, text: String) -> Response {
    typed(status, "text/plain; charset=utf-8", text)
}

pub(crate) fn nosniff(mut response: Response) -> Response {
    response
        .headers_mut()
        .insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

pub(crate) fn typed(status: StatusCode, content_type: &'static str, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// The decoded query of a request.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn of(uri: &Uri) -> Self {
        let raw = uri.query().unwrap_or_default();
        Self(url::form_urlencoded::parse(raw.as_bytes()).into_owned().collect())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.first(name).is_some()
    }

    pub(crate) fn first(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}
