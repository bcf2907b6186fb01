//! Sequences that once disagreed, kept as the suite printed them.

/// A name that says what went wrong, and the operations.
pub type Kept = (&'static str, &'static [(&'static str, &'static str)]);

pub const KEPT: &[Kept] = &[];
