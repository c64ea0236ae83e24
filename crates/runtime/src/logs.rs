//! Log files: what they are called, and what is done when one is full.
//!
//! ```text
//! 0.log                    is written to
//! .0.log.next              the sandbox has it open, and goes on with it when 0.log is full
//! .0.log.new               made for that, not yet known to be in the sandbox's hands
//! 0.log.20261123-203840    was full at that time (UTC)
//! ```
//!
//! The sandbox switches by itself, also while no agent lives; the agent
//! afterwards renames, and hands over another. The files that wait have names
//! that log collectors, which look for `*.log`, pass over.
//!
//! Names and numbers of rotated logs are those of the kubelet:
//! `pkg/kubelet/logs/container_log_manager.go`, `rotateLatestLog`.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use jiff::{Timestamp, ToSpan, civil::DateTime, tz::TimeZone};

/// A time in the name of a rotated log.
const STAMP: &str = "%Y%m%d-%H%M%S";

/// The log of one run of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogFile {
    path: PathBuf,
}

/// What an agent finds of a log when it comes back.
#[derive(Debug)]
pub(crate) enum Resumed {
    /// The sandbox has a log to go on with.
    Supplied,
    /// It needs this one: hand it over, then call [`LogFile::supplied`].
    Wants(OwnedFd),
}

impl LogFile {
    /// The log at `path`; nothing is opened yet.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Opens the log and the one to go on with, making them and their
    /// directory if missing.
    pub(crate) fn open(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory)?;
        }
        Ok((append(&self.path)?, append(&self.beside("next"))?))
    }

    /// Renames after the sandbox has switched, and gives the log to go on with
    /// next time: hand it over, then call [`LogFile::supplied`].
    ///
    /// At most `max_files` stay, the current one included (at least two).
    pub(crate) fn rotate(&self, max_files: usize, now: Timestamp) -> io::Result<OwnedFd> {
        // Looked for first: a log that nothing can follow keeps its name.
        let next = self.waiting()?.ok_or(ErrorKind::NotFound)?;
        self.replace_with(&next, max_files, now)?;
        append(&self.beside("new"))
    }

    /// Notes that the sandbox holds what [`LogFile::rotate`] or
    /// [`LogFile::resume`] gave.
    pub(crate) fn supplied(&self) -> io::Result<()> {
        fs::rename(self.beside("new"), self.beside("next"))
    }

    /// Catches up with what the sandbox did while no agent lived.
    pub(crate) fn resume(&self, max_files: usize, now: Timestamp) -> io::Result<Resumed> {
        let (next, new) = (self.beside("next"), self.beside("new"));
        match (length(&next)?, length(&new)?) {
            (Some(0), _) => Ok(Resumed::Supplied),
            // It was handed over, and only that was not noted any more.
            (None, Some(1..)) => {
                self.replace_with(&new, max_files, now)?;
                Ok(Resumed::Wants(append(&new)?))
            }
            (None, _) => Ok(Resumed::Wants(append(&new)?)),
            (Some(_), _) => Ok(Resumed::Wants(self.rotate(max_files, now)?)),
        }
    }

    /// Whether the sandbox writes to the next log already.
    pub(crate) fn is_switched(&self) -> bool {
        let length = |path: PathBuf| length(&path).ok().flatten();
        matches!(self.waiting().ok().flatten().and_then(length), Some(1..))
    }

    /// The log that the sandbox goes on with. It may hold one of which only
    /// that was not noted.
    fn waiting(&self) -> io::Result<Option<PathBuf>> {
        for waiting in [self.beside("next"), self.beside("new")] {
            if length(&waiting)?.is_some() {
                return Ok(Some(waiting));
            }
        }
        Ok(None)
    }

    /// Removes what waits, once the container is over. A log that is in use
    /// becomes the current one.
    pub(crate) fn close(&self, max_files: usize, now: Timestamp) -> io::Result<()> {
        for waiting in [self.beside("next"), self.beside("new")] {
            match length(&waiting)? {
                None => {}
                Some(0) => fs::remove_file(&waiting)?,
                Some(_) => self.replace_with(&waiting, max_files, now)?,
            }
        }
        Ok(())
    }

    fn replace_with(&self, next: &Path, max_files: usize, now: Timestamp) -> io::Result<()> {
        let rotated = self.rotated()?;
        let stamp = next_stamp(now, rotated.last().map(|(stamp, _)| *stamp));
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{}", stamp.strftime(STAMP)));
        match fs::rename(&self.path, PathBuf::from(name)) {
            Ok(()) => {}
            // Somebody cleaned up; the log goes on all the same.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        fs::rename(next, &self.path)?;
        // The current file and the newest rotated ones stay.
        let keep = max_files.max(2) - 1;
        let all = self.rotated()?;
        for (_, path) in all.iter().take(all.len().saturating_sub(keep)) {
            fs::remove_file(path)?;
        }
        Ok(())
    }

    /// The rotated logs beside this one, oldest first.
    fn rotated(&self) -> io::Result<Vec<(DateTime, PathBuf)>> {
        let (Some(directory), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let rotated = entry.file_name();
            if let Some(stamp) = stamp_of(&name.to_string_lossy(), &rotated.to_string_lossy()) {
                found.push((stamp, entry.path()));
            }
        }
        found.sort();
        Ok(found)
    }

    fn beside(&self, what: &str) -> PathBuf {
        let mut name = OsString::from(".");
        name.push(self.path.file_name().unwrap_or_default());
        name.push(format!(".{what}"));
        self.path.with_file_name(name)
    }
}

/// The time to put into a name: now, but always after the newest there is, as
/// two logs may fill up within a second and clocks are set back.
fn next_stamp(now: Timestamp, newest: Option<DateTime>) -> DateTime {
    let now = TimeZone::UTC.to_datetime(now);
    match newest {
        Some(newest) if newest >= now.with().subsec_nanosecond(0).build().unwrap_or(now) => {
            newest.saturating_add(1.second())
        }
        Some(_) | None => now,
    }
}

/// When the log called `rotated` was full, if it is one of `name`'s. A
/// compressed one counts too.
fn stamp_of(name: &str, rotated: &str) -> Option<DateTime> {
    let stamp = rotated.strip_prefix(name)?.strip_prefix('.')?;
    let stamp = stamp.strip_suffix(".gz").unwrap_or(stamp);
    // `strptime` would take shorter numbers as well.
    (stamp.len() == 15).then(|| DateTime::strptime(STAMP, stamp).ok())?
}

fn append(path: &Path) -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    // Readable by the group, as the kubelet's log directories are.
    let file: File = options.append(true).create(true).mode(0o640).open(path)?;
    Ok(file.into())
}

fn length(path: &Path) -> io::Result<Option<u64>> {
    match fs::metadata(path) {
        Ok(found) => Ok(Some(found.len())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
