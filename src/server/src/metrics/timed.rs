//! A histogram by kind and success, whose handles are looked up once: on first use, since etcd's families have no
//! children before that.

use prometheus::{Histogram, HistogramVec};
use std::sync::OnceLock;
use std::time::Duration;

pub struct Timed {
    family: HistogramVec,
    /// By kind and success.
    handles: Vec<[OnceLock<Histogram>; 2]>,
}

impl Timed {
    /// The labels of `family` are the kind, if it has several, and `success`.
    pub fn new(family: HistogramVec, kinds: usize) -> Self {
        Self {
            family,
            handles: std::iter::repeat_with(Default::default).take(kinds).collect(),
        }
    }

    /// `kind` is its number, `name` its label.
    pub fn observe(&self, kind: usize, name: Option<&str>, success: bool, took: Duration) {
        let handle = self.handles[kind][usize::from(success)].get_or_init(|| {
            let success = if success { "true" } else { "false" };
            let labels: Vec<&str> = name.into_iter().chain([success]).collect();
            self.family.with_label_values(&labels)
        });
        handle.observe(took.as_secs_f64());
    }
}
