//! Which names are asked for when a guest asks for one: the search list.

use crate::name::Name;

/// Full names in the order in which they are tried, none twice.
///
/// A name that ends in a dot is whole. One with at least `ndots` dots is tried
/// as it is before the search list, any other after it. What would be too long
/// is left out.
///
/// Source: glibc, `__res_context_search` in `resolv/res_query.c`.
pub(crate) fn candidates(name: &Name, searches: &[String], ndots: u8) -> Vec<Name> {
    let as_is = name.whole();
    if name.is_whole() {
        return vec![as_is];
    }
    let longer = searches.iter().filter_map(|domain| match domain.as_str() {
        "." => Some(as_is.clone()),
        domain => name.below(&Name::parse(domain)?),
    });
    let first = (name.dots() >= usize::from(ndots)).then(|| as_is.clone());
    let mut all: Vec<Name> = Vec::new();
    for candidate in first.into_iter().chain(longer).chain([as_is.clone()]) {
        if !all.contains(&candidate) {
            all.push(candidate);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tried(name: &str, searches: &[&str], ndots: u8) -> Vec<String> {
        let searches: Vec<String> = searches.iter().map(ToString::to_string).collect();
        let all = candidates(&Name::parse(name).unwrap(), &searches, ndots);
        all.iter().map(|name| name.text().to_owned()).collect()
    }

    #[test]
    fn the_search_list_is_gone_through_as_the_c_library_does() {
        let cluster = ["n.svc.cluster.local", "svc.cluster.local", "cluster.local"];
        let in_cluster = |name: &str| cluster.map(|domain| format!("{name}.{domain}"));
        assert_eq!(tried("web", &cluster, 5), [&in_cluster("web")[..], &["web".into()]].concat());
        assert_eq!(
            tried("example.com", &cluster, 5),
            [&in_cluster("example.com")[..], &["example.com".into()]].concat(),
        );
        assert_eq!(tried("example.com.", &cluster, 5), ["example.com"]);
        assert_eq!(tried("a.b", &["c"], 1), ["a.b", "a.b.c"]);
        assert_eq!(tried("a", &["c"], 1), ["a.c", "a"]);
        assert_eq!(tried("a", &["c"], 0), ["a", "a.c"]);
        assert_eq!(tried("a", &["c."], 1), ["a.c", "a"]);
        // The root among the domains is the name as it is.
        assert_eq!(tried("a", &["."], 1), ["a"]);
        assert_eq!(tried("a", &["bad..domain", "c"], 1), ["a.c", "a"]);
        let long = "d".repeat(63);
        let long = [long.as_str(); 3].join(".");
        assert_eq!(tried(&"a".repeat(63), &[&long, "c"], 1).len(), 2, "one is too long");
    }

    proptest! {
        #[test]
        fn a_name_is_always_tried_as_it_is_and_never_twice(
            name in "[a-z]{1,8}(\\.[a-z]{1,8}){0,5}\\.?",
            searches in prop::collection::vec("[a-z]{1,60}(\\.[a-z]{1,60}){0,4}", 0..8),
            ndots in 0_u8..15,
        ) {
            let name = Name::parse(&name).unwrap();
            let all = candidates(&name, &searches, ndots);
            prop_assert!(all.contains(&name.whole()));
            for (at, one) in all.iter().enumerate() {
                prop_assert!(one.is_whole());
                prop_assert!(!all[..at].contains(one));
                prop_assert!(one.text().len() <= 253);
            }
        }
    }
}
