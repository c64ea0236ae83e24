//! `$(NAME)` in arguments and variables.

/// Replaces each `$(NAME)` by what `lookup` says of it; a name that it does
/// not know stays as it is. `$$` gives one `$`, so that `$$(NAME)` gives
/// `$(NAME)`. What was put in is not looked at again.
///
/// Source: `k8s.io/kubernetes/third_party/forked/golang/expansion`.
#[must_use]
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    for piece in pieces(text) {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Reference(whole, name) => match lookup(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(whole),
            },
        }
    }
    out
}

/// The same, but `None` as soon as the result has more than `limit` bytes.
pub(super) fn expand_within<'a>(
    text: &str,
    limit: usize,
    lookup: impl Fn(&str) -> Option<&'a str>,
) -> Option<String> {
    let mut out = String::new();
    for piece in pieces(text) {
        let part = match piece {
            Piece::Text(text) => text,
            Piece::Reference(whole, name) => lookup(name).unwrap_or(whole),
        };
        if out.len() + part.len() > limit {
            return None;
        }
        out.push_str(part);
    }
    Some(out)
}

enum Piece<'a> {
    /// To be taken as it is.
    Text(&'a str),
    /// `$(NAME)`, and the name.
    Reference(&'a str, &'a str),
}

/// Cuts a text into what stays and what is looked up.
fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, length) = match rest.find('$') {
            None => (Piece::Text(rest), rest.len()),
            Some(0) => at_sign(rest),
            Some(sign) => (Piece::Text(&rest[..sign]), sign),
        };
        rest = &rest[length..];
        Some(piece)
    })
}

/// The piece that begins with the `$` at the start of `text`, and its length.
fn at_sign(text: &str) -> (Piece<'_>, usize) {
    match text.as_bytes().get(1) {
        Some(b'$') => (Piece::Text("$"), 2),
        Some(b'(') => match text.find(')') {
            Some(end) => (Piece::Reference(&text[..=end], &text[2..end]), end + 1),
            // Never closed. The rest has references of its own at most.
            None => (Piece::Text(&text[..2]), 2),
        },
        // A sign that means nothing.
        Some(_) | None => (Piece::Text(&text[..1]), 1),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "A" => Some("a".to_owned()),
            "B" => Some("$(A)".to_owned()),
            "" => Some("nothing".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn references_are_replaced_and_signs_kept() {
        let table = [
            ("", ""),
            ("plain", "plain"),
            ("$(A)", "a"),
            ("x$(A)y$(A)", "xaya"),
            ("$(B)", "$(A)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$a"),
            ("$$$$(A)", "$$(A)"),
            ("$(C)", "$(C)"),
            ("$()", "nothing"),
            ("$(A", "$(A"),
            ("$((A)", "$((A)"),
            ("$A", "$A"),
            ("$", "$"),
            ("$$", "$"),
            ("$ä$(A)", "$äa"),
            ("$(ä)", "$(ä)"),
            ("$($(A))", "$($(A))"),
        ];
        for (text, result) in table {
            assert_eq!(expand(text, lookup), result, "{text}");
        }
    }

    #[test]
    fn a_bound_holds() {
        let value = "x".repeat(100);
        let lookup = |_: &str| Some(value.as_str());
        assert_eq!(expand_within("$(A)$(A)", 200, lookup).map(|text| text.len()), Some(200));
        assert_eq!(expand_within("$(A)$(A)", 199, lookup), None);
    }

    proptest! {
        #[test]
        fn expansion_never_panics(text in "[$()Aä ]{0,30}") {
            let result = expand(&text, lookup);
            let same = expand_within(&text, usize::MAX, |name| match name {
                "A" => Some("a"),
                "B" => Some("$(A)"),
                "" => Some("nothing"),
                _ => None,
            });
            prop_assert_eq!(same, Some(result));
        }

        #[test]
        fn a_text_without_signs_stays(text in "[^$]{0,30}") {
            prop_assert_eq!(expand(&text, lookup), text);
        }

        #[test]
        fn doubled_signs_come_out_single(text in "[$()A]{0,20}") {
            prop_assert_eq!(expand(&text.replace('$', "$$"), lookup), text);
        }
    }
}
