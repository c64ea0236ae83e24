//! The CRI log format: `2026-11-23T20:38:40.123456789Z stdout F text`. Pure.
//!
//! Source: kubelet, `pkg/kubelet/kuberuntime/logs/logs.go` (`parseCRILog`).

use jiff::Timestamp;

/// The longest text in one log line, in bytes; longer lines of a guest become
/// several, all but the last tagged `P`. Source: containerd,
/// `defaultMaxContainerLogLineSize` of its CRI plugin.
const MAX_LINE: usize = 16 << 10;

/// Which of its streams a guest wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Makes log lines of what a guest writes in arbitrary pieces.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: Stream,
    /// The beginning of a line whose end has not come; shorter than [`MAX_LINE`].
    begun: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, begun: Vec::new() }
    }

    /// Takes a piece and appends the lines it completes to `log`.
    pub(crate) fn push(&mut self, mut piece: &[u8], now: Timestamp, log: &mut Vec<u8>) {
        while !piece.is_empty() {
            let room = MAX_LINE - self.begun.len();
            let end = piece.iter().take(room + 1).position(|&byte| byte == b'\n');
            if let Some(end) = end {
                self.line(&piece[..end], 'F', now, log);
                piece = &piece[end + 1..];
            } else if piece.len() > room {
                self.line(&piece[..room], 'P', now, log);
                piece = &piece[room..];
            } else {
                self.begun.extend_from_slice(piece);
                return;
            }
        }
    }

    /// Ends a line that was begun, when no more comes.
    pub(crate) fn finish(&mut self, now: Timestamp, log: &mut Vec<u8>) {
        if !self.begun.is_empty() {
            self.line(b"", 'F', now, log);
        }
    }

    fn line(&mut self, rest: &[u8], tag: char, now: Timestamp, log: &mut Vec<u8>) {
        // Nine digits always, so that lines sort as text.
        log.extend_from_slice(format!("{now:.9} {} {tag} ", self.stream.name()).as_bytes());
        log.append(&mut self.begun);
        log.extend_from_slice(rest);
        log.push(b'\n');
    }
}

/// How many bytes at the beginning of `lines` fit into `room`, lines undivided.
pub(crate) fn whole_lines(lines: &[u8], room: usize) -> usize {
    if lines.len() <= room {
        return lines.len();
    }
    lines[..room].iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1)
}

/// The length of the first line in `lines`, its end included.
pub(crate) fn first_line(lines: &[u8]) -> usize {
    lines.iter().position(|&byte| byte == b'\n').map_or(lines.len(), |end| end + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn log_of(pieces: &[Vec<u8>]) -> Vec<u8> {
        let (mut lines, mut log) = (Lines::new(Stream::Stdout), Vec::new());
        for piece in pieces {
            lines.push(piece, Timestamp::UNIX_EPOCH, &mut log);
        }
        lines.finish(Timestamp::UNIX_EPOCH, &mut log);
        log
    }

    /// What a reader of the log makes of it, without a last end of line.
    fn read_back(log: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        for line in log.split_inclusive(|&byte| byte == b'\n') {
            let mut fields = line.splitn(4, |&byte| byte == b' ');
            assert_eq!(fields.next().unwrap(), b"1970-01-01T00:00:00.000000000Z");
            assert_eq!(fields.next().unwrap(), b"stdout");
            let tag = fields.next().unwrap();
            let rest = fields.next().unwrap();
            let body = &rest[..rest.len() - 1];
            assert!(body.len() <= MAX_LINE);
            text.extend_from_slice(body);
            if tag == b"F" {
                text.push(b'\n');
            } else {
                assert_eq!((tag, body.len()), (&b"P"[..], MAX_LINE));
            }
        }
        text.pop();
        text
    }

    #[test]
    fn a_line_carries_time_stream_and_tag() {
        let now: Timestamp = "2026-11-23T20:38:40.123456789Z".parse().unwrap();
        let mut log = Vec::new();
        Lines::new(Stream::Stderr).push(b"hello\n", now, &mut log);
        assert_eq!(log, b"2026-11-23T20:38:40.123456789Z stderr F hello\n");
    }

    #[test]
    fn a_line_of_exactly_the_longest_length_is_whole() {
        for (length, lines) in [(MAX_LINE, 1), (MAX_LINE + 1, 2), (2 * MAX_LINE + 1, 3)] {
            let mut text = vec![b'x'; length];
            text.push(b'\n');
            let log = log_of(&[text]);
            assert_eq!(log.split(|&byte| byte == b'\n').count() - 1, lines, "{length}");
        }
    }

    proptest! {
        #[test]
        fn what_a_guest_writes_is_what_a_reader_gets(
            pieces in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..50),
                    (0_usize..40_000).prop_map(|length| vec![b'y'; length]),
                ],
                0..8,
            )
        ) {
            let mut text = pieces.concat();
            if text.last() == Some(&b'\n') {
                text.pop();
            }
            prop_assert_eq!(read_back(&log_of(&pieces)), text);
        }

        #[test]
        fn a_cut_falls_between_lines(
            lines in prop::collection::vec("[a-z]{0,9}\n", 0..9), room in 0_usize..60
        ) {
            let log = lines.concat();
            let cut = whole_lines(log.as_bytes(), room);
            prop_assert!(cut <= room && log.is_char_boundary(cut));
            prop_assert!(cut == 0 || log.as_bytes()[cut - 1] == b'\n');
            let next = first_line(&log.as_bytes()[cut..]);
            prop_assert!(cut == log.len() || cut + next > room, "more would have fitted");
        }
    }
}
