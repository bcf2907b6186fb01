//! Collects what HTTP/2 writes during one turn of a connection's task, so that it leaves in one write and, with TLS, in
//! one record, however many responses it carries. Large payloads are not copied: they go out at once, together with
//! what had been collected before them.
//!
//! What comes in passes by a [`FrameWatch`] on its way to the library, and what goes out on its way from it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::FrameWatch;

/// Collected bytes above which HTTP/2 has to wait for the socket.
const HIGH_BYTES: usize = 64 * 1024;
/// A slice of this size is worth a write of its own rather than a copy.
const DIRECT_BYTES: usize = 8 * 1024;
/// A buffer that grew beyond this is given back once it is empty.
const KEEP_BYTES: usize = 8 * 1024;
/// Slices per vectored write; HTTP/2's library hands over at most 64.
const SLICES: usize = 65;

/// The side that HTTP/2 writes to and reads from.
pub(crate) struct CorkIo<S>(Arc<Mutex<Inner<S>>>);

/// The side of the connection's task.
pub(crate) struct Cork<S>(Arc<Mutex<Inner<S>>>);

struct Inner<S> {
    io: S,
    out: BytesMut,
    /// Collect until [`Cork::poll_drain`]; off during the handshake, whose parts the peer waits for.
    corked: bool,
    /// Something was written to `io` since its last flush.
    dirty: bool,
    reads: u64,
    frames: FrameWatch,
}

pub(crate) fn cork<S>(io: S, frames: FrameWatch) -> (CorkIo<S>, Cork<S>) {
    let inner = Arc::new(Mutex::new(Inner {
        io,
        out: BytesMut::new(),
        corked: false,
        dirty: false,
        reads: 0,
        frames,
    }));
    (CorkIo(Arc::clone(&inner)), Cork(inner))
}

impl<S: AsyncRead + AsyncWrite + Unpin> Cork<S> {
    /// The handshake is over: collect from now on.
    pub(crate) fn close(&self) {
        self.0.lock().corked = true;
    }

    /// Writes out what was collected.
    pub(crate) fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().poll_drain(cx)
    }

    /// Rises with every read that brought bytes.
    pub(crate) fn reads(&self) -> u64 {
        self.0.lock().reads
    }

    /// Gives access to what is known of the client's frames.
    pub(crate) fn with_frames<T>(&self, look: impl FnOnce(&mut FrameWatch) -> T) -> T {
        look(&mut self.0.lock().frames)
    }

    /// What is below, for when HTTP/2 is done with it.
    pub(crate) fn io(&self) -> CorkIo<S> {
        CorkIo(Arc::clone(&self.0))
    }

    /// Appends a last frame, for when the connection is given up anyway.
    pub(crate) fn append(&self, frame: &[u8]) {
        self.0.lock().out.extend_from_slice(frame);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Inner<S> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_out(cx, 0))?;
        if self.dirty {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.dirty = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes until at most `keep` collected bytes are left.
    fn poll_write_out(&mut self, cx: &mut Context<'_>, keep: usize) -> Poll<io::Result<()>> {
        while self.out.len() > keep {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.out))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.dirty = true;
            self.out.advance(n);
        }
        if self.out.is_empty() && self.out.capacity() > KEEP_BYTES {
            self.out = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Takes all of `slices`, or none while too much is waiting.
    fn poll_accept(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.out.len() >= HIGH_BYTES {
            ready!(self.poll_write_out(cx, HIGH_BYTES / 2))?;
        }
        for slice in slices {
            self.frames.sends(slice);
        }
        let total = slices.iter().map(|slice| slice.len()).sum();
        let mut written = 0;
        if slices.iter().any(|slice| slice.len() >= DIRECT_BYTES) {
            let mut all = [IoSlice::new(&[]); SLICES];
            all[0] = IoSlice::new(&self.out);
            let used = slices.len().min(SLICES - 1);
            all[1..=used].copy_from_slice(&slices[..used]);
            // Pending is fine: the bytes are collected below, and the drain at the end of the turn waits for the socket.
            if let Poll::Ready(result) = Pin::new(&mut self.io).poll_write_vectored(cx, &all[..=used]) {
                let n = result?;
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.dirty = true;
                let of_out = n.min(self.out.len());
                self.out.advance(of_out);
                written = n - of_out;
            }
        }
        for slice in slices {
            let skip = written.min(slice.len());
            written -= skip;
            self.out.extend_from_slice(&slice[skip..]);
        }
        Poll::Ready(Ok(total))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for CorkIo<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.lock();
        let before = buf.filled().len();
        ready!(Pin::new(&mut inner.io).poll_read(cx, buf))?;
        let read = &mut buf.filled_mut()[before..];
        if !read.is_empty() {
            inner.reads += 1;
            inner.frames.read(read);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for CorkIo<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.lock().poll_accept(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().poll_accept(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.lock();
        if inner.corked {
            return Poll::Ready(Ok(()));
        }
        inner.poll_drain(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.lock();
        ready!(inner.poll_drain(cx))?;
        Pin::new(&mut inner.io).poll_shutdown(cx)
    }
}
