//! Long work on a thread that should not be in anybody's way.

/// Bytes of work, after which whoever woke up meanwhile gets the processor: about a tenth of a millisecond.
const TURN: usize = 64 << 10;
/// What a row costs beside its bytes.
const ROW: usize = 1 << 10;

/// Lets others have the processor now and then. A low priority alone does not: a kernel that has picked a thread lets it
/// have its slice, which is some milliseconds, and so much is what a write waits that passes ten threads.
#[derive(Debug, Default)]
pub(crate) struct Polite {
    done: usize,
}

impl Polite {
    /// After a row, or a page, of so many bytes.
    pub fn pass(&mut self, bytes: usize) {
        self.done += ROW + bytes;
        if self.done >= TURN {
            self.done = 0;
            std::thread::yield_now();
        }
    }
}
