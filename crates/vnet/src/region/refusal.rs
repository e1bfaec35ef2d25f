//! Refusals that several commands share, in Azure's words.
//!
//! Codes and texts are those of Azure Resource Manager ("Troubleshoot common Azure deployment errors"), of the
//! network resource provider and of AKS as users pasted them. Where the service refuses and no public text
//! shows how, the code is the provider's general `InvalidParameter` and the text says what is wrong.

use crate::{
    fault::Fault,
    model::{Holder, Subnet},
    name::ArmId,
};

/// What Azure shows of a long list of users of a resource.
const N_NAMED: usize = 10;

pub(super) fn wrong_kind(id: &ArmId, kind: &str) -> Fault {
    Fault::bad("InvalidResourceType", format!("The resource id {id} is not of type {kind}."))
}

pub(super) fn group_not_found(id: &ArmId) -> Fault {
    Fault::new(
        404,
        "ResourceGroupNotFound",
        format!("Resource group '{}' could not be found.", id.resource_group()),
    )
}

pub(super) fn group_being_deleted(id: &ArmId) -> Fault {
    Fault::conflict(
        "ResourceGroupBeingDeleted",
        format!(
            "The resource group '{}' is in deprovisioning state and cannot perform this operation.",
            id.resource_group()
        ),
    )
}

pub(super) fn not_found(id: &ArmId) -> Fault {
    // Everything after the group, with its names: `Microsoft.Network/virtualNetworks/v/subnets/s`.
    let kind_and_name = id.as_str().split_once("/providers/").map_or(id.as_str(), |(_, path)| path);
    Fault::new(
        404,
        "ResourceNotFound",
        format!(
            "The Resource '{kind_and_name}' under resource group '{}' was not found. For more details please go to \
             https://aka.ms/ARMResourceNotFoundFix",
            id.resource_group()
        ),
    )
}

pub(super) fn parent_not_found(id: &ArmId, parent: &ArmId) -> Fault {
    let kind = id.kind();
    let types = kind.split_once('/').map_or(kind.as_str(), |(_, types)| types);
    Fault::new(
        404,
        "ParentResourceNotFound",
        format!(
            "Failed to perform 'write' on resource(s) of type '{types}', because the parent resource '{parent}' could \
             not be found."
        ),
    )
}

pub(super) fn moved(id: &ArmId, from: &str, to: &str) -> Fault {
    Fault::conflict(
        "InvalidResourceLocation",
        format!(
            "The resource '{}' already exists in location '{from}' in resource group '{}'. A resource with the same \
             name cannot be created in location '{to}'. Please select a new resource name.",
            id.name(),
            id.resource_group()
        ),
    )
}

pub(super) fn in_progress(id: &ArmId) -> Fault {
    Fault::conflict(
        "AnotherOperationInProgress",
        format!(
            "Another operation on this or dependent resource is in progress: {id} is being deleted."
        ),
    )
}

pub(super) fn reference(missing: &ArmId, by: &ArmId) -> Fault {
    Fault::bad(
        "InvalidResourceReference",
        format!(
            "Resource {missing} referenced by resource {by} was not found. Please make sure that the referenced \
             resource exists, and that both resources are in the same region."
        ),
    )
}

/// An IPv6 address is wanted of a subnet that has only IPv4.
pub(super) fn no_ipv6(subnet: &ArmId, holder: &Holder) -> Fault {
    invalid(
        "privateIPAddressVersion",
        &format!(
            "{} wants an IPv6 address of subnet {subnet}, which has no IPv6 address prefix.",
            holder_id(subnet, holder)
        ),
    )
}

/// A value that cannot be, for a reason that Azure's documentation gives but no public refusal words.
pub(super) fn invalid(target: &str, reason: &str) -> Fault {
    Fault::bad(
        "InvalidParameter",
        format!("The value of parameter {target} is invalid. Error details: {reason}"),
    )
    .at(target)
}

pub(super) fn property_change(path: &str) -> Fault {
    Fault::bad("PropertyChangeNotAllowed", format!("Changing property '{path}' is not allowed."))
        .at(path)
}

/// The first users of a resource, and how many more there are.
pub(super) fn some_of(users: Vec<String>) -> String {
    let more = users.len().saturating_sub(N_NAMED);
    let mut named = users;
    named.truncate(N_NAMED);
    if more > 0 {
        named.push(format!("{more} more"));
    }
    named.join(", ")
}

pub(super) fn subnet_in_use(subnet: &Subnet, users: &[String]) -> Fault {
    let mut named = users.iter().take(N_NAMED).cloned().collect::<Vec<_>>();
    if users.len() > N_NAMED {
        named.push(format!("{} more", users.len() - N_NAMED));
    }
    let named = named.join(" and ");
    Fault::bad(
        "InUseSubnetCannotBeDeleted",
        format!(
            "Subnet {} is in use by {named} and cannot be deleted. In order to delete the subnet, delete all the \
             resources within the subnet. See aka.ms/deletesubnet.",
            subnet.name
        ),
    )
}

/// The id of what holds an address of `subnet`, in the form that the network provider's refusals have: a scale
/// set's NIC is named by a path with bars below `networkInterfaces`.
pub(super) fn holder_id(subnet: &ArmId, holder: &Holder) -> String {
    let Some(id) = holder.configuration_id() else {
        return subnet.child("serviceAssociationLinks", "AzureKubernetesService").to_string();
    };
    match id.parent() {
        Some(nic) if id.as_str().contains("/ipConfigurations/") => {
            format!("{}/ipConfigurations/{}", nic_id(&nic), id.name())
        }
        _ => id.to_string(),
    }
}

/// The id of a NIC in the form that the network provider's refusals have.
pub(super) fn nic_id(id: &ArmId) -> String {
    match id.as_str().split_once("/providers/Microsoft.Compute/") {
        Some((group, nic)) => format!(
            "{group}/providers/Microsoft.Network/networkInterfaces/|providers|Microsoft.Compute|{}",
            nic.replace('/', "|")
        ),
        None => id.to_string(),
    }
}

/// A name that the network provider accepts: 1 to 80 characters, word characters, `.` and `-` between them.
pub(super) fn check_name(name: &str) -> Result<(), Fault> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let fits = name.len() <= 80
        && name.starts_with(is_word)
        && name.ends_with(is_word)
        && name.chars().all(|c| is_word(c) || c == '.' || c == '-');
    if fits {
        return Ok(());
    }
    Err(Fault::bad(
        "InvalidResourceName",
        format!(
            "Resource name {name} is invalid. The name can be up to 80 characters long. It must begin with a word \
             character, and it must end with a word character. The name may contain word characters or '.', '-'."
        ),
    ))
}
