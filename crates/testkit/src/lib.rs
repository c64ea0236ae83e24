//! What tests of several crates need: guests, waiting within bounds, directories
//! of their own, and certificates. No crate of the product depends on it.
//!
//! Everything here panics instead of returning errors: that is how a test fails.

mod directory;
mod guests;
mod summary;
mod tls;
mod wait;

pub use directory::directory;
pub use guests::{guest, guests_directory, wat};
pub use summary::Summary;
pub use tls::{Authority, serve_https};
pub use wait::{eventually, eventually_some};
