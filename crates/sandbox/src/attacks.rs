//! What someone would try who had broken out of wasmtime, for the tests that
//! show it to be in vain. Compiled only with the feature `test-attacks`, which
//! no released binary has.

use std::{fs, io, os::fd::RawFd, ptr};

use serde::Deserialize;

/// Commands of `fcntl` that the C library has no name for here
/// (`asm-generic/fcntl.h`).
const F_SETSIG: libc::c_long = 10;
const F_SETOWN_EX: libc::c_long = 15;

/// A packet that is not of the protocol.
#[derive(Deserialize)]
struct Attack {
    body: Body,
}

#[derive(Deserialize)]
struct Body {
    attack: String,
    #[serde(default)]
    argument: String,
}

/// Tries what the packet asks for, and says how it went: `ok …` or `errno N`.
pub(crate) fn answer(packet: &[u8]) -> Option<String> {
    let Attack { body } = serde_json::from_slice(packet).ok()?;
    Some(match attempt(&body.attack, &body.argument) {
        Ok(what) => format!("ok {what}"),
        Err(error) => match error.raw_os_error() {
            Some(number) => format!("errno {number}"),
            None => error.to_string(),
        },
    })
}

fn attempt(what: &str, argument: &str) -> io::Result<String> {
    match what {
        "open" => fs::File::open(argument).map(|_| "opened".into()),
        "create" => fs::File::create(argument).map(|_| "created".into()),
        "list" => Ok(fs::read_dir(argument)?.count().to_string()),
        // A directory handed to a container: up from it, as far as it goes.
        "climb" => climb(),
        "ptrace" => call(libc::SYS_ptrace, [0; 3]),
        "mount" => call(libc::SYS_mount, [0; 3]),
        "execve" => call(libc::SYS_execve, [0; 3]),
        "unshare" => call(libc::SYS_unshare, [libc::CLONE_NEWUSER.into(), 0, 0]),
        "bpf" => call(libc::SYS_bpf, [0; 3]),
        "io-uring" => call(libc::SYS_io_uring_setup, [1, 0, 0]),
        "keyctl" => call(libc::SYS_keyctl, [0; 3]),
        "userfaultfd" => call(libc::SYS_userfaultfd, [1, 0, 0]),
        "perf" => call(libc::SYS_perf_event_open, [0; 3]),
        "setuid" => call(libc::SYS_setresuid, [0; 3]),
        "fork" => call(libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0]),
        "clone3" => call(libc::SYS_clone3, [0; 3]),
        "kill" => call(libc::SYS_kill, [1, 0, 0]),
        // Signal 0: only whether it might.
        "signal" => call(libc::SYS_tgkill, [1, 1, 0]),
        // Its limits, which say when it is killed.
        "limit" => call(libc::SYS_prlimit64, [1, libc::RLIMIT_CPU.into(), 0]),
        "own-limit" => call(libc::SYS_prlimit64, [0, libc::RLIMIT_CPU.into(), 0]),
        // On no descriptor, as with options below: who gets a signal, and which.
        "owner" => call(libc::SYS_fcntl, [-1, libc::F_SETOWN.into(), 1]),
        "owner-of-a-kind" => call(libc::SYS_fcntl, [-1, F_SETOWN_EX, 0]),
        "owners-signal" => call(libc::SYS_fcntl, [-1, F_SETSIG, libc::SIGKILL.into()]),
        "tell-the-owner" => call(libc::SYS_fcntl, [-1, libc::F_SETFL.into(), libc::O_ASYNC.into()]),
        "lease" => call(libc::SYS_fcntl, [-1, libc::F_SETLEASE.into(), libc::F_WRLCK.into()]),
        "flags" => call(libc::SYS_fcntl, [-1, libc::F_SETFL.into(), libc::O_NONBLOCK.into()]),
        "seccomp" => call(libc::SYS_seccomp, [0; 3]),
        "netlink" => socket(libc::AF_NETLINK, libc::SOCK_RAW, 0),
        "packet" => socket(libc::AF_PACKET, libc::SOCK_RAW, 0),
        "unix" => socket(libc::AF_UNIX, libc::SOCK_STREAM, 0),
        "vsock" => socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0),
        "raw" => socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP),
        "seqpacket" => socket(libc::AF_INET, libc::SOCK_SEQPACKET, 0),
        "ping" => socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
        "sctp" => socket(libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
        "mptcp" => socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
        "tcp" => socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0),
        "udp" => socket(libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP),
        // On no descriptor: what is refused is refused before that is seen.
        "attach-filter" => option(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER),
        "bind-to-device" => option(libc::SOL_SOCKET, libc::SO_BINDTODEVICE),
        "mark" => option(libc::SOL_SOCKET, libc::SO_MARK),
        "foreign-address" => option(libc::IPPROTO_IP, libc::IP_FREEBIND),
        "transparent" => option(libc::IPPROTO_IP, libc::IP_TRANSPARENT),
        "join-group" => option(libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP),
        "upper-layer" => option(libc::IPPROTO_TCP, libc::TCP_ULP),
        "other-level" => option(libc::SOL_NETLINK, 1),
        "reuse-address" => option(libc::SOL_SOCKET, libc::SO_REUSEADDR),
        "tipc-pair" => pair(libc::AF_TIPC, libc::SOCK_STREAM),
        "datagram-pair" => pair(libc::AF_UNIX, libc::SOCK_DGRAM),
        "raw-pair" => pair(libc::AF_UNIX, libc::SOCK_RAW | libc::SOCK_CLOEXEC),
        "bind" => call(libc::SYS_bind, [-1, 0, 0]),
        "connect" => call(libc::SYS_connect, [-1, 0, 0]),
        "fast-open" => fast_open(),
        "write-and-execute" => {
            let both = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a new mapping, at a place of the kernel's choice.
            let page = unsafe { libc::mmap(ptr::null_mut(), 4096, both, flags, -1, 0) };
            if page == libc::MAP_FAILED {
                Err(io::Error::last_os_error())
            } else {
                Ok("mapped".into())
            }
        }
        "panic" => panic!("asked to"),
        other => Err(io::Error::other(format!("no attack {other}"))),
    }
}

fn call(number: libc::c_long, [a, b, c]: [libc::c_long; 3]) -> io::Result<String> {
    // SAFETY: the calls used here fail, or kill the process, without effect on
    // its memory.
    match unsafe { libc::syscall(number, a, b, c, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        done => Ok(done.to_string()),
    }
}

fn socket(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<String> {
    call(libc::SYS_socket, [family.into(), kind.into(), protocol.into()])
}

fn option(level: libc::c_int, option: libc::c_int) -> io::Result<String> {
    call(libc::SYS_setsockopt, [-1, level.into(), option.into()])
}

fn pair(family: libc::c_int, kind: libc::c_int) -> io::Result<String> {
    call(libc::SYS_socketpair, [family.into(), kind.into(), 0])
}

/// Connects by sending, on no descriptor.
fn fast_open() -> io::Result<String> {
    // SAFETY: nothing is read from a message without a length.
    match unsafe { libc::sendto(-1, ptr::null(), 0, libc::MSG_FASTOPEN, ptr::null(), 0) } {
        -1 => Err(io::Error::last_os_error()),
        sent => Ok(sent.to_string()),
    }
}

/// Goes up from every directory that is open, and says what is found there.
fn climb() -> io::Result<String> {
    let mut found = Vec::new();
    for fd in 3..256 {
        if let Ok(names) = above(fd) {
            found.push(format!("{fd}: {names}"));
        }
    }
    // Back to where the host expects to be.
    rustix::process::chdir("/")?;
    Ok(found.join("; "))
}

fn above(fd: RawFd) -> io::Result<String> {
    // SAFETY: only for the time of this call; it need not be a directory.
    let directory = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    rustix::process::fchdir(directory)?;
    for _ in 0..8 {
        rustix::process::chdir("..")?;
    }
    let mut names: Vec<_> = fs::read_dir(".")?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()?;
    names.sort();
    Ok(names.join(","))
}
