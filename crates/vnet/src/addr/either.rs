//! IPv6 prefixes, and prefixes of either family.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::Prefix4;

/// An IPv6 prefix in CIDR notation, without host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix6(Ipv6Net);

/// A prefix of either family, without host bits. Every IPv4 prefix sorts before every IPv6 prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Prefix {
    /// IPv4.
    V4(Prefix4),
    /// IPv6.
    V6(Prefix6),
}

/// The family of an address or a prefix.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Family {
    /// IPv4.
    #[default]
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `address`.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Whether it is IPv4: what is so where nothing is said.
    #[must_use]
    pub fn is_v4(&self) -> bool {
        *self == Self::V4
    }

    /// `address`, if it is IPv4.
    #[must_use]
    pub fn v4(address: IpAddr) -> Option<Ipv4Addr> {
        match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        }
    }

    /// How many bits an address has: 32 or 128.
    #[must_use]
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// Why a text is not a [`Prefix6`] or a [`Prefix`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// Not CIDR notation of a family that is wanted here.
    #[error("`{text}` is not a prefix in CIDR notation, such as 10.0.0.0/24 or fd00:db8::/64")]
    Syntax {
        /// What was given.
        text: String,
    },
    /// Host bits are set, so it is unclear which network was meant.
    #[error("`{given}` has host bits set; `{meant}` was probably meant")]
    HostBits {
        /// What was given.
        given: IpNet,
        /// The network that contains it.
        meant: IpNet,
    },
}

impl Prefix6 {
    /// The prefix of `length` bits (0 to 128) that contains `address`.
    ///
    /// # Panics
    /// When `length` is over 128; lengths in code are literals or come from other prefixes.
    #[must_use]
    pub fn containing(address: Ipv6Addr, length: u8) -> Self {
        Self(Ipv6Net::new(address, length).expect("a prefix length is at most 128").trunc())
    }

    /// The single address as a `/128`.
    #[must_use]
    pub fn host(address: Ipv6Addr) -> Self {
        Self::containing(address, 128)
    }

    /// The first address.
    #[must_use]
    pub fn network(self) -> Ipv6Addr {
        self.0.network()
    }

    /// The last address.
    #[must_use]
    pub fn last(self) -> Ipv6Addr {
        self.0.broadcast()
    }

    /// The number of leading bits, 0 to 128.
    #[must_use]
    pub fn length(self) -> u8 {
        self.0.prefix_len()
    }

    /// Whether `address` is inside.
    #[must_use]
    pub fn contains(self, address: Ipv6Addr) -> bool {
        self.0.contains(&address)
    }

    /// Whether all of `other` is inside.
    #[must_use]
    pub fn contains_prefix(self, other: Self) -> bool {
        self.0.contains(&other.0)
    }

    /// Whether the two share an address. Two prefixes do so only when one contains the other.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.contains_prefix(other) || other.contains_prefix(self)
    }

    /// The address at `offset` from the first one, if it is inside.
    #[must_use]
    pub fn nth(self, offset: u128) -> Option<Ipv6Addr> {
        let address = u128::from(self.network()).checked_add(offset).map(Ipv6Addr::from)?;
        self.contains(address).then_some(address)
    }

    /// The `index`-th prefix of `length` bits inside this one, if there is one.
    #[must_use]
    pub fn nth_subnet(self, length: u8, index: u128) -> Option<Self> {
        let shift = 128_u32.checked_sub(u32::from(length))?;
        if length < self.length() {
            return None;
        }
        let offset =
            if shift == 128 { (index == 0).then_some(0) } else { checked_shl(index, shift) }?;
        self.nth(offset).map(|network| Self::containing(network, length))
    }
}

/// `value << shift`, if no bit is lost.
fn checked_shl(value: u128, shift: u32) -> Option<u128> {
    let shifted = value.checked_shl(shift)?;
    (shifted >> shift == value).then_some(shifted)
}

impl FromStr for Prefix6 {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let given: Ipv6Net =
            text.parse().map_err(|_| PrefixError::Syntax { text: text.to_owned() })?;
        let meant = given.trunc();
        if given != meant {
            return Err(PrefixError::HostBits { given: given.into(), meant: meant.into() });
        }
        Ok(Self(meant))
    }
}

impl fmt::Display for Prefix6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

kept_as_text!(Prefix6, PrefixError);

impl Prefix {
    /// The prefix of `length` bits that contains `address`.
    ///
    /// # Panics
    /// When `length` is over what the family has; lengths in code are literals or come from other prefixes.
    #[must_use]
    pub fn containing(address: IpAddr, length: u8) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4(Prefix4::containing(address, length)),
            IpAddr::V6(address) => Self::V6(Prefix6::containing(address, length)),
        }
    }

    /// The single address as a `/32` or `/128`.
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        Self::containing(address, Family::of(address).bits())
    }

    /// `0.0.0.0/0` or `::/0`.
    #[must_use]
    pub fn everything(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4(Prefix4::containing(Ipv4Addr::UNSPECIFIED, 0)),
            Family::V6 => Self::V6(Prefix6::containing(Ipv6Addr::UNSPECIFIED, 0)),
        }
    }

    /// Its family.
    #[must_use]
    pub fn family(self) -> Family {
        match self {
            Self::V4(_) => Family::V4,
            Self::V6(_) => Family::V6,
        }
    }

    /// The first address.
    #[must_use]
    pub fn network(self) -> IpAddr {
        match self {
            Self::V4(prefix) => prefix.network().into(),
            Self::V6(prefix) => prefix.network().into(),
        }
    }

    /// The last address.
    #[must_use]
    pub fn last(self) -> IpAddr {
        match self {
            Self::V4(prefix) => prefix.broadcast().into(),
            Self::V6(prefix) => prefix.last().into(),
        }
    }

    /// The number of leading bits.
    #[must_use]
    pub fn length(self) -> u8 {
        match self {
            Self::V4(prefix) => prefix.length(),
            Self::V6(prefix) => prefix.length(),
        }
    }

    /// The number of addresses, or the most that the type can hold.
    #[must_use]
    pub fn n_addresses(self) -> u64 {
        let bits = u32::from(self.family().bits() - self.length());
        1_u64.checked_shl(bits).unwrap_or(u64::MAX)
    }

    /// The address at `offset` from the first one, if it is inside.
    #[must_use]
    pub fn nth(self, offset: u64) -> Option<IpAddr> {
        match self {
            Self::V4(prefix) => prefix.nth(offset).map(IpAddr::V4),
            Self::V6(prefix) => prefix.nth(offset.into()).map(IpAddr::V6),
        }
    }

    /// The prefixes of `length` bits inside this one, lowest first; none when `length` is shorter than this one's.
    pub fn subnets(self, length: u8) -> impl Iterator<Item = Self> {
        let (v4, v6) = match self {
            Self::V4(prefix) => (Some(prefix), None),
            Self::V6(prefix) => (None, Some(prefix)),
        };
        let v4 = v4.into_iter().flat_map(move |it| it.subnets(length)).map(Self::V4);
        let v6 = v6.into_iter().flat_map(move |it| {
            (0..).map_while(move |index| it.nth_subnet(length, index)).map(Self::V6)
        });
        v4.chain(v6)
    }

    /// Its addresses, lowest first.
    pub fn addresses(self) -> impl Iterator<Item = IpAddr> {
        (0..self.n_addresses()).map_while(move |offset| self.nth(offset))
    }

    /// Whether `address` is inside; one of the other family never is.
    #[must_use]
    pub fn contains(self, address: impl Into<IpAddr>) -> bool {
        match (self, address.into()) {
            (Self::V4(prefix), IpAddr::V4(address)) => prefix.contains(address),
            (Self::V6(prefix), IpAddr::V6(address)) => prefix.contains(address),
            _ => false,
        }
    }

    /// Whether all of `other` is inside; one of the other family never is.
    #[must_use]
    pub fn contains_prefix(self, other: Self) -> bool {
        match (self, other) {
            (Self::V4(prefix), Self::V4(other)) => prefix.contains_prefix(other),
            (Self::V6(prefix), Self::V6(other)) => prefix.contains_prefix(other),
            _ => false,
        }
    }

    /// Whether the two share an address.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.contains_prefix(other) || other.contains_prefix(self)
    }

    /// The IPv4 prefix, if it is one.
    #[must_use]
    pub fn as_v4(self) -> Option<Prefix4> {
        match self {
            Self::V4(prefix) => Some(prefix),
            Self::V6(_) => None,
        }
    }

    /// The IPv6 prefix, if it is one.
    #[must_use]
    pub fn as_v6(self) -> Option<Prefix6> {
        match self {
            Self::V4(_) => None,
            Self::V6(prefix) => Some(prefix),
        }
    }
}

impl From<Prefix4> for Prefix {
    fn from(prefix: Prefix4) -> Self {
        Self::V4(prefix)
    }
}

impl From<Prefix6> for Prefix {
    fn from(prefix: Prefix6) -> Self {
        Self::V6(prefix)
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let given: IpNet =
            text.parse().map_err(|_| PrefixError::Syntax { text: text.to_owned() })?;
        let meant = given.trunc();
        if given != meant {
            return Err(PrefixError::HostBits { given, meant });
        }
        Ok(Self::containing(meant.network(), meant.prefix_len()))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(prefix) => prefix.fmt(f),
            Self::V6(prefix) => prefix.fmt(f),
        }
    }
}

kept_as_text!(Prefix, PrefixError);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_range_is_the_nth_80_of_a_64() {
        let pods: Prefix6 = "fd12:3456:789a::/64".parse().unwrap();
        let texts: Vec<_> =
            (0..2).map(|index| pods.nth_subnet(80, index).unwrap().to_string()).collect();
        assert_eq!(texts, ["fd12:3456:789a::/80", "fd12:3456:789a:0:1::/80"]);
        assert_eq!(pods.nth_subnet(80, 1 << 16), None);
        assert_eq!(pods.nth_subnet(48, 0), None);
        assert_eq!(pods.nth_subnet(80, u128::MAX), None);
    }

    #[test]
    fn families_do_not_contain_each_other() {
        let everything = Prefix::everything(Family::V4);
        assert!(!everything.contains(Ipv6Addr::LOCALHOST));
        assert!(!everything.overlaps(Prefix::everything(Family::V6)));
    }

    #[test]
    fn host_bits_are_refused_with_what_was_meant() {
        let error = "fd00::1/64".parse::<Prefix>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "`fd00::1/64` has host bits set; `fd00::/64` was probably meant"
        );
    }
}
