//! The service tags that rules can name where nobody has given a list: Azure's names, and addresses of the lab's own
//! internet (198.18.0.0/15).
//!
//! The lower half of that is Azure's, in every region. Each service has a /24 of the upper half, and in each region
//! the same eight addresses of that, where Azure has the service's tag by region.
//!
//! Names: Azure documentation, "Virtual network service tags", "Available service tags".

use std::{collections::BTreeMap, net::Ipv4Addr};

use super::{AZURE_LOAD_BALANCER, PLATFORM_DNS};
use crate::{
    addr::{Prefix, Prefix4},
    host::names::REGISTRY_ADDRESS,
};

/// The addresses that public IPs and API servers of a lab have.
const AZURE: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 0, 0), 16);
/// Where the services' addresses begin, a /24 for each.
const FIRST_SERVICE: u8 = 16;
/// How many addresses a service has in a region, as a prefix length.
const IN_REGION: u8 = 29;

/// Tags of the platform's own.
const PLATFORM: [(&str, Ipv4Addr); 4] = [
    (AZURE_LOAD_BALANCER, Ipv4Addr::new(168, 63, 129, 16)),
    (PLATFORM_DNS, Ipv4Addr::new(168, 63, 129, 16)),
    ("AzurePlatformIMDS", Ipv4Addr::new(169, 254, 169, 254)),
    // Licences of Windows, at addresses of their own, which nobody in a lab asks for.
    ("AzurePlatformLKM", Ipv4Addr::new(198, 19, 1, 1)),
];

/// How far a tag reaches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// There is one for the whole cloud.
    Global,
    /// There is one for each region, too.
    Regional,
}

use Scope::{Global, Regional};

/// The services, in order of their addresses. New ones come at the end.
#[rustfmt::skip]
const SERVICES: &[(&str, Scope)] = &[
    ("AzureFrontDoor.FirstParty", Global),
    ("AzureActiveDirectory", Global),
    ("AzureMonitor", Global),
    ("AzureResourceManager", Global),
    ("AzureContainerRegistry", Regional),
    ("AzureKeyVault", Regional),
    ("Storage", Regional),
    ("Sql", Regional),
    ("ActionGroup", Global),
    ("ApiManagement", Regional),
    ("AppConfiguration", Global),
    ("AppService", Regional),
    ("AppServiceManagement", Global),
    ("ApplicationInsightsAvailability", Global),
    ("AutonomousDevelopmentPlatform", Regional),
    ("AzureActiveDirectoryDomainServices", Global),
    ("AzureAdvancedThreatProtection", Global),
    ("AzureArcInfrastructure", Global),
    ("AzureAttestation", Global),
    ("AzureBackup", Global),
    ("AzureBotService", Global),
    ("AzureCognitiveSearch", Global),
    ("AzureConnectors", Regional),
    ("AzureContainerAppsService", Regional),
    ("AzureCosmosDB", Regional),
    ("AzureDataExplorerManagement", Global),
    ("AzureDataLake", Global),
    ("AzureDatabricks", Global),
    ("AzureDevOps", Regional),
    ("AzureDevSpaces", Global),
    ("AzureDeviceUpdate", Global),
    ("AzureDigitalTwins", Global),
    ("AzureEventGrid", Global),
    ("AzureFrontDoor.Backend", Global),
    ("AzureFrontDoor.Frontend", Global),
    ("AzureHealthcareAPIs", Global),
    ("AzureInformationProtection", Global),
    ("AzureIoTHub", Regional),
    ("AzureLoadTestingInstanceManagement", Global),
    ("AzureMachineLearning", Global),
    ("AzureMachineLearningInference", Global),
    ("AzureManagedGrafana", Global),
    ("AzureOpenDatasets", Global),
    ("AzureSentinel", Global),
    ("AzureSignalR", Global),
    ("AzureSiteRecovery", Global),
    ("AzureSphere", Global),
    ("AzureSpringCloud", Global),
    ("AzureStack", Global),
    ("AzureTrafficManager", Global),
    ("AzureUpdateDelivery", Global),
    ("AzureWebPubSub", Regional),
    ("BatchNodeManagement", Regional),
    ("ChaosStudio", Global),
    ("CognitiveServicesFrontend", Global),
    ("CognitiveServicesManagement", Global),
    ("DataFactory", Regional),
    ("DataFactoryManagement", Global),
    ("Dynamics365BusinessCentral", Global),
    ("Dynamics365ForMarketingEmail", Regional),
    ("EOPExternalPublishedIPs", Global),
    ("EventHub", Regional),
    ("GatewayManager", Global),
    ("GuestAndHybridManagement", Global),
    ("HDInsight", Regional),
    ("KustoAnalytics", Global),
    ("LogicApps", Global),
    ("LogicAppsManagement", Global),
    ("M365ManagementActivityApi", Regional),
    ("M365ManagementActivityApiWebhook", Regional),
    ("Marketplace", Global),
    ("MicrosoftAzureFluidRelay", Global),
    ("MicrosoftCloudAppSecurity", Global),
    ("MicrosoftDefenderForEndpoint", Global),
    ("MicrosoftPurviewPolicyDistribution", Global),
    ("OneDsCollector", Global),
    ("PowerBI", Global),
    ("PowerPlatformInfra", Regional),
    ("PowerPlatformPlex", Regional),
    ("PowerQueryOnline", Global),
    ("Scuba", Global),
    ("SerialConsole", Global),
    ("ServiceBus", Regional),
    ("ServiceFabric", Global),
    ("SqlManagement", Global),
    ("StorageMover", Global),
    ("StorageSyncService", Global),
    ("VideoIndexer", Global),
    ("WindowsAdminCenter", Global),
    ("WindowsVirtualDesktop", Global),
];

/// Regions as tags call them, and `AzureCloud`'s word where that is another one (same page).
#[rustfmt::skip]
const REGIONS: &[(&str, Option<&str>)] = &[
    ("AustraliaEast", None),
    ("BrazilSouth", None),
    ("CanadaCentral", None),
    ("CentralIndia", None),
    ("CentralUS", None),
    ("EastAsia", None),
    ("EastUS", None),
    ("EastUS2", None),
    ("FranceCentral", Some("centralfrance")),
    ("GermanyWestCentral", Some("germanywc")),
    ("JapanEast", None),
    ("KoreaCentral", None),
    ("NorthCentralUS", None),
    ("NorthEurope", None),
    ("NorwayEast", Some("norwaye")),
    ("SouthCentralUS", None),
    ("SoutheastAsia", None),
    ("SwedenCentral", None),
    ("SwitzerlandNorth", Some("switzerlandn")),
    ("UAENorth", None),
    ("UKSouth", None),
    ("WestCentralUS", None),
    ("WestEurope", None),
    ("WestUS", None),
    ("WestUS2", None),
    ("WestUS3", None),
];

/// Every tag with its prefixes.
pub(super) fn tags() -> BTreeMap<String, Vec<Prefix>> {
    let prefix = |(network, length)| Prefix::V4(Prefix4::containing(network, length));
    let mut tags = BTreeMap::new();
    let mut add = |name: String, prefix| tags.insert(name, vec![prefix]);
    for (name, address) in PLATFORM {
        add(name.to_owned(), prefix((address, 32)));
    }
    let registry = "MicrosoftContainerRegistry";
    add("AzureCloud".to_owned(), prefix(AZURE));
    add(registry.to_owned(), prefix((REGISTRY_ADDRESS, 32)));
    for (region, in_cloud) in REGIONS {
        let in_cloud = in_cloud.map_or_else(|| region.to_ascii_lowercase(), str::to_owned);
        add(format!("AzureCloud.{in_cloud}"), prefix(AZURE));
        add(format!("{registry}.{region}"), prefix((REGISTRY_ADDRESS, 32)));
    }
    for (third, (service, scope)) in (FIRST_SERVICE..).zip(SERVICES) {
        add((*service).to_owned(), prefix((Ipv4Addr::new(198, 19, third, 0), 24)));
        if *scope == Regional {
            let firsts = (0..=u8::MAX).step_by(1 << (32 - IN_REGION));
            for (first, (region, _)) in firsts.zip(REGIONS) {
                let own = (Ipv4Addr::new(198, 19, third, first), IN_REGION);
                add(format!("{service}.{region}"), prefix(own));
            }
        }
    }
    tags
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_tag_has_addresses_of_its_own() {
        assert!(usize::from(u8::MAX - FIRST_SERVICE) >= SERVICES.len());
        assert!(REGIONS.len() <= 1 << (IN_REGION - 24));
        let tags = tags();
        let by_region = SERVICES.iter().filter(|(_, scope)| *scope == Regional).count();
        // AzureCloud and the registry have a tag for each region, too.
        let expected = PLATFORM.len() + 2 + SERVICES.len() + (2 + by_region) * REGIONS.len();
        assert_eq!(tags.len(), expected, "a name is there twice");
        for (service, _) in SERVICES.iter().filter(|(_, scope)| *scope == Regional) {
            let whole = tags[*service][0];
            for (region, _) in REGIONS {
                assert!(whole.contains_prefix(tags[&format!("{service}.{region}")][0]), "{region}");
            }
        }
        let all: BTreeSet<Prefix> = SERVICES.iter().map(|(service, _)| tags[*service][0]).collect();
        assert_eq!(all.len(), SERVICES.len());
    }
}
