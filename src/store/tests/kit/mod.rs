//! What a backend and a whole store should hold, and what they are fed with.

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod exchange;
pub mod model;
pub mod whole;
