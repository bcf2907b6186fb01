//! Memory for answers that are being put together: so much for all requests together, however many ask at once and
//! however slowly they read.

use quorate_api::{Code, Status};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The unit that is counted, since a semaphore counts to 2^32 only.
const UNIT_BYTES: usize = 1024;

/// How long a request may wait for others to give memory back.
const PATIENCE: Duration = Duration::from_secs(5);

/// A budget in bytes. Clones share it.
#[derive(Clone)]
pub struct Budget {
    units: Arc<Semaphore>,
    total: usize,
    patience: Duration,
}

/// A reservation; dropping it gives the bytes back.
#[derive(Debug)]
pub struct Reserved {
    _permit: OwnedSemaphorePermit,
}

impl Budget {
    pub fn new(bytes: usize) -> Self {
        Self::with_patience(bytes, PATIENCE)
    }

    fn with_patience(bytes: usize, patience: Duration) -> Self {
        let total = (bytes / UNIT_BYTES).clamp(1, u32::MAX as usize);
        Self {
            units: Arc::new(Semaphore::new(total)),
            total,
            patience,
        }
    }

    /// Reserves `bytes`, waiting for others if need be. A request larger than the whole budget gets ResourceExhausted
    /// at once, one that waited in vain too.
    pub async fn reserve(&self, bytes: usize) -> Result<Reserved, Status> {
        let units = bytes.div_ceil(UNIT_BYTES);
        if units > self.total {
            return Err(self.exhausted(bytes));
        }
        let permit = self.units.clone().acquire_many_owned(units as u32);
        match tokio::time::timeout(self.patience, permit).await {
            Ok(Ok(permit)) => Ok(Reserved { _permit: permit }),
            _ => Err(self.exhausted(bytes)),
        }
    }

    fn exhausted(&self, bytes: usize) -> Status {
        let all = self.total * UNIT_BYTES;
        Status::new(
            Code::ResourceExhausted,
            format!("the answer needs {bytes} bytes of memory and all requests together have {all}: ask with a limit"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_given_back_can_be_had_again() {
        let budget = Budget::with_patience(10 << 10, Duration::from_millis(10));
        let first = budget.reserve(8 << 10).await.unwrap();
        assert_eq!(budget.reserve(4 << 10).await.unwrap_err().code, Code::ResourceExhausted);
        drop(first);
        budget.reserve(10 << 10).await.unwrap();
        assert!(budget.reserve(11 << 10).await.is_err(), "never more than there is");
    }
}
