//! The resource types that a region has, as [`crate::name::ArmId::kind`] gives them.

/// A virtual network.
pub const VNET: &str = "Microsoft.Network/virtualNetworks";
/// A subnet.
pub const SUBNET: &str = "Microsoft.Network/virtualNetworks/subnets";
/// A route table.
pub const ROUTE_TABLE: &str = "Microsoft.Network/routeTables";
/// A route.
pub const ROUTE: &str = "Microsoft.Network/routeTables/routes";
/// One side of a virtual network peering.
pub const PEERING: &str = "Microsoft.Network/virtualNetworks/virtualNetworkPeerings";
/// A network security group.
pub const SECURITY_GROUP: &str = "Microsoft.Network/networkSecurityGroups";
/// A security rule.
pub const SECURITY_RULE: &str = "Microsoft.Network/networkSecurityGroups/securityRules";
/// An application security group.
pub const APPLICATION_GROUP: &str = "Microsoft.Network/applicationSecurityGroups";
/// A NAT gateway.
pub const NAT_GATEWAY: &str = "Microsoft.Network/natGateways";
/// A public IP prefix.
pub const PUBLIC_IP_PREFIX: &str = "Microsoft.Network/publicIPPrefixes";
/// A public IP.
pub const PUBLIC_IP: &str = "Microsoft.Network/publicIPAddresses";
/// A NIC of a virtual machine.
pub const NIC: &str = "Microsoft.Network/networkInterfaces";
/// A load balancer.
pub const LOAD_BALANCER: &str = "Microsoft.Network/loadBalancers";
/// A virtual machine.
pub const VM: &str = "Microsoft.Compute/virtualMachines";
/// A node pool's scale set, which is a part of ids only.
pub const SCALE_SET: &str = "Microsoft.Compute/virtualMachineScaleSets";
/// A managed cluster.
pub const CLUSTER: &str = "Microsoft.ContainerService/managedClusters";
/// A node pool.
pub const POOL: &str = "Microsoft.ContainerService/managedClusters/agentPools";

/// The service that a pod subnet is delegated to: the same text as [`CLUSTER`].
pub const AKS_SERVICE: &str = CLUSTER;
