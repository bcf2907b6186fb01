//! The hub against a store that is plainly right ([`world`]), one step at a time.

mod behaviour;
mod model;
mod slow;
mod threads;
mod world;
