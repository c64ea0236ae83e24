//! Which system calls the zygote and its sandboxes may make.
//!
//! Three filters lie over each other; the kernel takes the strictest answer
//! (kill, then error, then allow; seccomp(2)):
//!
//! | filter | on | what it names | answer |
//! |---|---|---|---|
//! | forbidden | both | what only an exploit would call | the process dies (SIGSYS) |
//! | allowed | both | what both need; all else is refused | `ENOSYS` |
//! | sandbox | sandboxes | no fork, no new rights, no W+X page, no socket but TCP and UDP, nothing to other processes | `ENOSYS` |
//!
//! `ENOSYS` and not `EPERM`, because it makes the C library fall back to older
//! calls (`clone3` to `clone`).
//!
//! A sandbox makes TCP and UDP sockets for its guests, with the few options that
//! guests may set. To which addresses they are bound and connected is not seen
//! here: that is the stack's ([`net`](crate::net)), and the namespace's. Beyond
//! these there is the pair of streams by which tokio hears of signals, joined to
//! each other and to nothing else.
//!
//! The third filter is a short list of what is refused, because a filter costs
//! time at each fork and memory in each sandbox. It cannot refuse executable
//! pages as such: containers are created as long as a sandbox lives, and each
//! brings its code, which wasmtime maps as data and then makes executable. So
//! whoever runs machine code of his own in a sandbox can write more of it and
//! make it executable; what he cannot have is a page that is both at once.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction as Action, SeccompCmpArgLen::Dword, SeccompCmpOp as Op,
    SeccompCondition as Condition, SeccompFilter as Filter, SeccompRule as Rule, TargetArch,
};

/// The filters, compiled before the first fork but for the third, which names
/// its process.
#[derive(Debug)]
pub(crate) struct Filters {
    forbidden: BpfProgram,
    allowed: BpfProgram,
    sandbox: Rules,
}

/// Why there are no filters.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilterError {
    #[error("cannot make the system call filters")]
    Compile(#[from] seccompiler::BackendError),
    #[error("cannot install the system call filters")]
    Install(#[from] seccompiler::Error),
}

impl Filters {
    /// Compiles what can be.
    pub(crate) fn new() -> Result<Self, FilterError> {
        let allowed = BOTH.iter().chain(ONLY_ZYGOTE).chain(OLD);
        Ok(Self {
            forbidden: program(
                plain(FORBIDDEN.iter().chain(FORBIDDEN_OLD)),
                Action::Allow,
                Action::KillProcess,
            )?,
            allowed: program(plain(allowed), missing(), Action::Allow)?,
            sandbox: refused_in_sandboxes()?,
        })
    }

    /// Installs the two that zygote and sandboxes share.
    pub(crate) fn lock_zygote(&self) -> Result<(), FilterError> {
        seccompiler::apply_filter(&self.forbidden)?;
        seccompiler::apply_filter(&self.allowed)?;
        Ok(())
    }

    /// Installs the third, in the sandbox itself. Threads made later inherit it.
    pub(crate) fn lock_sandbox(&self) -> Result<(), FilterError> {
        Ok(seccompiler::apply_filter(&self.sandbox_of(std::process::id())?)?)
    }

    /// The third, for the process with this id. To abort is to send oneself a
    /// signal, and the standard library reads limits; another process of the same
    /// user gets none of either. (For `fcntl`, by which signals can be sent too, see
    /// [`DESCRIPTOR_COMMANDS`].)
    fn sandbox_of(&self, process: u32) -> Result<BpfProgram, seccompiler::BackendError> {
        let mut rules = self.sandbox.clone();
        let other = (0, Op::Ne, process.cast_signed());
        // To this call 0 is the caller.
        rules.insert(libc::SYS_prlimit64, vec![rule(&[other.clone(), (0, Op::Ne, 0)])?]);
        rules.insert(libc::SYS_tgkill, vec![rule(&[other])?]);
        program(rules, Action::Allow, missing())
    }
}

/// As on a kernel that does not have the call.
fn missing() -> Action {
    Action::Errno(libc::ENOSYS.unsigned_abs())
}

type Rules = BTreeMap<i64, Vec<Rule>>;

fn plain<'a>(calls: impl Iterator<Item = &'a i64>) -> Rules {
    calls.map(|&call| (call, Vec::new())).collect()
}

fn program(
    rules: Rules,
    otherwise: Action,
    listed: Action,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let machine = TargetArch::try_from(std::env::consts::ARCH)?;
    Filter::new(rules, otherwise, listed, machine)?.try_into()
}

/// A rule that holds when all of its conditions do: argument, comparison, value.
fn rule(conditions: &[(u8, Op, i32)]) -> Result<Rule, seccompiler::BackendError> {
    let conditions = conditions.iter().map(|(argument, comparison, value)| {
        let value = u64::from(value.cast_unsigned());
        Condition::new(*argument, Dword, comparison.clone(), value)
    });
    Rule::new(conditions.collect::<Result<_, _>>()?)
}

/// What the third filter refuses; an empty list of rules means always.
fn refused_in_sandboxes() -> Result<Rules, seccompiler::BackendError> {
    let masked = |bits: i32| Op::MaskedEq(u64::from(bits.cast_unsigned()));
    let mut rules = plain(ONLY_ZYGOTE.iter());

    let both = libc::PROT_WRITE | libc::PROT_EXEC;
    rules.insert(libc::SYS_mmap, vec![rule(&[(2, masked(both), both)])?]);
    rules.insert(libc::SYS_mprotect, vec![rule(&[(2, masked(both), both)])?]);

    // Threads, no processes.
    rules.insert(libc::SYS_clone, vec![rule(&[(0, masked(libc::CLONE_THREAD), 0)])?]);

    // Threads are given names; nothing else.
    rules.insert(libc::SYS_prctl, vec![rule(&[(0, Op::Ne, libc::PR_SET_NAME)])?]);

    rules.insert(libc::SYS_socket, other_sockets()?);
    rules.insert(libc::SYS_setsockopt, other_options()?);
    // tokio's runtime makes a pair of streams for signals. Datagrams could be
    // sent to others than the peer. The kind, 1 for a stream, is the low four
    // bits; above them are flags.
    let mut pairs = vec![rule(&[(0, Op::Ne, libc::AF_UNIX)])?];
    for (bit, wrong) in [(1, 0), (2, 2), (4, 4), (8, 8)] {
        pairs.push(rule(&[(1, masked(bit), wrong)])?);
    }
    rules.insert(libc::SYS_socketpair, pairs);
    // It connects and sends in one, which tokio does not; so it is an exploit's.
    let fast = |argument| rule(&[(argument, masked(libc::MSG_FASTOPEN), libc::MSG_FASTOPEN)]);
    rules.insert(libc::SYS_sendto, vec![fast(3)?]);
    rules.insert(libc::SYS_sendmsg, vec![fast(2)?]);
    rules.insert(libc::SYS_sendmmsg, vec![fast(3)?]);

    // std and tokio: non-blocking sockets, and whether a descriptor is a terminal.
    let asked = [libc::FIONBIO, libc::FIONREAD, libc::FIOCLEX, libc::TCGETS];
    let others = asked.map(|request| (1, Op::Ne, i32::try_from(request).unwrap_or(-1)));
    rules.insert(libc::SYS_ioctl, vec![rule(&others)?]);
    let others = DESCRIPTOR_COMMANDS.map(|command| (1, Op::Ne, command));
    let signals = [(1, Op::Eq, libc::F_SETFL), (2, masked(libc::O_ASYNC), libc::O_ASYNC)];
    rules.insert(libc::SYS_fcntl, vec![rule(&others)?, rule(&signals)?]);
    Ok(rules)
}

/// What is asked of `fcntl`: a copy, whether it blocks, and that a file in memory
/// stays as it is. Others have a signal of the caller's choice sent to any process
/// of the same user (`F_SETOWN`, `F_SETSIG`, `F_SETLEASE`, `F_NOTIFY`).
const DESCRIPTOR_COMMANDS: [i32; 8] = [
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_ADD_SEALS,
    libc::F_GET_SEALS,
];

/// All sockets but those of TCP and UDP: no netlink, no raw packets, no ICMP, no
/// protocol that few have looked at.
fn other_sockets() -> Result<Vec<Rule>, seccompiler::BackendError> {
    let masked = |bits: i32| Op::MaskedEq(u64::from(bits.cast_unsigned()));
    let mut rules = vec![rule(&[(0, Op::Ne, libc::AF_INET), (0, Op::Ne, libc::AF_INET6)])?];
    // The kind, 1 for a stream and 2 for datagrams, is the low four bits; above
    // them are flags.
    for (bits, wrong) in [(15, 0), (3, 3), (4, 4), (8, 8)] {
        rules.push(rule(&[(1, masked(bits), wrong)])?);
    }
    let protocols = [0, libc::IPPROTO_TCP, libc::IPPROTO_UDP];
    rules.push(rule(&protocols.map(|protocol| (2, Op::Ne, protocol)))?);
    Ok(rules)
}

/// All options but those that the stack sets: no filter, no device, no mark, no
/// address that is not there, no group.
fn other_options() -> Result<Vec<Rule>, seccompiler::BackendError> {
    let mut rules = vec![rule(&OPTIONS.map(|(level, _)| (1, Op::Ne, level)))?];
    for (level, options) in OPTIONS {
        let mut others = vec![(1, Op::Eq, level)];
        others.extend(options.iter().map(|option| (2, Op::Ne, *option)));
        rules.push(rule(&others)?);
    }
    Ok(rules)
}

/// The options that may be set, by level.
const OPTIONS: [(i32, &[i32]); 4] = [
    (libc::SOL_SOCKET, &[libc::SO_REUSEADDR, libc::SO_KEEPALIVE, libc::SO_RCVBUF, libc::SO_SNDBUF]),
    (
        libc::IPPROTO_TCP,
        &[libc::TCP_NODELAY, libc::TCP_KEEPIDLE, libc::TCP_KEEPINTVL, libc::TCP_KEEPCNT],
    ),
    (libc::IPPROTO_IP, &[libc::IP_TTL, libc::IP_BIND_ADDRESS_NO_PORT, libc::IP_PKTINFO]),
    (libc::IPPROTO_IPV6, &[libc::IPV6_V6ONLY, libc::IPV6_UNICAST_HOPS, libc::IPV6_RECVPKTINFO]),
];

/// What only an exploit would call.
const FORBIDDEN: &[i64] = &[
    // other processes
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_execve,
    libc::SYS_execveat,
    // mounts and namespaces
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_mknodat,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    libc::SYS_fanotify_init,
    // large or young parts of the kernel
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_vmsplice,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    libc::SYS_mbind,
    libc::SYS_set_mempolicy,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    libc::SYS_shmget,
    libc::SYS_msgget,
    libc::SYS_semget,
    libc::SYS_mq_open,
    // the machine
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_personality,
    libc::SYS_vhangup,
];

/// The part of [`FORBIDDEN`] that only this machine's kernels have.
#[cfg(target_arch = "x86_64")]
const FORBIDDEN_OLD: &[i64] = &[
    libc::SYS_mknod,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
];
#[cfg(not(target_arch = "x86_64"))]
const FORBIDDEN_OLD: &[i64] = &[];

/// What zygote and sandboxes need as long as they live.
const BOTH: &[i64] = &[
    // memory
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_mincore,
    // signals, threads, time, end
    libc::SYS_clone,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_membarrier,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_getrusage,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_uname,
    // descriptors
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    // files: they reach what a handed directory holds; the root is empty
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_statx,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_utimensat,
    libc::SYS_copy_file_range,
    libc::SYS_fchmod,
    libc::SYS_fchdir,
    libc::SYS_chdir,
    libc::SYS_getcwd,
    libc::SYS_memfd_create,
    // sockets
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
];

/// Older forms of the same that the C library of this machine still calls.
#[cfg(target_arch = "x86_64")]
const OLD: &[i64] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_dup2,
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[i64] = &[];

/// What the zygote needs, and a sandbox until the third filter takes it away.
const ONLY_ZYGOTE: &[i64] = &[
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_setgroups,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_capset,
    libc::SYS_seccomp,
    libc::SYS_signalfd4,
    libc::SYS_pidfd_open,
    libc::SYS_umask,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_is_both_forbidden_and_allowed() {
        for call in BOTH.iter().chain(ONLY_ZYGOTE).chain(OLD) {
            assert!(!FORBIDDEN.contains(call) && !FORBIDDEN_OLD.contains(call), "call {call}");
        }
    }

    #[test]
    fn the_filters_compile_for_this_machine() {
        let filters = Filters::new().unwrap();
        // A filter's length is 16 bits, and its cost is paid in each sandbox.
        let sandbox = filters.sandbox_of(std::process::id()).unwrap();
        assert!(sandbox.len() < 400, "{} instructions", sandbox.len());
    }
}
