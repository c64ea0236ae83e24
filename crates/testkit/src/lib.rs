//! What tests of several crates need: guests, waiting within bounds, and
//! directories of their own. No crate of the product depends on it.
//!
//! Everything here panics instead of returning errors: that is how a test fails.

mod directory;
mod guests;
mod summary;
mod wait;

pub use directory::directory;
pub use guests::{guest, guests_directory, wat};
pub use summary::Summary;
pub use wait::{eventually, eventually_some};
