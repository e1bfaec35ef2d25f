//! What a node needs beside its pods: forwarding, a bridge, masquerade rules, and the file that tells
//! the container runtime that there is a network.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use linux::{alias::Alias, pod::Wirer};
use serde_json::json;
use vnet::{
    addr::{Prefix4, Prefix6},
    host::names::GATEWAY_ADDRESS,
    pods::{
        PodNetwork,
        masquerade::{Settings, sets},
        pool::Grant,
        table::PROBES,
        wiring::{NODE_BRIDGE, bridge},
    },
};

use super::{
    NodeError,
    agent::{Agent, Node},
    chain,
    config::Config,
};

/// What the agent has learnt of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learnt {
    /// The node's block, in modes that have one.
    pub block: Option<Prefix4>,
    /// The node's block of IPv6, in dual-stack clusters.
    pub block_v6: Option<Prefix6>,
    /// All its addresses.
    pub grant: Grant,
    /// Of these, the ones that it has offered back.
    pub aside: Vec<Ipv4Addr>,
    /// See [`Node::origin`].
    pub origin: Option<(String, String)>,
    /// See [`Node::full`].
    pub full: Option<String>,
}

/// Makes the node fit for what was learnt, and the agent ready; does only what has changed.
pub struct Setup {
    config: Config,
    wirer: Wirer,
    masquerade: Settings,
    learnt: Option<Learnt>,
}

impl Setup {
    /// For the node whose namespace the calling thread is in.
    pub fn new(config: Config) -> Result<Self, NodeError> {
        let masquerade = config.masquerade.clone();
        Ok(Self { config, wirer: Wirer::new()?, masquerade, learnt: None })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Forwarding and what else the kernel must do for any pod.
    pub fn prepare(&mut self, agent: &Agent) -> Result<(), NodeError> {
        write_sysctl("net/ipv4/ip_forward", "1")?;
        if self.config.is_dual_stack {
            write_sysctl("net/ipv6/conf/all/forwarding", "1")?;
            // Links of pods and the bridge, which are yet to be made: their own addresses can be used at once (the
            // node asks for neighbours with them), and no pod is believed to be a router.
            write_sysctl("net/ipv6/conf/default/accept_dad", "0")?;
            write_sysctl("net/ipv6/conf/default/accept_ra", "0")?;
            if !self.config.dataplane.is_azure() {
                self.prepare_for_ebpf()?;
            }
        }
        if is_bridged(self.config.network) {
            // Two pods on one bridge that meet through a service: the answer must pass the rules
            // that translate it back.
            write_sysctl("net/bridge/bridge-nf-call-iptables", "1")?;
            if self.config.is_dual_stack {
                write_sysctl("net/bridge/bridge-nf-call-ip6tables", "1")?;
            }
        }
        agent.rules.take_up(agent.ports(), agent.ported());
        Ok(agent.sweep(&mut self.wirer)?)
    }

    /// What Cilium needs for IPv6, beside its settings.
    fn prepare_for_ebpf(&mut self) -> Result<(), NodeError> {
        // It leaves its links' own addresses to the kernel, which makes none where the fabric is.
        write_sysctl("net/ipv6/conf/default/addr_gen_mode", "0")?;
        // It takes answers to health probes for what it must route, and there is no route to where these come from: as
        // on AKS's nodes, a program before Cilium's rewrites them, not the node's rules (cilium/cilium issue 31326,
        // Azure/azure-container-networking `bpf-prog/ipv6-hp-bpf`).
        let alias = Alias::load(GATEWAY_ADDRESS, PROBES)
            .and_then(|alias| self.wirer.alias_nic(&self.config.interface, &alias));
        let why = match alias {
            Ok(true) => return Ok(()),
            Ok(false) => "the NIC has a queue that packets do not pass it by".to_owned(),
            Err(error) => chain(&error),
        };
        tracing::warn!(error = why, "health probes of IPv6 will not be answered by pods");
        Ok(())
    }

    /// From now on the cluster says this about masquerading; `None` when it says nothing. Does nothing when it said so
    /// before.
    pub fn set_masquerade(
        &mut self,
        agent: &Agent,
        settings: Option<Settings>,
    ) -> Result<(), NodeError> {
        let settings = settings.unwrap_or_else(|| self.config.masquerade.clone());
        if settings == self.masquerade {
            return Ok(());
        }
        self.masquerade = settings;
        match &self.learnt {
            Some(learnt) => self.fill(agent, learnt),
            None => Ok(()),
        }
    }

    fn fill(&self, agent: &Agent, learnt: &Learnt) -> Result<(), NodeError> {
        let Learnt { grant, block_v6, .. } = learnt;
        agent.rules.fill(sets(self.config.network, grant, *block_v6, &self.masquerade))
    }

    /// The node has these addresses: rules first, the network's file last.
    pub fn apply(&mut self, agent: &Agent, learnt: Learnt) -> Result<(), NodeError> {
        if self.learnt.as_ref() == Some(&learnt) {
            return Ok(());
        }
        let mtu = self.wirer.mtu_of(&self.config.interface)?;
        if let (PodNetwork::Kubenet, Some(block)) = (self.config.network, learnt.block) {
            self.wirer.ensure_bridge(&bridge(block, mtu).with_v6(learnt.block_v6))?;
        }
        let mut block = learnt.block;
        if self.config.network == PodNetwork::NodeBridge {
            let uplink = self.wirer.take_over(&self.config.interface, NODE_BRIDGE)?;
            agent.rules.bridge(uplink)?;
            block = Some(uplink.network);
        }
        self.fill(agent, &learnt)?;
        if let (Some(shortcut), false) = (&agent.shortcut, is_bridged(self.config.network)) {
            let done = self.wirer.shorten_nic(&self.config.interface, shortcut);
            // An addition: without it packets only take longer.
            if let Err(error) = done {
                tracing::warn!(error = %chain(&error), "what comes in at the node takes no shortcut");
            }
        }
        let Learnt { block_v6, origin, full, .. } = learnt.clone();
        let node = Node { block, block_v6, mtu, origin, full };
        agent.set_grant(&learnt.grant, &learnt.aside, node);
        tracing::info!(
            node = self.config.node,
            n_addresses = learnt.grant.addresses().len(),
            "the node has pod addresses"
        );
        // Cilium writes the network's file itself, when its own part is ready.
        if self.config.dataplane.is_azure() && !learnt.grant.addresses().is_empty() {
            self.write_network()?;
        }
        self.learnt = Some(learnt);
        Ok(())
    }

    /// The node turns Ready when the runtime sees this file.
    fn write_network(&self) -> Result<(), NodeError> {
        let (file, name) = match self.config.network {
            PodNetwork::Kubenet => ("10-containerd-net.conflist", "kubenet"),
            PodNetwork::NodeSubnet
            | PodNetwork::NodeBridge
            | PodNetwork::PodSubnet
            | PodNetwork::Overlay => ("10-azure.conflist", "azure"),
        };
        // What the runtime is to hand on to the plugin: other plugins of a chain would do it with programs.
        let mut plugin = json!({
            "type": "aksnet-cni",
            "agentSocket": self.config.socket,
            "capabilities": { "portMappings": self.config.host_ports, "bandwidth": true },
        });
        // As azure-vnet's file says it (Azure/azure-container-networking, `cni/azure-linux.conflist`). It is
        // the agent's configuration that decides, and nobody reads it here but people.
        if self.config.network == PodNetwork::NodeBridge {
            plugin["mode"] = json!("bridge");
            plugin["bridge"] = json!(NODE_BRIDGE);
        } else if name == "azure" {
            plugin["mode"] = json!("transparent");
        }
        // 1.0.0 is the newest that containerd 1.6 asks for.
        let network = json!({ "cniVersion": "1.0.0", "name": name, "plugins": [plugin] });
        let directory = &self.config.cni_directory;
        let path = directory.join(file);
        let beside = directory.join(format!(".{file}"));
        let write = || {
            fs::create_dir_all(directory)?;
            fs::write(&beside, format!("{network:#}\n"))?;
            fs::rename(&beside, &path)
        };
        write().map_err(|source| NodeError::File { path: path.clone(), source })
    }
}

/// Whether pods are ports of a bridge.
fn is_bridged(network: PodNetwork) -> bool {
    matches!(network, PodNetwork::Kubenet | PodNetwork::NodeBridge)
}

fn write_sysctl(name: &str, value: &str) -> Result<(), NodeError> {
    let path = PathBuf::from("/proc/sys").join(name);
    // The kernel may be built without it; then it does nothing that must be switched on.
    if !path.exists() {
        return Ok(());
    }
    write_file(&path, value)
}

fn write_file(path: &Path, text: &str) -> Result<(), NodeError> {
    fs::write(path, text).map_err(|source| NodeError::File { path: path.to_owned(), source })
}
