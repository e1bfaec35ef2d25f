//! What a command costs in a region of the sizes that labs and planners have: 1, 250 and 5,000 held addresses.

use std::collections::BTreeMap;

use divan::{Bencher, black_box};
use vnet::{
    addr::{Family, Prefix4},
    command::{Command, Common, PutCluster, PutIpConfiguration, PutPool, PutSubnet},
    host::{Health, compile_fabric},
    kind,
    model::{NetworkMode, Timestamp},
    name::ArmId,
    region::Region,
};

fn main() {
    divan::main();
}

const SIZES: [u32; 3] = [1, 250, 5_000];

fn group() -> ArmId {
    ArmId::group("16e85b36-5c9d-48cc-a45d-c672a4393c36", "bench")
}

fn subnet() -> ArmId {
    group().sibling(kind::VNET, "v").child("subnets", "s")
}

fn common(id: ArmId) -> Common {
    Common { id, location: None, tags: None, kept: BTreeMap::new() }
}

fn apply(region: &mut Region, command: Command) {
    region.apply(command, Timestamp(0)).expect("the command is right");
}

fn put_nic(name: &str, n: u32) -> Command {
    let config = |i: u32| PutIpConfiguration {
        family: Family::V4,
        public_ip: None,
        application_groups: Vec::new(),
        name: format!("ipconfig{}", i + 1),
        subnet: subnet(),
        address: None,
    };
    Command::PutNic {
        security_group: None,
        common: common(group().sibling(kind::NIC, name)),
        ip_forwarding: false,
        configs: (0..n).map(config).collect(),
    }
}

/// A region with one subnet, where NICs of at most 250 addresses hold `held`.
fn region(held: u32) -> Region {
    let mut region = Region::default();
    let location = "eastus".to_owned();
    apply(&mut region, Command::PutGroup { id: group(), location, tags: BTreeMap::new() });
    let subnet = PutSubnet {
        prefix6: None,
        security_group: None,
        nat_gateway: None,
        default_outbound: None,
        name: "s".into(),
        prefix: Prefix4::containing([10, 1, 0, 0].into(), 16),
        route_table: None,
        delegations: Vec::new(),
        private_endpoint_network_policies: None,
        private_link_service_network_policies: None,
        kept: BTreeMap::new(),
    };
    let put_vnet = Command::PutVnet {
        common: common(group().sibling(kind::VNET, "v")),
        prefixes: vec![Prefix4::containing([10, 1, 0, 0].into(), 16).into()],
        subnets: Some(vec![subnet]),
    };
    apply(&mut region, put_vnet);
    for (i, first) in (0..held).step_by(250).enumerate() {
        apply(&mut region, put_nic(&format!("n{i}"), 250.min(held - first)));
    }
    region
}

/// A NIC with one address.
#[divan::bench(args = SIZES)]
fn put_one_nic(bencher: Bencher<'_, '_>, held: u32) {
    let region = region(held);
    bencher
        .with_inputs(|| (region.clone(), put_nic("one", 1)))
        .bench_values(|(mut region, command)| black_box(region.apply(command, Timestamp(0))));
}

/// A report that changes nothing: what every pass of the fabric costs.
#[divan::bench(args = SIZES)]
fn report_nothing_new(bencher: Bencher<'_, '_>, held: u32) {
    let mut region = region(held);
    let generation = region.generation;
    apply(&mut region, Command::FabricReal { generation });
    bencher
        .with_inputs(|| (region.clone(), Command::FabricReal { generation: region.generation }))
        .bench_values(|(mut region, command)| black_box(region.apply(command, Timestamp(0))));
}

/// What the namespaces must look like: every change of the region costs this.
#[divan::bench(args = [10, 1_000])]
fn compile_the_fabric(bencher: Bencher<'_, '_>, vms: u32) {
    let mut region = region(0);
    for n in 0..vms {
        let name = format!("vm{n}");
        apply(&mut region, put_nic(&name, 1));
        let nic = group().sibling(kind::NIC, &name);
        apply(
            &mut region,
            Command::PutVm { common: common(group().sibling(kind::VM, &name)), nic },
        );
    }
    bencher.bench(|| compile_fabric("lab", black_box(&region), &Health::default()));
}

/// A cluster of ten nodes of 31 addresses.
#[divan::bench(args = SIZES)]
fn put_cluster(bencher: Bencher<'_, '_>, held: u32) {
    let region = region(held);
    let pool = PutPool {
        count: Some(10),
        max_pods: Some(30),
        subnet: Some(subnet()),
        ..PutPool::new("nodepool1".into())
    };
    let cluster =
        PutCluster { mode: Some(NetworkMode::Azure), pools: vec![pool], ..PutCluster::default() };
    let command =
        Command::PutCluster { common: common(group().sibling(kind::CLUSTER, "c")), cluster };
    bencher
        .with_inputs(|| (region.clone(), command.clone()))
        .bench_values(|(mut region, command)| black_box(region.apply(command, Timestamp(0))));
}
