//! The edge of the server over real sockets: protocols, TLS, limits, texts, shutdown. The handlers behind it are toys.
#![allow(clippy::unwrap_used)]

mod asking;
mod certificates;
mod clients;
mod flow;
mod hostile;
mod kit;
mod limits;
mod ops;
mod peers;
mod protocol;
mod shutdown;
mod streams;
mod tls;
