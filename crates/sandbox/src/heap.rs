//! How the heap is laid out, so that sandboxes share most of the zygote's.
//!
//! A fork shares pages until somebody writes to them. What a sandbox allocates
//! would go into the holes that the zygote's beginning left all over its heap,
//! and each hole costs the sandbox a page of its own. So the holes are filled
//! before the first fork: what sandboxes allocate lies together behind them.
//!
//! Only for glibc; with another C library sandboxes work and weigh more.

/// Bytes of the largest hole that is filled; larger requests have mappings of
/// their own (`M_MMAP_THRESHOLD`).
#[cfg(target_env = "gnu")]
const LARGEST: usize = 64 << 10;

/// Bytes of the largest chunk of glibc's bins of one size each, and how far
/// their sizes are apart (`tcache` and small bins, 64 bit).
#[cfg(target_env = "gnu")]
const SMALL: (usize, usize) = (1032, 16);

/// One heap for all threads, here and in the sandboxes: a heap for each thread
/// costs each sandbox pages of its own.
pub(crate) fn one() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers are passed.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

/// Fills the holes. What fills them is never freed; they were the zygote's
/// already.
pub(crate) fn seal() {
    #[cfg(target_env = "gnu")]
    {
        trim();
        // SAFETY: asks for the end of the heap and does not move it.
        let end = unsafe { libc::sbrk(0) }.addr();
        let large = std::iter::successors(Some(LARGEST), |size| Some(size / 2))
            .take_while(|&size| size > SMALL.0);
        let small = (1..=SMALL.0 / SMALL.1).rev().map(|steps| steps * SMALL.1 - 8);
        for size in large.chain(small) {
            fill(size, end);
        }
    }
}

/// Gives back what is free at the heap's end.
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers are passed.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Holes of one size, at most: where a heap that cannot grow goes on elsewhere,
/// what lies before its end need not be a hole.
#[cfg(target_env = "gnu")]
const MOST: usize = 1 << 14;

/// Takes every hole of at least `size` bytes that lies before `end`.
#[cfg(target_env = "gnu")]
fn fill(size: usize, end: usize) {
    for _ in 0..MOST {
        // SAFETY: nothing is read or written there.
        let taken = std::hint::black_box(unsafe { libc::malloc(size) });
        if taken.is_null() || taken.addr() >= end {
            // SAFETY: it was just allocated and nobody has it.
            unsafe { libc::free(taken) };
            return;
        }
    }
}
