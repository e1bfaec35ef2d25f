//! States and steps as text, for logs, explanations and golden files: close to what `ip` prints.

use std::{fmt, net::Ipv4Addr};

use crate::addr::Family;

use super::{
    plan::{Action, Step},
    ruleset::digest,
    state::{Address, Fabric, LOCAL, MAIN, NamespaceState, Rule, Target, Then},
};

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(link) => write!(f, "dev {link}"),
            Self::Via(link, gateway) => write!(f, "via {gateway} dev {link}"),
            Self::Local(link) => write!(f, "local dev {link}"),
            Self::Blackhole => f.write_str("blackhole"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Throw => f.write_str("throw"),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.priority)?;
        if self.family == Family::V6 {
            f.write_str(" ipv6")?;
        }
        if let Some(mark) = self.mark {
            write!(f, " mark {}", Ipv4Addr::from(mark))?;
        }
        if let Some(from) = self.from {
            write!(f, " from {from}")?;
        }
        if let Some(iif) = &self.iif {
            write!(f, " iif {iif}")?;
        }
        match self.then {
            Then::Table(table) => write!(f, " table {}", table_name(table)),
            Then::Goto(priority) => write!(f, " goto {priority}"),
        }
    }
}

/// Tables other than the main one are numbered by an address; see [`super::fabric`].
fn table_name(table: u32) -> String {
    match table {
        LOCAL => "local".to_owned(),
        MAIN => "main".to_owned(),
        table => Ipv4Addr::from(table).to_string(),
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.namespace)?;
        match &self.action {
            Action::DeleteRule(rule) => write!(f, "delete rule {rule}"),
            Action::DeleteRoute(key, target) => {
                write!(f, "delete route {} {} {target}", table_name(key.table), key.prefix)
            }
            Action::DeleteNeighbour(link, address, _) => {
                write!(f, "delete neighbour {address} dev {link}")
            }
            Action::DeleteAddress(Address { link, address, length }) => {
                write!(f, "delete address {address}/{length} dev {link}")
            }
            Action::DeleteLink(link) => write!(f, "delete link {link}"),
            Action::MakePair { name, link, .. } => {
                write!(f, "make pair {name} with {} {}", link.peer.namespace, link.peer.link)
            }
            Action::SetLink { name, shape: Some((mac, mtu)) } => {
                write!(f, "set link {name} up {mac} mtu {mtu}")
            }
            Action::SetLink { name, shape: None } => write!(f, "set link {name} up"),
            Action::SetSysctl { name, value } => write!(f, "set {name} = {value}"),
            Action::LoadRuleset(text) => write!(f, "load rule set {}", digest(text)),
            Action::ChangeRuleset { digest, .. } => write!(f, "change rule set to {digest}"),
            Action::DropRuleset => f.write_str("drop rule set"),
            Action::AddAddress(Address { link, address, length }) => {
                write!(f, "add address {address}/{length} dev {link}")
            }
            Action::SetNeighbour(link, address, mac) => {
                write!(f, "set neighbour {address} {mac} dev {link}")
            }
            Action::SetRoute(key, target) => {
                write!(f, "set route {} {} {target}", table_name(key.table), key.prefix)
            }
            Action::AddRule(rule) => write!(f, "add rule {rule}"),
        }
    }
}

impl fmt::Display for NamespaceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, link) in &self.links {
            let peer = &link.peer;
            writeln!(
                f,
                "link {name} {} mtu {} to {} {}",
                link.mac, link.mtu, peer.namespace, peer.link
            )?;
        }
        for Address { link, address, length } in &self.addresses {
            writeln!(f, "address {address}/{length} dev {link}")?;
        }
        for ((link, address), mac) in &self.neighbours {
            writeln!(f, "neighbour {address} {mac} dev {link}")?;
        }
        for (key, target) in &self.routes {
            writeln!(f, "route {} {} {target}", table_name(key.table), key.prefix)?;
        }
        for rule in &self.rules {
            writeln!(f, "rule {rule}")?;
        }
        for (name, value) in &self.sysctls {
            writeln!(f, "{name} = {value}")?;
        }
        self.nft.as_ref().map_or(Ok(()), |text| f.write_str(text))
    }
}

impl fmt::Display for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, state) in &self.namespaces {
            writeln!(f, "== {name}\n{state}")?;
        }
        Ok(())
    }
}
