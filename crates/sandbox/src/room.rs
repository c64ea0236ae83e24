//! The empty room: a mount namespace whose root is an empty, read-only
//! directory, and a process in it without rights.
//!
//! The zygote enters it once; every sandbox is born in it. With root's rights
//! the zygote keeps two capabilities, by which it gives each sandbox a user of
//! its own; without, a user namespace gives the room, and all sandboxes share
//! the caller's user. System calls are left to [`seccomp`](crate::seccomp).

use std::{fmt, fs, io};

use rustix::{
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, UnmountFlags},
    process::{Gid, Resource, Rlimit, Uid},
    thread::{CapabilitySet, CapabilitySets, UnshareFlags},
};

/// The zygote's own user and group: just below those that pods are allotted,
/// and not nobody's, which many images ask for. No sandbox is given it, so that
/// none may send the zygote a signal.
pub(crate) const ZYGOTE_ID: u32 = 1_999_999_999;

/// What separates sandboxes from each other and from the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Walls {
    /// The room, and a user for each sandbox.
    Users,
    /// The room, made with a user namespace; all sandboxes have one user.
    OneUser,
    /// No room: this system gives no namespaces to this user. What is left is
    /// WebAssembly itself and the system call filters.
    FiltersOnly,
}

impl fmt::Display for Walls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Users => "each sandbox has a user of its own and an empty root directory",
            Self::OneUser => {
                "not run as root: sandboxes have an empty root directory, but all share one user, \
                 so that only the system call filters keep one that is broken out of from \
                 signalling the others"
            }
            Self::FiltersOnly => {
                "not run as root, and this system gives no user namespaces: sandboxes have no \
                 empty root directory; only WebAssembly itself and the system call filters \
                 stand between a guest and this user's files"
            }
        })
    }
}

/// Which step into the room failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub(crate) struct RoomError {
    step: &'static str,
    #[source]
    pub(crate) source: io::Error,
}

/// Names a step for its error.
fn step<T, E: Into<io::Error>>(step: &'static str, result: Result<T, E>) -> Result<T, RoomError> {
    result.map_err(|source| RoomError { step, source: source.into() })
}

/// Enters the room and gives up every right that no sandbox's start needs.
///
/// Must run while the process has one thread: credentials and namespaces belong
/// to threads.
pub(crate) fn enter() -> Result<Walls, RoomError> {
    let no_core = Rlimit { current: Some(0), maximum: Some(0) };
    step("forbid core dumps", rustix::process::setrlimit(Resource::Core, no_core))?;
    let walls = if rustix::process::geteuid().is_root() {
        step("leave the mount namespace", unshare(UnshareFlags::empty()))?;
        Walls::Users
    } else {
        own_user_namespace()?
    };
    if walls != Walls::FiltersOnly {
        empty_root()?;
        // A room's name tells nothing of the machine.
        step("set the host name", rustix::system::sethostname(b"room"))?;
    }
    step("refuse new privileges", rustix::thread::set_no_new_privs(true))?;
    let kept = match walls {
        Walls::Users => CapabilitySet::SETUID | CapabilitySet::SETGID,
        Walls::OneUser | Walls::FiltersOnly => CapabilitySet::empty(),
    };
    if walls != Walls::FiltersOnly {
        step("shrink the bounding set", shrink_bounding_set(kept))?;
    }
    if walls == Walls::Users {
        step("keep two capabilities", rustix::thread::set_keep_capabilities(true))?;
        step("change the user", become_user(ZYGOTE_ID, ZYGOTE_ID, &[]))?;
    }
    step("drop the other capabilities", set_capabilities(kept))?;
    Ok(walls)
}

/// Becomes another user for good, with all three ids. Needs one thread: the
/// kernel's calls change only the calling one (and libc's, which would change
/// all, signal every thread of the process).
pub(crate) fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // The largest number means "leave as it is" to the kernel.
    if uid == u32::MAX || gid == u32::MAX || groups.contains(&u32::MAX) {
        return Err(Errno::INVAL.into());
    }
    let groups: Vec<Gid> = groups.iter().map(|&group| Gid::from_raw(group)).collect();
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// Drops what is left of rights in a sandbox, and hides its memory from all but
/// root.
pub(crate) fn drop_rights() -> io::Result<()> {
    // From one user that is not root to another, the kernel keeps them all.
    set_capabilities(CapabilitySet::empty())?;
    // A new user has this effect already, unless `suid_dumpable` says otherwise.
    // SAFETY: no pointers are passed.
    if unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn set_capabilities(kept: CapabilitySet) -> io::Result<()> {
    let sets =
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

fn unshare(more: UnshareFlags) -> io::Result<()> {
    let flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | more;
    // SAFETY: file descriptors stay shared with nobody but this one thread.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// A user namespace that knows one user and one group: the caller's.
fn own_user_namespace() -> Result<Walls, RoomError> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    match unshare(UnshareFlags::NEWUSER) {
        Ok(()) => {}
        // EPERM: forbidden (AppArmor, seccomp, a sysctl); ENOSPC: limited to 0.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSPC)) => {
            return Ok(Walls::FiltersOnly);
        }
        Err(error) => return step("make a user namespace", Err(error)),
    }
    // Without "deny" an ordinary user may not map a group.
    step("map the groups", fs::write("/proc/self/setgroups", "deny"))?;
    step("map the user", fs::write("/proc/self/uid_map", format!("{uid} {uid} 1")))?;
    step("map the group", fs::write("/proc/self/gid_map", format!("{gid} {gid} 1")))?;
    Ok(Walls::OneUser)
}

/// Swaps the root for a directory in which nothing is and nothing can be made.
fn empty_root() -> Result<(), RoomError> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    step("detach from other mounts", rustix::mount::mount_change("/", private))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = c"size=0,nr_inodes=2,mode=0555";
    // Over any directory that each Linux has; the room's root is only a mount.
    step(
        "mount an empty directory",
        rustix::mount::mount("none", "/tmp", "tmpfs", flags, options),
    )?;
    step("enter the empty directory", rustix::process::chdir("/tmp"))?;
    // The old root comes to lie over the new one, and is taken off.
    step("make it the root", rustix::process::pivot_root(".", "."))?;
    step("leave the old root", rustix::mount::unmount(".", UnmountFlags::DETACH))?;
    step("enter the new root", rustix::process::chdir("/"))?;
    let sealed = flags | MountFlags::RDONLY | MountFlags::BIND;
    step("seal the root", rustix::mount::mount_remount("/", sealed, c""))
}

fn shrink_bounding_set(kept: CapabilitySet) -> io::Result<()> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Past the last one this kernel knows.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
