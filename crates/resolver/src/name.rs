//! A domain name as it is asked for: lower case, ASCII, of a length that fits.

/// The longest name in characters, without a dot at its end (RFC 1035, 2.3.4).
const LONGEST: usize = 253;

/// The longest part between two dots.
const LABEL: usize = 63;

/// See the module. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Name {
    text: String,
    is_whole: bool,
}

impl Name {
    /// Reads a name as people write it: letters of Unicode become what the
    /// domain name system has for them (UTS 46).
    pub(crate) fn parse(text: &str) -> Option<Self> {
        // Nothing longer becomes short enough.
        if text.len() > 4 * LONGEST {
            return None;
        }
        let text = idna::domain_to_ascii(text).ok()?;
        let (text, is_whole) = match text.strip_suffix('.') {
            Some(text) => (text.to_owned(), true),
            None => (text, false),
        };
        is_name(&text).then_some(Self { text, is_whole })
    }

    /// The name, without a dot at its end.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether nothing is to be tried after it.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// As it is.
    pub(crate) fn whole(&self) -> Self {
        Self { text: self.text.clone(), is_whole: true }
    }

    /// With a domain after it. None if it gets too long.
    pub(crate) fn below(&self, domain: &Self) -> Option<Self> {
        let text = format!("{}.{}", self.text, domain.text);
        (text.len() <= LONGEST).then_some(Self { text, is_whole: true })
    }

    /// Dots within.
    pub(crate) fn dots(&self) -> usize {
        self.text.matches('.').count()
    }
}

fn is_name(text: &str) -> bool {
    let is_plain = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')
    };
    let is_label = |label: &str| (1..=LABEL).contains(&label.len()) && label.bytes().all(is_plain);
    text.len() <= LONGEST && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_read_as_people_write_them() {
        let read = |text: &str| Name::parse(text).map(|name| (name.text, name.is_whole));
        let as_is = |text: &str| Some((text.to_owned(), false));
        assert_eq!(read("WWW.Example.COM"), as_is("www.example.com"));
        assert_eq!(read("bücher.example"), as_is("xn--bcher-kva.example"));
        assert_eq!(read("_dns_._tcp.example"), as_is("_dns_._tcp.example"));
        assert_eq!(read("a."), Some(("a".to_owned(), true)));
        let long = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
        assert_eq!(read(&long), as_is(&long));
        let longer = format!("{long}d");
        let label = "a".repeat(64);
        for none in ["", ".", "..", "a..b", "a b", ".a", "a\\.b", "a:1", "a/b", &label, &longer] {
            assert_eq!(read(none), None, "{none:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "(?s).{0,300}") {
            if let Some(name) = Name::parse(&text) {
                prop_assert!(is_name(name.text()));
            }
        }
    }
}
