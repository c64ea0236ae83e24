//! What a probe's `path` is in its request: as written, `..` included, but with
//! what a path cannot have escaped, and without a host or a fragment.
//!
//! Source: kubelet, `formatURL` in `pkg/probe/http/request.go`; `parse`,
//! `EscapedPath` and `RequestURI` in Go's `net/url`, `url.go`.

/// Path and query. Empty if there is neither; a path begins with a slash.
#[must_use]
pub fn written(given: &str) -> String {
    let (rest, fragment) = given.split_once('#').unwrap_or((given, ""));
    let (path, query) = match rest.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (rest, None),
    };
    let is_odd = rest.bytes().any(|byte| byte.is_ascii_control())
        || unescaped(path).is_none()
        || unescaped(fragment).is_none();
    let (path, query) = match unescaped(without_host(path)) {
        Some(bytes) if !is_odd => {
            let path = without_host(path);
            (if path.bytes().all(may_stay) { path.to_owned() } else { escaped(&bytes) }, query)
        }
        // It is no URL: all of it is taken for the path.
        Some(_) | None => (escaped(given.as_bytes()), None),
    };
    let slash = if path.is_empty() || path.starts_with('/') { "" } else { "/" };
    match query {
        None => format!("{slash}{path}"),
        Some(query) => format!("{slash}{path}?{}", sendable(query)),
    }
}

/// The kubelet puts the pod's address in the place of a host that is in the path.
fn without_host(path: &str) -> &str {
    let is_scheme = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    };
    let (has_scheme, rest) = match path.split_once(':') {
        Some((scheme, rest)) if is_scheme(scheme) && rest.starts_with('/') => (true, rest),
        Some(_) | None => (false, path),
    };
    match rest.strip_prefix("//") {
        Some(named) if has_scheme || !named.starts_with('/') => {
            named.find('/').map_or("", |start| &named[start..])
        }
        Some(_) | None => rest,
    }
}

/// The bytes that are meant. None if a `%` is not followed by two digits.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'%' {
            let mut digit = || char::from(rest.next()?).to_digit(16);
            u8::try_from((digit()? << 4) | digit()?).ok()?
        } else {
            byte
        });
    }
    Some(bytes)
}

fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte) {
            text.push(char::from(byte));
        } else {
            escape(&mut text, byte);
        }
    }
    text
}

fn escape(text: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |four: u8| char::from(DIGITS[usize::from(four)]);
    text.extend(['%', digit(byte >> 4), digit(byte & 15)]);
}

/// Whether a path that somebody escaped may have this byte.
fn may_stay(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@!'()*[]%".contains(&byte)
}

/// A query as written. Go sends these few bare too; here they cannot be sent.
fn sendable(query: &str) -> String {
    let mut text = String::with_capacity(query.len());
    for c in query.chars() {
        match u8::try_from(c) {
            Ok(byte @ (b' ' | b'"' | b'<' | b'>')) => escape(&mut text, byte),
            Ok(_) | Err(_) => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Go 1.26 makes of these.
    #[test]
    fn a_path_is_sent_as_the_kubelet_sends_it() {
        for (given, expected) in [
            ("", ""),
            ("/", "/"),
            ("a", "/a"),
            ("./x", "/./x"),
            ("*", "/*"),
            ("/a/../b", "/a/../b"),
            ("/a//b", "/a//b"),
            ("///x/y", "///x/y"),
            ("/%2e%2e/x", "/%2e%2e/x"),
            ("/a%2fb", "/a%2fb"),
            ("/a b", "/a%20b"),
            ("/é", "/%C3%A9"),
            ("/%C3%A9", "/%C3%A9"),
            ("/a:b", "/a:b"),
            ("/~'()*!$&+,;=@", "/~'()*!$&+,;=@"),
            ("/a[1]{2}|^`\\\"<>", "/a%5B1%5D%7B2%7D%7C%5E%60%5C%22%3C%3E"),
            ("/a?b=c", "/a?b=c"),
            ("/a?", "/a?"),
            ("?x=1", "?x=1"),
            ("/a?b=%zz", "/a?b=%zz"),
            ("/a?x=é", "/a?x=é"),
            ("/a#f", "/a"),
            ("/a?b?c#d", "/a?b?c"),
            ("//x/y", "/y"),
            ("http://o/p?q", "/p?q"),
            ("/a%zz?q#f", "/a%25zz%3Fq%23f"),
            ("/\u{1}?q", "/%01%3Fq"),
        ] {
            assert_eq!(written(given), expected, "{given:?}");
        }
        // But for this.
        assert_eq!(written("/?a b\"<>|"), "/?a%20b%22%3C%3E|");
    }
}
