//! The pods of a node: one task for each, from what is wanted of it to what is
//! reported of it.
//!
//! ```text
//! WantedPods ──▶ pods (admission, users) ──▶ worker ──▶ decide, order
//!                                              │  ▲
//!              setup, pulls, launch ◀──────────┘  └── outside (sandboxes, images, objects)
//!                                              └──▶ status, events, checkpoint, views
//! ```
//!
//! What a pod needs from outside comes through the traits of [`outside`]. Rules
//! that need no knowledge of tasks are `krustlet_model`'s; files of volumes are
//! `krustlet_volume`'s, processes `krustlet_runtime`'s, downloads
//! `krustlet_image`'s. Standalone mode is another source and another sink.
//!
//! Start reading at `pods.rs`, then `worker.rs`.

pub mod checkpoint;
pub mod clock;
pub mod config;
mod containers;
pub mod decide;
mod environment;
mod guard;
pub mod guest;
mod handle;
mod launch;
pub mod listeners;
pub mod logs;
mod messages;
pub mod names;
mod objects;
pub mod order;
pub mod outside;
pub mod place;
mod pods;
pub mod prober;
mod pulls;
mod setup;
mod storage;
mod turns;
pub mod users;
pub mod view;
mod words;
mod worker;

pub use clock::Clock;
pub use config::{Isolation, PodsConfig};
pub use guest::ProgramShape;
pub use handle::{AskError, Pods};
pub use krustlet_protocol::StatsReport;
pub use logs::LogPlaces;
pub use names::NamesConfig;
pub use outside::Outside;
pub use pods::{OpenError, PodsTask, WantedPods, open};
pub use users::UserRange;
pub use view::{ContainerView, PodStats, PodView};

#[cfg(test)]
mod tests;
