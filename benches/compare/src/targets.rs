//! What is aimed at, and whether it is met: of the node with one member, and of a cluster.

use crate::meter::{CPU, OPS_PER_SECOND, P50};
use crate::report::{Results, Table, figure};
use crate::scenario::memory::{PEAK_LOADING, RESTART_KILL, RESTART_TERM};
use crate::scenario::watchers::OVER_IDLE;
use crate::scenario::{join, leader_kill, leader_stop, rolling};
use crate::workload::{CLUSTER_MIN, Workload};

use Aim::{AtLeast, AtMost, OursAtMost};
use Workload as W;

#[derive(Clone, Copy, Debug)]
enum Aim {
    /// Of ours / etcd.
    AtMost(f64),
    AtLeast(f64),
    /// Of our figure itself.
    OursAtMost(f64),
}

struct Target {
    workload: Workload,
    clients: Option<usize>,
    metric: &'static str,
    aim: Aim,
}

const fn target(workload: Workload, clients: Option<usize>, metric: &'static str, aim: Aim) -> Target {
    Target {
        workload,
        clients,
        metric,
        aim,
    }
}

const ONE: [Target; 16] = [
    target(W::Put256, Some(100), CPU, AtMost(0.4)),
    target(W::Put256, Some(1000), CPU, AtMost(0.4)),
    target(W::Put256, Some(1000), OPS_PER_SECOND, AtLeast(2.0)),
    target(W::Put256, Some(1), P50, AtMost(1.0)),
    target(W::GetLinearizable, Some(100), CPU, AtMost(0.4)),
    target(W::ListResident, Some(100), CPU, AtMost(0.25)),
    target(W::ListCold, Some(100), CPU, AtMost(1.0)),
    target(W::CasCreate, Some(100), CPU, AtMost(0.4)),
    target(W::CasUpdate, Some(100), CPU, AtMost(0.4)),
    target(W::Kube, Some(100), CPU, AtMost(0.4)),
    target(W::Watch100, None, CPU, AtMost(0.4)),
    target(W::Watch1000, None, CPU, AtMost(0.4)),
    target(W::Memory, None, PEAK_LOADING, AtMost(0.5)),
    target(W::Memory, None, RESTART_TERM, AtMost(0.4)),
    target(W::Memory, None, RESTART_KILL, AtMost(0.4)),
    target(W::Watchers, None, OVER_IDLE, OursAtMost(30.0)),
];

const CLUSTER: [Target; 12] = [
    target(W::Put256, Some(100), CPU, AtMost(0.4)),
    target(W::Put256, Some(1000), CPU, AtMost(0.4)),
    target(W::Put256, Some(100), OPS_PER_SECOND, AtLeast(2.0)),
    target(W::Put256, Some(1000), OPS_PER_SECOND, AtLeast(2.0)),
    target(W::Put256, Some(1), P50, AtMost(1.0)),
    target(W::GetFollower, Some(100), CPU, AtMost(0.5)),
    target(W::LeaderKill, None, leader_kill::MEDIAN, OursAtMost(1.5)),
    target(W::LeaderStop, None, leader_stop::FAILED, OursAtMost(0.0)),
    target(W::Join, None, join::CAUGHT_UP, AtMost(0.5)),
    target(W::Join, None, join::P99_RATIO, OursAtMost(2.0)),
    target(W::Rolling, None, rolling::LEADERS, OursAtMost(1.0)),
    target(W::Rolling, None, rolling::FAILED, OursAtMost(0.0)),
];

fn of(members: usize) -> &'static [Target] {
    if members < CLUSTER_MIN { &ONE } else { &CLUSTER }
}

/// What has to be measured for them.
pub fn workloads(members: usize) -> Vec<Workload> {
    let mut workloads = Vec::new();
    for target in of(members) {
        if !workloads.contains(&target.workload) {
            workloads.push(target.workload);
        }
    }
    workloads
}

/// One line per target: the ratio to each etcd, and whether it is met there.
pub fn render(results: &Results, markdown: bool) -> String {
    let Some((ours, etcds)) = results.servers.split_last() else {
        return String::new();
    };
    let heads = ["target", "clients", "figure", "aim"].map(str::to_owned).into_iter();
    let heads = heads.chain(
        etcds
            .iter()
            .flat_map(|etcd| [format!("{ours} / {etcd}"), "met".to_owned()]),
    );
    let mut table = Table::new(heads, 3);
    for target in of(results.members()) {
        let row = (target.workload, target.clients);
        let our_figure = results.median(row, ours, target.metric);
        let aim = match target.aim {
            AtMost(limit) => format!("≤ {limit}"),
            AtLeast(limit) => format!("≥ {limit}"),
            OursAtMost(limit) => format!("{ours} ≤ {limit}"),
        };
        let clients = target.clients.map_or("–".to_owned(), |clients| clients.to_string());
        let cells = [
            target.workload.name().to_owned(),
            clients,
            target.metric.to_owned(),
            aim,
        ];
        let against = etcds.iter().flat_map(|etcd| {
            let ratio = match (our_figure, results.median(row, etcd, target.metric)) {
                (Some(ours), Some(etcd)) if etcd > 0.0 => Some(ours / etcd),
                _ => None,
            };
            let (shown, met) = match target.aim {
                AtMost(limit) => (ratio, ratio.map(|ratio| ratio <= limit)),
                AtLeast(limit) => (ratio, ratio.map(|ratio| ratio >= limit)),
                OursAtMost(limit) => (our_figure, our_figure.map(|figure| figure <= limit)),
            };
            let shown = shown.map_or("–".to_owned(), |shown| figure(Some(shown)));
            [shown, verdict(met).to_owned()]
        });
        table.push(cells.into_iter().chain(against));
    }
    match markdown {
        true => table.markdown(),
        false => table.text(),
    }
}

fn verdict(met: Option<bool>) -> &'static str {
    match met {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "not measured",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::results;

    #[test]
    fn each_target_is_met_missed_or_not_measured() {
        // 10 µs of ours against 40 of the first etcd, at 100 clients; nothing else was measured
        let text = render(&results(), false);
        let line = |clients: &str| {
            let lines = text
                .lines()
                .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
            let mut of = lines.filter(|line| line.starts_with(&format!("put-256 {clients} CPU µs/op")));
            of.next().unwrap_or_else(|| panic!("{text}"))
        };
        assert_eq!(line("100"), "put-256 100 CPU µs/op ≤ 0.4 0.25 yes – not measured");
        assert_eq!(
            line("1000"),
            "put-256 1000 CPU µs/op ≤ 0.4 – not measured – not measured"
        );
        assert!(!text.contains("NO"), "{text}");
        assert_eq!(text.lines().count(), ONE.len() + 1);
    }

    #[test]
    fn a_cluster_has_its_own_targets() {
        let mut of_three = results();
        of_three.set_members(3);
        let text = render(&of_three, false);
        assert_eq!(text.lines().count(), CLUSTER.len() + 1);
        assert!(
            text.contains("leader changes per restart") && !text.contains("watch-100"),
            "{text}"
        );
    }

    #[test]
    fn verdicts_are_of_the_ratio() {
        let mut worse = results();
        for measured in &mut worse.measured {
            if measured.server == "ours" {
                measured.sample.metrics = vec![(CPU, 39.0)];
            }
        }
        let text = render(&worse, true);
        assert!(
            text.contains("| put-256 | 100 | CPU µs/op | ≤ 0.4 | 0.97 | NO |"),
            "{text}"
        );
    }
}
