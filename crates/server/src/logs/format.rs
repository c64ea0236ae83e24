//! One line of a log file, and what of it goes into the answer. Pure.
//!
//! A line of the CRI's format is `TIME STREAM TAG TEXT\n`, where the tag `P`
//! says that the guest's own line goes on in the next one.

use jiff::Timestamp;

use super::options::{LogOptions, Stream};

/// Puts lines into the form that was asked for. Remembers whether the last
/// one was partial and how many bytes are left.
#[derive(Debug)]
pub struct Formatter {
    timestamps: bool,
    since: Option<Timestamp>,
    stream: Option<Stream>,
    /// Bytes that may still be given.
    left: Option<u64>,
    /// Whether the next line begins one of the guest's own.
    at_line_start: bool,
}

/// A line as it lies in the file.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    time: &'a [u8],
    stream: Stream,
    partial: bool,
    text: &'a [u8],
}

impl Formatter {
    /// A formatter for one request.
    #[must_use]
    pub fn new(options: &LogOptions) -> Self {
        Self {
            timestamps: options.timestamps,
            since: options.since,
            stream: options.stream,
            left: options.limit_bytes,
            at_line_start: true,
        }
    }

    /// Whether the byte limit has been reached.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.left == Some(0)
    }

    /// Appends to `out` what of a line (with its newline) is wanted. A line
    /// that is not in the format is left out: a full disk may tear one.
    pub fn push(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(line) = parse(line) else { return };
        if self.stream.is_some_and(|wanted| wanted != line.stream) || self.is_too_old(line.time) {
            return;
        }
        let before = out.len();
        if self.timestamps && self.at_line_start {
            out.extend_from_slice(line.time);
            out.push(b' ');
        }
        out.extend_from_slice(line.text);
        if !line.partial {
            out.push(b'\n');
        }
        self.at_line_start = !line.partial;
        if let Some(left) = &mut self.left {
            let room = usize::try_from(*left).unwrap_or(usize::MAX);
            out.truncate(before.saturating_add(room));
            *left -= (out.len() - before) as u64;
        }
    }

    fn is_too_old(&self, time: &[u8]) -> bool {
        self.since.is_some_and(|since| {
            std::str::from_utf8(time)
                .ok()
                .and_then(|text| text.parse::<Timestamp>().ok())
                .is_some_and(|time| time < since)
        })
    }
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = parts.next()?;
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // Further tags may follow the first after a colon.
    let partial = match parts.next()?.split(|byte| *byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Line { time, stream, partial, text: parts.next()? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn format(options: &LogOptions, lines: &[&str]) -> String {
        let mut formatter = Formatter::new(options);
        let mut out = Vec::new();
        for line in lines {
            formatter.push(line.as_bytes(), &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    const LINES: [&str; 4] = [
        "2026-11-24T10:00:00.5Z stdout F one\n",
        "2026-11-24T10:00:01Z stderr P two \n",
        "2026-11-24T10:00:02Z stderr F halves\n",
        "2026-11-24T10:00:03Z stdout F \n",
    ];

    #[test]
    fn partial_lines_are_joined() {
        assert_eq!(format(&LogOptions::default(), &LINES), "one\ntwo halves\n\n");
    }

    #[test]
    fn a_joined_line_bears_one_timestamp() {
        let options = LogOptions { timestamps: true, ..LogOptions::default() };
        assert_eq!(
            format(&options, &LINES[..3]),
            "2026-11-24T10:00:00.5Z one\n2026-11-24T10:00:01Z two halves\n"
        );
    }

    #[test]
    fn lines_before_since_are_left_out() {
        let since = "2026-11-24T10:00:02Z".parse().unwrap();
        let options = LogOptions { since: Some(since), ..LogOptions::default() };
        assert_eq!(format(&options, &LINES), "halves\n\n");
    }

    #[test]
    fn one_stream_can_be_asked_for() {
        let options = LogOptions { stream: Some(Stream::Stdout), ..LogOptions::default() };
        assert_eq!(format(&options, &LINES), "one\n\n");
    }

    #[test]
    fn torn_lines_are_left_out() {
        assert_eq!(format(&LogOptions::default(), &["", "2026", "a b", "a stdout X y\n"]), "");
    }

    proptest! {
        #[test]
        fn no_more_than_the_limit_is_given(limit in 1u64..200, texts in prop::collection::vec("[a-z ]{0,20}", 0..20)) {
            let options = LogOptions { limit_bytes: Some(limit), timestamps: true, ..LogOptions::default() };
            let mut formatter = Formatter::new(&options);
            let mut out = Vec::new();
            for text in texts {
                formatter.push(format!("2026-11-24T10:00:00Z stdout F {text}\n").as_bytes(), &mut out);
            }
            prop_assert!(out.len() as u64 <= limit);
            prop_assert_eq!(formatter.is_done(), out.len() as u64 == limit);
        }

        #[test]
        fn any_bytes_are_taken(line in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut out = Vec::new();
            Formatter::new(&LogOptions::default()).push(&line, &mut out);
        }
    }
}
