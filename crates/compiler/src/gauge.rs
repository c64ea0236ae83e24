//! How much address space the compiler's child has, told even as it dies for want of it.
//!
//! An allocation fails for one of two reasons: the child is at its own limit, which is the program's doing, or
//! the machine has no more to give, which is not. The standard library says only that it failed, and aborts.
//! So the file that tells the address space is opened before the child locks itself in, and is read once
//! more by the abort's signal handler.

use std::fs::File;
use std::io;
use std::os::fd::IntoRawFd;
use std::sync::atomic::{AtomicI32, Ordering};

/// Begins the line that a dying child writes to standard error; the content of `statm` follows.
const PREFIX: &[u8] = b"krustlet-statm: ";

/// A child this near to its limit, as a part of it, ran into the limit. Allocators ask for more than they
/// were asked for, so the last bytes are never reached.
const NEAR: u64 = 8;

/// The open `/proc/self/statm`, for the rest of the process's life.
static STATM: AtomicI32 = AtomicI32::new(-1);

/// Makes the address space known from here on. Call it before files can no longer be opened.
///
/// # Errors
///
/// If `/proc` is not there. Nothing is told then, and whoever asks takes it for a shortage.
pub(crate) fn install() -> io::Result<()> {
    let statm = File::open("/proc/self/statm")?;
    STATM.store(statm.into_raw_fd(), Ordering::Relaxed);
    // SAFETY: all zeroes is a valid `sigaction`: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = tell as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // Once: the second time, which `abort` sees to, the signal ends the process.
    action.sa_flags = libc::SA_RESETHAND;
    // SAFETY: the handler makes calls that are safe in signal handlers, and no other.
    let installed =
        unsafe { libc::sigaction(libc::SIGABRT, &raw const action, std::ptr::null_mut()) };
    if installed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The address space of this process now, in bytes. None if it is not known.
pub(crate) fn address_space() -> Option<u64> {
    let mut buffer = [0; 128];
    let count = read(&mut buffer)?;
    parse(&buffer[..count])
}

/// What a child that died by an abort had, in bytes, from what it wrote.
pub(crate) fn last_words(output: &[u8]) -> Option<u64> {
    output.split(|&byte| byte == b'\n').rev().find_map(|line| parse(line.strip_prefix(PREFIX)?))
}

/// Whether an allocation of `wanted` bytes failed at the limit, rather than below it.
pub(crate) fn is_at_limit(used: Option<u64>, wanted: u64, limit: u64) -> bool {
    used.is_some_and(|used| used.saturating_add(wanted) >= limit - limit / NEAR)
}

/// `statm` begins with the number of pages.
fn parse(statm: &[u8]) -> Option<u64> {
    let pages: u64 = std::str::from_utf8(statm).ok()?.split_whitespace().next()?.parse().ok()?;
    pages.checked_mul(page_bytes()?)
}

/// Size of a page, in bytes; the agent's is the child's.
pub(crate) fn page_bytes() -> Option<u64> {
    // SAFETY: it asks for a number.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()
}

/// Reads `statm` from its beginning. Safe in a signal handler.
fn read(buffer: &mut [u8; 128]) -> Option<usize> {
    let file = STATM.load(Ordering::Relaxed);
    // SAFETY: the buffer is as long as is said; a descriptor that is none gives an error.
    let count = unsafe {
        libc::lseek(file, 0, libc::SEEK_SET);
        libc::read(file, buffer.as_mut_ptr().cast(), buffer.len())
    };
    usize::try_from(count).ok().filter(|count| *count > 0)
}

/// The handler. It returns, and the abort goes on.
extern "C" fn tell(_signal: libc::c_int) {
    let mut buffer = [0; 128];
    let Some(count) = read(&mut buffer) else { return };
    for text in [PREFIX, &buffer[..count]] {
        // SAFETY: the text is as long as is said. Nobody can be told of a failure.
        unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_tell_the_address_space() {
        let page = page_bytes().unwrap();
        let words = b"memory allocation of 99 bytes failed\nkrustlet-statm: 1000 5 3 1 0 9 0\n";
        assert_eq!(last_words(words), Some(1000 * page));
        assert_eq!(last_words(b"memory allocation of 99 bytes failed\n"), None);
        assert_eq!(last_words(b"krustlet-statm: \nkrustlet-statm: x\n"), None);
    }

    #[test]
    fn only_who_is_near_the_limit_has_reached_it() {
        assert!(is_at_limit(Some(900), 1, 1000));
        assert!(is_at_limit(Some(100), 900, 1000));
        assert!(!is_at_limit(Some(400), 99, 1000));
        assert!(!is_at_limit(None, u64::MAX, 1000));
        assert!(is_at_limit(Some(u64::MAX), u64::MAX, 1000));
    }
}
