//! Upper bounds of etcd's histograms. Seconds, unless the metric's name says milliseconds. `+Inf` goes without saying.

const fn doubling<const N: usize>(start: f64) -> [f64; N] {
    let mut bounds = [start; N];
    let mut at = 1;
    while at < N {
        bounds[at] = bounds[at - 1] * 2.0; // exact: only the exponent changes
        at += 1;
    }
    bounds
}

/// 1 ms … 8.192 s: disk writes and requests.
pub const B1: [f64; 14] = doubling(0.001);
/// 100 µs … 52 s: applying and ranges.
pub const B2: [f64; 20] = doubling(0.0001);
/// 100 ms … 51 s: snapshots on the way.
pub const B3: [f64; 10] = doubling(0.1);
/// 100 ms … 410 s: defragmentation.
pub const B4: [f64; 13] = doubling(0.1);
/// 10 ms … 655 s: streaming the backend.
pub const B5: [f64; 17] = doubling(0.01);
/// 10 ms … 164 s: hashes.
pub const B6: [f64; 15] = doubling(0.01);
/// 1 … 4096 ms: compaction pauses.
pub const B7: [f64; 13] = doubling(1.0);
/// 0.5 … 4096 ms: index compaction.
pub const B8: [f64; 14] = doubling(0.5);
/// 100 … 819200 ms: whole compactions.
pub const B9: [f64; 14] = doubling(100.0);
/// 100 µs … 3.3 s: round trips to peers.
pub const B10: [f64; 16] = doubling(0.0001);
/// 5 ms … 10 s: gRPC handling, the usual Prometheus choice.
pub const B11: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// 500 µs … 2 s: v2 requests.
pub const B12: [f64; 13] = doubling(0.0005);
/// 1 … 8388608 s: what clients ask for as a time to live.
pub const TTL: [f64; 24] = doubling(1.0);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::GoFloat;

    #[test]
    fn bounds_print_as_short_decimals() {
        let last = |bounds: &[f64]| GoFloat(*bounds.last().unwrap()).to_string();
        for (bounds, text) in [
            (B1.as_slice(), "8.192"),
            (&B2, "52.4288"),
            (&B3, "51.2"),
            (&B4, "409.6"),
            (&B5, "655.36"),
            (&B6, "163.84"),
            (&B7, "4096"),
            (&B8, "4096"),
            (&B9, "819200"),
            (&B10, "3.2768"),
            (&B11, "10"),
            (&B12, "2.048"),
            (&TTL, "8.388608e+06"),
        ] {
            assert_eq!(last(bounds), text);
            assert!(bounds.is_sorted());
        }
        let all: Vec<_> = B1.iter().map(|bound| GoFloat(*bound).to_string()).collect();
        let wanted = "0.001 0.002 0.004 0.008 0.016 0.032 0.064 0.128 0.256 0.512 1.024 2.048 4.096 8.192";
        assert_eq!(all.join(" "), wanted);
    }
}
