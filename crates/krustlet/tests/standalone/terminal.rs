//! What `krustlet run` shows on a terminal and nowhere else.

use std::{
    fs::File,
    io::Read,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    os::unix::fs::OpenOptionsExt,
};

use tokio::{task::spawn_blocking, time::timeout};

use crate::{
    machine::{LIMIT, Machine, end},
    output::SEVERAL,
};

/// Both ends of a new terminal: what a person sees, and what programs get.
/// Neither is inherited by a program that another test starts.
fn terminal() -> (File, OwnedFd) {
    let master = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_CLOEXEC)
        .open("/dev/ptmx")
        .unwrap();
    let unlocked: libc::c_int = 0;
    // SAFETY: the request reads one int, which lives until it returns.
    let done = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the request takes flags and no pointer.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    assert!(slave >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: it has just been opened, for nobody else.
    (master, unsafe { OwnedFd::from_raw_fd(slave) })
}

/// Runs the pods of [`SEVERAL`] with standard output and standard error on a
/// terminal, and gives what it shows.
async fn shown(machine: &Machine, env: &[(&str, &str)]) -> String {
    let (mut master, slave) = terminal();
    let mut child = {
        let mut command = machine.command(&["run", &machine.manifest(SEVERAL)]);
        command.envs(env.iter().copied());
        command.stdout(slave.try_clone().unwrap()).stderr(slave);
        command.spawn().unwrap()
        // The command holds the terminal too, until here.
    };
    let reading = spawn_blocking(move || {
        let mut shown = Vec::new();
        let mut piece = [0; 4096];
        // EIO once nobody has the other end any more.
        while let Ok(read @ 1..) = master.read(&mut piece) {
            shown.extend_from_slice(&piece[..read]);
        }
        String::from_utf8_lossy(&shown).into_owned()
    });
    assert_eq!(end(&mut child).await, 3);
    timeout(LIMIT, reading).await.expect("everybody lets the terminal go").unwrap()
}

#[tokio::test]
async fn a_terminal_has_colours_and_progress() {
    let shown = shown(&Machine::new(), &[]).await;
    for words in [
        // Each container has a colour, in their order.
        "\x1b[36m[one/first]\x1b[0m from first",
        "\x1b[33m[one/a]\x1b[0m from a",
        "krustlet: Started: Container started",
    ] {
        assert!(shown.contains(words), "{words:?} is not in {shown:?}");
    }
}

#[tokio::test]
async fn who_wants_no_colours_has_progress_without() {
    let shown = shown(&Machine::new(), &[("NO_COLOR", "1")]).await;
    for words in ["[one/first] from first", "krustlet: Started: Container started"] {
        assert!(shown.contains(words), "{words:?} is not in {shown:?}");
    }
    assert!(!shown.contains('\x1b'), "{shown:?}");
}
