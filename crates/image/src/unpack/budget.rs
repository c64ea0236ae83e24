//! A bound on what comes out of a compressed archive.
//!
//! A few kilobytes can unfold to terabytes, as file content or as headers that a reader
//! collects in memory. [`Metered`] counts every byte after decompression against one
//! budget for the whole image, hashes it for the layer's `diff_id`, and bounds what may be
//! read for one header.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::{self, Read};
use std::rc::Rc;

use crate::digest::{Algorithm, Digest, Hasher};

/// Most bytes of one entry's headers (long names, extended attributes), which the
/// archive reader keeps in memory.
const HEADER_LIMIT: u64 = 1 << 20;

/// What may still be unpacked of one image.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    bytes: Rc<Cell<u64>>,
    entries: Rc<Cell<u64>>,
}

/// Which bound an archive overran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum Overrun {
    #[error("it unpacks to more bytes than this node allows")]
    Bytes,
    #[error("it has more files than this node allows")]
    Entries,
    #[error("the headers of one of its files are larger than {HEADER_LIMIT} bytes")]
    Header,
}

impl Budget {
    pub(crate) fn new(bytes: u64, entries: u64) -> Self {
        Self { bytes: Rc::new(Cell::new(bytes)), entries: Rc::new(Cell::new(entries)) }
    }

    pub(crate) fn spend_bytes(&self, count: u64) -> Result<(), Overrun> {
        let left = self.bytes.get().checked_sub(count).ok_or(Overrun::Bytes)?;
        self.bytes.set(left);
        Ok(())
    }

    pub(crate) fn spend_entry(&self) -> Result<(), Overrun> {
        let left = self.entries.get().checked_sub(1).ok_or(Overrun::Entries)?;
        self.entries.set(left);
        Ok(())
    }
}

/// Reads decompressed bytes, counting and hashing them.
pub(crate) struct Metered<R> {
    inner: R,
    meter: Meter,
}

/// The other end of a [`Metered`], which its owner keeps while an archive reads.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    budget: Budget,
    hasher: Rc<RefCell<Hasher>>,
    /// What may be read before the owner next speaks up.
    allowance: Rc<Cell<u64>>,
    overrun: Rc<Cell<Option<Overrun>>>,
}

impl Meter {
    pub(crate) fn new(budget: &Budget, algorithm: Algorithm) -> Self {
        Self {
            budget: budget.clone(),
            hasher: Rc::new(RefCell::new(Hasher::new(algorithm))),
            allowance: Rc::new(Cell::new(HEADER_LIMIT)),
            overrun: Rc::new(Cell::new(None)),
        }
    }

    pub(crate) fn wrap<R: Read>(&self, inner: R) -> Metered<R> {
        Metered { inner, meter: self.clone() }
    }

    /// Next come an entry's headers.
    pub(crate) fn expect_header(&self) {
        self.allowance.set(HEADER_LIMIT);
    }

    /// Next comes content, which only the whole budget bounds.
    pub(crate) fn expect_content(&self) {
        self.allowance.set(u64::MAX);
    }

    /// The bound that was overrun, if a read failed by that.
    pub(crate) fn overrun(&self) -> Option<Overrun> {
        self.overrun.get()
    }

    /// The digest of all that was read.
    pub(crate) fn digest(&self) -> Digest {
        self.hasher.borrow().clone().finish()
    }

    fn count(&self, count: u64) -> Result<(), Overrun> {
        let left = self.allowance.get().checked_sub(count).ok_or(Overrun::Header)?;
        self.allowance.set(left);
        self.budget.spend_bytes(count)
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if let Err(overrun) = self.meter.count(count as u64) {
            self.meter.overrun.set(Some(overrun));
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, overrun));
        }
        self.meter.hasher.borrow_mut().update(&buffer[..count]);
        Ok(count)
    }
}

impl<R> fmt::Debug for Metered<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metered").field("meter", &self.meter).finish_non_exhaustive()
    }
}
