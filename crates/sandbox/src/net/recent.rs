//! Short lists of what was used lately.

/// Adds one to those of which `most` are kept, in place of the one whose time is the
/// oldest if there are so many.
pub(super) fn push<T, O: Ord>(all: &mut Vec<T>, most: usize, one: T, time: impl Fn(&T) -> O) {
    if all.len() >= most {
        let oldest = all.iter().enumerate().min_by_key(|(_, one)| time(one));
        if let Some(oldest) = oldest.map(|(index, _)| index) {
            all.swap_remove(oldest);
        }
    }
    all.push(one);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_used_longest_ago_makes_room() {
        let mut all = Vec::new();
        for (name, time) in [("a", 3), ("b", 1), ("c", 2), ("d", 4), ("e", 0)] {
            push(&mut all, 3, (name, time), |(_, time)| *time);
        }
        all.sort_unstable();
        assert_eq!(all, [("a", 3), ("d", 4), ("e", 0)]);
    }
}
