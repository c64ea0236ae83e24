//! A guest's memory, as preview 1 lays out what it passes.
//!
//! Source: WASI, `legacy/preview1/witx/typenames.witx`.

use wasmtime::Error;

/// Error numbers of preview 1 that are answered here.
pub(super) mod errno {
    pub(crate) const SUCCESS: i32 = 0;
    pub(crate) const ACCES: i32 = 2;
    pub(crate) const ADDRINUSE: i32 = 3;
    pub(crate) const ADDRNOTAVAIL: i32 = 4;
    pub(crate) const AGAIN: i32 = 6;
    pub(crate) const BADF: i32 = 8;
    pub(crate) const CONNABORTED: i32 = 13;
    pub(crate) const CONNREFUSED: i32 = 14;
    pub(crate) const CONNRESET: i32 = 15;
    pub(crate) const FAULT: i32 = 21;
    pub(crate) const HOSTUNREACH: i32 = 23;
    pub(crate) const INVAL: i32 = 28;
    pub(crate) const IO: i32 = 29;
    pub(crate) const MFILE: i32 = 33;
    pub(crate) const MSGSIZE: i32 = 35;
    pub(crate) const NOMEM: i32 = 48;
    pub(crate) const NOTCONN: i32 = 53;
    pub(crate) const NOTSUP: i32 = 58;
    pub(crate) const PIPE: i32 = 64;
    pub(crate) const TIMEDOUT: i32 = 73;
}

/// Bytes of an `iovec`.
const IOVEC: u64 = 8;

/// Buffers that one call may name; Linux's `UIO_MAXIOV`. The list is copied to
/// where no limit of the guest's counts it.
pub(super) const MOST_BUFFERS: i32 = 1024;

/// Bytes that one call moves at most; Linux's `MAX_RW_COUNT`. The same bytes may
/// be named many times.
pub(super) const MOST_BYTES: u64 = 0x7fff_f000;

/// What preview 1 wants when a pointer leads out of the memory: a trap.
fn outside() -> Error {
    Error::msg("a pointer of a WASI call leads out of the guest's memory")
}

/// Reads and writes a guest's memory. Every place is checked.
pub(super) struct Memory<'a>(pub(super) &'a mut [u8]);

impl Memory<'_> {
    fn range(&self, at: u64, length: u64) -> Result<std::ops::Range<usize>, Error> {
        let end = at.checked_add(length).ok_or_else(outside)?;
        if end > self.0.len() as u64 {
            return Err(outside());
        }
        // Both fit, as the memory does.
        Ok(usize::try_from(at)?..usize::try_from(end)?)
    }

    /// Some bytes, to be read or written.
    pub(super) fn bytes(&mut self, at: u64, length: u64) -> Result<&mut [u8], Error> {
        let range = self.range(at, length)?;
        Ok(&mut self.0[range])
    }

    pub(super) fn u8(&self, at: u64) -> Result<u8, Error> {
        Ok(self.0[self.range(at, 1)?][0])
    }

    pub(super) fn u16(&self, at: u64) -> Result<u16, Error> {
        let bytes = &self.0[self.range(at, 2)?];
        Ok(u16::from_le_bytes(bytes.try_into()?))
    }

    pub(super) fn u32(&self, at: u64) -> Result<u32, Error> {
        let bytes = &self.0[self.range(at, 4)?];
        Ok(u32::from_le_bytes(bytes.try_into()?))
    }

    pub(super) fn u64(&self, at: u64) -> Result<u64, Error> {
        let bytes = &self.0[self.range(at, 8)?];
        Ok(u64::from_le_bytes(bytes.try_into()?))
    }

    pub(super) fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), Error> {
        let range = self.range(at, bytes.len() as u64)?;
        self.0[range].copy_from_slice(bytes);
        Ok(())
    }

    /// The buffers of a list that have room, as place and length, together of
    /// [`MOST_BYTES`] at most.
    pub(super) fn buffers(&self, list: u32, count: u32) -> Result<Vec<(u64, u64)>, Error> {
        self.range(list.into(), u64::from(count) * IOVEC)?;
        let (mut buffers, mut left) = (Vec::new(), MOST_BYTES);
        for index in 0..u64::from(count) {
            let at = u64::from(list) + index * IOVEC;
            let (place, length) = (u64::from(self.u32(at)?), u64::from(self.u32(at + 4)?));
            self.range(place, length)?;
            let length = length.min(left);
            left -= length;
            if length > 0 {
                buffers.push((place, length));
            }
        }
        Ok(buffers)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_place_outside_is_touched(
            mut bytes in prop::collection::vec(any::<u8>(), 0..64),
            at in any::<u64>(),
            near in 0_u64..80,
            length in any::<u64>(),
            short in 0_u64..80,
        ) {
            let size = bytes.len() as u64;
            let mut memory = Memory(&mut bytes);
            for (at, length) in [(at, length), (near, short), (at, short), (near, length)] {
                let inside = at.checked_add(length).is_some_and(|end| end <= size);
                prop_assert_eq!(memory.bytes(at, length).is_ok(), inside);
            }
            prop_assert_eq!(memory.u64(near).is_ok(), near + 8 <= size);
            prop_assert_eq!(memory.put(near, b"abc").is_ok(), near + 3 <= size);
        }

        #[test]
        fn buffers_lie_inside(bytes in prop::collection::vec(any::<u8>(), 0..64), list in 0_u32..64, count in 0_u32..10) {
            let mut bytes = bytes;
            let size = bytes.len() as u64;
            if let Ok(buffers) = Memory(&mut bytes).buffers(list, count) {
                prop_assert!(buffers.iter().all(|(at, length)| at + length <= size && *length > 0));
            }
        }
    }
}
