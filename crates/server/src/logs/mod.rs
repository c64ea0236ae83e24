//! Container logs as `kubectl logs` asks for them.
//!
//! [`options`] reads the request, [`format`] puts one line of the file into
//! the answer's form (pure), [`reader`] finds where to begin and follows the
//! file through rotation. Only the current file is read, as the kubelet does.

pub mod format;
pub mod options;
pub mod reader;
mod watch;

pub use options::{InvalidOption, LogOptions};
pub use reader::open;
