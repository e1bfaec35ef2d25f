//! `aksnet vm`: a machine in a subnet, made as any client of Azure Resource Manager makes one.

use std::net::Ipv4Addr;

use clap::Subcommand;
use serde_json::{Value, json};
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
    /// Make a machine: a network namespace with a NIC that the local Azure knows. One that is there stays as it is
    Create {
        /// Its name
        #[arg(value_parser = resource_name)]
        vm: String,
        /// The resource group
        #[arg(long, short = 'g', value_parser = group_name)]
        resource_group: String,
        /// The virtual network, in the same group
        #[arg(long, value_parser = resource_name)]
        vnet: String,
        /// The subnet
        #[arg(long, value_parser = resource_name)]
        subnet: String,
        /// Its private address; the lowest free one unless given
        #[arg(long)]
        private_ip_address: Option<Ipv4Addr>,
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
    /// Remove a machine and its NIC, if they are there
    Delete {
        /// Its name
        #[arg(value_parser = resource_name)]
        vm: String,
        /// The resource group
        #[arg(long, short = 'g', value_parser = group_name)]
        resource_group: String,
    },
}

/// Carries a command out.
pub(crate) fn run(lab: &Lab, config: &Config, command: &Vm) -> anyhow::Result<()> {
    match command {
        Vm::Create { vm, resource_group, vnet, subnet, private_ip_address, ip_forwarding } => {
            let client = ArmClient::new(lab, config)?;
            let group = ArmId::group(SUBSCRIPTION, resource_group);
            let vnet = group.sibling("Microsoft.Network/virtualNetworks", vnet);
            let wish = Wish {
                vm: vm_id(&group, vm),
                nic: nic_id(&group, vm),
                subnet: vnet.child("subnets", subnet),
                address: *private_ip_address,
                ip_forwarding: *ip_forwarding,
            };
            let address = wish.fulfil(&client, &vnet)?;
            data(&format!("{vm} {address}"));
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

/// A machine that somebody wants.
struct Wish {
    vm: ArmId,
    nic: ArmId,
    subnet: ArmId,
    address: Option<Ipv4Addr>,
    ip_forwarding: bool,
}

impl Wish {
    /// Makes the machine, or what is missing of it, and gives its address. One that is there as it is wanted stays so: what it
    /// was given since, such as a security group, is its own. Another one of its name is an error.
    fn fulfil(&self, client: &ArmClient, vnet: &ArmId) -> anyhow::Result<String> {
        let location = client.get(vnet.as_str())?["location"].clone();
        let nic = client.find(self.nic.as_str())?;
        let is_new = nic.is_none();
        let nic = match nic {
            Some(nic) => {
                self.check(&nic)?;
                nic
            }
            None if client.find(self.vm.as_str())?.is_some() => anyhow::bail!(
                "there is a machine `{}` already, with a NIC of another name than `{}`",
                self.vm.name(),
                self.nic.name()
            ),
            None => self.make_nic(client, &location)?,
        };
        if client.find(self.vm.as_str())?.is_none() {
            let vm = json!({ "location": location, "properties": {
                "hardwareProfile": { "vmSize": "Standard_B1s" },
                "osProfile": { "computerName": self.vm.name() },
                "networkProfile": { "networkInterfaces": [{ "id": self.nic.as_str() }] } } });
            if let Err(error) = client.put(self.vm.as_str(), &vm) {
                let cleared = if is_new { client.delete(self.nic.as_str()) } else { Ok(()) };
                return Err(match cleared {
                    Ok(()) => error,
                    Err(left) => error.context(format!("NIC {} stays: {left:#}", self.nic.name())),
                });
            }
        }
        Ok(address_of(&nic).to_owned())
    }

    fn make_nic(&self, client: &ArmClient, location: &Value) -> anyhow::Result<Value> {
        let mut ip = json!({ "subnet": { "id": self.subnet.as_str() }, "primary": true,
            "privateIPAddressVersion": "IPv4", "privateIPAllocationMethod": "Dynamic" });
        if let Some(address) = self.address {
            ip["privateIPAllocationMethod"] = json!("Static");
            ip["privateIPAddress"] = json!(address.to_string());
        }
        let nic = json!({ "location": location, "properties": {
            "enableIPForwarding": self.ip_forwarding,
            "ipConfigurations": [{ "name": "ipconfig1", "properties": ip }] } });
        client.put(self.nic.as_str(), &nic)
    }

    /// Refuses a NIC that is this machine's by name, and other than it is wanted.
    fn check(&self, nic: &Value) -> anyhow::Result<()> {
        let properties = &nic["properties"];
        let subnet = properties["ipConfigurations"][0]["properties"]["subnet"]["id"].as_str();
        let subnet = subnet.unwrap_or_default();
        let machine = properties["virtualMachine"]["id"].as_str();
        let address = address_of(nic);
        let is_its = machine.is_none_or(|id| id.eq_ignore_ascii_case(self.vm.as_str()));
        if is_its
            && subnet.eq_ignore_ascii_case(self.subnet.as_str())
            && self.address.is_none_or(|wanted| wanted.to_string() == address)
            && properties["enableIPForwarding"] == self.ip_forwarding
        {
            return Ok(());
        }
        let (vm, nic) = (self.vm.name(), self.nic.name());
        anyhow::bail!(
            "there is a NIC `{nic}` already, and it is another one: {address} in {subnet}. `aksnet vm delete {vm}` removes \
             it with its machine, `az network nic ip-config update --nic-name {nic}` changes it"
        )
    }
}

fn address_of(nic: &Value) -> &str {
    nic["properties"]["ipConfigurations"][0]["properties"]["privateIPAddress"]
        .as_str()
        .unwrap_or("?")
}

/// A name as most of Azure's resources have one ("Naming rules and restrictions for Azure resources").
fn resource_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let is_good = (1..=64).contains(&text.len())
        && text.chars().all(fits)
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    is_good.then(|| text.to_owned()).ok_or_else(|| {
        "a name has at most 64 letters, digits, `_`, `.` and `-`, begins with a letter or digit and does not end with `.` \
         or `-`"
            .to_owned()
    })
}

/// The name of a resource group (the same source).
fn group_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.-()".contains(c);
    let is_good = (1..=90).contains(&text.len()) && text.chars().all(fits) && !text.ends_with('.');
    is_good.then(|| text.to_owned()).ok_or_else(|| {
        "a resource group's name has at most 90 letters, digits, `_`, `.`, `-` and brackets, and does not end with `.`"
            .to_owned()
    })
}

fn vm_id(group: &ArmId, name: &str) -> ArmId {
    group.sibling("Microsoft.Compute/virtualMachines", name)
}

fn nic_id(group: &ArmId, vm: &str) -> ArmId {
    group.sibling("Microsoft.Network/networkInterfaces", &format!("{vm}-nic"))
}
