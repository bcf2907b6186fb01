//! What a unary call costs in the transport alone: CPU of the server per echo, with a client in a process of its own.
//!
//! `cargo run --profile quick -p quorate-server --example echo [calls in flight] [connections] [value bytes] [tls | bare]`
//!
//! `bare` measures the plainest server that the HTTP/2 library allows, a task per request and no gRPC, for comparison.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use quorate_api::Status;
use quorate_runtime::tls::{ServerTls, ServerTlsOptions};
use quorate_server::listen::{Gate, ListenLimits, Server, Service, bind};
use quorate_server::rpc::{Api, CallContext, Incoming, Limits, Method, NoObserver, Outgoing, Reply, Rpc};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::io::{AsyncRead, AsyncWrite};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Echo;

impl Api for Echo {
    async fn unary(&self, method: Method, _: &CallContext, message: Bytes) -> Result<Reply, Status> {
        // A put waits for others, as a real one does for its batch.
        if method == Method::KvPut {
            tokio::task::yield_now().await;
        }
        Ok(Reply::Message(Bytes::copy_from_slice(&message)))
    }

    async fn stream(
        &self,
        _: Method,
        _: CallContext,
        mut incoming: Incoming,
        mut outgoing: Outgoing,
    ) -> Result<(), Status> {
        while let Some(message) = incoming.message().await? {
            outgoing.send(message).await?;
        }
        Ok(())
    }
}

const WARM_UP: Duration = Duration::from_secs(1);
const MEASURE: Duration = Duration::from_secs(4);

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    if args.get(1).is_some_and(|arg| arg == "client") {
        runtime.block_on(client(&args[2..]));
    } else {
        runtime.block_on(server(&args[1..]));
    }
}

async fn server(args: &[String]) {
    let numbers: Vec<&str> = args
        .iter()
        .map(String::as_str)
        .filter(|arg| *arg != "tls" && *arg != "bare")
        .collect();
    let arg = |i: usize, default: &str| numbers.get(i).map_or(default, |v| *v).to_owned();
    let tls = args.iter().any(|arg| arg == "tls");
    let scheme = if tls { "https" } else { "http" };
    let url = format!("{scheme}://127.0.0.1:0").parse().expect("a url");
    let binding = bind(&[url], Default::default()).expect("a port").remove(0);
    let addr = binding.local_addr().expect("an address");
    let dir = tempfile::tempdir().expect("a directory");
    let tls = tls.then(|| {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let (cert_file, key_file) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        std::fs::write(&cert_file, made.cert.pem()).expect("write");
        std::fs::write(&key_file, made.signing_key.serialize_pem()).expect("write");
        let options = ServerTlsOptions {
            cert_file,
            key_file,
            ..ServerTlsOptions::default()
        };
        Arc::new(ServerTls::load(options).expect("tls"))
    });
    let cert = tls
        .as_ref()
        .map_or(String::new(), |tls| tls.options().cert_file.display().to_string());
    let rpc = Rpc::new(Arc::new(Echo), Arc::new(NoObserver), Limits::default());
    let server = Server::new(ListenLimits::default());
    let addr = if args.iter().any(|arg| arg == "bare") {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        tokio::spawn(bare(listener));
        addr
    } else {
        server.serve(binding, Service::client(rpc, None, tls, Gate::open()));
        addr
    };
    for path in ["/etcdserverpb.KV/Range", "/etcdserverpb.KV/Put"] {
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .args(["client", &addr.to_string(), path])
            .args([arg(0, "100"), arg(1, "1"), arg(2, "256"), cert.clone()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("a client");
        tokio::time::sleep(WARM_UP).await;
        let (cpu, start) = (cpu_seconds(), Instant::now());
        tokio::time::sleep(MEASURE).await;
        let (cpu, took) = (cpu_seconds() - cpu, start.elapsed().as_secs_f64());
        let status = child.wait().expect("the client's end");
        assert!(status.success());
        let mut out = String::new();
        std::io::Read::read_to_string(&mut child.stdout.take().expect("its output"), &mut out).expect("its count");
        let per_second: f64 = out.trim().parse().expect("a number");
        println!(
            "{path}: {per_second:.0} calls/s, {:.2} us server CPU per call",
            cpu / took / per_second * 1e6
        );
    }
    server.shutdown(Duration::from_secs(1)).await;
}

/// A server with nothing but HTTP/2.
async fn bare(listener: tokio::net::TcpListener) {
    while let Ok((io, _)) = listener.accept().await {
        io.set_nodelay(true).expect("nodelay");
        tokio::spawn(async move {
            let mut h2 = h2::server::Builder::new()
                .handshake::<_, Bytes>(io)
                .await
                .expect("a handshake");
            while let Some(Ok((request, mut respond))) = h2.accept().await {
                // Errors mean that the client has gone.
                tokio::spawn(async move {
                    let mut body = request.into_body();
                    let Some(data) = body.data().await else { return Ok(()) };
                    let data = data?;
                    body.flow_control().release_capacity(data.len())?;
                    let mut head = http::Response::new(());
                    let grpc = http::HeaderValue::from_static("application/grpc");
                    head.headers_mut().insert("content-type", grpc);
                    let mut stream = respond.send_response(head, false)?;
                    stream.send_data(data, false)?;
                    let mut trailers = http::HeaderMap::with_capacity(1);
                    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                    stream.send_trailers(trailers)
                });
            }
        });
    }
}

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("stat");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().expect("utime") + fields[12].parse::<f64>().expect("stime");
    ticks / 100.0
}

/// Prints calls per second over the time that the server measures.
async fn client(args: &[String]) {
    let [addr, path, in_flight, connections, bytes, cert] = args else {
        panic!("six arguments");
    };
    let in_flight: usize = in_flight.parse().expect("a number");
    let connections: usize = connections.parse().expect("a number");
    let mut body = vec![0; 5 + bytes.parse::<usize>().expect("a number")];
    let len = (body.len() - 5) as u32;
    body[1..5].copy_from_slice(&len.to_be_bytes());
    let body = Bytes::from(body);
    let count = Arc::new(std::sync::atomic::AtomicU64::new(0));
    for _ in 0..connections {
        let io = tokio::net::TcpStream::connect(addr).await.expect("connect");
        io.set_nodelay(true).expect("nodelay");
        let h2 = if cert.is_empty() {
            open(io).await
        } else {
            open(tls(io, cert).await).await
        };
        for _ in 0..in_flight / connections {
            let (h2, body, count, uri) = (h2.clone(), body.clone(), Arc::clone(&count), format!("http://x{path}"));
            tokio::spawn(async move {
                // Ends with the connection, which the end of this process closes.
                while call(&h2, &uri, body.clone()).await.is_ok() {
                    count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
    }
    tokio::time::sleep(WARM_UP).await;
    let (before, start) = (count.load(std::sync::atomic::Ordering::Relaxed), Instant::now());
    tokio::time::sleep(MEASURE).await;
    let done = count.load(std::sync::atomic::Ordering::Relaxed) - before;
    println!("{}", done as f64 / start.elapsed().as_secs_f64());
}

async fn call(h2: &h2::client::SendRequest<Bytes>, uri: &str, body: Bytes) -> Result<(), h2::Error> {
    let request = Request::post(uri)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "grpc-go/1.81")
        .header("grpc-timeout", "4999m")
        .body(())
        .expect("a request");
    let mut h2 = h2.clone().ready().await?;
    let (response, mut stream) = h2.send_request(request, false)?;
    stream.send_data(body, true)?;
    let mut answer = response.await?.into_body();
    while let Some(data) = answer.data().await {
        answer.flow_control().release_capacity(data?.len())?;
    }
    answer.trailers().await.map(|_| ())
}

async fn tls(io: tokio::net::TcpStream, cert: &str) -> impl AsyncRead + AsyncWrite + Unpin + Send + 'static {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(cert).expect("a certificate"))
        .expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from("localhost").expect("a name");
    tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, io)
        .await
        .expect("a handshake")
}

async fn open(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> h2::client::SendRequest<Bytes> {
    let mut builder = h2::client::Builder::new();
    builder
        .data_frame_budget(1 << 30)
        .initial_connection_window_size(4 << 20);
    let (h2, connection) = builder.handshake(io).await.expect("a handshake");
    tokio::spawn(connection);
    h2
}
