//! From a long sequence that fails to a short one.

use std::time::{Duration, Instant};

use crate::op::Op;
use crate::pair::Mismatch;

/// Drops pieces of `ops`, half of it first and single operations last, as long as `run` still fails without them, until
/// nothing more can go or `limit` has passed. Gives the shortest failing sequence and its mismatch.
pub async fn shrink(
    ops: &[Op],
    found: Mismatch,
    limit: Duration,
    mut run: impl AsyncFnMut(&[Op]) -> Result<(), Mismatch>,
) -> (Vec<Op>, Mismatch) {
    // nothing behind the operation that failed has any part in it
    let mut shortest = ops[..=found.index.min(ops.len().saturating_sub(1))].to_vec();
    let mut mismatch = found;
    let deadline = Instant::now() + limit;
    let mut chunk = (shortest.len() / 2).max(1);
    loop {
        let mut dropped_any = false;
        let mut from = 0;
        while from < shortest.len() {
            if Instant::now() >= deadline {
                return (shortest, mismatch);
            }
            let to = (from + chunk).min(shortest.len());
            let mut fewer = shortest.clone();
            fewer.drain(from..to);
            match run(&fewer).await {
                Ok(()) => from = to,
                Err(still) => {
                    fewer.truncate(still.index + 1);
                    shortest = fewer;
                    mismatch = still;
                    dropped_any = true;
                }
            }
        }
        match (chunk, dropped_any) {
            (1, false) => return (shortest, mismatch),
            // what could not go may be able to, now that something else has
            (1, true) => {}
            _ => chunk /= 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate_api::proto::etcdserverpb::{DeleteRangeRequest, PutRequest};

    use super::*;
    use crate::generate::sequence;

    const LIMIT: Duration = Duration::from_secs(60);

    fn puts_a(op: &Op) -> bool {
        matches!(op, Op::Put(PutRequest { key, .. }) if key.as_ref() == b"a")
    }

    fn deletes_a(op: &Op) -> bool {
        matches!(op, Op::Delete(DeleteRangeRequest { key, .. }) if key.as_ref() == b"a")
    }

    /// A pair of servers that disagree on the first delete of `a` that comes after a put of it.
    async fn disagree(ops: &[Op]) -> Result<(), Mismatch> {
        let mut put = false;
        for (index, op) in ops.iter().enumerate() {
            put |= puts_a(op);
            if put && deletes_a(op) {
                return Err(Mismatch {
                    index,
                    text: "they disagree".to_owned(),
                });
            }
        }
        Ok(())
    }

    #[tokio::test]
    async fn only_the_two_operations_that_matter_are_left() {
        let mut proven = 0;
        for seed in 0..40 {
            let ops = sequence(seed, 200);
            let Err(found) = disagree(&ops).await else { continue };
            let mut runs = 0;
            let (shortest, mismatch) = shrink(&ops, found, LIMIT, async |ops: &[Op]| {
                runs += 1;
                disagree(ops).await
            })
            .await;
            assert_eq!(shortest.len(), 2, "seed {seed}: {shortest:?}");
            assert!(puts_a(&shortest[0]) && deletes_a(&shortest[1]), "seed {seed}");
            assert_eq!(mismatch.index, 1);
            assert!(runs < 200, "seed {seed}: {runs} runs");
            proven += 1;
        }
        assert!(proven > 10, "only {proven} of 40 sequences had both operations");
    }

    #[tokio::test]
    async fn one_operation_stays_one() {
        let ops = sequence(1, 1);
        let fails = |ops: &[Op]| match ops.len() {
            0 => Ok(()),
            _ => Err(Mismatch {
                index: 0,
                text: String::new(),
            }),
        };
        let found = fails(&ops).unwrap_err();
        let (shortest, _) = shrink(&ops, found, LIMIT, async |ops: &[Op]| fails(ops)).await;
        assert_eq!(shortest.len(), 1);
    }

    #[tokio::test]
    async fn time_ends_it() {
        let ops = sequence(3, 50);
        let found = Mismatch {
            index: 49,
            text: String::new(),
        };
        let (shortest, _) = shrink(&ops, found, Duration::ZERO, async |_: &[Op]| {
            panic!("there was no time to run anything")
        })
        .await;
        assert_eq!(shortest, ops);
    }
}
