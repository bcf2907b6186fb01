//! gRPC without a client library's opinion: any message or any bytes out, every byte, status and trailer in.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use futures_util::stream;
use http::uri::PathAndQuery;
use prost::Message;
use tokio::sync::mpsc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use crate::background;
use crate::tls::{Material, TlsDialler};

/// Requests that a test means to be answered are answered within this, or the test fails.
pub const LIMIT: Duration = Duration::from_secs(20);

/// One HTTP/2 connection.
#[derive(Clone, Debug)]
pub struct Rpc {
    channel: Channel,
}

/// Both directions of one call.
#[derive(Debug)]
pub struct Bidi {
    send: Option<mpsc::Sender<Bytes>>,
    answers: Streaming<Bytes>,
}

impl Rpc {
    /// `endpoint` like `http://127.0.0.1:2379`. Connects on first use.
    pub fn new(endpoint: &str) -> Self {
        let _runtime = runtime();
        Self {
            channel: settings(endpoint).connect_lazy(),
        }
    }

    /// `endpoint` like `https://127.0.0.1:2379`, with the material's client certificate.
    pub fn with_tls(endpoint: &str, material: &Material) -> Self {
        let (_, address) = endpoint
            .split_once("https://")
            .unwrap_or_else(|| panic!("{endpoint} is not https"));
        let origin = endpoint.parse().unwrap_or_else(|error| panic!("{endpoint}: {error}"));
        let _runtime = runtime();
        // the address says plain since the dialler, not the channel, brings TLS; requests carry the origin
        let settings = settings(&format!("http://{address}")).origin(origin);
        Self {
            channel: settings.connect_with_connector_lazy(TlsDialler::new(material)),
        }
    }

    /// `path` like `/etcdserverpb.KV/Range`.
    pub async fn unary<A: Message + Default>(&self, path: &str, request: &impl Message) -> Result<A, Status> {
        let answer = self.unary_bytes(path, request.encode_to_vec().into()).await?;
        decode(path, answer)
    }

    pub async fn unary_bytes(&self, path: &str, request: Bytes) -> Result<Bytes, Status> {
        let mut client = self.ready().await?;
        let call = client.unary(Request::new(request), path_of(path), BytesCodec);
        let answer = tokio::time::timeout(LIMIT, call).await.map_err(|_| too_late(path))?;
        answer.map(tonic::Response::into_inner)
    }

    /// A call with extra metadata.
    pub async fn unary_request(&self, path: &str, request: Request<Bytes>) -> Result<Bytes, Status> {
        let mut client = self.ready().await?;
        let call = client.unary(request, path_of(path), BytesCodec);
        let answer = tokio::time::timeout(LIMIT, call).await.map_err(|_| too_late(path))?;
        answer.map(tonic::Response::into_inner)
    }

    /// Every message of a server stream, and how it ended.
    pub async fn collect<A: Message + Default>(&self, path: &str, request: &impl Message) -> Result<Vec<A>, Status> {
        let mut client = self.ready().await?;
        let request = Request::new(Bytes::from(request.encode_to_vec()));
        let call = async {
            let mut answers = client
                .server_streaming(request, path_of(path), BytesCodec)
                .await?
                .into_inner();
            let mut all = Vec::new();
            while let Some(answer) = answers.message().await? {
                all.push(decode(path, answer)?);
            }
            Ok(all)
        };
        tokio::time::timeout(LIMIT, call).await.map_err(|_| too_late(path))?
    }

    /// The answers of a server stream as they come; the caller may leave them unread.
    pub async fn server_stream(&self, path: &str, request: Bytes) -> Result<Streaming<Bytes>, Status> {
        let mut client = self.ready().await?;
        Ok(client
            .server_streaming(Request::new(request), path_of(path), BytesCodec)
            .await?
            .into_inner())
    }

    /// Opens a stream in both directions. `first` goes out with the call, since some servers answer only then.
    pub async fn bidi(&self, path: &str, first: &impl Message) -> Result<Bidi, Status> {
        self.bidi_bytes(path, first.encode_to_vec().into()).await
    }

    pub async fn bidi_bytes(&self, path: &str, first: Bytes) -> Result<Bidi, Status> {
        let mut client = self.ready().await?;
        let (send, mut requests) = mpsc::channel(64);
        send.send(first)
            .await
            .map_err(|_| Status::internal("the request queue is closed"))?;
        let outgoing = stream::poll_fn(move |context| requests.poll_recv(context));
        let call = client.streaming(Request::new(outgoing), path_of(path), BytesCodec);
        let answers = tokio::time::timeout(LIMIT, call)
            .await
            .map_err(|_| too_late(path))??
            .into_inner();
        Ok(Bidi {
            send: Some(send),
            answers,
        })
    }

    async fn ready(&self) -> Result<tonic::client::Grpc<Channel>, Status> {
        let mut client = tonic::client::Grpc::new(self.channel.clone())
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        let ready = tokio::time::timeout(LIMIT, client.ready());
        ready
            .await
            .map_err(|_| too_late("connect"))?
            .map_err(|error| Status::unavailable(format!("connect: {error:?}")))?;
        Ok(client)
    }
}

impl Bidi {
    /// Queues a request; false when the call has ended.
    pub async fn send(&self, request: &impl Message) -> bool {
        self.send_bytes(request.encode_to_vec().into()).await
    }

    pub async fn send_bytes(&self, request: Bytes) -> bool {
        match &self.send {
            Some(send) => send.send(request).await.is_ok(),
            None => false,
        }
    }

    /// Half-closes.
    pub fn finish(&mut self) {
        self.send = None;
    }

    /// The next answer; `None` at an OK end; the status otherwise, also when nothing comes within `limit`.
    pub async fn next<A: Message + Default>(&mut self, limit: Duration) -> Result<Option<A>, Status> {
        match tokio::time::timeout(limit, self.answers.message()).await {
            Err(_) => Err(too_late("stream")),
            Ok(Err(status)) => Err(status),
            Ok(Ok(None)) => Ok(None),
            Ok(Ok(Some(answer))) => decode("stream", answer).map(Some),
        }
    }
}

fn settings(endpoint: &str) -> Endpoint {
    Endpoint::from_shared(endpoint.to_owned())
        .unwrap_or_else(|error| panic!("{endpoint}: {error}"))
        .tcp_nodelay(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
}

/// A channel lives on the runtime that it is made in: the caller's, or else the kit's.
fn runtime() -> Option<tokio::runtime::EnterGuard<'static>> {
    match tokio::runtime::Handle::try_current() {
        Ok(_) => None,
        Err(_) => Some(background::handle().enter()),
    }
}

/// What a test sees when nothing came in time. No server sends this text.
fn too_late(what: &str) -> Status {
    Status::new(Code::Cancelled, format!("test gave up waiting: {what}"))
}

/// Whether `status` is the kit's own "nothing came in time".
pub fn gave_up(status: &Status) -> bool {
    status.message().starts_with("test gave up waiting")
}

fn decode<A: Message + Default>(path: &str, answer: Bytes) -> Result<A, Status> {
    A::decode(answer).map_err(|error| Status::internal(format!("test cannot decode the answer of {path}: {error}")))
}

fn path_of(path: &str) -> PathAndQuery {
    path.parse().unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Frames only: a message is its bytes.
#[derive(Clone, Copy, Debug, Default)]
struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(source.copy_to_bytes(source.remaining())))
    }
}
