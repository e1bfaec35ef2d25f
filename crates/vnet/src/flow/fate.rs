//! What is said of a flow: what it met, and where it ended. Not here: finding out (see [`super`]).

use std::net::IpAddr;

use crate::{
    model::{Access, Direction},
    name::{ArmId, Name},
    policy::{Flow, Protocol},
    routes::EffectiveRoute,
};

/// Where a flow's first packet comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The NIC of this machine; the flow's source says whether it is the machine's own or a pod's.
    Machine(ArmId),
    /// The internet.
    Internet,
    /// The platform, in this virtual network: a health probe from 168.63.129.16.
    Platform(ArmId),
}

/// One way that a flow may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// What it met, in order.
    pub steps: Vec<Step>,
    /// Where it ended.
    pub end: End,
}

/// Something that a flow's first packet meets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A network security group.
    Gate {
        /// The NIC or subnet that has it.
        at: ArmId,
        /// The group.
        group: ArmId,
        /// Which of its lists.
        direction: Direction,
        /// The rule that decided. `None`: a flow to the platform, which no rule forbids.
        rule: Option<Name>,
        /// What it said.
        access: Access,
        /// What it saw.
        flow: Flow,
    },
    /// The pods of an overlay, which the fabric routes itself, for their own cluster's machines alone.
    Overlay {
        /// The cluster.
        cluster: ArmId,
    },
    /// An effective route of this subnet was taken.
    Route {
        /// The subnet that the sender's address, or else its NIC, is in.
        subnet: ArmId,
        /// The route.
        route: EffectiveRoute,
    },
    /// A peering was crossed.
    Peering {
        /// Into this virtual network.
        to: ArmId,
    },
    /// A load balancer chose a member: for what is for its front end, or what a route leads to it.
    Balanced {
        /// The front end's address.
        frontend: IpAddr,
        /// The member's primary address.
        member: IpAddr,
        /// The flow after that: the same one with floating IP, and when a route led here.
        after: Flow,
    },
    /// Addresses were translated, on the way out or in.
    Translated {
        /// Before.
        before: Flow,
        /// After. A source port of 0 is one that cannot be foretold.
        after: Flow,
    },
    /// An appliance got it and sends it on.
    Forwarded {
        /// The machine.
        machine: ArmId,
        /// What it got.
        flow: Flow,
    },
    /// It crossed the internet.
    Internet {
        /// As it was seen there.
        flow: Flow,
    },
}

/// Where a flow ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// At a machine's NIC; what the machine does is its own.
    Delivered {
        /// The machine.
        machine: ArmId,
        /// What it sees.
        flow: Flow,
    },
    /// On the internet, seen so.
    Internet(Flow),
    /// At the public address of this cluster's API server.
    ApiServer(ArmId),
    /// At the platform's own services.
    Platform,
    /// Nowhere.
    Dropped(Reason),
}

/// Why a flow is dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The machine is not there, or not in a virtual network.
    NoSuchMachine,
    /// The source is not one of the NIC's addresses, and IP forwarding is off.
    Spoofed,
    /// The last step's gate denied it.
    Denied,
    /// The route that was taken has next hop None.
    NextHopNone,
    /// Nobody has the destination.
    NobodyThere,
    /// The platform has nothing at this port.
    NotServed,
    /// A virtual network carries no multicast and no broadcast (Azure documentation, "Virtual Network FAQ").
    ToMany,
    /// Nobody has the next hop's address, or its NIC does not forward.
    NoAppliance(IpAddr),
    /// The peering lets nothing pass that it did not come for: no transit, and no foreign sources unless forwarded
    /// traffic is allowed.
    NoTransit,
    /// The machine has no address to be seen with outside.
    NoWayOut,
    /// What the machine is seen by outside is not for this protocol: outbound rules have one, and NAT gateways, load
    /// balancers and default outbound access carry TCP and UDP alone.
    NotCarried(Protocol),
    /// From the internet come only answers, and what a front end or a public IP of a machine takes.
    Closed,
    /// From the internet, by a public address of SKU Standard, to a NIC that no security group is in front of: these are
    /// closed until one allows it (Azure documentation, "Public IP addresses": secure by default).
    NoGroup,
    /// The next hop is a front end, and none of its rules is for this flow.
    NoRule(IpAddr),
    /// The front end has no member that answers its probe.
    NoHealthyMember,
    /// It arrives at a machine with the machine's own address as its source, which no machine takes: a member of a
    /// load balancer that was given its own flow (Azure documentation, "Troubleshoot Azure Load Balancer").
    OwnAddress {
        /// The machine.
        machine: ArmId,
        /// As it arrives.
        flow: Flow,
    },
    /// It went round and round.
    Loop,
}
