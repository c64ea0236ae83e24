//! Pods with paused time, real files, and stand-ins for what is outside.

mod bed;
mod messages;
mod network;
mod policies;
mod probes;
mod resize;
mod restarts;
mod rules;
mod start;
mod stop;
mod survival;
