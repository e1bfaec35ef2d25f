//! What the agent tells plugins: what an attachment has, and why it has none. Not here: what is done (see
//! [`super::agent`]).

use cni::{
    spec::{Code, Failure},
    talk::{Added, Address, Interface, Route},
};
use linux::pod::PodError;
use vnet::{
    addr::{Family, Prefix},
    pods::{pool::Exhausted, wiring::Wiring},
};

use super::{agent::Node, chain, ledger::LedgerError};

pub(super) fn added(interface: &str, wiring: &Wiring) -> Added {
    let end = |name: &str, mac: vnet::addr::Mac, in_container| Interface {
        name: name.to_owned(),
        mac: mac.to_string(),
        mtu: wiring.mtu,
        in_container,
    };
    Added {
        interfaces: vec![
            end(&wiring.host_link, wiring.host_mac, false),
            end(interface, wiring.pod_mac, true),
        ],
        addresses: addresses_of(wiring, 1),
        routes: wiring
            .legs()
            .map(|leg| Route {
                destination: Prefix::everything(Family::of(leg.address)).to_string(),
                gateway: Some(leg.gateway),
            })
            .collect(),
    }
}

/// Without routes, as azure-ipam: through which gateway is the other plugin's business.
pub(super) fn reserved(wiring: &Wiring) -> Added {
    Added { interfaces: Vec::new(), addresses: addresses_of(wiring, 0), routes: Vec::new() }
}

fn addresses_of(wiring: &Wiring, interface: usize) -> Vec<Address> {
    let addresses = wiring.legs().map(|leg| Address {
        interface,
        address: format!("{}/{}", leg.address, leg.length),
        gateway: leg.gateway,
    });
    addresses.collect()
}

/// In CNS's words (Azure/azure-container-networking, `cns/restserver/ipam.go`), which people search for.
pub(super) fn not_enough(node: &Node, why: &Exhausted) -> Failure {
    let message = match &node.origin {
        Some((subnet, status)) => format!(
            "not enough IPs available of type IPv4 for {subnet}, waiting on Azure CNS to allocate more with NC Status: {status}"
        ),
        None => "not enough IPs available, waiting on Azure CNS to allocate more".to_owned(),
    };
    let full = node.full.as_ref().map(|text| format!("{text} ")).unwrap_or_default();
    Failure::new(Code::TryAgain, &message)
        .details(format!("{full}{why}; CNS return code 32, FailedToAllocateIPConfig"))
}

pub(super) fn not_wired(error: &PodError) -> Failure {
    let code = match error {
        PodError::NotNamespace { .. } | PodError::OwnNamespace { .. } => Code::Environment,
        PodError::InterfaceExists { .. } | PodError::Linux(_) => Code::Wiring,
    };
    Failure::new(code, "the pod cannot be connected").details(chain(error))
}

pub(super) fn not_written(error: &LedgerError) -> Failure {
    Failure::new(Code::Io, "the lease cannot be written down").details(chain(error))
}
