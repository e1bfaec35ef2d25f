//! How a lab's internet is joined to the machine's own network (`aksnet up --uplink`). Not here: doing so (see
//! `daemon::fabric`).
//!
//! One veth pair leads from the internet's namespace to the machine's. Whatever is not the lab's own is routed there
//! and translated twice: to the pair's address in the lab, and to the machine's where it leaves. So nothing of the
//! lab's ranges is ever seen outside, and two labs do not meet.

use std::{fmt::Write as _, net::Ipv4Addr};

use uuid::Uuid;

use super::{
    fabric::everywhere,
    names::internet_ns,
    platform::LAB_INTERNET,
    ruleset::TABLE,
    state::{Fabric, LOCAL, MAIN, RouteKey, Target, Tenancy},
};
use crate::addr::Prefix4;

/// The internet's link to the machine.
pub const OUTSIDE: &str = "outside";

/// What the machine's network namespace gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// The machine's end of the pair, `<lab>-up`.
    pub link: String,
    /// Its address.
    pub machine: Ipv4Addr,
    /// The address of the lab's end.
    pub lab: Ipv4Addr,
    /// The name of its nftables table, `<lab>-uplink`.
    pub table: String,
}

impl Uplink {
    /// That of a lab. Its addresses are one of 4096 pairs of 169.254.64.0/18: link-local ones lead nowhere else.
    #[must_use]
    pub fn of(lab: &str) -> Self {
        let hash = Uuid::new_v5(&Uuid::NAMESPACE_OID, lab.as_bytes()).as_u128() % 4096;
        let base = u32::from(Ipv4Addr::new(169, 254, 64, 0));
        let network = base + 4 * u32::try_from(hash).unwrap_or_default();
        Self {
            link: format!("{lab}-up"),
            machine: Ipv4Addr::from(network + 1),
            lab: Ipv4Addr::from(network + 2),
            table: format!("{lab}-uplink"),
        }
    }

    /// The length of the prefix that both ends are in.
    pub const LENGTH: u8 = 30;

    /// The machine's table, for flows that leave by the link `out`.
    ///
    /// The lab reaches what is behind that link and nothing of the machine itself, and nobody outside begins a flow
    /// into the lab.
    #[must_use]
    pub fn rules(&self, out: &str) -> String {
        let Self { link, lab, table, .. } = self;
        format!(
            r#"table ip {table} {{
	chain forward {{
		type filter hook forward priority filter; policy accept;
		iifname "{link}" oifname != "{out}" counter drop
		oifname "{link}" ct state != {{ established, related }} counter drop
	}}
	chain input {{
		type filter hook input priority filter; policy accept;
		iifname "{link}" counter drop
	}}
	chain leave {{
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr {lab} oifname "{out}" masquerade
	}}
}}
"#
        )
    }

    /// Changes what the internet's namespace must look like: it owns the lab's addresses and sends all others out.
    pub fn join(&self, fabric: &mut Fabric, lab: &str) {
        let Some(internet) = fabric.namespaces.get_mut(&internet_ns(lab)) else { return };
        // The pair is not the fabric's: its other end is in a namespace that is not, either.
        internet.tenancy = Tenancy::Shared;
        internet.routes.remove(&RouteKey { table: LOCAL, prefix: everywhere().into() });
        let (network, length) = LAB_INTERNET;
        let own = Prefix4::containing(network, length);
        internet.route(LOCAL, own, Target::Local("lo".to_owned()));
        internet.address(OUTSIDE, self.lab, Self::LENGTH);
        internet.sysctl(&format!("net/ipv4/conf/{OUTSIDE}/rp_filter"), "0");
        internet.route(MAIN, everywhere(), Target::via(OUTSIDE, self.machine));
        let mut text = internet.nft.take().unwrap_or_else(|| format!("table ip {TABLE} {{\n}}\n"));
        writeln!(
            text,
            r#"table ip {TABLE} {{
	chain outside-in {{
		type filter hook input priority filter; policy accept;
		iifname "{OUTSIDE}" ct state != {{ established, related }} counter drop
	}}
	chain outside-out {{
		type nat hook postrouting priority srcnat; policy accept;
		oifname "{OUTSIDE}" masquerade
	}}
}}"#
        )
        .expect("writing to a String never fails");
        internet.nft = Some(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labs_have_ends_of_their_own_that_fit_the_kernel() {
        let (a, b) = (Uplink::of("aksnet"), Uplink::of("other"));
        assert_ne!((a.machine, a.lab), (b.machine, b.lab));
        assert_eq!(u32::from(a.lab), u32::from(a.machine) + 1);
        assert!(Uplink::of("abcdefghijkl").link.len() <= 15);
        let range = Prefix4::containing(Ipv4Addr::new(169, 254, 64, 0), 18);
        assert!(range.contains(a.machine) && range.contains(b.lab));
    }
}
