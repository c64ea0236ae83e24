//! Binds the compiler's child before it sees the program: limits, no
//! privileges, and only the system calls that computing needs.
//!
//! What is left to a program that takes over the compiler: its own module, the
//! one output file, and as much computing as the limits allow.

use std::{fs, io};

use rustix::process::{Gid, Resource, Rlimit, Uid};
use rustix::thread::CapabilitySet;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::limits::Bounds;

/// The user nobody, on every Linux distribution.
const NOBODY: u32 = 65534;

/// Open files: input, output, report, and some for the standard library's
/// own short-lived ones.
const DESCRIPTORS: u64 = 16;

/// Why the child could not bind itself. It then compiles nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockdownError {
    #[error("cannot {what}")]
    System {
        what: &'static str,
        #[source]
        source: io::Error,
    },

    #[error("cannot make the filter of system calls")]
    Filter(#[source] seccompiler::BackendError),

    #[error("cannot install the filter of system calls")]
    Install(#[source] seccompiler::Error),
}

/// Binds this process. Call it with no thread but this one: the user and the
/// filter are a thread's, and are inherited by those it starts.
///
/// # Errors
///
/// If anything but the two courtesies (priority in memory shortage, nice value)
/// fails; the process is then in between and must end.
pub(crate) fn lock_down(bounds: &Bounds) -> Result<(), LockdownError> {
    // Courtesies. The first victim when memory runs short should be a
    // compilation, which can be repeated; a read-only /proc takes no such wish.
    let _ = fs::write("/proc/self/oom_score_adj", "800");
    let _ = rustix::process::nice(10);

    limit(Resource::Core, 0, 0)?;
    // At the first value the process gets the signal that tells why (SIGXCPU),
    // at the second one that says nothing.
    limit(Resource::Cpu, bounds.cpu_seconds, bounds.cpu_seconds.saturating_add(5))?;
    limit(Resource::As, bounds.memory_bytes, bounds.memory_bytes)?;
    limit(Resource::Fsize, bounds.artifact_bytes, bounds.artifact_bytes)?;
    limit(Resource::Nofile, DESCRIPTORS, DESCRIPTORS)?;
    // A write beyond the file limit then fails, instead of ending the process
    // without a word. SAFETY: no handler is installed; the signal is ignored.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };

    drop_privileges()?;
    let filter = filter().map_err(LockdownError::Filter)?;
    seccompiler::apply_filter(&filter).map_err(LockdownError::Install)
}

fn system(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> LockdownError {
    move |errno| LockdownError::System { what, source: errno.into() }
}

/// Sets a limit that cannot be raised again, or keeps a stricter one.
fn limit(resource: Resource, soft: u64, hard: u64) -> Result<(), LockdownError> {
    let hard = rustix::process::getrlimit(resource).maximum.map_or(hard, |old| old.min(hard));
    let limit = Rlimit { current: Some(soft.min(hard)), maximum: Some(hard) };
    rustix::process::setrlimit(resource, limit).map_err(system("set a resource limit"))
}

fn drop_privileges() -> Result<(), LockdownError> {
    if rustix::process::geteuid().is_root() {
        become_nobody()?;
    }
    rustix::thread::set_capabilities(
        None,
        rustix::thread::CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        },
    )
    .map_err(system("drop the capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(system("give up new privileges"))
}

fn become_nobody() -> Result<(), LockdownError> {
    // Root of a user namespace that maps no other user is an ordinary user
    // outside; it stays that user, and loses its capabilities below.
    let has_no_other_user = |errno: rustix::io::Errno| {
        errno == rustix::io::Errno::INVAL || errno == rustix::io::Errno::PERM
    };
    match rustix::thread::set_thread_groups(&[]) {
        Err(errno) if !has_no_other_user(errno) => return Err(system("leave the groups")(errno)),
        _ => {}
    }
    let gid = Gid::from_raw(NOBODY);
    match rustix::thread::set_thread_res_gid(gid, gid, gid) {
        Err(errno) if !has_no_other_user(errno) => return Err(system("change the group")(errno)),
        _ => {}
    }
    let uid = Uid::from_raw(NOBODY);
    match rustix::thread::set_thread_res_uid(uid, uid, uid) {
        Err(errno) if !has_no_other_user(errno) => Err(system("change the user")(errno)),
        _ => Ok(()),
    }
}

/// What computing with threads, reading the input and writing the output take.
/// No call that opens, connects, or starts a program is among them.
const ALLOWED: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_close,
    libc::SYS_ppoll,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let only = |argument, operator, value| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
    };
    let mut rules: std::collections::BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|&call| (call, Vec::new())).collect();
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_poll, Vec::new());

    // Threads, not processes. The newer clone3 keeps its flags in memory, where
    // a filter cannot see them; refused, the C library uses this one.
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![only(0, SeccompCmpOp::MaskedEq(thread), thread)?]);
    // To abort is to send oneself a signal; other processes of nobody get none.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![only(0, SeccompCmpOp::Eq, own)?]);
    // The standard library names its threads.
    let set_name = libc::PR_SET_NAME as u64;
    rules.insert(libc::SYS_prctl, vec![only(0, SeccompCmpOp::Eq, set_name)?]);
    // Asking for limits (how large is the stack?), not setting them: no new ones.
    rules.insert(
        libc::SYS_prlimit64,
        vec![SeccompRule::new(vec![SeccompCondition::new(
            2,
            SeccompCmpArgLen::Qword,
            SeccompCmpOp::Eq,
            0,
        )?])?],
    );

    // "No such call" is what programs fall back from; anything else would look
    // like a state of the machine.
    let refuse = SeccompAction::Errno(libc::ENOSYS as u32);
    let target = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, refuse, SeccompAction::Allow, target)?.try_into()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpStream, UdpSocket};
    use std::os::unix::net::UnixStream;
    use std::process::Command;
    use std::{fs, io, thread};

    use super::*;

    /// A filter is a thread's own: one thread stands for the child here.
    fn under_the_filter<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let filter = filter().unwrap();
        thread::spawn(move || {
            seccompiler::apply_filter(&filter).unwrap();
            work()
        })
        .join()
        .unwrap()
    }

    fn is_refused<T>(result: io::Result<T>) -> bool {
        result.err().and_then(|error| error.raw_os_error()) == Some(libc::ENOSYS)
    }

    #[test]
    fn nothing_can_be_opened_reached_or_started() {
        let refused = under_the_filter(|| {
            [
                ("open", is_refused(fs::File::open("/etc/passwd"))),
                ("unlink", is_refused(fs::remove_file("/nowhere"))),
                ("udp", is_refused(UdpSocket::bind("127.0.0.1:0"))),
                ("tcp", is_refused(TcpStream::connect("127.0.0.1:1"))),
                ("unix", is_refused(UnixStream::pair())),
                ("start", is_refused(Command::new("/bin/true").status())),
                (
                    "kill",
                    is_refused(
                        rustix::process::kill_process(
                            rustix::process::getpid(),
                            rustix::process::Signal::CONT,
                        )
                        .map_err(Into::into),
                    ),
                ),
                (
                    "signal another's thread",
                    // SAFETY: no pointers are passed, and signal 0 does nothing.
                    is_refused(match unsafe { libc::syscall(libc::SYS_tgkill, 1, 1, 0) } {
                        0 => Ok(()),
                        _ => Err(io::Error::last_os_error()),
                    }),
                ),
                (
                    "raise a limit",
                    is_refused(
                        rustix::process::setrlimit(
                            Resource::Core,
                            Rlimit { current: Some(0), maximum: Some(0) },
                        )
                        .map_err(Into::into),
                    ),
                ),
            ]
        });
        for (what, is_refused) in refused {
            assert!(is_refused, "{what} is possible");
        }
    }

    #[test]
    fn threads_can_be_started_and_memory_had() {
        let sum: usize = under_the_filter(|| {
            let threads: Vec<_> =
                (0..4).map(|_| thread::spawn(|| vec![1_u8; 8 << 20].len())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(sum, 32 << 20);
    }
}
