//! Quantities: `500m`, `1Gi`, `2e3`. Exact, never by way of a float.

use std::{fmt, iter::Sum, ops::Add};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Parts of one: an amount is held in billionths, the smallest the API knows.
const ONE: i128 = 1_000_000_000;

/// The largest whole number that a quantity may stand for.
const MAX: i128 = i64::MAX as i128;

/// The exact value of a quantity.
///
/// From -(2⁶³-1) to 2⁶³-1, in steps of a billionth. What is larger counts as
/// the largest, what is finer is rounded away from zero. Source:
/// `k8s.io/apimachinery/pkg/api/resource`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount {
    billionths: i128,
}

/// The text is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a quantity")]
pub struct QuantityError {
    /// The text.
    pub text: String,
}

/// How to write an amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// With `n`, `u`, `m`, `k`, `M` …; for CPU and counts.
    Decimal,
    /// With `Ki`, `Mi` …; for bytes. Amounts that are not whole are written as
    /// in [`Notation::Decimal`].
    Binary,
}

const DECIMAL: [(&str, i128); 10] = [
    ("n", 1),
    ("u", 1_000),
    ("m", 1_000_000),
    ("", ONE),
    ("k", ONE * 1_000),
    ("M", ONE * 1_000_000),
    ("G", ONE * 1_000_000_000),
    ("T", ONE * 1_000_000_000_000),
    ("P", ONE * 1_000_000_000_000_000),
    ("E", ONE * 1_000_000_000_000_000_000),
];

const BINARY: [(&str, i128); 6] = [
    ("Ki", ONE << 10),
    ("Mi", ONE << 20),
    ("Gi", ONE << 30),
    ("Ti", ONE << 40),
    ("Pi", ONE << 50),
    ("Ei", ONE << 60),
];

/// Reads a quantity.
///
/// # Errors
///
/// The text is not one: no digits, an unknown suffix, anything left over.
pub fn parse(quantity: &Quantity) -> Result<Amount, QuantityError> {
    parse_text(&quantity.0)
}

/// The thousandths of a core that a quantity of CPU stands for, rounded up.
///
/// # Errors
///
/// As [`parse`].
pub fn cpu_millis(quantity: &Quantity) -> Result<i64, QuantityError> {
    parse(quantity).map(Amount::milli)
}

/// The bytes that a quantity of memory or storage stands for, rounded up.
///
/// # Errors
///
/// As [`parse`].
pub fn bytes(quantity: &Quantity) -> Result<i64, QuantityError> {
    parse(quantity).map(Amount::value)
}

impl Amount {
    /// A whole number.
    #[must_use]
    pub fn whole(number: i64) -> Self {
        Self::capped(i128::from(number) * ONE)
    }

    /// So many thousandths.
    #[must_use]
    pub fn from_milli(thousandths: i64) -> Self {
        Self::capped(i128::from(thousandths) * (ONE / 1000))
    }

    fn capped(billionths: i128) -> Self {
        Self { billionths: billionths.clamp(-MAX * ONE, MAX * ONE) }
    }

    /// Whether it is nothing.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.billionths == 0
    }

    /// The whole number, rounded away from zero.
    #[must_use]
    pub fn value(self) -> i64 {
        saturated(divided(self.billionths, ONE))
    }

    /// The thousandths, rounded away from zero and cut to what an `i64` holds.
    #[must_use]
    pub fn milli(self) -> i64 {
        saturated(divided(self.billionths, ONE / 1000))
    }

    /// Writes it as the API server would: no fraction, and the largest suffix
    /// that allows for that.
    #[must_use]
    pub fn to_quantity(self, notation: Notation) -> Quantity {
        let fits = |unit: i128| self.billionths % unit == 0;
        let binary = || BINARY.iter().rev().find(|(_, unit)| fits(*unit)).copied();
        let decimal = || DECIMAL.iter().rev().find(|(_, unit)| fits(*unit)).copied();
        let (suffix, unit) = match notation {
            _ if self.is_zero() => ("", ONE),
            Notation::Binary if fits(ONE) => binary().unwrap_or(("", ONE)),
            Notation::Binary | Notation::Decimal => decimal().unwrap_or(DECIMAL[0]),
        };
        Quantity(format!("{}{suffix}", self.billionths / unit))
    }
}

impl Add for Amount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self::capped(self.billionths + other.billionths)
    }
}

impl Sum for Amount {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::default(), Self::add)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_quantity(Notation::Decimal).0)
    }
}

fn parse_text(text: &str) -> Result<Amount, QuantityError> {
    try_parse(text).ok_or_else(|| QuantityError { text: text.to_owned() })
}

fn try_parse(text: &str) -> Option<Amount> {
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let billionths = scaled(whole, fraction, unit(suffix)?);
    Some(Amount::capped(if negative { -billionths } else { billionths }))
}

/// What one of a suffix is worth.
enum Unit {
    /// So many billionths.
    Billionths(i128),
    /// Ten to this power.
    Power(i32),
}

fn unit(suffix: &str) -> Option<Unit> {
    if let Some((_, unit)) = DECIMAL.iter().chain(&BINARY).find(|(name, _)| *name == suffix) {
        return Some(Unit::Billionths(*unit));
    }
    let digits = suffix.strip_prefix(['e', 'E'])?;
    let digits = digits.strip_prefix('+').unwrap_or(digits);
    // `E` alone is the decimal suffix, found above; `e` alone is nothing.
    let power: i32 = digits.parse().ok()?;
    Some(Unit::Power(power))
}

/// `whole.fraction` times the unit, in billionths, rounded up and capped.
fn scaled(whole: &str, fraction: &str, unit: Unit) -> i128 {
    // Above every quantity, and small enough not to overflow below.
    const CAP: i128 = (MAX + 1) * ONE;
    let digits = || whole.bytes().chain(fraction.bytes()).map(|digit| i128::from(digit - b'0'));
    if digits().all(|digit| digit == 0) {
        return 0;
    }
    let (unit, power) = match unit {
        Unit::Billionths(unit) => (unit, 0),
        Unit::Power(power) => (ONE, i64::from(power)),
    };
    // The digits as one number, in which each place is worth a tenth of the one
    // before it; the first is worth 10^place units.
    let mut place = i64::try_from(whole.len()).unwrap_or(i64::MAX).saturating_add(power) - 1;
    let mut sum: i128 = 0;
    let mut inexact = false;
    for digit in digits() {
        if digit != 0 {
            let (worth, rest) = place_value(digit * unit, place);
            sum = sum.saturating_add(worth).min(CAP);
            inexact |= rest;
        }
        place -= 1;
    }
    // What is finer than a billionth rounds up, once, however many places.
    if inexact { sum.saturating_add(1).min(CAP) } else { sum }
}

/// `number` times ten to the `place`, and whether something was cut off.
fn place_value(number: i128, place: i64) -> (i128, bool) {
    const FAR: u32 = 38;
    let by = u32::try_from(place.unsigned_abs()).unwrap_or(FAR).min(FAR);
    let factor = 10_i128.pow(by);
    if place >= 0 {
        (number.saturating_mul(factor), false)
    } else {
        (number / factor, number % factor != 0)
    }
}

/// Rounded away from zero.
fn divided(number: i128, by: i128) -> i128 {
    number / by + (number % by).signum()
}

fn saturated(number: i128) -> i64 {
    i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn amount(text: &str) -> Amount {
        parse_text(text).unwrap()
    }

    #[test]
    fn suffixes_and_exponents_are_read() {
        let table = [
            ("0", 0),
            ("1", 1000),
            ("500m", 500),
            ("0.5", 500),
            (".5", 500),
            ("5.", 5000),
            ("+1", 1000),
            ("-1", -1000),
            ("1k", 1_000_000),
            ("1Ki", 1_024_000),
            ("1.5Gi", 1_610_612_736_000),
            ("2e3", 2_000_000),
            ("2E3", 2_000_000),
            ("2e-3", 2),
            ("1e+2", 100_000),
            ("100n", 1),
            ("1001u", 2),
            ("0.1m", 1),
        ];
        for (text, milli) in table {
            assert_eq!(amount(text).milli(), milli, "{text}");
        }
        assert_eq!(amount("1E").value(), 1_000_000_000_000_000_000);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in
            ["", "-", ".", "m", "1.2.3", "1kB", "1 ", " 1", "1e", "0x1", "1ki", "1e1.5", "١"]
        {
            assert_eq!(parse_text(text), Err(QuantityError { text: text.to_owned() }), "{text}");
        }
    }

    #[test]
    fn too_much_counts_as_the_most_and_too_fine_rounds_up() {
        for text in ["9223372036854775808", "1e400", "100E", "99999999999999999999999999999Ei"] {
            assert_eq!(amount(text).value(), i64::MAX, "{text}");
        }
        assert_eq!(amount("-1e400").value(), -i64::MAX);
        assert_eq!(amount("1e-400"), Amount { billionths: 1 });
        assert_eq!(amount("0.00000000005"), Amount { billionths: 1 });
        assert_eq!(amount("0e400"), Amount::default());
        assert_eq!(amount("1.0001Ki").value(), 1025);
        assert_eq!(amount("0.00055Ki"), Amount { billionths: 563_200_000 });
    }

    #[test]
    fn it_is_written_as_the_api_server_does() {
        use Notation::{Binary, Decimal};
        let table = [
            ("1500m", Decimal, "1500m"),
            ("1.5", Decimal, "1500m"),
            ("2000m", Decimal, "2"),
            ("1.5Gi", Binary, "1536Mi"),
            ("1024", Binary, "1Ki"),
            ("1000", Binary, "1000"),
            ("1000", Decimal, "1k"),
            ("0", Binary, "0"),
        ];
        for (text, notation, written) in table {
            assert_eq!(amount(text).to_quantity(notation).0, written, "{text}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "[-+]?[0-9.]{0,45}[eEnumkMGTPi+-]{0,3}[0-9]{0,12}") {
            let _ = parse_text(&text);
        }

        #[test]
        fn what_is_written_reads_the_same(billionths in -MAX * ONE..=MAX * ONE, binary: bool) {
            let amount = Amount { billionths };
            let notation = if binary { Notation::Binary } else { Notation::Decimal };
            prop_assert_eq!(parse(&amount.to_quantity(notation)), Ok(amount));
        }

        #[test]
        fn whole_numbers_are_exact(number: i64) {
            let number = number.max(-i64::MAX);
            prop_assert_eq!(amount(&number.to_string()).value(), number);
            prop_assert_eq!(Amount::whole(number).value(), number);
        }
    }
}
