//! Processes by descriptor: found, watched and killed without a number that
//! could meanwhile be another's.
//!
//! What the kernel knows of an ended process, and when (Linux 6.18, seen from
//! a process that is not its parent):
//!
//! | state | readable | exit status |
//! |---|---|---|
//! | ended, its parent has not reaped it | yes | not yet |
//! | reaped | yes, hung up | yes (Linux 6.15 and later) |
//! | between the two, for microseconds | yes | `ESRCH` |
//!
//! So a status is asked for again until the descriptor has hung up, with a
//! limit; [`PidFd::exit_status_within`] does that.

use std::{
    io::{self, Error, ErrorKind},
    mem::size_of,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    ioctl::{self, Updater},
    process::{Pid, PidfdFlags, Signal},
};
use tokio::io::unix::AsyncFd;

/// Pauses between two looks for an exit status; the first is the time that a
/// reaper which is awake needs, the last keeps a wait for a slow one cheap.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(5),
    Duration::from_millis(20),
];

/// A process, whether it still runs or not.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl From<OwnedFd> for PidFd {
    /// Takes a descriptor that the zygote sent as
    /// [`DescriptorName::PidFd`](crate::DescriptorName).
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl PidFd {
    /// Opens a process by number. Sound only while the number cannot be given
    /// away: for a child that is not yet waited for.
    ///
    /// # Errors
    ///
    /// `ESRCH` when there is no such process.
    pub fn open(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(ErrorKind::InvalidInput)?;
        Ok(Self(rustix::process::pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// The process that called `listen` on the socket we are connected to.
    ///
    /// # Errors
    ///
    /// What the kernel says; `ESRCH` when the process is gone.
    pub fn of_peer(socket: BorrowedFd<'_>) -> io::Result<Self> {
        match peer_pidfd(socket) {
            Ok(fd) => Ok(Self(fd)),
            // Before Linux 6.5. The number can only have been given away if
            // the process ended since, and then the connection has ended too.
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                let peer = rustix::net::sockopt::socket_peercred(socket)?;
                Self::open(peer.pid.as_raw_nonzero().get())
            }
            Err(error) => Err(error),
        }
    }

    /// Another descriptor of the same process.
    ///
    /// # Errors
    ///
    /// When no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// The process's number; `None` once it has been reaped.
    ///
    /// # Errors
    ///
    /// When `/proc` cannot be read.
    pub fn pid(&self) -> io::Result<Option<i32>> {
        let path = format!("/proc/self/fdinfo/{}", self.0.as_raw_fd());
        let text = std::fs::read_to_string(path)?;
        let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
        Ok(pid.filter(|pid| *pid > 0))
    }

    /// Kills the process (SIGKILL). One that has ended already is no error.
    ///
    /// # Errors
    ///
    /// When it is not ours to kill.
    pub fn kill(&self) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.0, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the process has ended, reaped or not.
    ///
    /// # Errors
    ///
    /// When the kernel is out of memory.
    pub fn has_ended(&self) -> io::Result<bool> {
        Ok(!self.poll()?.is_empty())
    }

    /// Waits until the process has ended, reaped or not. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When no descriptor is left or the runtime is going down.
    pub async fn ended(&self) -> io::Result<()> {
        // A descriptor of its own, so that several may wait.
        // SAFETY: the `AsyncFd` owns the descriptor, which nobody else closes,
        // and `OwnedFd` gives out the same number each time.
        let watched = unsafe { AsyncFd::register(self.0.try_clone()?) }?;
        watched.readable().await?.retain_ready();
        Ok(())
    }

    /// How the process ended, as `wait4` gives it, if the kernel tells.
    ///
    /// # Errors
    ///
    /// `ESRCH` in the instant between end and reaping.
    pub fn exit_status(&self) -> io::Result<Option<i32>> {
        const GET_INFO: ioctl::Opcode = ioctl::opcode::read_write::<PidInfo>(0xff, 11);
        let mut info = PidInfo { mask: PIDFD_INFO_EXIT, ..PidInfo::default() };
        // SAFETY: `GET_INFO` reads and writes one `PidInfo`, whose size it has
        // in it; the kernel writes no more than that.
        let asked = unsafe { ioctl::ioctl(&self.0, Updater::<GET_INFO, _>::new(&mut info)) };
        match asked {
            Ok(()) if info.mask & PIDFD_INFO_EXIT == 0 => Ok(None),
            Ok(()) => Ok(Some(info.exit_code)),
            // Before Linux 6.13.
            Err(Errno::NOTTY | Errno::INVAL) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the process's end and then for its exit status, at most
    /// `limit` in all; `None` when the kernel did not tell. Cancel-safe.
    ///
    /// # Errors
    ///
    /// As [`PidFd::ended`]; `TimedOut` when the process had not even ended.
    pub async fn exit_status_within(&self, limit: Duration) -> io::Result<Option<i32>> {
        let deadline = tokio::time::Instant::now() + limit;
        match tokio::time::timeout_at(deadline, self.ended()).await {
            Ok(ended) => ended?,
            Err(_) => return Err(ErrorKind::TimedOut.into()),
        }
        let mut pauses = PAUSES.into_iter();
        let mut pause = PAUSES[0];
        loop {
            // In this order: once hung up, the status is there or never comes.
            let reaped = self.poll()?.contains(PollFlags::HUP);
            match self.exit_status() {
                Ok(Some(status)) => return Ok(Some(status)),
                Ok(None) if reaped => return Ok(None),
                Ok(None) => {}
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) => return Err(error),
            }
            pause = pauses.next().unwrap_or(pause);
            if tokio::time::Instant::now() + pause > deadline {
                return Ok(None);
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn poll(&self) -> io::Result<PollFlags> {
        let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
        let now = Timespec::default();
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&now)))?;
        Ok(polled[0].revents())
    }
}

/// When a process began, in clock ticks since boot: with its number it names a
/// process for as long as the machine is up. `None` if there is no such process.
///
/// Source: proc_pid_stat(5), field 22.
#[must_use]
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, parentheses too.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(19)?.parse().ok()
}

/// A shell's view of a status that `wait4` gave: the exit code, or 128 and the
/// signal.
#[must_use]
pub fn exit_code(wait_status: i32) -> i32 {
    if libc::WIFSIGNALED(wait_status) {
        128 + libc::WTERMSIG(wait_status)
    } else {
        libc::WEXITSTATUS(wait_status)
    }
}

/// `struct pidfd_info` of `include/uapi/linux/pidfd.h`, the first 64 bytes.
#[repr(C)]
#[derive(Default)]
struct PidInfo {
    mask: u64,
    cgroup_id: u64,
    pid: u32,
    thread_group: u32,
    parent: u32,
    /// Real, effective, saved and file system user and group.
    owner: [u32; 8],
    exit_code: i32,
}

const _: () = assert!(size_of::<PidInfo>() == 64);

/// Asks for, and then says that there is, an exit code.
const PIDFD_INFO_EXIT: u64 = 1 << 3;

fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut fd: libc::c_int = -1;
    let mut length: libc::socklen_t = 4;
    // SAFETY: both pointers are to live variables, and `length` is the size of
    // the first.
    let asked = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut length,
        )
    };
    if asked < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_killed_process_tells_its_signal_once_reaped() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let number = i32::try_from(child.id()).unwrap();
        let process = PidFd::open(number).unwrap();
        assert_eq!(process.pid().unwrap(), Some(number));
        assert!(!process.has_ended().unwrap());

        process.kill().unwrap();
        process.ended().await.unwrap();
        assert!(process.has_ended().unwrap());
        let waited = tokio::task::spawn_blocking(move || child.wait().unwrap());
        let status = process.exit_status_within(LIMIT).await.unwrap();
        waited.await.unwrap();

        // `None` is what a kernel before 6.15 says.
        assert!(matches!(status.map(exit_code), Some(137) | None), "{status:?}");
        assert_eq!(process.pid().unwrap(), None);
        process.kill().unwrap();
    }

    #[tokio::test]
    async fn a_process_that_goes_on_is_not_waited_for_beyond_the_limit() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = PidFd::open(i32::try_from(child.id()).unwrap()).unwrap();
        let error = process.exit_status_within(Duration::from_millis(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn the_peer_is_who_listens() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = crate::socket::bind(&path).unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        let connection = crate::socket::connect(&path).unwrap();
        let peer = PidFd::of_peer(connection.as_fd()).unwrap();
        let us = i32::try_from(std::process::id()).unwrap();
        assert_eq!(peer.pid().unwrap(), Some(us));
        assert!(start_time(us).is_some());
    }

    #[test]
    fn a_number_without_a_process_is_an_error() {
        assert!(PidFd::open(0).is_err());
        assert!(PidFd::open(i32::MAX).is_err());
        assert_eq!(start_time(i32::MAX), None);
    }

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(exit_code(3 << 8), 3);
        assert_eq!(exit_code(0), 0);
        assert_eq!(exit_code(libc::SIGKILL), 137);
        assert_eq!(exit_code(libc::SIGSYS | 0x80), 128 + libc::SIGSYS);
    }
}
