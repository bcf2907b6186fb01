//! The node under test and the reference, taken through the same sequence.

use std::time::Duration;

use quorate_kit::Binary;

use crate::differences::{self, Facts};
use crate::op::{Op, literal};
use crate::reply::{Reply, Step};
use crate::shrink::shrink;
use crate::side::Side;

const SHRINKING: Duration = Duration::from_secs(120);

/// Two programs to compare.
#[derive(Clone, Debug)]
pub struct Contest {
    pub ours: Binary,
    pub oracle: Binary,
}

#[derive(Debug)]
pub struct Pair {
    ours: Side,
    oracle: Side,
    /// The reference is of the 3.4 line: there are requests it must not be sent.
    spare: bool,
    /// And the node under test is not: its answers are to be those of 3.7.
    translate: bool,
}

/// The first operation on which the two disagree.
#[derive(Debug)]
pub struct Mismatch {
    pub index: usize,
    pub text: String,
}

impl Contest {
    pub fn pair(&self) -> Pair {
        Pair {
            ours: Side::start(&self.ours),
            oracle: Side::start(&self.oracle),
            spare: self.oracle.is_34(),
            translate: self.oracle.is_34() && !self.ours.is_34(),
        }
    }
}

impl Pair {
    /// Runs a sequence on a store made clean. After a mismatch the pair is spent.
    pub async fn run(&mut self, ops: &[Op]) -> Result<(), Mismatch> {
        self.begin(false).await?;
        self.go(ops).await?;
        self.end(ops.len()).await
    }

    async fn end(&mut self, index: usize) -> Result<(), Mismatch> {
        let (ours, oracle) = tokio::join!(self.ours.end(), self.oracle.end());
        both(ours, oracle, index, "clean up")
    }

    /// Runs a sequence on a pair that nobody has written to.
    pub async fn run_fresh(&mut self, ops: &[Op]) -> Result<(), Mismatch> {
        self.begin(true).await?;
        self.go(ops).await?;
        self.end(ops.len()).await
    }

    async fn begin(&mut self, fresh: bool) -> Result<(), Mismatch> {
        let (ours, oracle) = tokio::join!(self.ours.begin(fresh), self.oracle.begin(fresh));
        both(ours, oracle, 0, "begin")
    }

    async fn go(&mut self, ops: &[Op]) -> Result<(), Mismatch> {
        for (index, op) in ops.iter().enumerate() {
            let unasked = if self.spare { differences::unasked(op) } else { None };
            if unasked.is_some() && !self.translate {
                continue; // 3.4 against itself
            }
            let (ours, mut oracle) = match unasked {
                Some(reply) => (self.ours.step(op).await, Step::only(reply)),
                None => tokio::join!(self.ours.step(op), self.oracle.step(op)),
            };
            if self.translate && oracle.broken.is_empty() {
                let first_refusal = match (op, &oracle.reply) {
                    (Op::Txn(txn), reply) if differences::is_precheck(txn, reply) => self
                        .oracle
                        .first_refusal(op)
                        .await
                        .unwrap_or_else(|status| Some(Reply::from_status(&status))),
                    _ => None,
                };
                let facts = Facts {
                    progress_was_due: self.oracle.progress_was_due(),
                    first_refusal,
                    forgotten: self.oracle.take_forgotten(),
                };
                differences::translate(op, facts, &mut oracle);
            }
            if ours != oracle || !ours.broken.is_empty() {
                return Err(self.mismatch(index, op, &ours, &oracle));
            }
        }
        Ok(())
    }

    fn mismatch(&mut self, index: usize, op: &Op, ours: &Step, oracle: &Step) -> Mismatch {
        let mut text = format!("operation {index}: {op:?}\n");
        if ours.reply != oracle.reply {
            text += &format!("  ours    {}\n  oracle  {}\n", show(&ours.reply), show(&oracle.reply));
        }
        if ours.seen != oracle.seen {
            text += &format!("  ours   watched {:?}\n  oracle watched {:?}\n", ours.seen, oracle.seen);
        }
        if ours.recorded != oracle.recorded {
            text += &format!(
                "  ours   stored {:?}\n  oracle stored {:?}\n",
                ours.recorded, oracle.recorded
            );
        }
        for (name, step) in [("ours", ours), ("oracle", oracle)] {
            for broken in &step.broken {
                text += &format!("  {name}: {broken}\n");
            }
        }
        for (name, side) in [("ours", &mut self.ours), ("oracle", &mut self.oracle)] {
            if !side.node.is_running() {
                text += &format!("  {name} has ended; its log:\n{}\n", side.node.tail());
            }
        }
        Mismatch {
            index,
            text: text.lines().map(shorten).collect(),
        }
    }
}

/// A line that can be read: values may have a million bytes.
fn shorten(line: &str) -> String {
    const CHARACTERS_MAX: usize = 4_000;
    let mut short: String = line.chars().take(CHARACTERS_MAX).collect();
    if short.len() < line.len() {
        short.push_str(" …");
    }
    short.push('\n');
    short
}

fn both(
    ours: Result<(), tonic::Status>,
    oracle: Result<(), tonic::Status>,
    index: usize,
    what: &str,
) -> Result<(), Mismatch> {
    match (ours, oracle) {
        (Ok(()), Ok(())) => Ok(()),
        (ours, oracle) => Err(Mismatch {
            index,
            text: format!("{what}\n  ours    {ours:?}\n  oracle  {oracle:?}\n"),
        }),
    }
}

fn show(reply: &Reply) -> String {
    format!("{reply:?}")
}

/// Drops what is not needed for a mismatch, on fresh servers after each one that still fails, until nothing more can
/// go or [`SHRINKING`] is over. The whole report: where, what, and the shortest sequence to keep.
pub async fn report(contest: &Contest, whence: &str, ops: &[Op], found: Mismatch) -> String {
    let first = found.text.clone();
    let mut pair = contest.pair();
    let run = async |ops: &[Op]| {
        let outcome = pair.run(ops).await;
        if outcome.is_err() {
            pair = contest.pair();
        }
        outcome
    };
    let (shortest, last) = shrink(ops, found, SHRINKING, run).await;
    format!(
        "{whence}\n{first}\nshortest sequence that fails, {} operations, for regressions.rs:\n{}\nwhich ends in\n{}",
        shortest.len(),
        literal(&shortest),
        last.text
    )
}
