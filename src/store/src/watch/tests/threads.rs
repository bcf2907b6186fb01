//! The same hub on its own threads: order and completeness must not depend on who runs when.

use super::super::{History, Hub, Options};
use super::world::{Past, put, watch, wire};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[test]
fn readers_on_other_threads_see_every_event_in_order_until_the_hub_stops() {
    const WRITES: i64 = 3000;
    let past = Past::new();
    let options = Options {
        outbox_bytes_max: 16 << 10, // small enough that readers fall behind
        inbox_bytes_max: 64 << 10,
        ..Options::default()
    };
    let hub = Hub::start(past.clone(), options).unwrap();
    let readers: Vec<_> = (0..4)
        .map(|n| {
            let mut stream = hub.stream();
            stream.create(watch("a", if n % 2 == 0 { "" } else { "b" }, 1));
            thread::spawn(move || {
                let waker = Waker::from(Arc::new(Unpark(thread::current())));
                let mut cx = Context::from_waker(&waker);
                let mut next = 2;
                let start = Instant::now();
                loop {
                    assert!(start.elapsed() < Duration::from_secs(60), "stuck at {next}");
                    match stream.poll_next(&mut cx) {
                        Poll::Pending => thread::park_timeout(Duration::from_secs(1)),
                        Poll::Ready(None) => return next,
                        Poll::Ready(Some(response)) => {
                            for event in wire(&response).events {
                                assert_eq!(event.kv.unwrap().mod_revision, next);
                                next += 1;
                            }
                            if next == WRITES + 2 {
                                return next;
                            }
                        }
                    }
                }
            })
        })
        .collect();
    for _ in 0..WRITES {
        let batch = past.apply(&[put("a", "some value")]).unwrap();
        hub.publish(vec![batch]);
    }
    for reader in readers {
        assert_eq!(reader.join().unwrap(), WRITES + 2);
    }
    assert_eq!(past.revision().0, WRITES + 1);

    let mut left = hub.stream();
    hub.stop();
    let mut late = hub.stream();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(matches!(left.poll_next(&mut cx), Poll::Ready(None)));
    assert!(matches!(late.poll_next(&mut cx), Poll::Ready(None)));
}

#[test]
fn the_last_handle_stops_the_threads() {
    let past = Past::new();
    let hub = Hub::start(past.clone(), Options::default()).unwrap();
    let stream = hub.stream();
    drop(hub.clone());
    assert_eq!(Arc::strong_count(&past), 3, "dispatcher and reader hold the store");
    drop(hub);
    assert_eq!(Arc::strong_count(&past), 1);
    drop(stream);
}
