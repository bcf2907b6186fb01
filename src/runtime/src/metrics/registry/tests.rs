use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use super::super::{GrpcMetrics, buckets};
use super::*;

#[test]
fn the_page_is_the_text_format() {
    let registry = Registry::bare();
    let quota = registry
        .gauge("etcd_server_quota_backend_bytes", "Effective quota.")
        .unwrap();
    quota.set(2_147_483_648);
    let version = registry
        .gauge_vec(
            "etcd_server_version",
            "Back\\slash\nand \"quotes\".",
            &["server_version"],
        )
        .unwrap();
    version.with_label_values(&["3.7\"\\\n1"]).set(1);
    let puts = registry.counter("etcd_mvcc_put_total", "Puts.").unwrap();
    puts.inc_by(2);
    let bounds = [0.001, 0.25, 1_048_576.0];
    let sync = registry
        .histogram("etcd_disk_wal_fsync_duration_seconds", "Seconds.", &bounds)
        .unwrap();
    sync.observe(0.0005);
    sync.observe(0.1);
    sync.observe(3_000_000.0);
    let labelled = registry
        .histogram_vec("apply_seconds", "Seconds.", &["version", "op"], &[0.5])
        .unwrap();
    labelled.with_label_values(&["v3", "Put"]).observe(0.25);
    registry.counter_vec("lazy_total", "Never touched.", &["x"]).unwrap();

    let wanted = r##"# HELP apply_seconds Seconds.
# TYPE apply_seconds histogram
apply_seconds_bucket{op="Put",version="v3",le="0.5"} 1
apply_seconds_bucket{op="Put",version="v3",le="+Inf"} 1
apply_seconds_sum{op="Put",version="v3"} 0.25
apply_seconds_count{op="Put",version="v3"} 1
# HELP etcd_disk_wal_fsync_duration_seconds Seconds.
# TYPE etcd_disk_wal_fsync_duration_seconds histogram
etcd_disk_wal_fsync_duration_seconds_bucket{le="0.001"} 1
etcd_disk_wal_fsync_duration_seconds_bucket{le="0.25"} 2
etcd_disk_wal_fsync_duration_seconds_bucket{le="1.048576e+06"} 2
etcd_disk_wal_fsync_duration_seconds_bucket{le="+Inf"} 3
etcd_disk_wal_fsync_duration_seconds_sum 3.0000001005e+06
etcd_disk_wal_fsync_duration_seconds_count 3
# HELP etcd_mvcc_put_total Puts.
# TYPE etcd_mvcc_put_total counter
etcd_mvcc_put_total 2
# HELP etcd_server_quota_backend_bytes Effective quota.
# TYPE etcd_server_quota_backend_bytes gauge
etcd_server_quota_backend_bytes 2.147483648e+09
# HELP etcd_server_version Back\\slash\nand "quotes".
# TYPE etcd_server_version gauge
etcd_server_version{server_version="3.7\"\\\n1"} 1
"##;
    assert_eq!(registry.scrape(), wanted);
}

#[test]
fn a_name_is_registered_once() {
    let registry = Registry::bare();
    registry.counter("x_total", "One.").unwrap();
    assert!(registry.counter("x_total", "Two.").is_err());
    assert!(registry.counter("no-dash", "Bad name.").is_err());
}

#[test]
fn grpc_series_are_there_before_the_first_call() {
    let registry = Registry::bare();
    let grpc = Arc::new(GrpcMetrics::new(false).unwrap());
    registry.add_source(grpc.clone());
    let text = registry.scrape();
    let count = |prefix: &str| text.lines().filter(|line| line.starts_with(prefix)).count();
    assert_eq!(count("grpc_server_started_total{"), 45);
    assert_eq!(count("grpc_server_msg_sent_total{"), 45);
    assert_eq!(count("grpc_server_msg_received_total{"), 45);
    assert_eq!(count("grpc_server_handled_total{"), 45 * 17);
    assert_eq!(count("grpc_server_handling_seconds"), 0);
    assert!(!text.contains("v3lockpb"));
    assert!(
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .all(|line| line.ends_with(" 0"))
    );

    let watch = grpc.method("/etcdserverpb.Watch/Watch").unwrap();
    for _ in 0..6 {
        watch.started();
        watch.handled(1, Duration::ZERO);
    }
    watch.received(2);
    watch.sent(3);
    grpc.method("/etcdserverpb.KV/Put").unwrap().handled(99, Duration::ZERO);
    let lock = grpc.method("/v3lockpb.Lock/Lock").unwrap();
    lock.started();
    lock.handled(0, Duration::ZERO);
    let text = registry.scrape();
    for line in [
        r#"grpc_server_handled_total{grpc_code="Canceled",grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"} 6"#,
        r#"grpc_server_started_total{grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"} 6"#,
        r#"grpc_server_msg_received_total{grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"} 2"#,
        r#"grpc_server_msg_sent_total{grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"} 3"#,
        r#"grpc_server_handled_total{grpc_code="Unknown",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#,
        r#"grpc_server_handled_total{grpc_code="OK",grpc_method="Lock",grpc_service="v3lockpb.Lock",grpc_type="unary"} 1"#,
    ] {
        assert!(text.lines().any(|have| have == line), "{line}");
    }
    assert_eq!(
        text.lines()
            .filter(|line| line.starts_with("grpc_server_handled_total{"))
            .count(),
        45 * 17 + 1
    );
    assert!(grpc.method("/etcdserverpb.KV/Nope").is_none());
    check_rules(&text);
}

#[test]
fn extensive_metrics_time_every_method() {
    let registry = Registry::bare();
    let grpc = Arc::new(GrpcMetrics::new(true).unwrap());
    registry.add_source(grpc.clone());
    let put = grpc.method("/etcdserverpb.KV/Put").unwrap();
    put.handled(0, Duration::from_millis(20));
    let text = registry.scrape();
    assert_eq!(
        text.lines()
            .filter(|line| line.starts_with("grpc_server_handling_seconds_count{"))
            .count(),
        45
    );
    for line in [
        r#"grpc_server_handling_seconds_bucket{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary",le="0.01"} 0"#,
        r#"grpc_server_handling_seconds_bucket{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary",le="0.025"} 1"#,
        r#"grpc_server_handling_seconds_sum{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 0.02"#,
    ] {
        assert!(text.lines().any(|have| have == line), "{line}");
    }
    check_rules(&text);
}

#[test]
fn process_and_go_families_are_all_there() {
    let registry = Registry::new();
    let text = registry.scrape();
    let types = check_rules(&text);
    let kind = |name: &str| types.get(name).map(String::as_str);
    for name in [
        "os_fd_limit",
        "os_fd_used",
        "process_max_fds",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_virtual_memory_bytes",
        "process_virtual_memory_max_bytes",
        "promhttp_metric_handler_requests_in_flight",
        "go_gc_gogc_percent",
        "go_gc_gomemlimit_bytes",
        "go_goroutines",
        "go_info",
        "go_sched_gomaxprocs_threads",
        "go_threads",
    ] {
        assert_eq!(kind(name), Some("gauge"), "{name}");
    }
    for name in [
        "process_cpu_seconds_total",
        "process_network_receive_bytes_total",
        "process_network_transmit_bytes_total",
        "promhttp_metric_handler_requests_total",
        "go_memstats_alloc_bytes_total",
        "go_memstats_frees_total",
        "go_memstats_mallocs_total",
    ] {
        assert_eq!(kind(name), Some("counter"), "{name}");
    }
    assert_eq!(kind("go_gc_duration_seconds"), Some("summary"));
    for name in [
        "alloc_bytes",
        "buck_hash_sys_bytes",
        "gc_sys_bytes",
        "heap_alloc_bytes",
        "heap_idle_bytes",
        "heap_inuse_bytes",
        "heap_objects",
        "heap_released_bytes",
        "heap_sys_bytes",
        "last_gc_time_seconds",
        "mcache_inuse_bytes",
        "mcache_sys_bytes",
        "mspan_inuse_bytes",
        "mspan_sys_bytes",
        "next_gc_bytes",
        "other_sys_bytes",
        "stack_inuse_bytes",
        "stack_sys_bytes",
        "sys_bytes",
    ] {
        assert_eq!(kind(&format!("go_memstats_{name}")), Some("gauge"), "{name}");
    }
    let value = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(value("process_resident_memory_bytes") > 100_000.0);
    assert!(value("process_open_fds") >= 3.0);
    assert!(value("process_max_fds") >= value("process_open_fds"));
    assert!(value("process_start_time_seconds") > 1.6e9);
    assert!(text.contains("promhttp_metric_handler_requests_in_flight 1\n"));
    assert!(
        registry
            .scrape()
            .contains("promhttp_metric_handler_requests_total{code=\"200\"} 1\n")
    );
}

#[test]
fn bucket_sets_make_histograms() {
    let registry = Registry::bare();
    let ttl = registry.histogram("ttl", "Seconds.", &buckets::TTL).unwrap();
    ttl.observe(600_000.0);
    let text = registry.scrape();
    assert!(
        text.contains("ttl_bucket{le=\"524288\"} 0\nttl_bucket{le=\"1.048576e+06\"} 1\n"),
        "{text}"
    );
    check_rules(&text);
}

/// What a strict parser insists on. Returns the type of each family.
fn check_rules(text: &str) -> BTreeMap<String, String> {
    assert!(text.ends_with('\n'));
    let mut types = BTreeMap::new();
    let mut seen = HashSet::new();
    let (mut family, mut kind) = (String::new(), String::new());
    let mut cumulative = 0.0;
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let name = rest.split(' ').next().unwrap();
            assert!(family.as_str() < name, "{name} after {family}");
            family = name.to_owned();
            let next = lines.next().unwrap();
            kind = next.strip_prefix(&format!("# TYPE {name} ")).unwrap().to_owned();
            assert!(types.insert(family.clone(), kind.clone()).is_none());
            assert!(
                lines.peek().is_some_and(|next| !next.starts_with('#')),
                "{family} has no sample"
            );
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(seen.insert(series.to_owned()), "{series} twice");
        let value: f64 = value.parse().unwrap();
        let (name, label_text) = series.split_once('{').unwrap_or((series, ""));
        let suffix = name.strip_prefix(family.as_str()).unwrap();
        let allowed: &[&str] = match kind.as_str() {
            "histogram" => &["_bucket", "_sum", "_count"],
            "summary" => &["", "_sum", "_count"],
            _ => &[""],
        };
        assert!(allowed.contains(&suffix), "{line}");
        let names: Vec<_> = label_text
            .split("\",")
            .filter_map(|pair| pair.split('=').next())
            .collect();
        let own: Vec<_> = names
            .iter()
            .filter(|name| !matches!(**name, "le" | "quantile"))
            .collect();
        assert!(own.is_sorted(), "{line}");
        if kind == "counter" {
            assert!(value >= 0.0, "{line}");
        }
        if suffix == "_bucket" {
            assert!(value >= cumulative, "{line}");
            cumulative = value;
        } else if kind == "histogram" && suffix == "_count" {
            assert_eq!(value, cumulative, "{line}");
            cumulative = 0.0;
        }
    }
    types
}
