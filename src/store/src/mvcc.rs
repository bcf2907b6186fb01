//! Multi-version key-value state.

mod leaf;
pub mod index;
pub mod version;
