//! Running out of file descriptors, in a process of its own since the limit holds for all of it.
#![allow(clippy::unwrap_used)]

use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_server::http::{Alarm, HttpService, NodeState, Ops, ProbeFuture};
use quorate_server::listen::{ListenLimits, Server, Service, bind};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Node;

impl NodeState for Node {
    fn alarms(&self) -> Vec<Alarm> {
        Vec::new()
    }

    fn has_leader(&self) -> bool {
        true
    }

    fn is_learner(&self) -> bool {
        false
    }

    fn probe_linearizable(&self) -> ProbeFuture<'_> {
        Box::pin(async { Ok(()) })
    }

    fn probe_serializable(&self) -> ProbeFuture<'_> {
        Box::pin(async { Ok(()) })
    }

    fn cluster_version(&self) -> Option<String> {
        None
    }
}

/// Takes the file since there may be no descriptor to open it with.
fn cpu_ticks(stat: &std::fs::File) -> u64 {
    let mut buffer = [0; 1024];
    let n = stat.read_at(&mut buffer, 0).unwrap();
    let stat = std::str::from_utf8(&buffer[..n]).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_out_of_descriptors_passes() {
    let ops = Ops {
        node: Arc::new(Node),
        metrics: Arc::new(|| (String::new(), Bytes::new())),
        probe_deadline: Duration::from_secs(1),
        fd_limit: 0,
    };
    let binding = bind(&["http://127.0.0.1:0".parse().unwrap()], Default::default())
        .unwrap()
        .remove(0);
    let addr = binding.local_addr().unwrap();
    let server = Server::new(ListenLimits {
        header_deadline: Duration::from_secs(60),
        handshake_deadline: Duration::from_secs(60),
        ..ListenLimits::default()
    });
    server.serve(binding, Service::metrics(HttpService::metrics(ops), None));
    let stat = std::fs::File::open("/proc/self/stat").unwrap();
    // Clients first, into the kernel's queue as far as the server does not take them; then no descriptor is left for it.
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let before = getrlimit(Resource::Nofile);
    let limit = Rlimit {
        current: Some(open + 30),
        ..before
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    let mut clients = Vec::new();
    while let Ok(client) = TcpStream::connect(addr) {
        clients.push(client);
    }
    assert!(clients.len() >= 10, "{} connections", clients.len());
    // It must neither end nor spin meanwhile.
    let ticks = cpu_ticks(&stat);
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let spent = cpu_ticks(&stat) - ticks;
    assert!(
        spent < 50,
        "{spent} hundredths of a second of CPU in one second of waiting"
    );
    clients.clear();
    setrlimit(Resource::Nofile, before).unwrap();
    let mut client = tokio::net::TcpStream::connect(addr).await.unwrap();
    client
        .write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(20), client.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
