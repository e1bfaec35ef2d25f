//! What of a cluster is refused, and what is acted on or read-only. All the rest is kept.

use crate::refuse::{Refusal, When, refusal};

/// Properties that are acted on or read-only.
pub(super) const KNOWN: [&str; 42] = [
    "/identity",
    "/properties/powerState",
    "/properties/kubernetesVersion",
    "/properties/currentKubernetesVersion",
    "/properties/dnsPrefix",
    "/properties/fqdn",
    "/properties/azurePortalFQDN",
    "/properties/privateFQDN",
    "/properties/fqdnSubdomain",
    "/properties/agentPoolProfiles",
    "/properties/nodeResourceGroup",
    "/properties/maxAgentPools",
    "/properties/resourceUID",
    "/properties/identityProfile",
    "/properties/servicePrincipalProfile",
    "/properties/windowsProfile",
    "/properties/status",
    "/properties/networkProfile/networkPlugin",
    "/properties/networkProfile/networkPluginMode",
    "/properties/networkProfile/networkDataplane",
    "/properties/networkProfile/ebpfDataplane",
    "/properties/networkProfile/networkPolicy",
    "/properties/networkProfile/advancedNetworking/enabled",
    "/properties/networkProfile/advancedNetworking/observability/enabled",
    "/properties/networkProfile/advancedNetworking/security/enabled",
    "/properties/networkProfile/advancedNetworking/security/advancedNetworkPolicies",
    "/properties/networkProfile/podCidr",
    "/properties/networkProfile/podCidrs",
    "/properties/networkProfile/serviceCidr",
    "/properties/networkProfile/serviceCidrs",
    "/properties/networkProfile/dnsServiceIP",
    "/properties/networkProfile/outboundType",
    "/properties/networkProfile/ipFamilies",
    "/properties/networkProfile/loadBalancerProfile/managedOutboundIPs",
    "/properties/networkProfile/loadBalancerProfile/effectiveOutboundIPs",
    "/properties/networkProfile/loadBalancerProfile/outboundIPs",
    "/properties/networkProfile/loadBalancerProfile/outboundIPPrefixes",
    "/properties/networkProfile/loadBalancerProfile/allocatedOutboundPorts",
    "/properties/networkProfile/loadBalancerProfile/idleTimeoutInMinutes",
    "/properties/networkProfile/natGatewayProfile/managedOutboundIPProfile",
    "/properties/networkProfile/natGatewayProfile/effectiveOutboundIPs",
    "/properties/networkProfile/natGatewayProfile/idleTimeoutInMinutes",
];

/// Features that this lab doesn't have. A firewall or an access rule that would not be enforced is among them.
pub(super) const REFUSED: [Refusal; 30] = [
    refusal("/sku/name", When::Is(&["Automatic"]), "AKS Automatic"),
    refusal("/identity/type", When::Is(&["UserAssigned"]), "user-assigned identities"),
    refusal("/identity/userAssignedIdentities", When::Given, "user-assigned identities"),
    refusal("/extendedLocation", When::Given, "edge zones"),
    refusal(
        "/properties/networkProfile/loadBalancerSku",
        When::IsNot(&["", "standard"]),
        "load balancers of SKU Basic",
    )
    .code("InvalidLoadBalancerSku"),
    refusal(
        "/properties/networkProfile/natGatewayProfile/managedOutboundIPProfile/countIPv6",
        When::NotNumber(0),
        "IPv6 and dual stack",
    )
    .code("IPv6NotSupported"),
    refusal(
        "/properties/networkProfile/natGatewayProfile/sku",
        When::IsNot(&["", "Standard"]),
        "managed NAT gateways of another SKU than Standard",
    )
    .code("UnsupportedOutboundType"),
    refusal(
        "/properties/networkProfile/kubeProxyConfig/ipvsConfig",
        When::Given,
        "kube-proxy with IPVS",
    ),
    refusal(
        "/properties/networkProfile/natGatewayProfile/outboundIPs",
        When::Given,
        "a managed NAT gateway with public IPs of one's own",
    ),
    refusal(
        "/properties/networkProfile/natGatewayProfile/outboundIPPrefixes",
        When::Given,
        "a managed NAT gateway with public IP prefixes of one's own",
    ),
    refusal(
        "/properties/networkProfile/staticEgressGatewayProfile/enabled",
        When::True,
        "static egress gateways",
    ),
    refusal(
        "/properties/networkProfile/advancedNetworking/security/transitEncryption/type",
        When::IsNot(&["", "None"]),
        "encryption of what pods send from node to node",
    ),
    refusal(
        "/properties/networkProfile/advancedNetworking/performance/accelerationMode",
        When::IsNot(&["", "None"]),
        "a choice of how Cilium routes on a node",
    ),
    refusal(
        "/properties/networkProfile/kubeProxyConfig/enabled",
        When::False,
        "clusters without kube-proxy",
    ),
    refusal(
        "/properties/apiServerAccessProfile/enablePrivateCluster",
        When::True,
        "private clusters",
    ),
    refusal(
        "/properties/apiServerAccessProfile/enableVnetIntegration",
        When::True,
        "API server VNet integration",
    ),
    refusal(
        "/properties/apiServerAccessProfile/authorizedIPRanges",
        When::Given,
        "authorized IP ranges of the API server",
    ),
    refusal("/properties/addonProfiles/*/enabled", When::True, "add-ons"),
    refusal("/properties/aadProfile", When::Given, "Microsoft Entra ID in clusters"),
    refusal("/properties/windowsProfile", When::Given, "Windows"),
    refusal("/properties/httpProxyConfig", When::Given, "HTTP proxies"),
    refusal(
        "/properties/nodeProvisioningProfile/mode",
        When::Is(&["Auto"]),
        "node auto-provisioning",
    ),
    refusal("/properties/serviceMeshProfile/mode", When::Is(&["Istio"]), "the Istio add-on"),
    refusal("/properties/ingressProfile/webAppRouting/enabled", When::True, "application routing"),
    refusal(
        "/properties/workloadAutoScalerProfile/*/enabled",
        When::True,
        "KEDA and the vertical pod autoscaler",
    ),
    refusal("/properties/azureMonitorProfile/*/enabled", When::True, "Azure Monitor"),
    refusal("/properties/securityProfile/*/enabled", When::True, "AKS' security add-ons"),
    refusal("/properties/disableLocalAccounts", When::True, "clusters without local accounts"),
    refusal("/properties/enableRBAC", When::False, "clusters without RBAC"),
    refusal(
        "/properties/powerState/code",
        When::Is(&["Stopped"]),
        "stopping and starting clusters",
    ),
];
