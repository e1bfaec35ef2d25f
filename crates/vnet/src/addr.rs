//! Addresses and prefixes. Not here: who holds them (see [`crate::model::Subnet`]).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// What is written down as the text that it is shown as, and read back by parsing that.
macro_rules! kept_as_text {
    ($type:ty, $error:ty) => {
        impl TryFrom<String> for $type {
            type Error = $error;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    };
}

mod either;
mod set;

pub use self::{
    either::{Family, Prefix, Prefix6, PrefixError},
    set::AddressSet,
};

/// An IPv4 prefix in CIDR notation, without host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix4(Ipv4Net);

/// Why a text is not a [`Prefix4`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Prefix4Error {
    /// Not CIDR notation at all.
    #[error("`{text}` is not an IPv4 prefix in CIDR notation, such as 10.0.0.0/24")]
    Syntax {
        /// What was given.
        text: String,
    },
    /// Host bits are set, so it is unclear which network was meant.
    #[error("`{given}` has host bits set; `{meant}` was probably meant")]
    HostBits {
        /// What was given.
        given: Ipv4Net,
        /// The network that contains it.
        meant: Prefix4,
    },
}

impl Prefix4 {
    /// The prefix of `length` bits (0 to 32) that contains `address`.
    ///
    /// # Panics
    /// When `length` is over 32; lengths in code are literals or come from other prefixes.
    #[must_use]
    pub fn containing(address: Ipv4Addr, length: u8) -> Self {
        Self(Ipv4Net::new(address, length).expect("a prefix length is at most 32").trunc())
    }

    /// The single address as a `/32`.
    #[must_use]
    pub fn host(address: Ipv4Addr) -> Self {
        Self::containing(address, 32)
    }

    /// The first address.
    #[must_use]
    pub fn network(self) -> Ipv4Addr {
        self.0.network()
    }

    /// The last address.
    #[must_use]
    pub fn broadcast(self) -> Ipv4Addr {
        self.0.broadcast()
    }

    /// The number of leading bits, 0 to 32.
    #[must_use]
    pub fn length(self) -> u8 {
        self.0.prefix_len()
    }

    /// The number of addresses, from 1 (`/32`) to 2³² (`/0`).
    #[must_use]
    pub fn n_addresses(self) -> u64 {
        1 << (32 - u32::from(self.length()))
    }

    /// Whether `address` is inside; no IPv6 address is.
    #[must_use]
    pub fn contains(self, address: impl Into<IpAddr>) -> bool {
        match address.into() {
            IpAddr::V4(address) => self.0.contains(&address),
            IpAddr::V6(_) => false,
        }
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

    /// The address at `offset` from the network address, if it is inside.
    #[must_use]
    pub fn nth(self, offset: u64) -> Option<Ipv4Addr> {
        if offset >= self.n_addresses() {
            return None;
        }
        let offset = u32::try_from(offset).ok()?;
        Some(Ipv4Addr::from(u32::from(self.network()) + offset))
    }

    /// The prefixes of `length` bits inside this one, lowest first; none when `length` is shorter than this one's.
    pub fn subnets(self, length: u8) -> impl Iterator<Item = Self> {
        self.0.subnets(length).into_iter().flatten().map(Self)
    }
}

impl FromStr for Prefix4 {
    type Err = Prefix4Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let given: Ipv4Net =
            text.parse().map_err(|_| Prefix4Error::Syntax { text: text.to_owned() })?;
        let meant = Self(given.trunc());
        if given != meant.0 {
            return Err(Prefix4Error::HostBits { given, meant });
        }
        Ok(meant)
    }
}

impl fmt::Display for Prefix4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

kept_as_text!(Prefix4, Prefix4Error);

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

/// A text that is not an Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an Ethernet address, such as 00:0d:3a:12:34:56")]
pub struct MacError {
    /// What was given.
    pub text: String,
}

impl Mac {
    /// The one address that the fabric answers every ARP request with
    /// (Azure/azure-container-networking, `network/`: the constant of tunnel mode).
    pub const FABRIC: Self = Self([0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc]);
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|byte| write!(f, ":{byte:02x}"))
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || MacError { text: text.to_owned() };
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(wrong)?;
            if part.len() != 2 {
                return Err(wrong());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Self(bytes))
    }
}

kept_as_text!(Mac, MacError);
