//! Reads a log file from where the request wants it, and follows it.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::Path,
};

use bytes::Bytes;
use futures::stream::{self, Stream};
use tokio::task::spawn_blocking;

use super::{format::Formatter, options::LogOptions, watch::DirectoryWatch};
use crate::queries::LogSource;

/// Bytes given to the client at once.
const CHUNK: usize = 64 << 10;

/// The longest line that is read whole. The writer splits at 16 KiB; a longer
/// one was not written by it and is cut into lines that do not parse.
const MAX_LINE: u64 = 64 << 10;

/// Opens a log and gives the wanted part in pieces. With `follow` the stream
/// ends when the run has ended and everything it wrote was given.
///
/// # Errors
///
/// What opening the file reports. Errors while reading end the stream.
pub async fn open(
    source: LogSource,
    options: LogOptions,
) -> io::Result<impl Stream<Item = io::Result<Bytes>> + Send> {
    // The watch comes first, so that no change between opening and following is missed.
    let watch = match (options.follow, source.path.parent()) {
        (true, Some(directory)) => Some(DirectoryWatch::new(directory)?),
        _ => None,
    };
    let (path, tail) = (source.path.clone(), options.tail);
    let file = blocking(move || LogFile::open(&path, tail)).await?;
    let follower =
        Follower { source, watch, file: Some(file), formatter: Formatter::new(&options) };
    Ok(stream::try_unfold(follower, |mut follower| async move {
        Ok(follower.next().await?.map(|bytes| (bytes, follower)))
    }))
}

/// A reader between two pieces of the answer.
struct Follower {
    source: LogSource,
    /// Only when following.
    watch: Option<DirectoryWatch>,
    /// None only while a blocking read has it.
    file: Option<LogFile>,
    formatter: Formatter,
}

impl Follower {
    /// The next piece; None at the end.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if self.formatter.is_done() {
                return Ok(None);
            }
            // Asked before reading: what was written before the end is then read.
            let ended = self.source.ended.is_cancelled();
            let lines = self.read().await?;
            let mut out = Vec::with_capacity(lines.len());
            for line in lines.split_inclusive(|byte| *byte == b'\n') {
                self.formatter.push(line, &mut out);
                if self.formatter.is_done() {
                    break;
                }
            }
            if !out.is_empty() {
                return Ok(Some(out.into()));
            }
            if !lines.is_empty() || self.reopen_if_rotated().await? {
                continue;
            }
            let Some(watch) = self.watch.as_ref().filter(|_| !ended) else {
                return Ok(None);
            };
            tokio::select! {
                // Both are cancel-safe.
                () = self.source.ended.cancelled() => {}
                changed = watch.changed() => changed?,
            }
        }
    }

    /// Whole lines, up to [`CHUNK`] bytes of them; empty at the end of the file.
    async fn read(&mut self) -> io::Result<Vec<u8>> {
        let Some(mut file) = self.file.take() else {
            return Err(io::Error::other("an earlier read was cancelled"));
        };
        let (file, lines) = blocking(move || {
            let lines = file.lines()?;
            Ok((file, lines))
        })
        .await?;
        self.file = Some(file);
        Ok(lines)
    }

    /// Goes on with the new file after a rotation. The old one was read to its
    /// end, and nothing is written to it once the new one is there.
    async fn reopen_if_rotated(&mut self) -> io::Result<bool> {
        let (true, Some(file)) = (self.watch.is_some(), &self.file) else {
            return Ok(false);
        };
        let (path, inode) = (self.source.path.clone(), file.inode);
        let fresh = blocking(move || match fs::metadata(&path) {
            Ok(now) if now.ino() != inode => LogFile::open(&path, None).map(Some),
            Ok(_) => Ok(None),
            // Between the two renames of a rotation; the second one wakes us.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        })
        .await?;
        let rotated = fresh.is_some();
        if rotated {
            self.file = fresh;
        }
        Ok(rotated)
    }
}

/// An open log file.
struct LogFile {
    reader: BufReader<File>,
    inode: u64,
    /// The beginning of a line whose end was not yet written.
    torn: Vec<u8>,
}

impl LogFile {
    fn open(path: &Path, tail: Option<u64>) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let inode = file.metadata()?.ino();
        if let Some(lines) = tail {
            let start = tail_start(&mut file, lines)?;
            file.seek(SeekFrom::Start(start))?;
        }
        Ok(Self { reader: BufReader::new(file), inode, torn: Vec::new() })
    }

    fn lines(&mut self) -> io::Result<Vec<u8>> {
        let mut lines = Vec::new();
        while lines.len() < CHUNK {
            let had = self.torn.len() as u64;
            let read = (&mut self.reader)
                .take(MAX_LINE.saturating_sub(had))
                .read_until(b'\n', &mut self.torn)?;
            if self.torn.last() == Some(&b'\n') || self.torn.len() as u64 >= MAX_LINE {
                lines.append(&mut self.torn);
            } else if read == 0 {
                break;
            }
        }
        Ok(lines)
    }
}

/// Where the last `lines` lines begin. A last line without its newline counts.
fn tail_start(file: &mut (impl Read + Seek), lines: u64) -> io::Result<u64> {
    const BLOCK: usize = 4096;

    let end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
    }
    let mut block = [0; BLOCK];
    let (mut start, mut found) = (end, 0);
    while start > 0 {
        let size = usize::try_from(start).map_or(BLOCK, |left| left.min(BLOCK));
        start -= size as u64;
        file.seek(SeekFrom::Start(start))?;
        let bytes = &mut block[..size];
        file.read_exact(bytes)?;
        for (index, byte) in bytes.iter().enumerate().rev() {
            let offset = start + index as u64;
            // The newline at the very end closes the last line; it begins none.
            if *byte == b'\n' && offset + 1 != end {
                found += 1;
                if found == lines {
                    return Ok(offset + 1);
                }
            }
        }
    }
    Ok(0)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests;
