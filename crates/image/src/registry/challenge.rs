//! What a registry's refusal says about how to log in (`WWW-Authenticate`).
//!
//! Pure. Source: RFC 9110, section 11.6.1, and the Docker registry's "Token
//! Authentication Specification".

use std::collections::HashMap;

/// A way to log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A token from another server.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
    /// User name and password.
    Basic,
}

/// Reads the values of all `WWW-Authenticate` headers; the most secure way comes first.
/// What is not understood is left out.
pub(crate) fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = headers.flat_map(parse_header).collect();
    found.sort_by_key(|challenge| matches!(challenge, Challenge::Basic));
    found
}

fn parse_header(header: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut rest = header.trim_start();
    while !rest.is_empty() {
        let (scheme, after) = take_token(rest);
        if scheme.is_empty() {
            break;
        }
        rest = after.trim_start();
        let mut parameters = HashMap::new();
        // A token that no `=` follows begins the next challenge.
        while let Some((name, value, after)) = take_parameter(rest) {
            parameters.insert(name.to_ascii_lowercase(), value);
            rest = after.trim_start_matches([',', ' ', '\t']);
        }
        rest = rest.trim_start_matches([',', ' ', '\t']);
        if scheme.eq_ignore_ascii_case("bearer") {
            if let Some(realm) = parameters.remove("realm") {
                let mut given =
                    |name| parameters.remove(name).filter(|text: &String| !text.is_empty());
                let (service, scope) = (given("service"), given("scope"));
                challenges.push(Challenge::Bearer { realm, service, scope });
            }
        } else if scheme.eq_ignore_ascii_case("basic") {
            challenges.push(Challenge::Basic);
        }
    }
    challenges
}

fn take_token(text: &str) -> (&str, &str) {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    text.split_at(text.find(|c| !is_part(c)).unwrap_or(text.len()))
}

/// `name=value` or `name="value"`, and what follows.
fn take_parameter(text: &str) -> Option<(&str, String, &str)> {
    let (name, rest) = take_token(text);
    let rest = rest.trim_start().strip_prefix('=')?.trim_start();
    if name.is_empty() {
        return None;
    }
    let Some(quoted) = rest.strip_prefix('"') else {
        let (value, rest) = take_token(rest);
        return Some((name, value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((name, value, &quoted[at + 1..])),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_servers_address_is_read() {
        let header = r#"Bearer realm="https://auth.io/token",service="reg,istry",scope="repository:a/b:pull""#;
        let expected = Challenge::Bearer {
            realm: "https://auth.io/token".to_owned(),
            service: Some("reg,istry".to_owned()),
            scope: Some("repository:a/b:pull".to_owned()),
        };
        assert_eq!(parse([header].into_iter()), [expected]);
    }

    #[test]
    fn several_ways_are_told_apart_and_tokens_come_first() {
        let one =
            r#"Basic realm="x", charset="UTF-8", Bearer realm="https://a", error=invalid_token"#;
        let bearer =
            Challenge::Bearer { realm: "https://a".to_owned(), service: None, scope: None };
        assert_eq!(parse([one].into_iter()), [bearer.clone(), Challenge::Basic]);
        let two = ["basic realm=\"x\"", "BEARER Realm = \"https://a\""];
        assert_eq!(parse(two.into_iter()), [bearer, Challenge::Basic]);
        assert!(parse(["Negotiate abc==", "Bearer", "", "=,"].into_iter()).is_empty());
    }

    proptest! {
        #[test]
        fn any_header_is_read_to_its_end(header in "[ a-zA-Z=\",\\\\é]{0,60}") {
            parse([header.as_str()].into_iter());
        }
    }
}
