//! Sets of addresses. Not here: what they are sets of.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{Family, Prefix, Prefix4, Prefix6};

/// A set of addresses of both families as the ranges that it is made of: in order, apart, never touching, so that
/// equal sets are equal values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AddressSet {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
}

impl AddressSet {
    /// Every address of either family.
    #[must_use]
    pub fn all() -> Self {
        Self { v4: Ranges::all(), v6: Ranges::all() }
    }

    /// Whether no address is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.0.is_empty() && self.v6.0.is_empty()
    }

    /// Whether every address of either family is in it.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.is_all_of(Family::V4) && self.is_all_of(Family::V6)
    }

    /// Whether every address of `family` is in it.
    #[must_use]
    pub fn is_all_of(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4.is_all(),
            Family::V6 => self.v6.is_all(),
        }
    }

    /// Whether `address` is in it.
    #[must_use]
    pub fn contains(&self, address: impl Into<IpAddr>) -> bool {
        match address.into() {
            IpAddr::V4(address) => self.v4.contains(address.into()),
            IpAddr::V6(address) => self.v6.contains(address.into()),
        }
    }

    /// What is in this set, in `other` or in both.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self { v4: self.v4.union(&other.v4), v6: self.v6.union(&other.v6) }
    }

    /// What is in this set and not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self { v4: self.v4.without(&other.v4), v6: self.v6.without(&other.v6) }
    }

    /// The fewest prefixes that make up the set, in order: IPv4 before IPv6.
    #[must_use]
    pub fn prefixes(&self) -> Vec<Prefix> {
        let v4 = self.v4.blocks().into_iter();
        let v4 = v4.map(|(at, length)| Prefix::V4(Prefix4::containing(at.into(), length)));
        let v6 = self.v6.blocks().into_iter();
        let v6 = v6.map(|(at, length)| Prefix::V6(Prefix6::containing(at.into(), length)));
        v4.chain(v6).collect()
    }

    /// The first and the last address of each range of `family`, in order.
    #[must_use]
    pub fn ranges(&self, family: Family) -> Vec<(IpAddr, IpAddr)> {
        let v4 = |at: u32| IpAddr::from(Ipv4Addr::from(at));
        let v6 = |at: u128| IpAddr::from(Ipv6Addr::from(at));
        match family {
            Family::V4 => self.v4.0.iter().map(|(a, b)| (v4(*a), v4(*b))).collect(),
            Family::V6 => self.v6.0.iter().map(|(a, b)| (v6(*a), v6(*b))).collect(),
        }
    }
}

impl<P: Into<Prefix>> FromIterator<P> for AddressSet {
    fn from_iter<T: IntoIterator<Item = P>>(prefixes: T) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for prefix in prefixes {
            match prefix.into() {
                Prefix::V4(it) => v4.push((it.network().into(), it.broadcast().into())),
                Prefix::V6(it) => v6.push((it.network().into(), it.last().into())),
            }
        }
        Self { v4: Ranges::from_unsorted(v4), v6: Ranges::from_unsorted(v6) }
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

/// The first and the last number of each range.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Ranges<N>(Vec<(N, N)>);

/// An address as a number.
trait Number: Copy + Ord {
    const BITS: u8;
    const MIN: Self;
    const MAX: Self;
    /// The next one, if there is one.
    fn next(self) -> Option<Self>;
    /// The one before; the first one stays.
    fn before(self) -> Self;
    /// How many low bits are 0.
    fn zeros(self) -> u8;
    /// The last one of the block of 2^`bits` that begins here.
    fn block_end(self, bits: u8) -> Self;
}

macro_rules! number {
    ($type:ty, $bits:literal) => {
        impl Number for $type {
            const BITS: u8 = $bits;
            const MIN: Self = <$type>::MIN;
            const MAX: Self = <$type>::MAX;

            fn next(self) -> Option<Self> {
                self.checked_add(1)
            }

            fn before(self) -> Self {
                self.saturating_sub(1)
            }

            fn zeros(self) -> u8 {
                u8::try_from(self.trailing_zeros()).unwrap_or($bits)
            }

            fn block_end(self, bits: u8) -> Self {
                let mask = <$type>::MAX.checked_shr(u32::from($bits - bits)).unwrap_or(0);
                self | mask
            }
        }
    };
}

number!(u32, 32);
number!(u128, 128);

impl<N: Number> Ranges<N> {
    fn all() -> Self {
        Self(vec![(N::MIN, N::MAX)])
    }

    fn is_all(&self) -> bool {
        matches!(self.0.as_slice(), [(first, last)] if *first == N::MIN && *last == N::MAX)
    }

    fn contains(&self, at: N) -> bool {
        let n_before = self.0.partition_point(|(first, _)| *first <= at);
        n_before > 0 && at <= self.0[n_before - 1].1
    }

    fn union(&self, other: &Self) -> Self {
        Self::from_unsorted(self.0.iter().chain(&other.0).copied().collect())
    }

    fn without(&self, other: &Self) -> Self {
        let mut ranges = Vec::new();
        let mut holes = other.0.iter().copied().peekable();
        for (first, last) in &self.0 {
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
                    ranges.push((at, begin.before()));
                }
                next = end.next();
                ahead.next();
            }
            if let Some(at) = next.filter(|at| at <= last) {
                ranges.push((at, *last));
            }
        }
        Self(ranges)
    }

    /// The fewest aligned blocks that make up the ranges: first number and prefix length.
    fn blocks(&self) -> Vec<(N, u8)> {
        let mut blocks = Vec::new();
        for (first, last) in &self.0 {
            let mut next = Some(*first);
            while let Some(at) = next.filter(|at| at <= last) {
                // The longest run that is aligned at `at` and ends within the range.
                let bits = (0..=at.zeros()).rev().find(|bits| at.block_end(*bits) <= *last);
                let bits = bits.unwrap_or(0);
                blocks.push((at, N::BITS - bits));
                next = at.block_end(bits).next();
            }
        }
        blocks
    }

    fn from_unsorted(mut ranges: Vec<(N, N)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(N, N)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some((_, end)) if end.next().is_none_or(|next| first <= next) => {
                    *end = last.max(*end);
                }
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix {
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
        let v4 = set(&["0.0.0.0/1", "128.0.0.0/1"]);
        assert!(v4.is_all_of(Family::V4) && !v4.is_all());
        assert_eq!(v4.union(&set(&["::/1", "8000::/1"])), AddressSet::all());
        assert_eq!(AddressSet::all().to_string(), "0.0.0.0/0, ::/0");
    }

    #[test]
    fn a_hole_leaves_the_prefixes_around_it() {
        let around = AddressSet::all().without(&set(&["10.0.0.0/8", "255.255.255.255/32"]));
        assert!(!around.contains([10, 9, 8, 7]));
        assert!(around.contains([9, 255, 255, 255]));
        assert!(!around.contains([255, 255, 255, 255]));
        assert!(around.is_all_of(Family::V6));
        assert_eq!(
            set(&["10.0.0.0/30"]).without(&set(&["10.0.0.1/32"])).to_string(),
            "10.0.0.0/32, 10.0.0.2/31"
        );
        assert_eq!(
            set(&["fd00::/126"]).without(&set(&["fd00::1/128"])).to_string(),
            "fd00::/128, fd00::2/127"
        );
    }

    fn any_set() -> impl Strategy<Value = AddressSet> {
        // Few bits, so that sets meet each other.
        let v4 = (any::<u32>(), 0..=32u8).prop_map(|(address, length)| {
            Prefix::V4(Prefix4::containing((address & 0xc000_0003).into(), length))
        });
        let v6 = (any::<u128>(), 0..=128u8).prop_map(|(address, length)| {
            Prefix::V6(Prefix6::containing((address & (0xc000_0003 << 96 | 3)).into(), length))
        });
        prop::collection::vec(prop_oneof![v4, v6], 0..6)
            .prop_map(|prefixes| prefixes.into_iter().collect())
    }

    proptest! {
        #[test]
        fn sets_are_what_membership_says(
            a in any_set(),
            b in any_set(),
            bits in any::<u32>(),
            wide in any::<u128>(),
        ) {
            let v4 = [bits & 0xc000_0003, bits & 0xc000_0007, bits].map(|it| IpAddr::from(Ipv4Addr::from(it)));
            let few = 0xc000_0003 << 96;
            let v6 = [wide & (few | 3), wide & (few | 7), wide].map(|it| IpAddr::from(Ipv6Addr::from(it)));
            for address in v4.into_iter().chain(v6) {
                let (in_a, in_b) = (a.contains(address), b.contains(address));
                prop_assert_eq!(a.union(&b).contains(address), in_a || in_b);
                prop_assert_eq!(a.without(&b).contains(address), in_a && !in_b);
                let again: AddressSet = a.prefixes().into_iter().collect();
                prop_assert_eq!(&again, &a);
            }
        }
    }
}
