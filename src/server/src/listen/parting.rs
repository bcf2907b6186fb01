//! The end of a connection that the other side should hear the end of.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// For so much that it still sends it is not cut off.
const BYTES_MAX: usize = 64 * 1024;

/// Closes, and waits for the other side to do so: closing with bytes unread resets the connection, and whoever meets the
/// reset before it has read what was sent last does not hear it.
pub(crate) async fn part(mut io: impl AsyncRead + AsyncWrite + Unpin, patience: Duration) {
    let drain = async {
        io.shutdown().await?;
        let mut left = BYTES_MAX;
        let mut buffer = [0; 1024];
        while left > 0 {
            match io.read(&mut buffer).await? {
                0 => break,
                n => left = left.saturating_sub(n),
            }
        }
        Ok::<_, io::Error>(())
    };
    // There is nothing to be done about one that does not go.
    let _ = timeout(patience, drain).await;
}
