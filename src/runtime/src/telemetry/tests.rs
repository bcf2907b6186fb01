use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use super::*;

fn on_file(file: File, level: Level, format: Format) -> Telemetry {
    let options = Options {
        level,
        format,
        outputs: Vec::new(),
    };
    let sink = Sink::start("test".to_owned(), file, format).unwrap();
    Telemetry::with_sinks(&options, vec![sink])
}

fn on_pipe() -> (std::io::PipeReader, Telemetry) {
    let (reader, writer) = std::io::pipe().unwrap();
    (
        reader,
        on_file(File::from(OwnedFd::from(writer)), Level::Debug, Format::Json),
    )
}

/// Runs `log` with the layer installed for this thread and returns the parsed lines.
fn lines_of(level: Level, log: impl FnOnce()) -> Vec<Value> {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let telemetry = on_file(File::from(OwnedFd::from(writer)), level, Format::Json);
    tracing::subscriber::with_default(tracing_subscriber::registry().with(telemetry.layer()), log);
    assert!(telemetry.flush(Duration::from_secs(10)));
    drop(telemetry);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_line_is_json_with_the_four_keys_first() {
    let lines = lines_of(Level::Info, || {
        tracing::info!(
            lease = %"7a", keys = 3, took = ?Duration::from_millis(100), "snapshot-count" = 10_000u64, ok = true,
            text = "quote \" and\nbreak \u{1}", "lease expired"
        );
    });
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    assert_eq!(line["level"], "info");
    assert_eq!(line["msg"], "lease expired");
    assert!(
        line["caller"].as_str().unwrap().starts_with("telemetry/tests.rs:"),
        "{line}"
    );
    let ts = line["ts"].as_str().unwrap();
    assert_eq!((ts.len(), &ts[10..11], &ts[26..]), (27, "T", "Z"));
    assert_eq!(line["lease"], "7a");
    assert_eq!(line["keys"], 3);
    assert_eq!(line["took"], "100ms");
    assert_eq!(line["snapshot-count"], 10_000);
    assert_eq!(line["ok"], true);
    assert_eq!(line["text"], "quote \" and\nbreak \u{1}");
}

#[test]
fn levels_filter_and_libraries_are_one_step_quieter() {
    let log = || {
        tracing::debug!("own debug");
        tracing::info!("own info");
        tracing::warn!("own warn");
        tracing::error!("own error");
        tracing::info!(target: "openraft::core", "lib info");
        tracing::warn!(target: "openraft::core", "lib warn");
        tracing::debug!(target: "h2", "lib debug");
    };
    for (level, wanted) in [
        (
            Level::Debug,
            vec!["own debug", "own info", "own warn", "own error", "lib info", "lib warn"],
        ),
        (Level::Info, vec!["own info", "own warn", "own error", "lib warn"]),
        (Level::Warn, vec!["own warn", "own error", "lib warn"]),
        (Level::Error, vec!["own error"]),
        (Level::Fatal, vec![]),
    ] {
        let lines = lines_of(level, log);
        let seen: Vec<_> = lines.iter().map(|line| line["msg"].as_str().unwrap()).collect();
        assert_eq!(seen, wanted, "{level:?}");
    }
}

#[test]
fn library_records_name_their_logger() {
    let lines = lines_of(Level::Info, || tracing::warn!(target: "openraft::engine", "odd"));
    assert_eq!(lines[0]["logger"], "raft");
}

#[test]
fn span_fields_reach_the_events_inside() {
    let lines = lines_of(Level::Info, || {
        let span = tracing::info_span!("member", member = %"8e9e05c52164694d", term = 2u64);
        let _inside = span.enter();
        tracing::info!(term = 3u64, "became leader");
    });
    assert_eq!(lines[0]["member"], "8e9e05c52164694d");
    assert_eq!(lines[0]["term"], 3);
}

#[test]
fn errors_show_their_causes_and_reserved_names_step_aside() {
    #[derive(Debug, thiserror::Error)]
    #[error("sync segment 7")]
    struct Outer(#[source] io::Error);
    let lines = lines_of(Level::Info, || {
        let error = Outer(io::Error::other("device gone"));
        tracing::error!(error = &error as &dyn std::error::Error, level = 9, "wal failed");
    });
    assert_eq!(lines[0]["error"], "sync segment 7: device gone");
    assert_eq!(lines[0]["level"], "error");
    assert_eq!(lines[0]["level_"], 9);
}

#[test]
fn a_burst_of_identical_records_is_sampled() {
    let lines = lines_of(Level::Info, || {
        for n in 0..1_000 {
            tracing::info!(n, "again");
        }
    });
    // 100 and then one in 100; a second's edge inside the loop lets through at most twice as many
    assert!((109..=218).contains(&lines.len()), "{}", lines.len());
}

/// E5, B35: the part of `blocked_log_sink_does_not_block_reads` that is decided here.
#[test]
fn records_into_a_blocked_pipe_return_at_once() {
    let (reader, telemetry) = on_pipe();
    let started = Instant::now();
    let record = Record::new(Level::Info, "a request was slow").field("took", "1.5s");
    for _ in 0..100_000 {
        telemetry.record(&record);
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}"); // a blocked write would never return
    let dropped = telemetry.losses().dropped;
    assert!(dropped > 50_000, "{dropped}");
    let started = Instant::now();
    assert!(!telemetry.flush(FLUSH_PATIENCE));
    assert!(started.elapsed() < Duration::from_secs(2));

    // somebody reads again: what was kept arrives whole, and the loss is told once
    let mut lines = BufReader::new(reader)
        .lines()
        .map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let (mut kept, mut told) = (0, 0);
    while kept + told < 100_000 {
        let line = lines.next().unwrap();
        match line["msg"].as_str() {
            Some("log records dropped") => told += line["dropped"].as_u64().unwrap(),
            _ => kept += 1,
        }
    }
    assert_eq!(told, dropped);
}

/// E5: a closed pipe used to end the process.
#[test]
fn a_closed_pipe_only_costs_lines() {
    let (reader, telemetry) = on_pipe();
    drop(reader);
    for _ in 0..10 {
        telemetry.record(&Record::new(Level::Error, "nobody hears"));
        assert!(telemetry.flush(Duration::from_secs(10)));
    }
    assert_eq!(telemetry.losses().dropped, 10);
}

#[test]
fn a_blocked_output_does_not_silence_the_others() {
    let (_unread, blocked) = std::io::pipe().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.log");
    let (name, file) = open_output(&Output::File(path.clone())).unwrap();
    let options = Options::default();
    let sinks = vec![
        Sink::start("pipe".to_owned(), File::from(OwnedFd::from(blocked)), Format::Json).unwrap(),
        Sink::start(name, file, Format::Json).unwrap(),
    ];
    let telemetry = Telemetry::with_sinks(&options, sinks);
    let record = Record::new(Level::Info, "x".repeat(1_000));
    for _ in 0..200 {
        telemetry.record(&record);
    }
    assert!(!telemetry.flush(Duration::from_millis(50))); // the pipe holds 64 KiB and nobody reads
    assert!(telemetry.shared.sinks[1].wait_drained(Instant::now() + Duration::from_secs(10)));
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 200);
}

#[test]
fn log_files_are_private_and_appended_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.log");
    let options = Options {
        outputs: vec![Output::File(path.clone())],
        ..Options::default()
    };
    for _ in 0..2 {
        let telemetry = Telemetry::open(&options).unwrap();
        telemetry.record(&Record::new(Level::Debug, "below the level"));
        telemetry.record(&Record::new(Level::Fatal, "discovery failed").field("error", "x"));
        assert!(telemetry.flush(Duration::from_secs(10)));
    }
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 2);
    assert!(text.contains(r#""level":"fatal""#));
}

#[test]
fn an_output_that_cannot_be_opened_is_an_error_in_etcds_words() {
    let options = Options {
        outputs: vec![Output::File("/nope/x.log".into())],
        ..Options::default()
    };
    let error = Telemetry::open(&options).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"open sink "/nope/x.log": open /nope/x.log: no such file or directory"#
    );
}

#[test]
fn level_names_are_etcds() {
    assert_eq!(Level::parse(""), Some(Level::Info));
    assert_eq!(Level::parse("WARN"), Some(Level::Warn));
    assert_eq!(Level::parse("dpanic"), Some(Level::Dpanic));
    assert_eq!(Level::parse("loud"), None);
    assert_eq!(Level::parse("trace"), None);
}
