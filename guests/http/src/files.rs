//! Files in volumes, by `wasi:filesystem`: the standard library's files are
//! preview 1's, which the adapter for `wasi:http/proxy` leaves out.

use wasip2::filesystem::preopens::get_directories;
use wasip2::filesystem::types::{Descriptor, DescriptorFlags, ErrorCode, OpenFlags, PathFlags};

/// The most that is read of a file, in bytes.
const MOST: u64 = 64 << 10;

pub fn read(path: &str) -> Result<Vec<u8>, ErrorCode> {
    let file = open(path, OpenFlags::empty(), DescriptorFlags::READ)?;
    let (bytes, _) = file.read(MOST, 0)?;
    Ok(bytes)
}

pub fn write(path: &str, bytes: &[u8]) -> Result<(), ErrorCode> {
    let flags = OpenFlags::CREATE | OpenFlags::TRUNCATE;
    let file = open(path, flags, DescriptorFlags::WRITE)?;
    let mut written = 0;
    while written < bytes.len() {
        written += file.write(&bytes[written..], written as u64)? as usize;
    }
    Ok(())
}

/// Opens a file of the innermost volume that holds the path.
fn open(path: &str, open: OpenFlags, flags: DescriptorFlags) -> Result<Descriptor, ErrorCode> {
    let volumes = get_directories();
    let (directory, rest) = volumes
        .iter()
        .filter_map(|(directory, at)| {
            let rest = path.strip_prefix(at.trim_end_matches('/'))?.strip_prefix('/')?;
            Some((directory, rest))
        })
        .min_by_key(|(_, rest)| rest.len())
        .ok_or(ErrorCode::NoEntry)?;
    directory.open_at(PathFlags::SYMLINK_FOLLOW, rest, open, flags)
}
