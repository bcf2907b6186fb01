//! Medians over rounds, ratios ours/etcd, and the tables.

use std::fmt::Write;
use std::fs;

use serde_json::{Value, json};

use crate::args::{Args, Limit};
use crate::meter::{CLIENT_CORES, ELECTIONS, PEAK_SUM, PERFORMANCE};
use crate::workload::{LIST_CLIENTS_MAX, Sample, Workload};

const TMPFS_MAGIC: i64 = 0x0102_1994;
/// From this load average per core on, a run shares the machine with something else.
const BUSY: f64 = 0.3;
/// From this share of the client's cores on, throughput tells about the client.
const CLIENT_BOUND: f64 = 0.9;

pub struct Measured {
    pub round: usize,
    pub server: String,
    pub sample: Sample,
}

pub struct Results {
    /// The last is ours.
    pub servers: Vec<String>,
    pub environment: Environment,
    pub measured: Vec<Measured>,
    pub failures: Vec<String>,
    /// What a server has no calls for.
    absent: Vec<(Workload, String)>,
}

impl Results {
    pub fn new(servers: Vec<String>, environment: Environment) -> Self {
        Self {
            servers,
            environment,
            measured: Vec::new(),
            failures: Vec::new(),
            absent: Vec::new(),
        }
    }

    /// The server has no such calls: that is no failure.
    pub fn note_absent(&mut self, workload: Workload, server: &str) {
        let pair = (workload, server.to_owned());
        if !self.absent.contains(&pair) {
            self.absent.push(pair);
        }
    }

    pub fn members(&self) -> usize {
        self.environment.members
    }

    #[cfg(test)]
    pub(crate) fn set_members(&mut self, members: usize) {
        self.environment.members = members;
    }

    fn is_absent(&self, workload: Workload, server: &str) -> bool {
        self.absent.iter().any(|(w, s)| *w == workload && s == server)
    }

    /// Every (workload, clients) that was measured, in the order of its first measurement.
    fn rows(&self) -> Vec<(Workload, Option<usize>)> {
        let mut rows = Vec::new();
        for measured in &self.measured {
            let row = (measured.sample.workload, measured.sample.clients);
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
        rows
    }

    pub fn median(&self, row: (Workload, Option<usize>), server: &str, metric: &str) -> Option<f64> {
        let of_row = |measured: &&Measured| {
            measured.server == server && (measured.sample.workload, measured.sample.clients) == row
        };
        let values = self.measured.iter().filter(of_row).filter_map(|measured| {
            measured
                .sample
                .metrics
                .iter()
                .find(|(name, _)| *name == metric)
                .map(|(_, value)| *value)
        });
        median(values.collect())
    }

    /// More clients were asked for than the workload takes.
    fn is_capped(&self, (workload, clients): (Workload, Option<usize>)) -> bool {
        workload.caps_clients() && clients == Some(LIST_CLIENTS_MAX) && self.environment.clients_max > LIST_CLIENTS_MAX
    }

    /// Columns of the main table. One member's peak needs no sum.
    fn columns(&self) -> impl Iterator<Item = &'static str> + Clone {
        let one = self.environment.members == 1;
        PERFORMANCE
            .into_iter()
            .filter(move |metric| !one || *metric != PEAK_SUM)
    }

    fn metric_names(&self, row: (Workload, Option<usize>)) -> Vec<&'static str> {
        let first = self
            .measured
            .iter()
            .find(|m| (m.sample.workload, m.sample.clients) == row);
        first
            .map(|m| m.sample.metrics.iter().map(|(name, _)| *name).collect())
            .unwrap_or_default()
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// Where and how it ran.
pub struct Environment {
    lines: Vec<String>,
    threads: usize,
    clients_max: usize,
    members: usize,
}

impl Environment {
    pub fn look(args: &Args) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        let mut lines = vec![format!(
            "{cores} cores ({}), Linux {}, load average at the start {}",
            model.map_or("unknown", |(_, model)| model.trim()),
            kernel.trim(),
            load.split(' ').next().unwrap_or("unknown"),
        )];
        let window = match args.limit {
            Limit::Time(length) => format!("windows of {} s", length.as_secs_f64()),
            Limit::Ops(ops) => format!("windows of {ops} operations"),
        };
        let conns = args.conns.map_or("one connection per 100 clients".to_owned(), |conns| {
            format!("{conns} connections")
        });
        lines.push(format!(
            "medians of {} round(s), order reversed every other round; {window}; closed-loop clients on {conns}, {} client thread(s); TLS {}",
            args.rounds,
            args.threads,
            if args.tls { "on, with client certificates" } else { "off" },
        ));
        lines.push(
            "excluded: start, loading, a warm-up before each window (none for list-cold*). included: CPU until the \
             server rests again, peak resident memory (anonymous + file) within the window"
                .to_owned(),
        );
        lines.push(
            "same for all: fresh data directory per workload, quota 8 GiB, default snapshot-count, fsync on, loopback, \
             static bootstrap"
                .to_owned(),
        );
        lines.push(format!(
            "{} member(s); clients connected to {}; election timeout {}; TLS between members {}. CPU is of all members \
             together, peak MiB of the largest",
            args.members,
            if args.members == 1 { "it" } else { args.via.words() },
            args.election.map_or("the default".to_owned(), |timeout| format!(
                "{} ms",
                timeout.as_millis()
            )),
            if args.peer_tls { "on, mutual" } else { "off" },
        ));
        let on_tmpfs = rustix::fs::statfs(&args.dir).is_ok_and(|fs| i128::from(fs.f_type) == i128::from(TMPFS_MAGIC));
        if on_tmpfs {
            lines.push(format!(
                "WARNING: {} is a tmpfs, where a sync costs nothing",
                args.dir.display()
            ));
        }
        if load
            .split(' ')
            .next()
            .and_then(|load| load.parse::<f64>().ok())
            .is_some_and(|load| load > BUSY * cores as f64)
        {
            lines.push(
                "WARNING: the machine was busy already; even CPU per operation rises with the neighbours".to_owned(),
            );
        }
        if args.quick {
            lines.push(
                "QUICK: small data and short windows; a check that everything runs, not a measurement".to_owned(),
            );
        }
        Self {
            lines,
            threads: args.threads,
            clients_max: args.clients.iter().copied().max().unwrap_or(0),
            members: args.members,
        }
    }
}

/// Text of the whole report.
pub fn render(results: &Results, markdown: bool) -> String {
    let mut out = String::new();
    for line in &results.environment.lines {
        let _ = writeln!(out, "{}{line}", if markdown { "* " } else { "" });
    }
    let (scenarios, loops): (Vec<_>, Vec<_>) = results
        .rows()
        .into_iter()
        .partition(|(workload, _)| workload.is_scenario());
    let mut tables = Vec::new();
    if !loops.is_empty() {
        tables.push(performance(results, &loops));
    }
    tables.extend(scenarios.into_iter().map(|row| scenario(results, row)));
    for table in tables {
        out.push('\n');
        out.push_str(&if markdown { table.markdown() } else { table.text() });
    }
    if results
        .measured
        .iter()
        .any(|measured| client_bound(&measured.sample, results.environment.threads))
    {
        out.push_str(
            "\n* the clients used up their threads: throughput and latency are theirs, CPU/op is the server's\n",
        );
    }
    for Measured { round, server, sample } in &results.measured {
        if let Some((_, elections)) = sample
            .metrics
            .iter()
            .find(|(name, many)| *name == ELECTIONS && *many > 0.0)
        {
            let _ = writeln!(
                out,
                "\n! {elections} election(s) within a window of {}, {server}, round {}",
                sample.workload.name(),
                round + 1
            );
        }
    }
    if results.rows().iter().any(|row| results.is_capped(*row)) {
        let _ = writeln!(out, "\n† lists run with at most {LIST_CLIENTS_MAX} clients");
    }
    if !results.failures.is_empty() {
        out.push_str("\nFailed:\n");
        for failure in &results.failures {
            let _ = writeln!(out, "- {failure}");
        }
    }
    out
}

fn client_bound(sample: &Sample, threads: usize) -> bool {
    let cores = sample.metrics.iter().find(|(name, _)| *name == CLIENT_CORES);
    cores.is_some_and(|(_, cores)| *cores >= CLIENT_BOUND * threads as f64)
}

/// One line per server, then one per etcd with the ratios.
fn performance(results: &Results, rows: &[(Workload, Option<usize>)]) -> Table {
    let mut table = Table::new(
        ["workload", "clients", "server"].into_iter().chain(results.columns()),
        3,
    );
    let Some((ours, etcds)) = results.servers.split_last() else {
        return table;
    };
    for &row in rows {
        let mut clients = row.1.map_or("–".to_owned(), |clients| clients.to_string());
        if results.is_capped(row) {
            clients.push('†');
        }
        let mut line = |server: String, figure: &dyn Fn(&str) -> String| {
            let cells = [row.0.name().to_owned(), clients.clone(), server];
            table.push(cells.into_iter().chain(results.columns().map(figure)));
        };
        for server in &results.servers {
            let bound = results.measured.iter().any(|measured| {
                measured.server == *server
                    && (measured.sample.workload, measured.sample.clients) == row
                    && client_bound(&measured.sample, results.environment.threads)
            });
            let name = if bound { format!("{server} *") } else { server.clone() };
            let absent = results.is_absent(row.0, server);
            line(name, &|metric| match absent {
                true => "–".to_owned(),
                false => figure(results.median(row, server, metric)),
            });
        }
        for etcd in etcds {
            line(format!("{ours} / {etcd}"), &|metric| {
                ratio(results.median(row, ours, metric), results.median(row, etcd, metric))
            });
        }
        table.rule();
    }
    table
}

/// One line per figure, one column per server.
fn scenario(results: &Results, row: (Workload, Option<usize>)) -> Table {
    let Some((ours, etcds)) = results.servers.split_last() else {
        return Table::new(results.columns(), 0);
    };
    let heads = [row.0.name().to_owned()]
        .into_iter()
        .chain(results.servers.iter().cloned());
    let heads = heads.chain(etcds.iter().map(|etcd| format!("{ours} / {etcd}")));
    let mut table = Table::new(heads, 1);
    for metric in results.metric_names(row) {
        let cells = results
            .servers
            .iter()
            .map(|server| figure(results.median(row, server, metric)));
        let ratios = etcds
            .iter()
            .map(|etcd| ratio(results.median(row, ours, metric), results.median(row, etcd, metric)));
        table.push([metric.to_owned()].into_iter().chain(cells).chain(ratios));
    }
    table
}

/// Three significant digits or whole numbers.
pub fn figure(value: Option<f64>) -> String {
    match value {
        None => "failed".to_owned(),
        Some(value) if !value.is_finite() => "–".to_owned(),
        Some(value) if value.abs() >= 100.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

fn ratio(ours: Option<f64>, etcd: Option<f64>) -> String {
    match (ours, etcd) {
        (Some(ours), Some(etcd)) if etcd > 0.0 && (ours / etcd).is_finite() => format!("{:.2}×", ours / etcd),
        _ => "–".to_owned(),
    }
}

pub struct Table {
    heads: Vec<String>,
    /// `None` separates groups.
    lines: Vec<Option<Vec<String>>>,
    /// So many columns from the left hold words.
    words: usize,
}

impl Table {
    pub fn new<S: Into<String>>(heads: impl IntoIterator<Item = S>, words: usize) -> Self {
        Self {
            heads: heads.into_iter().map(Into::into).collect(),
            lines: Vec::new(),
            words,
        }
    }

    pub fn push(&mut self, cells: impl Iterator<Item = String>) {
        self.lines.push(Some(cells.collect()));
    }

    fn rule(&mut self) {
        self.lines.push(None);
    }

    pub fn text(&self) -> String {
        let all = || [&self.heads].into_iter().chain(self.lines.iter().flatten());
        let widths: Vec<usize> = (0..self.heads.len())
            .map(|column| {
                all()
                    .filter_map(|cells| cells.get(column))
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut out = String::new();
        let mut line = |cells: &[String]| {
            let mut text = String::new();
            for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                let _ = if column < self.words {
                    write!(text, "{cell:width$}  ")
                } else {
                    write!(text, "{cell:>width$}  ")
                };
            }
            let _ = writeln!(out, "{}", text.trim_end());
        };
        line(&self.heads);
        for cells in &self.lines {
            line(cells.as_deref().unwrap_or_default());
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
        out
    }

    pub fn markdown(&self) -> String {
        let mut out = format!("| {} |\n|", self.heads.join(" | "));
        for column in 0..self.heads.len() {
            out.push_str(if column < self.words { "---|" } else { "--:|" });
        }
        out.push('\n');
        for cells in self.lines.iter().flatten() {
            let _ = writeln!(out, "| {} |", cells.join(" | "));
        }
        out
    }
}

/// Every single measurement, for whoever wants the spread.
pub fn json(results: &Results) -> Value {
    let measured: Vec<Value> = results
        .measured
        .iter()
        .map(
            |Measured {
                 round,
                 server,
                 sample:
                     Sample {
                         workload,
                         clients,
                         metrics,
                     },
             }| {
                let metrics: serde_json::Map<String, Value> = metrics
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), json!(value)))
                    .collect();
                json!({
                    "round": round + 1, "server": server, "workload": workload.name(), "clients": clients,
                    "metrics": metrics,
                })
            },
        )
        .collect();
    json!({
        "environment": results.environment.lines,
        "members": results.environment.members,
        "servers": results.servers,
        "measurements": measured,
        "failures": results.failures,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::meter::{CPU, OPS_PER_SECOND};

    fn measured(round: usize, server: &str, workload: Workload, metrics: crate::meter::Metrics) -> Measured {
        let clients = (!workload.is_scenario()).then_some(100);
        Measured {
            round,
            server: server.into(),
            sample: Sample {
                workload,
                clients,
                metrics,
            },
        }
    }

    pub(crate) fn results() -> Results {
        let environment = Environment {
            lines: vec!["somewhere".into()],
            threads: 1,
            clients_max: 1000,
            members: 1,
        };
        let mut results = Results::new(vec!["etcd 1".into(), "etcd 2".into(), "ours".into()], environment);
        for (round, rate) in [(0, 900.0), (1, 1000.0), (2, 5000.0)] {
            results.measured.push(measured(
                round,
                "etcd 1",
                Workload::Put256,
                vec![(OPS_PER_SECOND, rate), (CPU, 40.0)],
            ));
        }
        let ours = vec![(OPS_PER_SECOND, 4000.0), (CPU, 10.0), (CLIENT_CORES, 0.99)];
        results.measured.push(measured(0, "ours", Workload::Put256, ours));
        results
    }

    #[test]
    fn ratios_are_of_medians_and_missing_servers_say_so() {
        let text = render(&results(), false);
        let line = |server: &str| text.lines().find(|line| line.contains(server)).unwrap().to_owned();
        assert!(
            line("ours / etcd 1").contains("4.00×") && line("ours / etcd 1").contains("0.25×"),
            "{text}"
        );
        assert!(line("put-256   100      etcd 2").contains("failed"), "{text}");
        assert!(text.contains("ours *"), "a client at its limit is marked: {text}");
    }

    #[test]
    fn the_sum_of_peaks_is_shown_for_several_members_only() {
        let mut results = results();
        assert!(!render(&results, false).contains(PEAK_SUM));
        results.set_members(3);
        assert!(render(&results, false).contains(PEAK_SUM));
    }

    #[test]
    fn an_election_within_a_window_is_told() {
        let mut results = results();
        assert!(!render(&results, false).contains("election(s) within"));
        results.measured[0].sample.metrics.push((ELECTIONS, 2.0));
        assert!(render(&results, false).contains("! 2 election(s) within a window of put-256, etcd 1, round 1"));
    }

    #[test]
    fn lists_say_that_they_take_fewer_clients() {
        let mut results = results();
        results
            .measured
            .push(measured(0, "ours", Workload::ListResident, vec![(CPU, 3.0)]));
        let text = render(&results, false);
        assert!(
            text.contains("100†") && text.contains("† lists run with at most 100 clients"),
            "{text}"
        );
    }

    #[test]
    fn what_a_server_has_no_calls_for_is_no_failure() {
        let mut results = results();
        results
            .measured
            .push(measured(0, "ours", Workload::ListStream, vec![(CPU, 3.0)]));
        results.note_absent(Workload::ListStream, "etcd 1");
        let text = render(&results, false);
        let line = |server: &str| {
            let of = |line: &&str| line.starts_with("list-stream") && line.contains(server);
            text.lines().find(of).unwrap()
        };
        assert!(
            !line(" etcd 1").contains("failed") && line(" etcd 2").contains("failed"),
            "{text}"
        );
    }

    #[test]
    fn markdown_has_one_cell_per_head() {
        let mut results = results();
        results
            .measured
            .push(measured(0, "ours", Workload::Memory, vec![("x MiB", 3.0)]));
        let text = render(&results, true);
        for table in text.split("\n\n").filter(|part| part.starts_with('|')) {
            let cells: Vec<usize> = table.lines().map(|line| line.matches('|').count()).collect();
            assert!(cells.iter().all(|count| *count == cells[0]), "{table}");
        }
        assert!(text.contains("| x MiB | failed | failed | 3.00 | – | – |"), "{text}");
    }

    #[test]
    fn medians_of_even_numbers_lie_between() {
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
        assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![]), None);
    }

    #[test]
    fn json_holds_every_round() {
        let json = json(&results());
        assert_eq!(json["measurements"].as_array().unwrap().len(), 4);
        assert_eq!(json["measurements"][2]["metrics"]["ops/s"], 5000.0);
    }
}
