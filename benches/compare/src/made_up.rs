//! Members made up for tests, frame by frame: they do what a real server does at moments that can't be arranged.

use std::net::SocketAddr;

use bytes::Bytes;
use quorate_api::proto::etcdserverpb::PutResponse;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::grpc::frame;

const PREFACE_BYTES: usize = 24;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What a member does with puts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Answers,
    /// Answers one, and leaves out the next by a GOAWAY that names the first as its last.
    LeavesOutTheSecond,
    /// Reads one and closes the connection.
    DiesOfTheFirst,
}

/// Takes one connection and none after it.
pub async fn member(manner: Manner) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        drop(listener);
        let _ = serve(stream, manner).await; // ends with an error when the client has gone
    });
    addr
}

async fn serve(mut stream: TcpStream, manner: Manner) -> std::io::Result<()> {
    stream.read_exact(&mut [0; PREFACE_BYTES]).await?;
    send(&mut stream, SETTINGS, 0, 0, &[]).await?;
    let mut first = None;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, id @ ..] = head;
        stream
            .read_exact(&mut vec![0; u32::from_be_bytes([0, a, b, c]) as usize])
            .await?;
        match kind {
            SETTINGS if flags & ACK == 0 => send(&mut stream, SETTINGS, ACK, 0, &[]).await?,
            DATA if flags & END_STREAM != 0 => {
                let id = u32::from_be_bytes(id);
                match (manner, first) {
                    (Manner::DiesOfTheFirst, _) => return Ok(()),
                    (Manner::LeavesOutTheSecond, Some(last)) => {
                        let body = [u32::to_be_bytes(last), [0; 4]].concat(); // NO_ERROR
                        send(&mut stream, GOAWAY, 0, 0, &body).await?;
                    }
                    _ => answer(&mut stream, id).await?,
                }
                first.get_or_insert(id);
            }
            _ => {}
        }
    }
}

async fn answer(stream: &mut TcpStream, id: u32) -> std::io::Result<()> {
    let body: Bytes = frame(&PutResponse::default());
    send(stream, HEADERS, END_HEADERS, id, b"\x88").await?; // `:status: 200` of the static table
    send(stream, DATA, 0, id, &body).await?;
    send(stream, HEADERS, END_HEADERS | END_STREAM, id, b"\0\x0bgrpc-status\x010").await
}

async fn send(stream: &mut TcpStream, kind: u8, flags: u8, id: u32, body: &[u8]) -> std::io::Result<()> {
    let [_, a, b, c] = (body.len() as u32).to_be_bytes();
    let head = [[a, b, c, kind, flags].as_slice(), &id.to_be_bytes()].concat();
    stream.write_all(&[&head, body].concat()).await
}
