//! Measurements that are no closed loop: each gives a column of its own figures per server.

mod pace;
mod steady;
mod terms;

pub mod defrag;
pub mod join;
pub mod leader_kill;
pub mod leader_stop;
pub mod memory;
pub mod rolling;
pub mod watchers;

use std::time::Duration;

use crate::args::Args;

/// etcd's, where `--election-ms` says nothing.
const ELECTION_DEFAULT: Duration = Duration::from_millis(1000);

fn election_timeout(args: &Args) -> Duration {
    args.election.unwrap_or(ELECTION_DEFAULT)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Median, 90th percentile and the largest.
fn spread(mut times: Vec<Duration>) -> [Duration; 3] {
    times.sort_unstable();
    [0.5, 0.9, 1.0].map(|fraction: f64| {
        let at = (fraction * times.len() as f64).ceil() as usize;
        times.get(at.saturating_sub(1)).copied().unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_the_times_themselves() {
        let times = (1..=10).rev().map(Duration::from_secs).collect();
        assert_eq!(spread(times), [5, 9, 10].map(Duration::from_secs));
        assert_eq!(spread(vec![Duration::from_secs(3)]), [Duration::from_secs(3); 3]);
    }
}
