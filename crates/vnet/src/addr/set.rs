//! Sets of addresses. Not here: what they are sets of.

use std::{fmt, net::Ipv4Addr};

use super::Prefix4;

/// A set of IPv4 addresses as the ranges that it is made of: in order, apart, never touching, so that equal
/// sets are equal values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AddressSet {
    /// First and last address of each range.
    ranges: Vec<(u32, u32)>,
}

impl AddressSet {
    /// Every address.
    #[must_use]
    pub fn all() -> Self {
        Self { ranges: vec![(0, u32::MAX)] }
    }

    /// Whether no address is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether every address is in it.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.ranges == [(0, u32::MAX)]
    }

    /// Whether `address` is in it.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let address = u32::from(address);
        let n_before = self.ranges.partition_point(|(first, _)| *first <= address);
        n_before > 0 && address <= self.ranges[n_before - 1].1
    }

    /// What is in this set, in `other` or in both.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::from_ranges(self.ranges.iter().chain(&other.ranges).copied().collect())
    }

    /// What is in this set and not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut ranges = Vec::new();
        let mut holes = other.ranges.iter().copied().peekable();
        for (first, last) in &self.ranges {
            let mut next = Some(*first);
            while let Some((_, end)) = holes.peek()
                && end < first
            {
                holes.next();
            }
            let mut ahead = holes.clone();
            while let (Some(at), Some((begin, end))) = (next, ahead.peek().copied())
                && begin <= *last
            {
                if at < begin {
                    ranges.push((at, begin - 1));
                }
                next = end.checked_add(1);
                ahead.next();
            }
            if let Some(at) = next.filter(|at| at <= last) {
                ranges.push((at, *last));
            }
        }
        Self { ranges }
    }

    /// The fewest prefixes that make up the set, in order.
    #[must_use]
    pub fn prefixes(&self) -> Vec<Prefix4> {
        let mut prefixes = Vec::new();
        for (first, last) in &self.ranges {
            let mut next = Some(*first);
            while let Some(at) = next.filter(|at| at <= last) {
                // The longest run that is aligned at `at` and ends within the range.
                let fits = (last - at).checked_add(1).map_or(32, u32::ilog2);
                let bits = at.trailing_zeros().min(fits);
                let length = u8::try_from(32 - bits).unwrap_or(0);
                prefixes.push(Prefix4::containing(at.into(), length));
                next = if bits == 32 { None } else { at.checked_add(1 << bits) };
            }
        }
        prefixes
    }

    /// The first and the last address of each range, in order.
    pub fn ranges(&self) -> impl Iterator<Item = (Ipv4Addr, Ipv4Addr)> + '_ {
        self.ranges.iter().map(|(first, last)| ((*first).into(), (*last).into()))
    }

    fn from_ranges(mut ranges: Vec<(u32, u32)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        Self { ranges: merged }
    }
}

impl FromIterator<Prefix4> for AddressSet {
    fn from_iter<T: IntoIterator<Item = Prefix4>>(prefixes: T) -> Self {
        let range = |prefix: Prefix4| (prefix.network().into(), prefix.broadcast().into());
        Self::from_ranges(prefixes.into_iter().map(range).collect())
    }
}

impl fmt::Display for AddressSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, prefix) in self.prefixes().into_iter().enumerate() {
            if n > 0 {
                f.write_str(", ")?;
            }
            prefix.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix4 {
        text.parse().expect("a prefix")
    }

    fn set(prefixes: &[&str]) -> AddressSet {
        prefixes.iter().map(|text| prefix(text)).collect()
    }

    #[test]
    fn neighbours_become_one() {
        let both = set(&["10.0.1.0/24", "10.0.0.0/24"]);
        assert_eq!(both, set(&["10.0.0.0/23"]));
        assert_eq!(both.to_string(), "10.0.0.0/23");
        assert_eq!(set(&["0.0.0.0/1", "128.0.0.0/1"]), AddressSet::all());
        assert_eq!(AddressSet::all().to_string(), "0.0.0.0/0");
    }

    #[test]
    fn a_hole_leaves_the_prefixes_around_it() {
        let around = AddressSet::all().without(&set(&["10.0.0.0/8", "255.255.255.255/32"]));
        assert!(!around.contains([10, 9, 8, 7].into()));
        assert!(around.contains([9, 255, 255, 255].into()));
        assert!(!around.contains([255, 255, 255, 255].into()));
        assert_eq!(
            set(&["10.0.0.0/30"]).without(&set(&["10.0.0.1/32"])).to_string(),
            "10.0.0.0/32, 10.0.0.2/31"
        );
    }

    fn any_set() -> impl Strategy<Value = AddressSet> {
        let prefix = (any::<u32>(), 0..=32u8).prop_map(|(address, length)| {
            // Few bits, so that sets meet each other.
            Prefix4::containing((address & 0xc000_0003).into(), length)
        });
        prop::collection::vec(prefix, 0..5).prop_map(|prefixes| prefixes.into_iter().collect())
    }

    proptest! {
        #[test]
        fn sets_are_what_membership_says(a in any_set(), b in any_set(), bits in any::<u32>()) {
            for address in [bits & 0xc000_0003, bits & 0xc000_0007, bits] {
                let address = Ipv4Addr::from(address);
                let (in_a, in_b) = (a.contains(address), b.contains(address));
                prop_assert_eq!(a.union(&b).contains(address), in_a || in_b);
                prop_assert_eq!(a.without(&b).contains(address), in_a && !in_b);
                let again: AddressSet = a.prefixes().into_iter().collect();
                prop_assert_eq!(&again, &a);
            }
        }
    }
}
