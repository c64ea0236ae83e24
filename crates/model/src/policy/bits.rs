//! Sets of small numbers with a bit for each, and lists of them that are as cheap
//! to take in.

use std::ops::Range;

/// Numbers in a word.
const WORD: usize = 64;

/// Numbers below a length that all sets of one kind share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    /// None of so many.
    pub(super) fn none(length: usize) -> Self {
        Self(vec![0; length.div_ceil(WORD)])
    }

    /// All of so many.
    pub(super) fn all(length: usize) -> Self {
        let mut all = Self::none(length);
        all.put(0..length, true);
        all
    }

    /// What a look at all of it costs.
    pub(super) fn words(&self) -> usize {
        self.0.len()
    }

    pub(super) fn add(&mut self, number: u32) {
        let (word, bit) = place(number);
        self.0[word] |= bit;
    }

    pub(super) fn has(&self, number: u32) -> bool {
        let (word, bit) = place(number);
        self.0[word] & bit != 0
    }

    /// Puts all of a range in, or takes them out.
    pub(super) fn put(&mut self, range: Range<usize>, is_in: bool) {
        let mut from = range.start;
        while from < range.end {
            let (word, first) = (from / WORD, from % WORD);
            let count = (range.end - from).min(WORD - first);
            let bits = (u64::MAX >> (WORD - count)) << first;
            if is_in {
                self.0[word] |= bits;
            } else {
                self.0[word] &= !bits;
            }
            from += count;
        }
    }

    /// Takes in those of another set.
    pub(super) fn join(&mut self, other: &Self) {
        for (own, other) in self.0.iter_mut().zip(&other.0) {
            *own |= other;
        }
    }

    /// Keeps those that another set has too.
    pub(super) fn keep(&mut self, other: &Self) {
        for (own, other) in self.0.iter_mut().zip(&other.0) {
            *own &= other;
        }
    }

    /// Takes in those of a list.
    pub(super) fn join_list(&mut self, list: &List) {
        match list {
            List::Few(numbers) => numbers.iter().for_each(|number| self.add(*number)),
            List::Many(bits) => self.join(bits),
        }
    }

    /// Takes out those of a list.
    pub(super) fn drop_list(&mut self, list: &List) {
        match list {
            List::Few(numbers) => {
                for number in numbers {
                    let (word, bit) = place(*number);
                    self.0[word] &= !bit;
                }
            }
            List::Many(bits) => {
                for (own, other) in self.0.iter_mut().zip(&bits.0) {
                    *own &= !other;
                }
            }
        }
    }

    /// First and last of those that follow each other, where `joined` has each
    /// that may follow the one before it.
    pub(super) fn runs(&self, joined: &Self) -> impl Iterator<Item = (u32, u32)> {
        let words = self.0.len();
        let (mut firsts, mut lasts) = (vec![0; words], vec![0; words]);
        // Those that go on the run of the one before.
        let goes_on = |word: usize| {
            let before = word.checked_sub(1).map_or(0, |before| self.0[before] >> (WORD - 1));
            self.0[word] & joined.0[word] & (self.0[word] << 1 | before)
        };
        for word in 0..words {
            let after = if word + 1 < words { goes_on(word + 1) << (WORD - 1) } else { 0 };
            firsts[word] = self.0[word] & !goes_on(word);
            lasts[word] = self.0[word] & !(goes_on(word) >> 1 | after);
        }
        ones(firsts).zip(ones(lasts))
    }
}

fn place(number: u32) -> (usize, u64) {
    let number = number as usize;
    (number / WORD, 1 << (number % WORD))
}

fn ones(words: Vec<u64>) -> impl Iterator<Item = u32> {
    (0_u32..).step_by(WORD).zip(words).flat_map(|(from, mut word)| {
        std::iter::from_fn(move || {
            let next = (word != 0).then(|| from + word.trailing_zeros())?;
            word &= word - 1;
            Some(next)
        })
    })
}

/// Numbers in the way that costs less to take in: never more than the words of
/// a set.
#[derive(Clone, Debug)]
pub(super) enum List {
    /// In order.
    Few(Vec<u32>),
    Many(Bits),
}

impl Default for List {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl List {
    /// Adds one that is not less than those before it.
    pub(super) fn push(&mut self, number: u32) {
        match self {
            Self::Few(numbers) if numbers.last() == Some(&number) => {}
            Self::Few(numbers) => numbers.push(number),
            Self::Many(bits) => bits.add(number),
        }
    }

    /// Chooses the way, once all were added that are below this length.
    pub(super) fn settle(&mut self, length: usize) {
        if let Self::Few(numbers) = self
            && numbers.len() > length.div_ceil(WORD)
        {
            let mut bits = Bits::none(length);
            for number in numbers.iter() {
                bits.add(*number);
            }
            *self = Self::Many(bits);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const LENGTH: u32 = 200;

    fn numbers() -> impl Strategy<Value = BTreeSet<u32>> {
        prop_oneof![
            prop::collection::btree_set(0..LENGTH, 0..4),
            prop::collection::btree_set(0..LENGTH, 0..180),
        ]
    }

    fn list(numbers: &BTreeSet<u32>) -> List {
        let mut list = List::default();
        for number in numbers {
            list.push(*number);
        }
        list.settle(LENGTH as usize);
        list
    }

    fn bits(numbers: &BTreeSet<u32>) -> Bits {
        let mut bits = Bits::none(LENGTH as usize);
        bits.join_list(&list(numbers));
        bits
    }

    proptest! {
        #[test]
        fn bits_are_sets(a in numbers(), b in numbers(), from in 0..LENGTH, count in 0..LENGTH) {
            let is = |found: &Bits, wanted: &BTreeSet<u32>| {
                (0..LENGTH).all(|number| found.has(number) == wanted.contains(&number))
            };
            let after = |change: &dyn Fn(&mut Bits)| {
                let mut bits = bits(&a);
                change(&mut bits);
                bits
            };
            let range = from..(from + count).min(LENGTH);
            let all = range.clone().collect();
            let within = range.start as usize..range.end as usize;
            prop_assert!(is(&bits(&a), &a));
            prop_assert!(is(&Bits::all(LENGTH as usize), &(0..LENGTH).collect()));
            prop_assert!(is(&after(&|bits| bits.join_list(&list(&b))), &(&a | &b)));
            prop_assert!(is(&after(&|own| own.keep(&bits(&b))), &(&a & &b)));
            prop_assert!(is(&after(&|bits| bits.drop_list(&list(&b))), &(&a - &b)));
            prop_assert!(is(&after(&|bits| bits.put(within.clone(), true)), &(&a | &all)));
            prop_assert!(is(&after(&|bits| bits.put(within.clone(), false)), &(&a - &all)));
        }

        #[test]
        fn runs_are_those_that_follow_each_other(some in numbers(), joined in numbers()) {
            let mut expected: Vec<(u32, u32)> = Vec::new();
            for &number in &some {
                match expected.last_mut() {
                    Some((_, last)) if *last + 1 == number && joined.contains(&number) => {
                        *last = number;
                    }
                    Some(_) | None => expected.push((number, number)),
                }
            }
            prop_assert_eq!(bits(&some).runs(&bits(&joined)).collect::<Vec<_>>(), expected);
        }

        #[test]
        fn no_list_costs_more_than_the_words_of_a_set(some in numbers()) {
            let cost = match list(&some) {
                List::Few(numbers) => numbers.len(),
                List::Many(bits) => bits.words(),
            };
            prop_assert!(cost <= bits(&some).words());
        }
    }
}
