//! Traffic with other members: bytes, losses, round trips, snapshots, heartbeats that leave late.
//!
//! ```text
//!   Links ──┐                                  ┌─ one Peer for each member that was spoken with:
//!   serve ──┴─► Peers::peer, once a connection ─┤  its children of all families, looked up once
//!                                              └─ bytes are added once a turn, not once a message
//! ```
//!
//! Labels are ids of members that this one has admitted or knows from the members table, in hex as etcd writes them;
//! whoever was not admitted is [`NOBODY`]. Children of removed members stay, as etcd's do.

use parking_lot::Mutex;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use quorate_runtime::metrics::{Registry, buckets};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Who has not said who it is, or was not let in under that name.
const NOBODY: &str = "0";

/// etcd's name for who sends a snapshot without having been let in.
const UNKNOWN_SENDER: &str = "UNKNOWN_SNAPSHOT_SENDER";

/// A heartbeat is late when so many intervals have gone by since the one before, as in etcd.
const LATE_INTERVALS: u32 = 2;

/// The families, and a handle on each peer's children.
pub struct Peers {
    families: Arc<Families>,
    known: Mutex<BTreeMap<u64, Arc<Peer>>>,
}

struct Families {
    late_after: Duration,
    active: IntGaugeVec,
    disconnected: IntCounterVec,
    sent_bytes: IntCounterVec,
    received_bytes: IntCounterVec,
    sent_failures: IntCounterVec,
    received_failures: IntCounterVec,
    round_trip: HistogramVec,
    sends: Transfers,
    receives: Transfers,
    late_heartbeats: IntCounter,
    applying: IntGauge,
    /// Reading the backend for a peer.
    streamed: Histogram,
    /// Writing down what came.
    saved: Histogram,
}

/// Snapshots in one direction.
struct Transfers {
    inflight: IntGaugeVec,
    done: IntCounterVec,
    failed: IntCounterVec,
    took: HistogramVec,
}

impl Transfers {
    fn new(registry: &Registry, direction: &str, label: &str) -> prometheus::Result<Self> {
        let name = |what: &str| format!("etcd_network_snapshot_{direction}_{what}");
        Ok(Self {
            inflight: registry.gauge_vec(
                &name("inflights_total"),
                &format!("Snapshots under way: {direction}."),
                &[label],
            )?,
            done: registry.counter_vec(
                &name("success"),
                &format!("Snapshots that came through: {direction}."),
                &[label],
            )?,
            failed: registry.counter_vec(
                &name("failures"),
                &format!("Snapshots that failed: {direction}."),
                &[label],
            )?,
            took: registry.histogram_vec(
                &name("total_duration_seconds"),
                &format!("Time from a snapshot's beginning to its end, once it came through: {direction}."),
                &[label],
                &buckets::B3,
            )?,
        })
    }
}

impl Peers {
    /// `heartbeat`: how often a leader means to send one.
    pub fn new(registry: &Registry, heartbeat: Duration) -> prometheus::Result<Self> {
        let both = ["Local", "Remote"];
        let counter = |name, help, label| registry.counter_vec(name, help, &[label]);
        let families = Families {
            late_after: heartbeat * LATE_INTERVALS,
            active: registry.gauge_vec(
                "etcd_network_active_peers",
                "1 while the link to the peer is up.",
                &both,
            )?,
            disconnected: registry.counter_vec(
                "etcd_network_disconnected_peers_total",
                "Times that the link to the peer was lost.",
                &both,
            )?,
            sent_bytes: counter("etcd_network_peer_sent_bytes_total", "Bytes sent to the peer.", "To")?,
            received_bytes: counter(
                "etcd_network_peer_received_bytes_total",
                "Bytes received from the peer.",
                "From",
            )?,
            sent_failures: counter(
                "etcd_network_peer_sent_failures_total",
                "Messages that could not be sent to the peer, or were lost with the link.",
                "To",
            )?,
            received_failures: counter(
                "etcd_network_peer_received_failures_total",
                "Receptions from the peer that broke off or could not be read.",
                "From",
            )?,
            round_trip: registry.histogram_vec(
                "etcd_network_peer_round_trip_time_seconds",
                "Time from a ping to the peer's answer.",
                &["To"],
                &buckets::B10,
            )?,
            sends: Transfers::new(registry, "send", "To")?,
            receives: Transfers::new(registry, "receive", "From")?,
            late_heartbeats: registry.counter(
                "etcd_server_heartbeat_send_failures_total",
                "Leader heartbeats that were sent late.",
            )?,
            applying: registry.gauge(
                "etcd_server_snapshot_apply_in_progress_total",
                "1 while a received snapshot is put in place.",
            )?,
            streamed: registry.histogram(
                "etcd_disk_backend_snapshot_duration_seconds",
                "Time that sending a snapshot took.",
                &buckets::B5,
            )?,
            saved: registry.histogram(
                "etcd_snap_db_save_total_duration_seconds",
                "Saving a received snapshot.",
                &buckets::B3,
            )?,
        };
        Ok(Self {
            families: Arc::new(families),
            known: Mutex::default(),
        })
    }

    /// For members only: each stays on the page for good.
    pub fn peer(&self, id: u64) -> Arc<Peer> {
        let mut known = self.known.lock();
        let new = || Arc::new(Peer::new(self.families.clone(), id));
        known.entry(id).or_insert_with(new).clone()
    }

    /// Somebody who was not let in sends what no peer sends.
    pub fn receive_failed(&self) {
        self.families.received_failures.with_label_values(&[NOBODY]).inc();
    }

    /// The same of a snapshot.
    pub fn snapshot_refused(&self) {
        self.families.receives.failed.with_label_values(&[UNKNOWN_SENDER]).inc();
    }
}

/// One peer's part of the page.
pub struct Peer {
    families: Arc<Families>,
    id: String,
    sent_bytes: IntCounter,
    received_bytes: IntCounter,
    /// On the page once there is a first answer.
    round_trip: OnceLock<Histogram>,
    /// The last heartbeat to it: the leader's term and when it left.
    heartbeat: Mutex<Option<(u64, Instant)>>,
}

impl Peer {
    fn new(families: Arc<Families>, id: u64) -> Self {
        let id = format!("{id:x}");
        Self {
            sent_bytes: families.sent_bytes.with_label_values(&[&id[..]]),
            received_bytes: families.received_bytes.with_label_values(&[&id[..]]),
            round_trip: OnceLock::new(),
            heartbeat: Mutex::default(),
            families,
            id,
        }
    }

    pub fn sent(&self, bytes: usize) {
        self.sent_bytes.inc_by(bytes as u64);
    }

    pub fn received(&self, bytes: usize) {
        self.received_bytes.inc_by(bytes as u64);
    }

    /// Messages that did not get there, or of which nobody knows.
    pub fn send_failed(&self, messages: usize) {
        if messages > 0 {
            let family = &self.families.sent_failures;
            family.with_label_values(&[&self.id[..]]).inc_by(messages as u64);
        }
    }

    pub fn receive_failed(&self) {
        self.families.received_failures.with_label_values(&[&self.id[..]]).inc();
    }

    /// A ping was answered.
    pub fn round_trip(&self, took: Duration) {
        let new = || self.families.round_trip.with_label_values(&[&self.id[..]]);
        self.round_trip.get_or_init(new).observe(took.as_secs_f64());
    }

    /// A heartbeat of the leader of `term` is on its way. The first of a term is never late.
    pub fn heartbeat(&self, term: u64, now: Instant) {
        let before = self.heartbeat.lock().replace((term, now));
        if before.is_some_and(|(of, at)| of == term && now.duration_since(at) > self.families.late_after) {
            self.families.late_heartbeats.inc();
        }
    }

    /// The link of this member, `local`, to the peer is up until the result is dropped.
    pub fn link_up(&self, local: u64) -> LinkUp {
        let local = format!("{local:x}");
        let labels = [&local[..], &self.id[..]];
        let active = self.families.active.with_label_values(&labels);
        active.set(1);
        LinkUp {
            active,
            disconnected: self.families.disconnected.clone(),
            local,
            remote: self.id.clone(),
        }
    }

    /// A snapshot begins to be sent.
    pub fn sends_snapshot(self: &Arc<Self>) -> Transfer {
        Transfer::begin(self, |families| &families.sends)
    }

    /// A snapshot begins to arrive.
    pub fn receives_snapshot(self: &Arc<Self>) -> Transfer {
        Transfer::begin(self, |families| &families.receives)
    }

    /// The whole backend was read.
    pub fn streamed(&self, took: Duration) {
        self.families.streamed.observe(took.as_secs_f64());
    }

    /// All that came is on the disk.
    pub fn saved(&self, took: Duration) {
        self.families.saved.observe(took.as_secs_f64());
    }

    /// A snapshot is put in place until the result is dropped.
    pub fn applies_snapshot(&self) -> Applying {
        self.families.applying.inc();
        Applying(self.families.applying.clone())
    }
}

/// A link that is up. However it ends, its end is counted.
pub struct LinkUp {
    active: IntGauge,
    disconnected: IntCounterVec,
    local: String,
    remote: String,
}

impl Drop for LinkUp {
    fn drop(&mut self) {
        self.active.set(0);
        let labels = [&self.local[..], &self.remote[..]];
        self.disconnected.with_label_values(&labels).inc();
    }
}

/// A snapshot on its way. One that is dropped has failed.
pub struct Transfer {
    peer: Arc<Peer>,
    of: fn(&Families) -> &Transfers,
    begun: Instant,
    done: bool,
}

impl Transfer {
    fn begin(peer: &Arc<Peer>, of: fn(&Families) -> &Transfers) -> Self {
        of(&peer.families).inflight.with_label_values(&[&peer.id[..]]).inc();
        Self {
            peer: peer.clone(),
            of,
            begun: Instant::now(),
            done: false,
        }
    }

    /// The peer who takes it in has installed it.
    pub fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let transfers = (self.of)(&self.peer.families);
        let label = [&self.peer.id[..]];
        transfers.inflight.with_label_values(&label).dec();
        if self.done {
            transfers.done.with_label_values(&label).inc();
            let took = transfers.took.with_label_values(&label);
            took.observe(self.begun.elapsed().as_secs_f64());
        } else {
            transfers.failed.with_label_values(&label).inc();
        }
    }
}

/// A snapshot that is being put in place.
pub struct Applying(IntGauge);

impl Drop for Applying {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: Duration = Duration::from_millis(100);

    fn peers() -> (Registry, Peers) {
        let registry = Registry::new();
        let peers = Peers::new(&registry, HEARTBEAT).unwrap();
        (registry, peers)
    }

    fn has(registry: &Registry, line: &str) -> bool {
        registry.scrape().lines().any(|have| have == line)
    }

    /// As in etcd, whose families of peers have no children before there is something to tell.
    #[test]
    fn what_never_happened_is_not_on_the_page() {
        let (registry, peers) = peers();
        peers.peer(0xab);
        let page = registry.scrape();
        let mut lines = page.lines().filter(|line| line.starts_with("etcd_network_"));
        assert_eq!(
            lines.next(),
            Some("etcd_network_peer_received_bytes_total{From=\"ab\"} 0")
        );
        assert_eq!(lines.next(), Some("etcd_network_peer_sent_bytes_total{To=\"ab\"} 0"));
        assert_eq!(lines.next(), None);
    }

    #[test]
    fn a_link_is_active_until_it_ends() {
        let (registry, peers) = peers();
        let active = |value| format!("etcd_network_active_peers{{Local=\"1\",Remote=\"ab\"}} {value}");
        let lost = |value| format!("etcd_network_disconnected_peers_total{{Local=\"1\",Remote=\"ab\"}} {value}");
        let up = peers.peer(0xab).link_up(1);
        assert!(has(&registry, &active(1)));
        assert!(!registry.scrape().contains("etcd_network_disconnected_peers_total{"));
        drop(up);
        assert!(has(&registry, &active(0)) && has(&registry, &lost(1)));
        drop(peers.peer(0xab).link_up(1));
        assert!(has(&registry, &active(0)) && has(&registry, &lost(2)));
    }

    #[test]
    fn one_peer_has_one_set_of_counters() {
        let (registry, peers) = peers();
        peers.peer(0xab).sent(3);
        peers.peer(0xab).sent(4);
        peers.peer(0xcd).received(5);
        peers.peer(0xab).send_failed(0);
        assert!(!registry.scrape().contains("etcd_network_peer_sent_failures_total"));
        peers.peer(0xab).send_failed(2);
        peers.peer(0xab).receive_failed();
        peers.receive_failed();
        for line in [
            "etcd_network_peer_sent_bytes_total{To=\"ab\"} 7",
            "etcd_network_peer_received_bytes_total{From=\"cd\"} 5",
            "etcd_network_peer_sent_failures_total{To=\"ab\"} 2",
            "etcd_network_peer_received_failures_total{From=\"ab\"} 1",
            "etcd_network_peer_received_failures_total{From=\"0\"} 1",
        ] {
            assert!(has(&registry, line), "{line}\n{}", registry.scrape());
        }
    }

    #[test]
    fn round_trips_are_counted_in_etcds_buckets() {
        let (registry, peers) = peers();
        peers.peer(0xab).round_trip(Duration::from_micros(150));
        let family = "etcd_network_peer_round_trip_time_seconds";
        for (bound, count) in [("0.0001", 0), ("0.0002", 1), ("3.2768", 1), ("+Inf", 1)] {
            let line = format!("{family}_bucket{{To=\"ab\",le=\"{bound}\"}} {count}");
            assert!(has(&registry, &line), "{line}\n{}", registry.scrape());
        }
    }

    #[test]
    fn a_transfer_comes_through_or_has_failed() {
        let (registry, peers) = peers();
        let (to, from) = (peers.peer(0xab), peers.peer(0xcd));
        let (sent, received) = (to.sends_snapshot(), from.receives_snapshot());
        for line in [
            "etcd_network_snapshot_send_inflights_total{To=\"ab\"} 1",
            "etcd_network_snapshot_receive_inflights_total{From=\"cd\"} 1",
        ] {
            assert!(has(&registry, line), "{line}\n{}", registry.scrape());
        }
        sent.done();
        drop(received);
        peers.snapshot_refused();
        for line in [
            "etcd_network_snapshot_send_inflights_total{To=\"ab\"} 0",
            "etcd_network_snapshot_send_success{To=\"ab\"} 1",
            "etcd_network_snapshot_send_total_duration_seconds_count{To=\"ab\"} 1",
            "etcd_network_snapshot_receive_inflights_total{From=\"cd\"} 0",
            "etcd_network_snapshot_receive_failures{From=\"cd\"} 1",
            "etcd_network_snapshot_receive_failures{From=\"UNKNOWN_SNAPSHOT_SENDER\"} 1",
        ] {
            assert!(has(&registry, line), "{line}\n{}", registry.scrape());
        }
        let page = registry.scrape();
        assert!(!page.contains("etcd_network_snapshot_send_failures{"));
        assert!(!page.contains("etcd_network_snapshot_receive_success{"));
        assert!(!page.contains("etcd_network_snapshot_receive_total_duration_seconds_count{"));
    }

    #[test]
    fn a_heartbeat_after_more_than_two_intervals_is_late() {
        let (registry, peers) = peers();
        let (one, other) = (peers.peer(1), peers.peer(2));
        let start = Instant::now();
        let late = |count: u64| has(&registry, &format!("etcd_server_heartbeat_send_failures_total {count}"));
        one.heartbeat(7, start);
        other.heartbeat(7, start);
        one.heartbeat(7, start + HEARTBEAT * 2);
        assert!(late(0));
        other.heartbeat(7, start + HEARTBEAT * 3);
        assert!(late(1));
        // Who leads anew, some time after, owed nobody anything in between.
        other.heartbeat(9, start + HEARTBEAT * 100);
        assert!(late(1));
    }
}
