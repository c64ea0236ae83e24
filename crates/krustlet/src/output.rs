//! What people see: tables, ages, log prefixes. Colours only on a terminal
//! and never with `NO_COLOR`.

use std::{
    fmt::Write,
    io::{self, ErrorKind, IsTerminal, Write as _},
    time::Duration,
};

use jiff::Timestamp;

/// Prints what a command was asked for. A reader who has seen enough, such as `head`,
/// may go away.
///
/// # Errors
///
/// What the system says of standard output.
pub(crate) fn print(text: &str) -> io::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Lays out rows below their headings, as kubectl does: columns three blanks
/// apart, each as wide as its widest cell.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = headings.iter().map(|heading| heading.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let headings: Vec<String> = headings.iter().map(|heading| (*heading).to_owned()).collect();
    for row in [&headings].into_iter().chain(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            // Writing to a String cannot fail.
            let _ = write!(line, "{cell:width$}   ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// How long ago something was, in kubectl's short form: `7s`, `3m20s`, `5h`, `2d`.
///
/// Source: apimachinery, `HumanDuration` in `pkg/util/duration/duration.go`,
/// its common ranges.
pub(crate) fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 if seconds % 60 != 0 => format!("{minutes}m{}s", seconds % 60),
        120..10_800 => format!("{minutes}m"),
        10_800..172_800 => format!("{hours}h"),
        _ => format!("{days}d"),
    }
}

/// Bytes in the largest fitting binary unit: `512B`, `1.5KiB`, `20MiB`.
pub(crate) fn bytes(count: u64) -> String {
    let mut unit = "B";
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = count as f64;
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if unit == "B" || value >= 10.0 {
        format!("{value:.0}{unit}")
    } else {
        format!("{value:.1}{unit}")
    }
}

/// Time spent, for progress lines.
pub(crate) fn took(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{}ms", time.as_millis())
    } else {
        format!("{:.1}s", time.as_secs_f64())
    }
}

/// Puts a prefix before each line of a stream that comes in pieces.
#[derive(Debug)]
pub(crate) struct Prefixer {
    prefix: Option<String>,
    at_line_start: bool,
}

impl Prefixer {
    /// Prefixes lines with `[name] `, in this colour on a terminal; without a
    /// name nothing is added.
    pub(crate) fn new(name: Option<&str>, index: usize, colours: bool) -> Self {
        // Cyan, yellow, green, magenta, blue: readable on dark and light.
        const COLOURS: [u8; 5] = [36, 33, 32, 35, 34];
        let prefix = name.map(|name| {
            if colours {
                format!("\x1b[{}m[{name}]\x1b[0m ", COLOURS[index % COLOURS.len()])
            } else {
                format!("[{name}] ")
            }
        });
        Self { prefix, at_line_start: true }
    }

    /// The piece with its prefixes.
    pub(crate) fn apply(&mut self, piece: &[u8]) -> Vec<u8> {
        let Some(prefix) = &self.prefix else { return piece.to_vec() };
        let mut out = Vec::with_capacity(piece.len() + prefix.len());
        for line in piece.split_inclusive(|byte| *byte == b'\n') {
            if self.at_line_start {
                out.extend_from_slice(prefix.as_bytes());
            }
            out.extend_from_slice(line);
            self.at_line_start = line.ends_with(b"\n");
        }
        out
    }

    /// What is missing at the end of the stream, so that another stream's
    /// prefix begins a line. Nothing without a name.
    pub(crate) fn end_line(&self) -> &'static [u8] {
        if self.at_line_start || self.prefix.is_none() { b"" } else { b"\n" }
    }
}

/// Whether progress is wanted on standard error: by people, not by files.
pub(crate) fn shows_progress() -> bool {
    std::io::stderr().is_terminal()
}

/// Whether a terminal may be written to in colours.
pub(crate) fn wants_colours() -> bool {
    // Source: https://no-color.org.
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec!["web-long-name".into(), "1".into()], vec!["b".into(), "22".into()]];
        assert_eq!(
            table(&["NAME", "N"], &rows),
            "NAME            N\nweb-long-name   1\nb               22\n"
        );
    }

    #[test]
    fn ages_read_as_kubectls() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        for (seconds, wanted) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (700, "11m"),
            (10_800, "3h"),
            (172_800, "2d"),
        ] {
            let since = Timestamp::from_second(1_000_000 - seconds).unwrap();
            assert_eq!(age(since, now), wanted);
        }
        assert_eq!(age(Timestamp::from_second(1_000_009).unwrap(), now), "0s");
    }

    #[test]
    fn sizes_keep_two_or_three_digits() {
        for (count, wanted) in [(0, "0B"), (1023, "1023B"), (1536, "1.5KiB"), (20 << 20, "20MiB")] {
            assert_eq!(bytes(count), wanted);
        }
    }

    #[test]
    fn each_line_is_prefixed_once_however_it_is_cut() {
        let mut prefixer = Prefixer::new(Some("app"), 0, false);
        let mut all = prefixer.apply(b"on");
        all.extend(prefixer.apply(b"e\ntwo\n"));
        all.extend(prefixer.apply(b"three"));
        assert_eq!(all, b"[app] one\n[app] two\n[app] three");
        assert_eq!(prefixer.end_line(), b"\n");
    }

    #[test]
    fn without_a_name_nothing_is_added() {
        let mut prefixer = Prefixer::new(None, 0, true);
        assert_eq!(prefixer.apply(b"a\nb"), b"a\nb");
        assert_eq!(prefixer.end_line(), b"");
    }
}
