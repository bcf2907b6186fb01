//! A client that was not written for this: tonic, over TCP and over a unix socket.

use bytes::{Buf, BufMut, Bytes};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::kit::*;

/// Messages as they are.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        dst.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(src.copy_to_bytes(src.remaining())))
    }
}

async fn unary(channel: &Channel, path: &'static str, message: &[u8]) -> Result<Bytes, Status> {
    let mut grpc = Grpc::new(channel.clone());
    soon(grpc.ready()).await.unwrap();
    let request = Request::new(Bytes::copy_from_slice(message));
    let answer = grpc.unary(request, http::uri::PathAndQuery::from_static(path), Raw);
    soon(answer).await.map(tonic::Response::into_inner)
}

async fn exercise(channel: Channel) {
    assert_eq!(unary(&channel, PUT, b"ehello").await.unwrap(), "hello");
    assert_eq!(unary(&channel, RANGE, b"b300000").await.unwrap().len(), 300_000);
    let error = unary(&channel, PUT, "fgrün 100%".as_bytes()).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Unknown, "grün 100%"));
    let error = unary(&channel, "/etcdserverpb.KV/Nope", b"").await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    let error = unary(&channel, PUT, &vec![b'e'; 3_000_000]).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert_eq!(
        error.message(),
        "grpc: received message larger than max (3000000 vs. 2097152)"
    );

    let mut grpc = Grpc::new(channel);
    soon(grpc.ready()).await.unwrap();
    let messages = futures_util::stream::iter(["one", "two", "three"].map(Bytes::from_static_str));
    let path = http::uri::PathAndQuery::from_static(WATCH);
    let mut answers = soon(grpc.streaming(Request::new(messages), path, Raw))
        .await
        .unwrap()
        .into_inner();
    for expected in ["one", "two", "three"] {
        assert_eq!(soon(answers.message()).await.unwrap().unwrap(), expected);
    }
    assert_eq!(soon(answers.message()).await.unwrap(), None);
}

trait FromStaticStr {
    fn from_static_str(text: &'static str) -> Bytes;
}

impl FromStaticStr for Bytes {
    fn from_static_str(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }
}

#[tokio::test]
async fn tonic_talks_to_us() {
    let edge = start();
    let endpoint = Endpoint::from_shared(format!("http://{}", edge.addr)).unwrap();
    exercise(endpoint.connect().await.unwrap()).await;
}

#[tokio::test]
async fn unix_sockets_serve_and_clean_up() {
    use quorate_server::listen::{BindError, Gate, Server, Service, bind};
    use quorate_server::rpc::{Limits, Rpc};
    use std::sync::Arc;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    let url = format!("unix://{}", path.display());
    std::fs::write(&path, "a file").unwrap();
    let error = bind(&[url.parse().unwrap()], Default::default()).unwrap_err();
    assert!(matches!(error, BindError::NotASocket { .. }), "{error}");
    std::fs::remove_file(&path).unwrap();
    // One that an earlier run left behind is no obstacle.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let binding = bind(&[url.parse().unwrap()], Default::default()).unwrap().remove(0);
    let server = Server::new(Default::default());
    let seen = Arc::new(Seen::default());
    let rpc = Rpc::new(Arc::new(Toy(Arc::clone(&seen))), seen as _, Limits::default());
    server.serve(binding, Service::client(rpc, None, None, Gate::open()));
    let client = h2_over(tokio::net::UnixStream::connect(&path).await.unwrap()).await;
    assert_eq!(&call(&client, PUT, b"ex").await.message()[..], b"x");
    drop(client);
    assert!(server.shutdown(std::time::Duration::from_secs(5)).await);
    assert!(!path.exists());
}
