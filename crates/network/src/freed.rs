//! The addresses that were let go lately, on disk, so that a new agent lets
//! them rest too.
//!
//! ```text
//! run/addresses        BOOT MILLISECONDS ADDRESS, one line each
//! ```
//!
//! Times are since the machine's start, which no change of the clock moves. A
//! line is written before its address can be given again, and not forced to
//! disk: what must survive is a killed agent. Lines of another start count as
//! let go at the start of this one.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    net::IpAddr,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
    time::Duration,
};

/// Lines after which the file is written anew, with those that still count:
/// some hundred kilobytes.
const LINES: usize = 4096;

/// The file, open for more.
#[derive(Debug)]
pub(crate) struct Freed {
    path: PathBuf,
    boot: String,
    lines: usize,
}

/// Time since the machine's start, suspension included.
pub(crate) fn since_boot() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a local that lives. The clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    let part = |number: i64| u64::try_from(number).unwrap_or_default();
    Duration::from_secs(part(now.tv_sec)) + Duration::from_nanos(part(now.tv_nsec))
}

impl Freed {
    /// Reads what is there, the oldest first. A line that is none is passed
    /// over: the last one of an agent that was killed may be, or any after a loss of
    /// power.
    pub(crate) fn open(path: PathBuf) -> io::Result<(Self, Vec<(Duration, IpAddr)>)> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let now = since_boot();
        let mut read: Vec<_> = text.lines().filter_map(|text| line(text, &boot, now)).collect();
        read.sort_by_key(|(since, _)| *since);
        let lines = text.lines().count();
        Ok((Self { path, boot, lines }, read))
    }

    /// Notes addresses as let go now. `resting` are all that still count, these
    /// included.
    pub(crate) fn note(
        &mut self,
        freed: &[IpAddr],
        now: Duration,
        resting: impl Iterator<Item = (Duration, IpAddr)>,
    ) -> io::Result<()> {
        if self.lines >= LINES {
            let mut text = String::new();
            self.lines = 0;
            for (since, address) in resting {
                text += &self.line(since, address);
                self.lines += 1;
            }
            let new = self.path.with_extension("new");
            fs::write(&new, text)?;
            return fs::rename(&new, &self.path);
        }
        let mut text: String = freed.iter().map(|address| self.line(now, *address)).collect();
        self.lines += freed.len();
        let mut options = File::options();
        options.read(true).append(true).create(true).mode(0o600);
        let mut file = options.open(&self.path)?;
        if is_broken_off(&file)? {
            text.insert(0, '\n');
        }
        file.write_all(text.as_bytes())
    }

    fn line(&self, since: Duration, address: IpAddr) -> String {
        format!("{} {} {address}\n", self.boot, since.as_millis())
    }
}

/// Whether the last line has no end: its writer was killed, or the disk was full.
fn is_broken_off(file: &File) -> io::Result<bool> {
    let length = file.metadata()?.len();
    let mut last = [b'\n'];
    if let Some(at) = length.checked_sub(1) {
        file.read_exact_at(&mut last, at)?;
    }
    Ok(last != [b'\n'])
}

fn line(text: &str, boot: &str, now: Duration) -> Option<(Duration, IpAddr)> {
    let mut words = text.split(' ');
    let is_this = words.next()? == boot;
    let since = Duration::from_millis(words.next()?.parse().ok()?);
    let address = words.next()?.parse().ok()?;
    Some((if is_this { since.min(now) } else { Duration::ZERO }, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_found() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("addresses");
        let (mut freed, found) = Freed::open(path.clone()).unwrap();
        assert!(found.is_empty());
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let now = Duration::from_millis(since_boot().as_millis().try_into().unwrap());
        freed.note(&[address], now, std::iter::empty()).unwrap();
        // Killed in the middle of a line, a line of another boot, and one that is no text.
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"\xff\xfe\0\n").unwrap();
        write!(file, "another 99999999999 fd00::1\n{} 12", freed.boot).unwrap();
        let (mut freed, found) = Freed::open(path.clone()).unwrap();
        let other = (Duration::ZERO, "fd00::1".parse().unwrap());
        assert_eq!(found, [other, (now, address)]);
        // What is noted next is no part of that line.
        let next: IpAddr = "10.0.0.2".parse().unwrap();
        freed.note(&[next], now, std::iter::empty()).unwrap();
        let (_, found) = Freed::open(path).unwrap();
        assert_eq!(found, [other, (now, address), (now, next)]);
    }

    #[test]
    fn the_file_does_not_grow_without_end() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("addresses");
        let (mut freed, _) = Freed::open(path.clone()).unwrap();
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        for _ in 0..LINES + 10 {
            let resting = std::iter::once((Duration::ZERO, address));
            freed.note(&[address], Duration::ZERO, resting).unwrap();
        }
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 10);
    }
}
