//! `aksnet vm`: a machine in a subnet, made as any client of Azure Resource Manager makes one.

use clap::Subcommand;
use serde_json::json;
use vnet::name::ArmId;

use crate::{
    arm_client::ArmClient,
    control::{Answer, Ask, ask},
    lab::{Config, Lab},
    output::{self, Format, data},
};

/// The lab's own subscription.
const SUBSCRIPTION: &str = "16e85b36-5c9d-48cc-a45d-c672a4393c36";

#[derive(Debug, Subcommand)]
pub(crate) enum Vm {
    /// Make a machine: a network namespace with a NIC that the local Azure knows
    Create {
        /// Its name
        vm: String,
        /// The resource group
        #[arg(long, short = 'g')]
        resource_group: String,
        /// The virtual network, in the same group
        #[arg(long)]
        vnet: String,
        /// The subnet
        #[arg(long)]
        subnet: String,
        /// Its private address; the lowest free one unless given
        #[arg(long)]
        private_ip_address: Option<std::net::Ipv4Addr>,
        /// Let it forward packets that are not its own, as an appliance does
        #[arg(long)]
        ip_forwarding: bool,
    },
    /// List the machines
    List {
        /// The form of the answer
        #[arg(long, short, value_enum, default_value = "table")]
        output: Format,
    },
    /// Remove a machine and its NIC
    Delete {
        /// Its name
        vm: String,
        /// The resource group
        #[arg(long, short = 'g')]
        resource_group: String,
    },
}

/// Carries a command out.
pub(crate) fn run(lab: &Lab, config: &Config, command: &Vm) -> anyhow::Result<()> {
    match command {
        Vm::Create { vm, resource_group, vnet, subnet, private_ip_address, ip_forwarding } => {
            let client = ArmClient::new(lab, config)?;
            let group = ArmId::group(SUBSCRIPTION, resource_group);
            let location = client.get(group.as_str())?["location"].clone();
            let subnet =
                group.sibling("Microsoft.Network/virtualNetworks", vnet).child("subnets", subnet);
            let mut ip = json!({ "subnet": { "id": subnet.as_str() }, "primary": true,
                "privateIPAddressVersion": "IPv4", "privateIPAllocationMethod": "Dynamic" });
            if let Some(address) = private_ip_address {
                ip["privateIPAllocationMethod"] = json!("Static");
                ip["privateIPAddress"] = json!(address.to_string());
            }
            let nic = nic_id(&group, vm);
            let made = client.put(
                nic.as_str(),
                &json!({ "location": location, "properties": {
                "enableIPForwarding": ip_forwarding,
                "ipConfigurations": [{ "name": "ipconfig1", "properties": ip }] } }),
            )?;
            client.put(
                vm_id(&group, vm).as_str(),
                &json!({ "location": location, "properties": {
                "hardwareProfile": { "vmSize": "Standard_B1s" },
                "osProfile": { "computerName": vm },
                "networkProfile": { "networkInterfaces": [{ "id": nic.as_str() }] } } }),
            )?;
            let ip = &made["properties"]["ipConfigurations"][0]["properties"];
            data(&format!("{vm} {}", ip["privateIPAddress"].as_str().unwrap_or("?")));
        }
        Vm::List { output } => {
            let Answer::Status(status) = ask(lab, &Ask::Status)? else {
                anyhow::bail!("the lab answered another question");
            };
            let answer = json!({ "version": 1, "vms": status.vms });
            output::show(&answer, *output, |_| {
                let rows: Vec<Vec<String>> = status
                    .vms
                    .iter()
                    .map(|vm| {
                        let place = format!("{}/{}", vm.vnet, vm.subnet);
                        vec![vm.name.clone(), vm.resource_group.clone(), vm.address.clone(), place]
                    })
                    .collect();
                output::table(&["NAME", "GROUP", "ADDRESS", "SUBNET"], &rows)
            })?;
        }
        Vm::Delete { vm, resource_group } => {
            let client = ArmClient::new(lab, config)?;
            let group = ArmId::group(SUBSCRIPTION, resource_group);
            client.delete(vm_id(&group, vm).as_str())?;
            client.delete(nic_id(&group, vm).as_str())?;
        }
    }
    Ok(())
}

fn vm_id(group: &ArmId, name: &str) -> ArmId {
    group.sibling("Microsoft.Compute/virtualMachines", name)
}

fn nic_id(group: &ArmId, vm: &str) -> ArmId {
    group.sibling("Microsoft.Network/networkInterfaces", &format!("{vm}-nic"))
}
