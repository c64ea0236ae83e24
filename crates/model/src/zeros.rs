//! Leading zeros in the addresses of objects.
//!
//! API servers took them for long, what they keep has them still, and programs of
//! Kubernetes read such numbers as decimal. Rust reads no such address at all; C reads
//! another one.
//!
//! Source: Kubernetes, `ParseIPSloppy` and `ParseCIDRSloppy` in `k8s.io/utils/net`.

/// An address, or a range in CIDR notation, with no zeros before its numbers.
#[must_use]
pub(crate) fn without_zeros(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut is_within = false;
    let mut rest = text.chars().peekable();
    while let Some(digit) = rest.next() {
        let goes_on = rest.peek().is_some_and(char::is_ascii_hexdigit);
        if is_within || digit != '0' || !goes_on {
            plain.push(digit);
            is_within = digit.is_ascii_hexdigit();
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zeros_before_numbers_count_for_nothing() {
        for (text, plain) in [
            ("010.001.000.0/08", "10.1.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("100.200.30.40/32", "100.200.30.40/32"),
            ("::ffff:010.1.2.3/0104", "::ffff:10.1.2.3/104"),
            ("00fd::00a0:0/120", "fd::a0:0/120"),
            ("::", "::"),
            ("", ""),
        ] {
            assert_eq!(without_zeros(text), plain);
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_read_as_before(address in any::<IpAddr>()) {
            let text = address.to_string();
            prop_assert_eq!(without_zeros(&text).parse(), Ok(address));
        }

        #[test]
        fn nothing_else_is_lost(text in "[0-9a-f.:/x ]{0,20}") {
            let without = |text: &str| text.replace('0', "");
            prop_assert_eq!(without(&without_zeros(&text)), without(&text));
        }
    }
}
