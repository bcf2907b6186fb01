//! HTTP/2 where the test decides about every frame: malformed bodies, answers left unread, streams reset.

use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderValue, Request};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// One plaintext HTTP/2 connection.
#[derive(Debug)]
pub struct Raw {
    send: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

/// How a call ended. The body is counted, not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    pub http_status: u16,
    pub grpc_status: Option<String>,
    pub grpc_message: Option<String>,
    pub body_bytes: u64,
}

/// Window sizes of a connection, and so how much a server can send before the test reads.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    pub stream: u32,
    pub connection: u32,
}

impl Default for Windows {
    fn default() -> Self {
        Self {
            stream: 1 << 20,
            connection: 4 << 20,
        }
    }
}

/// A gRPC message frame: flag, length, message.
pub fn frame(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap());
    framed.put_slice(message);
    framed.freeze()
}

impl Raw {
    pub async fn connect(address: SocketAddr, windows: Windows) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        let _ = stream.set_nodelay(true);
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(windows.stream)
            .initial_connection_window_size(windows.connection)
            .handshake::<_, Bytes>(stream)
            .await
            .map_err(std::io::Error::other)?;
        Ok(Self {
            send,
            connection: tokio::spawn(connection),
        })
    }

    /// Sends a request whose body is exactly `body`, ends it, and reads to the end.
    pub async fn call(&mut self, path: &str, body: Bytes) -> Result<Ended, h2::Error> {
        let (answer, _) = self.start(path, body, true).await?;
        finish(answer).await
    }

    /// Sends a request and leaves the answer to the caller.
    pub async fn start(
        &mut self,
        path: &str,
        body: Bytes,
        end: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        self.send = self.send.clone().ready().await?;
        let mut request = Request::post(format!("http://quorate.test{path}")).body(()).unwrap();
        let headers = request.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        headers.insert("te", HeaderValue::from_static("trailers"));
        let (answer, mut stream) = self.send.send_request(request, false)?;
        stream.send_data(body, end)?;
        Ok((answer, stream))
    }

    /// Opens a stream and resets it at once.
    pub async fn reset_one(&mut self, path: &str) -> Result<(), h2::Error> {
        let (_, mut stream) = self.start(path, frame(b""), false).await?;
        stream.send_reset(Reason::CANCEL);
        Ok(())
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Reads an answer to its end, giving back the window as it goes.
pub async fn finish(answer: ResponseFuture) -> Result<Ended, h2::Error> {
    let answer = answer.await?;
    let mut ended = Ended {
        http_status: answer.status().as_u16(),
        ..Ended::default()
    };
    note_status(&mut ended, answer.headers());
    let mut body: RecvStream = answer.into_body();
    while let Some(data) = body.data().await {
        let data = data?;
        ended.body_bytes += data.len() as u64;
        body.flow_control().release_capacity(data.len())?;
    }
    if let Some(trailers) = body.trailers().await? {
        note_status(&mut ended, &trailers);
    }
    Ok(ended)
}

fn note_status(ended: &mut Ended, headers: &http::HeaderMap) {
    let text = |name: &str| {
        headers
            .get(name)
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    ended.grpc_status = text("grpc-status").or(ended.grpc_status.take());
    ended.grpc_message = text("grpc-message").or(ended.grpc_message.take());
}
