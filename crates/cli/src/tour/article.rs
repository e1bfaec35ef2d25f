//! The article's commands, in its order, with what it prints. Not here: how they are run.
//!
//! "AKS Networking considerations", blog.teknews.cloud, 2 November 2023: commands verbatim, but for the subscription in
//! ids, which is the lab's.

use serde_json::{Value, json};

/// The subscription of the article's later commands, and the lab's own.
pub(super) const SUBSCRIPTION: &str = "16e85b36-5c9d-48cc-a45d-c672a4393c36";
/// How ids begin where the article hid its subscription: a slash was lost with it.
const REDACTED: &str = "/subscriptions/00000000-0000-0000-0000-000000000000resourceGroups";

/// One thing that the tour does.
pub(super) enum Step {
    /// A heading of the article.
    Heading(&'static str),
    /// What to know before the next command.
    Say(&'static str),
    /// The article's arithmetic, done by the engine that also refuses subnets that are too small.
    SurgeFormula,
    /// A command.
    Run(Command),
    /// A Kubernetes manifest is applied with kubectl.
    Apply {
        /// Its file name in the article's text.
        file: &'static str,
        /// Its text.
        manifest: &'static str,
        /// The cluster.
        cluster: &'static str,
    },
    /// A page is fetched from a VM that the tour makes in a subnet.
    Curl {
        /// The VM's name.
        vm: &'static str,
        /// Its virtual network and subnet.
        vnet: &'static str,
        subnet: &'static str,
        /// The Service whose address is asked.
        cluster: &'static str,
        namespace: &'static str,
        service: &'static str,
        /// What the page must contain.
        contains: &'static str,
    },
}

/// A command of the article's and what must come of it.
pub(super) struct Command {
    /// As it stands in the article.
    pub(super) line: &'static str,
    /// What is run, when it differs; and why.
    pub(super) repaired: Option<(String, &'static str)>,
    /// A command whose success means that this one has been done before.
    pub(super) unless: Option<&'static str>,
    /// The cluster whose kubeconfig it uses.
    pub(super) cluster: Option<&'static str>,
    /// What must come of it.
    pub(super) expect: Expect,
    /// Which parts of a long answer are shown.
    pub(super) shown: &'static [&'static str],
}

/// What must come of a command.
pub(super) enum Expect {
    /// It is refused, and the text says this.
    Refused(&'static str),
    /// The answer has everything that the article prints, but for ids, etags and GUIDs.
    Prints(Value),
    /// The answer has these values at these JSON pointers.
    Has(Vec<(&'static str, Value)>),
    /// The text matches all of these, in the end: it is asked again until then.
    Eventually(&'static [&'static str]),
    /// The text has none of its own in the article: success is enough.
    Succeeds,
}

fn run(line: &'static str, expect: Expect) -> Step {
    Step::Run(Command { line, repaired: None, unless: None, cluster: None, expect, shown: &[] })
}

fn with(step: Step, change: impl FnOnce(&mut Command)) -> Step {
    match step {
        Step::Run(mut command) => {
            change(&mut command);
            Step::Run(command)
        }
        other => other,
    }
}

fn unless(step: Step, show: &'static str) -> Step {
    with(step, |command| command.unless = Some(show))
}

fn on(cluster: &'static str, step: Step) -> Step {
    with(step, |command| command.cluster = Some(cluster))
}

fn vnet(name: &str, prefix: &str) -> Expect {
    Expect::Prints(json!({ "newVNet": {
        "addressSpace": { "addressPrefixes": [prefix] },
        "enableDdosProtection": false,
        "etag": "", "id": "", "location": "eastus", "name": name,
        "provisioningState": "Succeeded", "resourceGroup": "aksntwdemo", "resourceGuid": "",
        "subnets": [], "type": "Microsoft.Network/virtualNetworks", "virtualNetworkPeerings": [] } }))
}

fn subnet(name: &str, prefix: &str) -> Expect {
    Expect::Prints(json!({
        "addressPrefix": prefix, "delegations": [], "etag": "", "id": "", "name": name,
        "privateEndpointNetworkPolicies": "Disabled", "privateLinkServiceNetworkPolicies": "Enabled",
        "provisioningState": "Succeeded", "resourceGroup": "aksntwdemo",
        "type": "Microsoft.Network/virtualNetworks/subnets" }))
}

const CLUSTER: &[&str] = &[
    "/name",
    "/provisioningState",
    "/kubernetesVersion",
    "/nodeResourceGroup",
    "/networkProfile/networkPlugin",
    "/networkProfile/networkPluginMode",
    "/networkProfile/podCidr",
    "/networkProfile/serviceCidr",
    "/agentPoolProfiles/0/name",
    "/agentPoolProfiles/0/count",
    "/agentPoolProfiles/0/maxPods",
];

fn cluster(plugin: &str, count: u32, pod_cidr: Option<&str>, service_cidr: &str) -> Expect {
    Expect::Has(vec![
        ("/provisioningState", json!("Succeeded")),
        ("/networkProfile/networkPlugin", json!(plugin)),
        ("/networkProfile/networkPluginMode", Value::Null),
        ("/networkProfile/podCidr", json!(pod_cidr)),
        ("/networkProfile/serviceCidr", json!(service_cidr)),
        ("/agentPoolProfiles/0/count", json!(count)),
        ("/agentPoolProfiles/0/provisioningState", json!("Succeeded")),
    ])
}

const FIRST_CREATE: &str = concat!(
    "az aks create -n aks-ntwdemo10 -g aksntwdemo ",
    "--vnet-subnet-id /subscriptions/00000000-0000-0000-0000-000000000000resourceGroups/aksntwdemo",
    "/providers/Microsoft.Network/virtualNetworks/aks-vnet2/subnets/subnet-aks ",
    "--pod-subnet-id /subscriptions/00000000-0000-0000-0000-000000000000resourceGroups/aksntwdemo",
    "/providers/Microsoft.Network/virtualNetworks/aks-vnet2/subnets/subnet-pods ",
    "--network-plugin azure --service-cidr 10.1.0.0/16 --dns-service-ip 10.1.0.10"
);

/// The manifests as the article prints them.
pub(super) const DEPLOYMENT: &str = include_str!("testdeploy.yaml");
pub(super) const SERVICE: &str = include_str!("testservice.yaml");

/// The whole tour.
#[expect(clippy::too_many_lines, reason = "it is a list, read from top to bottom")]
pub(super) fn steps() -> Vec<Step> {
    let mended =
        FIRST_CREATE.replace(REDACTED, &format!("/subscriptions/{SUBSCRIPTION}/resourceGroups"));
    vec![
        Step::Say("The article presupposes a resource group."),
        run(
            "az group create -n aksntwdemo -l eastus",
            Expect::Has(vec![
                ("/location", json!("eastus")),
                ("/properties/provisioningState", json!("Succeeded")),
            ]),
        ),
        Step::Heading("Azure CNI: how many addresses?"),
        Step::SurgeFormula,
        Step::Heading("Azure CNI with dynamic allocation: pods in a delegated subnet"),
        unless(
            run(
                "az network vnet create -n aks-vnet2 -g aksntwdemo",
                vnet("aks-vnet2", "10.0.0.0/16"),
            ),
            "az network vnet show -n aks-vnet2 -g aksntwdemo",
        ),
        unless(
            run(
                "az network vnet subnet create -n subnet-aks -g aksntwdemo --address-prefixes 10.0.0.0/24 --vnet-name aks-vnet2",
                subnet("subnet-aks", "10.0.0.0/24"),
            ),
            "az network vnet subnet show -n subnet-aks -g aksntwdemo --vnet-name aks-vnet2",
        ),
        unless(
            run(
                "az network vnet subnet create -n subnet-pods -g aksntwdemo --address-prefixes 10.0.2.0/23 --vnet-name aks-vnet2",
                subnet("subnet-pods", "10.0.2.0/23"),
            ),
            "az network vnet subnet show -n subnet-pods -g aksntwdemo --vnet-name aks-vnet2",
        ),
        run(FIRST_CREATE, Expect::Refused("not a valid Azure resource ID")),
        unless(
            with(run(FIRST_CREATE, cluster("azure", 3, None, "10.1.0.0/16")), |command| {
                command.repaired = Some((
                    mended,
                    "the article lost a slash where it hid its subscription: …0000resourceGroups",
                ));
                command.shown = CLUSTER;
            }),
            "az aks show -n aks-ntwdemo10 -g aksntwdemo",
        ),
        run(
            "az network vnet subnet show --vnet-name aks-vnet2 --name subnet-pods -g aksntwdemo | jq .delegations",
            Expect::Prints(json!([{
                "actions": ["Microsoft.Network/virtualNetworks/subnets/join/action"],
                "etag": "", "id": "", "name": "aks-delegation", "provisioningState": "Succeeded",
                "resourceGroup": "aksntwdemo", "serviceName": "Microsoft.ContainerService/managedClusters",
                "type": "Microsoft.Network/virtualNetworks/subnets/delegations" }])),
        ),
        Step::Say("What the pods' nodes hold of it: whole batches of 16."),
        run(
            "az aks get-credentials -n aks-ntwdemo10 -g aksntwdemo --overwrite-existing",
            Expect::Succeeds,
        ),
        on(
            "aks-ntwdemo10",
            run(
                "k get nodenetworkconfigs -n kube-system -o wide",
                Expect::Eventually(&["aks-nodepool1-", "16", "10.0.2.0/23"]),
            ),
        ),
        Step::Heading("Bring your own CNI"),
        unless(
            with(
                run(
                    "az aks create -n aks-ntwdemo8 -g aksntwdemo -l eastus --enable-managed-identity --node-count 1 --network-plugin none",
                    cluster("none", 1, None, "10.0.0.0/16"),
                ),
                |command| command.shown = CLUSTER,
            ),
            "az aks show -n aks-ntwdemo8 -g aksntwdemo",
        ),
        run(
            "az aks get-credentials -n aks-ntwdemo8 -g aksntwdemo --overwrite-existing",
            Expect::Succeeds,
        ),
        Step::Say("NotReady is right: nothing gives pods a network yet."),
        on("aks-ntwdemo8", run("k get no", Expect::Eventually(&["aks-nodepool1-", "NotReady"]))),
        on(
            "aks-ntwdemo8",
            run(
                "k get no -o jsonpath='{.items[*].status.conditions[?(@.type==\"Ready\")].message}'",
                Expect::Eventually(&["NetworkPluginNotReady", "cni plugin not initialized"]),
            ),
        ),
        Step::Heading("Node pools in their own subnets"),
        unless(
            run(
                "az network vnet create -n aks-vnet3 -g aksntwdemo --address-prefixes 172.20.0.0/24 ",
                vnet("aks-vnet3", "172.20.0.0/24"),
            ),
            "az network vnet show -n aks-vnet3 -g aksntwdemo",
        ),
        unless(
            run(
                "az network vnet subnet create -n aks-subnet -g aksntwdemo --vnet-name aks-vnet3 --address-prefixes 172.20.0.0/26",
                subnet("aks-subnet", "172.20.0.0/26"),
            ),
            "az network vnet subnet show -n aks-subnet -g aksntwdemo --vnet-name aks-vnet3",
        ),
        unless(
            run(
                "az network vnet subnet create -n np-subnet -g aksntwdemo --vnet-name aks-vnet3 --address-prefixes 172.20.0.64/26",
                subnet("np-subnet", "172.20.0.64/26"),
            ),
            "az network vnet subnet show -n np-subnet -g aksntwdemo --vnet-name aks-vnet3",
        ),
        unless(
            with(
                run(
                    "az aks create -n aks-ntwdemo12 -g aksntwdemo --vnet-subnet-id /subscriptions/16e85b36-5c9d-48cc-a45d-c672a4393c36/resourceGroups/aksntwdemo/providers/Microsoft.Network/virtualNetworks/aks-vnet3/subnets/aks-subnet --network-plugin kubenet",
                    cluster("kubenet", 3, Some("10.244.0.0/16"), "10.0.0.0/16"),
                ),
                |command| command.shown = CLUSTER,
            ),
            "az aks show -n aks-ntwdemo12 -g aksntwdemo",
        ),
        unless(
            with(
                run(
                    "az aks nodepool add --cluster-name aks-ntwdemo12 -g aksntwdemo -n aksnp02 --vnet-subnet-id /subscriptions/16e85b36-5c9d-48cc-a45d-c672a4393c36/resourceGroups/aksntwdemo/providers/Microsoft.Network/virtualNetworks/aks-vnet3/subnets/np-subnet --node-count 1",
                    Expect::Has(vec![
                        ("/name", json!("aksnp02")),
                        ("/count", json!(1)),
                        ("/mode", json!("User")),
                        ("/provisioningState", json!("Succeeded")),
                    ]),
                ),
                |command| {
                    command.shown =
                        &["/name", "/mode", "/count", "/vnetSubnetId", "/provisioningState"];
                },
            ),
            "az aks nodepool show --cluster-name aks-ntwdemo12 -g aksntwdemo -n aksnp02",
        ),
        Step::Say("The devices in each of the two subnets."),
        run(
            "az network vnet subnet show --vnet-name aks-vnet3 -n aks-subnet -g aksntwdemo --query \"ipConfigurations[].id\" -o tsv",
            Expect::Eventually(&["aks-nodepool1-"]),
        ),
        run(
            "az network vnet subnet show --vnet-name aks-vnet3 -n np-subnet -g aksntwdemo --query \"ipConfigurations[].id\" -o tsv",
            Expect::Eventually(&["aks-aksnp02-"]),
        ),
        Step::Say("Kubenet's routes: a /24 of the pod CIDR per node, by way of that node."),
        run(
            "az network route-table list -g MC_aksntwdemo_aks-ntwdemo12_eastus --query \"[].routes[].{addressPrefix:addressPrefix,nextHopType:nextHopType,nextHopIpAddress:nextHopIpAddress}\" -o table",
            Expect::Eventually(&["10.244.0.0/24", "VirtualAppliance", "10.244.3.0/24"]),
        ),
        Step::Heading("An internal load balancer in a subnet of its own"),
        run(
            "az aks get-credentials -n aks-ntwdemo12 -g aksntwdemo --overwrite-existing",
            Expect::Succeeds,
        ),
        Step::Apply { file: "testdeploy.yaml", manifest: DEPLOYMENT, cluster: "aks-ntwdemo12" },
        unless(
            run(
                "az network vnet subnet create -n ilb-subnet -g aksntwdemo --vnet-name aks-vnet3 --address-prefixes 172.20.0.128/26",
                subnet("ilb-subnet", "172.20.0.128/26"),
            ),
            "az network vnet subnet show -n ilb-subnet -g aksntwdemo --vnet-name aks-vnet3",
        ),
        Step::Apply { file: "testservice.yaml", manifest: SERVICE, cluster: "aks-ntwdemo12" },
        on(
            "aks-ntwdemo12",
            run("k get deploy -n testns", Expect::Eventually(&["testdeploy", "3/3"])),
        ),
        on(
            "aks-ntwdemo12",
            run(
                "k get svc -n testns ",
                Expect::Eventually(&["testdeploy", "LoadBalancer", "172.20.0.132"]),
            ),
        ),
        Step::Say("And from a machine in another subnet of the same network:"),
        Step::Curl {
            vm: "jump",
            vnet: "aks-vnet3",
            subnet: "np-subnet",
            cluster: "aks-ntwdemo12",
            namespace: "testns",
            service: "testdeploy",
            contains: "Welcome to nginx!",
        },
    ]
}
