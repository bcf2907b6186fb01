//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use crate::cluster::Via;
use crate::scale::{FULL, QUICK, Scale};
use crate::targets;
use crate::workload::{self, Workload};

/// Names a second etcd to compare with, beside the packaged one.
const PEER: &str = "QUORATE_PEER";

pub const USAGE: &str = "\
compare: etcd and Quorate in turn, under the same clients

  --etcd PATH         an etcd to compare with; repeatable (default /usr/bin/etcd, and $QUORATE_PEER where that is set)
  --alone             none to compare with
  --ours PATH         our server (default target/release/quorate)
  --etcd-arg ARG      another argument for every etcd; repeatable
  --ours-arg ARG      another argument for ours; repeatable
  --members N         1, 3 or 5 members per server (default 1)
  --via WHICH         which of them the clients are connected to: all, leader or follower (default all)
  --election-ms MS    election timeout of every server, a tenth of it as heartbeat interval (default the server's)
  --workloads LIST    comma-separated names or groups (default `default`); see --list
  --list              print workloads and groups
  --clients LIST      logical clients (default 1,100,1000)
  --conns N           connections they share (default clients/100, at least 1)
  --threads N         threads of the client side (default 1)
  --rounds N          alternating rounds; the table shows medians (default 3)
  --seconds S         length of one measured window (default 4)
  --ops N             measure this many operations instead
  --memory-keys N     keys of the `memory` scenario (default 1000000)
  --watchers N        watchers of the `watchers` scenario (default 10000, on a hundredth as many streams)
  --repeats N         times that `leader-kill` and `leader-stop` do so (default 10)
  --join-mib N        data that a new member fetches in `join`, and that `defrag` keeps (default 1024)
  --join-rate N       puts per second meanwhile (default 100)
  --targets           measure what targets are set for, and print which are met
  --tls               TLS between clients and server, with client certificates
  --peer-tls          TLS between members, mutual
  --quick             small data, short windows, one round, 100 clients, everything once
  --dir PATH          where data directories are made (default target/compare)
  --markdown          print the table as markdown
  --json FILE         write every single measurement
  --help
";

/// When a measured window ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    Time(Duration),
    /// Operations of all clients together.
    Ops(u64),
}

#[derive(Clone, Debug)]
pub struct Args {
    pub etcds: Vec<PathBuf>,
    pub ours: PathBuf,
    pub etcd_args: Vec<String>,
    pub ours_args: Vec<String>,
    pub members: usize,
    pub via: Via,
    pub election: Option<Duration>,
    pub workloads: Vec<Workload>,
    pub clients: Vec<usize>,
    pub conns: Option<usize>,
    pub threads: usize,
    pub rounds: usize,
    pub limit: Limit,
    pub scale: Scale,
    pub tls: bool,
    pub peer_tls: bool,
    pub targets: bool,
    pub quick: bool,
    pub dir: PathBuf,
    pub markdown: bool,
    pub json: Option<PathBuf>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct BadArgument(String);

impl std::fmt::Display for BadArgument {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for BadArgument {}

impl Args {
    /// `None` asks for help. `--list` prints and exits here, so that it works beside any other flag.
    pub fn parse(words: impl Iterator<Item = String>) -> Result<Option<Self>, BadArgument> {
        let mut given = Given {
            peer: std::env::var_os(PEER).map(PathBuf::from),
            ..Given::default()
        };
        let mut words = words;
        while let Some(word) = words.next() {
            let (flag, inline) = match word.split_once('=') {
                Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
                None => (word, None),
            };
            let mut value = || {
                inline
                    .clone()
                    .or_else(|| words.next())
                    .ok_or_else(|| BadArgument(format!("{flag} needs a value")))
            };
            match flag.as_str() {
                "--help" | "-h" => return Ok(None),
                "--list" => {
                    print!("{}", workload::listing());
                    std::process::exit(0);
                }
                "--etcd" => given.etcds.push(value()?.into()),
                "--ours" => given.ours = Some(value()?.into()),
                "--etcd-arg" => given.etcd_args.push(value()?),
                "--ours-arg" => given.ours_args.push(value()?),
                "--alone" => given.alone = true,
                "--members" => given.members = Some(one_of(&flag, &value()?, &["1", "3", "5"])?),
                "--via" => given.via = Some(value()?),
                "--election-ms" => given.election_ms = Some(positive(&flag, &value()?)? as u64),
                "--workloads" => given.workloads = Some(value()?),
                "--clients" => given.clients = Some(list(&flag, &value()?)?),
                "--conns" => given.conns = Some(positive(&flag, &value()?)?),
                "--threads" => given.threads = Some(positive(&flag, &value()?)?),
                "--rounds" => given.rounds = Some(positive(&flag, &value()?)?),
                "--seconds" => given.limit = Some(Limit::Time(seconds(&flag, &value()?)?)),
                "--ops" => given.limit = Some(Limit::Ops(positive(&flag, &value()?)? as u64)),
                "--memory-keys" => given.memory_keys = Some(positive(&flag, &value()?)? as u64),
                "--watchers" => given.watchers = Some(positive(&flag, &value()?)? as u64),
                "--repeats" => given.repeats = Some(positive(&flag, &value()?)?),
                "--join-mib" => given.join_mib = Some(positive(&flag, &value()?)? as u64),
                "--join-rate" => given.join_rate = Some(positive(&flag, &value()?)? as u64),
                "--tls" => given.tls = true,
                "--peer-tls" => given.peer_tls = true,
                "--targets" => given.targets = true,
                "--quick" => given.quick = true,
                "--dir" => given.dir = Some(value()?.into()),
                "--markdown" => given.markdown = true,
                "--json" => given.json = Some(value()?.into()),
                _ => return Err(BadArgument(format!("unknown flag {flag}"))),
            }
        }
        given.settle().map(Some)
    }
}

/// What was on the command line; defaults depend on `--quick`, which may come last.
#[derive(Default)]
struct Given {
    etcds: Vec<PathBuf>,
    ours: Option<PathBuf>,
    etcd_args: Vec<String>,
    ours_args: Vec<String>,
    alone: bool,
    members: Option<usize>,
    via: Option<String>,
    election_ms: Option<u64>,
    workloads: Option<String>,
    clients: Option<Vec<usize>>,
    conns: Option<usize>,
    threads: Option<usize>,
    rounds: Option<usize>,
    limit: Option<Limit>,
    memory_keys: Option<u64>,
    watchers: Option<u64>,
    repeats: Option<usize>,
    join_mib: Option<u64>,
    join_rate: Option<u64>,
    tls: bool,
    peer_tls: bool,
    targets: bool,
    quick: bool,
    peer: Option<PathBuf>,
    dir: Option<PathBuf>,
    markdown: bool,
    json: Option<PathBuf>,
}

impl Given {
    fn settle(self) -> Result<Args, BadArgument> {
        let quick = self.quick;
        let mut scale = if quick { QUICK } else { FULL };
        scale.memory_keys = self.memory_keys.unwrap_or(scale.memory_keys);
        scale.watchers = self.watchers.unwrap_or(scale.watchers);
        scale.repeats = self.repeats.unwrap_or(scale.repeats);
        scale.join_bytes = self.join_mib.map_or(scale.join_bytes, |mib| mib << 20);
        scale.join_rate = self.join_rate.unwrap_or(scale.join_rate);
        let etcds = match (self.alone, self.etcds.is_empty()) {
            (true, true) => Vec::new(),
            (true, false) => return Err(BadArgument("--alone: and yet there is an --etcd".into())),
            (false, true) => [PathBuf::from("/usr/bin/etcd")].into_iter().chain(self.peer).collect(),
            (false, false) => self.etcds,
        };
        let members = self.members.unwrap_or(1);
        let via = match self.via.as_deref() {
            None => Via::All,
            Some("follower") if members == 1 => {
                return Err(BadArgument("--via follower: one member has none; see --members".into()));
            }
            Some(word) => Via::parse(word)
                .ok_or_else(|| BadArgument(format!("--via {word}: expected all, leader or follower")))?,
        };
        if let Some(ms @ (..50 | 50_000..)) = self.election_ms {
            return Err(BadArgument(format!("--election-ms {ms}: expected 50 to 49999")));
        }
        let workloads = match self.workloads {
            Some(named) => workload::select(&named, members).map_err(BadArgument)?,
            None if self.targets => targets::workloads(members),
            None => workload::default_set(quick, members),
        };
        Ok(Args {
            etcds,
            ours: self.ours.unwrap_or_else(|| "target/release/quorate".into()),
            etcd_args: self.etcd_args,
            ours_args: self.ours_args,
            members,
            via,
            election: self.election_ms.map(Duration::from_millis),
            workloads,
            clients: self.clients.unwrap_or_else(|| match quick && !self.targets {
                true => vec![100],
                false => vec![1, 100, 1000],
            }),
            conns: self.conns,
            threads: self.threads.unwrap_or(1),
            rounds: self.rounds.unwrap_or(if quick { 1 } else { 3 }),
            limit: self
                .limit
                .unwrap_or(Limit::Time(Duration::from_millis(if quick { 700 } else { 4_000 }))),
            scale,
            tls: self.tls,
            peer_tls: self.peer_tls,
            targets: self.targets,
            quick,
            dir: self.dir.unwrap_or_else(|| "target/compare".into()),
            markdown: self.markdown,
            json: self.json,
        })
    }
}

fn one_of(flag: &str, value: &str, choice: &[&str]) -> Result<usize, BadArgument> {
    match value.parse() {
        Ok(number) if choice.contains(&value) => Ok(number),
        _ => Err(BadArgument(format!("{flag} {value}: expected {}", choice.join(", ")))),
    }
}

fn positive(flag: &str, value: &str) -> Result<usize, BadArgument> {
    match value.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(BadArgument(format!("{flag} {value}: expected a whole number above 0"))),
    }
}

fn list(flag: &str, value: &str) -> Result<Vec<usize>, BadArgument> {
    value.split(',').map(|part| positive(flag, part.trim())).collect()
}

fn seconds(flag: &str, value: &str) -> Result<Duration, BadArgument> {
    match value.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 3600.0 => Ok(Duration::from_secs_f64(number)),
        _ => Err(BadArgument(format!(
            "{flag} {value}: expected seconds above 0, at most 3600"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Args>, BadArgument> {
        Args::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn defaults_compare_with_the_packaged_etcd() {
        let args = parse("").unwrap().unwrap();
        assert_eq!(args.etcds[0], PathBuf::from("/usr/bin/etcd"));
        assert_eq!(args.ours, PathBuf::from("target/release/quorate"));
        assert_eq!(args.clients, [1, 100, 1000]);
        assert_eq!(args.limit, Limit::Time(Duration::from_secs(4)));
        assert!(
            !args.workloads.contains(&Workload::Memory),
            "a million keys are asked for by name"
        );
    }

    #[test]
    fn etcd_can_be_given_more_than_once() {
        let args = parse("--etcd a --etcd=b --ours c --clients 1,7 --ops 10")
            .unwrap()
            .unwrap();
        assert_eq!(args.etcds, [PathBuf::from("a"), PathBuf::from("b")]);
        assert_eq!(args.clients, [1, 7]);
        assert_eq!(args.limit, Limit::Ops(10));
    }

    #[test]
    fn targets_choose_what_they_need() {
        let args = parse("--targets --quick").unwrap().unwrap();
        assert!(args.workloads.contains(&Workload::Memory) && args.workloads.contains(&Workload::Watchers));
        assert!(
            !args.workloads.contains(&Workload::LeaseGrant),
            "no target is set for it"
        );
        assert_eq!(args.clients, [1, 100, 1000]);
        let args = parse("--targets --workloads put-256").unwrap().unwrap();
        assert_eq!(args.workloads, [Workload::Put256]);
    }

    #[test]
    fn a_cluster_has_workloads_and_targets_of_its_own() {
        let args = parse("--members 3 --via leader --join-mib 8 --election-ms 200 --peer-tls")
            .unwrap()
            .unwrap();
        assert_eq!((args.members, args.via), (3, Via::Leader));
        assert_eq!(args.election, Some(Duration::from_millis(200)));
        assert_eq!(args.scale.join_bytes, 8 << 20);
        assert!(args.workloads.contains(&Workload::GetFollower) && args.peer_tls);
        let args = parse("--targets --members 3 --alone").unwrap().unwrap();
        assert!(args.workloads.contains(&Workload::Rolling) && args.etcds.is_empty());
        assert!(!args.workloads.contains(&Workload::Memory));
    }

    #[test]
    fn quick_runs_everything_but_yields_to_explicit_flags() {
        let args = parse("--rounds 2 --memory-keys 5 --quick").unwrap().unwrap();
        assert_eq!(args.rounds, 2);
        assert_eq!(args.scale.memory_keys, 5);
        assert!(args.workloads.contains(&Workload::Memory));
    }

    #[test]
    fn bad_words_say_which() {
        for (line, text) in [
            ("--clients 1,zero", "--clients zero: expected a whole number above 0"),
            ("--seconds -1", "--seconds -1: expected seconds above 0, at most 3600"),
            ("--rounds", "--rounds needs a value"),
            ("--fast", "unknown flag --fast"),
            ("--members 2", "--members 2: expected 1, 3, 5"),
            (
                "--members 3 --via others",
                "--via others: expected all, leader or follower",
            ),
            ("--via follower", "--via follower: one member has none; see --members"),
            ("--election-ms 10", "--election-ms 10: expected 50 to 49999"),
            ("--workloads rolling", "--workloads rolling: needs --members 3 or more"),
            ("--alone --etcd a", "--alone: and yet there is an --etcd"),
        ] {
            assert_eq!(parse(line).unwrap_err(), BadArgument(text.into()));
        }
        assert!(parse("--workloads put,nothing").unwrap_err().0.contains("nothing"));
    }
}
