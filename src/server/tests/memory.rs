//! What idle streams cost, in a process of its own since it is the process that is measured.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use quorate_api::Status;
use quorate_server::listen::{Gate, Server, Service, bind};
use quorate_server::rpc::{Api, CallContext, Incoming, Limits, Method, NoObserver, Outgoing, Reply, Rpc};

#[derive(Default)]
struct Idle(AtomicUsize);

impl Api for Idle {
    async fn unary(&self, _: Method, _: &CallContext, message: Bytes) -> Result<Reply, Status> {
        Ok(Reply::Message(message))
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
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Ten thousand watch streams on one connection, each having carried a message both ways.
#[tokio::test]
async fn ten_thousand_idle_streams_are_cheap() {
    const STREAMS: usize = 10_000;
    let binding = bind(&["http://127.0.0.1:0".parse().unwrap()], Default::default())
        .unwrap()
        .remove(0);
    let addr = binding.local_addr().unwrap();
    let idle = Arc::new(Idle::default());
    let rpc = Rpc::new(Arc::clone(&idle), Arc::new(NoObserver), Limits::default());
    let server = Server::new(Default::default());
    server.serve(binding, Service::client(rpc, None, None, Gate::open()));
    let io = tokio::net::TcpStream::connect(addr).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder
        .initial_connection_window_size(4 << 20)
        .data_frame_budget(1 << 30);
    let (client, connection) = builder.handshake(io).await.unwrap();
    tokio::spawn(connection);
    let before = resident_kib();
    let mut kept = Vec::new();
    for _ in 0..STREAMS {
        let request = Request::post("http://x/etcdserverpb.Watch/Watch")
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let mut ready = client.clone().ready().await.unwrap();
        let (response, mut stream) = ready.send_request(request, false).unwrap();
        stream
            .send_data(Bytes::from_static(b"\0\0\0\0\x04ping"), false)
            .unwrap();
        kept.push((response, stream));
    }
    let start = Instant::now();
    while idle.0.load(Ordering::SeqCst) < STREAMS {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "streams were not served in a minute"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let per_stream = (resident_kib() - before) * 1024 / STREAMS;
    println!("{per_stream} bytes per stream, client and server together");
    assert!(per_stream < 10 * 1024, "{per_stream} bytes per stream");
}
