//! The node's nftables table: loaded whole once, then only its elements change; mended when somebody
//! takes it away. Not here: what it says (`vnet::pods::table`).

use std::{
    collections::BTreeMap,
    io::Write,
    net::{IpAddr, Ipv4Addr},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard},
};

use linux::{
    LinuxError,
    netfilter::elements::{Nfnetlink, TableFamily},
    pod::{Wirer, bridging::Uplink},
};
use vnet::{
    addr::Family,
    pods::{
        PodNetwork, bridging,
        masquerade::Sets,
        ports::PortMapping,
        table::{HAIRPIN, HOST_PORTS, HOST_PORTS_AT, TABLE, fill, host_ports, n_rules, table},
        wiring::{NODE_BRIDGE, Path, Wiring},
    },
};

use super::NodeError;

/// The host ports of each address of a pod that has some.
pub(super) type Ports = BTreeMap<IpAddr, Vec<PortMapping>>;

/// Pods whose frames a bridge lets pass.
pub(super) type Ported = BTreeMap<Ipv4Addr, Wiring>;

/// The tables, and what is in them.
pub(super) struct Rules {
    nic: String,
    network: PodNetwork,
    /// IPv4, and IPv6 in dual-stack clusters: a table each.
    families: &'static [Family],
    /// Held while anything of the table changes.
    loaded: Mutex<Loaded>,
}

#[derive(Default)]
struct Loaded {
    /// Since this process began. One before it may have left a table, with all that was in it.
    is_there: bool,
    sets: Sets,
    ports: Ports,
    /// What the table of frames was loaded for, on a node whose NIC is a bridge's port.
    uplink: Option<Uplink>,
    ported: Ported,
}

impl Rules {
    /// The rules of a node with this NIC, not loaded yet.
    pub(super) fn new(nic: &str, network: PodNetwork, is_dual_stack: bool) -> Self {
        let families: &[_] = if is_dual_stack { &[Family::V4, Family::V6] } else { &[Family::V4] };
        Self { nic: nic.to_owned(), network, families, loaded: Mutex::default() }
    }

    /// From now on these are the host ports of pods that were there before, and these have ports of a bridge.
    pub(super) fn take_up(&self, ports: Ports, ported: Ported) {
        let mut loaded = self.loaded();
        loaded.ports = ports;
        loaded.ported = ported;
    }

    /// The link that packets leave the node by.
    fn way_out(&self) -> &str {
        if self.network == PodNetwork::NodeBridge { NODE_BRIDGE } else { &self.nic }
    }

    /// The NIC is a bridge's port: loads the table of frames, unless it was loaded for the same.
    pub(super) fn bridge(&self, uplink: Uplink) -> Result<(), NodeError> {
        let mut loaded = self.loaded();
        if loaded.uplink != Some(uplink) {
            self.load_frames(&loaded.ported, uplink)?;
            loaded.uplink = Some(uplink);
        }
        Ok(())
    }

    /// Lets a pod's frames pass, where its port is a bridge's.
    pub(super) fn admit(&self, wirer: &mut Wirer, wiring: &Wiring) -> Result<(), LinuxError> {
        if !matches!(wiring.path, Path::Switched(_)) {
            return Ok(());
        }
        let mut loaded = self.loaded();
        wirer.admit(wiring)?;
        loaded.ported.insert(wiring.address, wiring.clone());
        Ok(())
    }

    /// The opposite.
    pub(super) fn dismiss(&self, wirer: &mut Wirer, wiring: &Wiring) -> Result<(), LinuxError> {
        if !matches!(wiring.path, Path::Switched(_)) {
            return Ok(());
        }
        let mut loaded = self.loaded();
        wirer.dismiss(wiring)?;
        loaded.ported.remove(&wiring.address);
        Ok(())
    }

    /// Lets the two sets have these contents, in a table that is loaded whole the first time; nothing is
    /// done when they have.
    pub(super) fn fill(&self, sets: Sets) -> Result<(), NodeError> {
        let mut loaded = self.loaded();
        if !loaded.is_there {
            self.load_whole(&loaded.ports, &sets)?;
        } else if loaded.sets != sets {
            let texts = self.families.iter().map(|family| fill(&sets, *family));
            run(&texts.collect::<String>())?;
        }
        loaded.is_there = true;
        loaded.sets = sets;
        Ok(())
    }

    /// Leads ports of the node to a pod.
    pub(super) fn open(
        &self,
        wirer: &mut Wirer,
        wiring: &Wiring,
        ports: &[PortMapping],
    ) -> Result<(), LinuxError> {
        let mut loaded = self.loaded();
        wirer.open_ports(wiring, ports)?;
        loaded.ports.extend(wiring.addresses().map(|address| (address, ports.to_vec())));
        Ok(())
    }

    /// Takes them away again.
    pub(super) fn close(
        &self,
        wirer: &mut Wirer,
        wiring: &Wiring,
        ports: &[PortMapping],
    ) -> Result<(), LinuxError> {
        let mut loaded = self.loaded();
        wirer.close_ports(wiring, ports)?;
        loaded.ports.retain(|address, _| wiring.addresses().all(|other| other != *address));
        Ok(())
    }

    /// Loads the table anew if somebody has taken it, or rules or elements of it, away. `seen` is the
    /// generation that this found everything in order at.
    pub(super) fn mend(&self, wirer: &mut Wirer, seen: &mut Option<u32>) -> Result<(), NodeError> {
        self.mend_uplink(wirer)?;
        let mut socket = Nfnetlink::open()?;
        let generation = socket.generation()?;
        if *seen == Some(generation) {
            return Ok(());
        }
        let loaded = self.loaded();
        if !loaded.is_there {
            return Ok(());
        }
        if !self.is_whole(&mut socket, &loaded)? {
            tracing::warn!("somebody has changed the node's rules; they are loaded anew");
            self.load_whole(&loaded.ports, &loaded.sets)?;
        }
        if let Some(uplink) = loaded.uplink
            && !are_frames_whole(&loaded.ported)?
        {
            tracing::warn!(
                "somebody has changed the rules for the node's frames; they are loaded anew"
            );
            self.load_frames(&loaded.ported, uplink)?;
        }
        *seen = Some(generation);
        Ok(())
    }

    /// Makes the bridge stand in for the NIC again.
    fn mend_uplink(&self, wirer: &mut Wirer) -> Result<(), NodeError> {
        let Some(uplink) = self.loaded().uplink else { return Ok(()) };
        let found = wirer.take_over(&self.nic, NODE_BRIDGE)?;
        if found == uplink { Ok(()) } else { self.bridge(found) }
    }

    /// Whether everything is there, by number. Contents are not compared: `nft` merges and splits what it
    /// is given.
    fn is_whole(&self, socket: &mut Nfnetlink, loaded: &Loaded) -> Result<bool, NodeError> {
        for family in self.families {
            if !self.is_whole_of(*family, socket, loaded)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn is_whole_of(
        &self,
        family: Family,
        socket: &mut Nfnetlink,
        loaded: &Loaded,
    ) -> Result<bool, NodeError> {
        for (set, wanted) in [("pods", &loaded.sets.pods), ("exempt", &loaded.sets.exempt)] {
            let is_empty = !wanted.iter().any(|prefix| prefix.family() == family);
            if (socket.n_elements(family, TABLE, set)? == 0) != is_empty {
                return Ok(false);
            }
        }
        let of_family = loaded.ports.iter().filter(|(address, _)| Family::of(**address) == family);
        let (mut n_pods, mut n_at, mut n) = (0, 0, 0);
        for (_, ports) in of_family {
            let at = ports.iter().filter(|port| port.host.is_of(family));
            let at: Vec<_> = at.map(|port| port.host.address.is_some()).collect();
            n_pods += usize::from(!at.is_empty());
            n_at += at.iter().filter(|is_at| **is_at).count();
            n += at.len();
        }
        for (set, wanted) in [(HAIRPIN, n_pods), (HOST_PORTS_AT, n_at), (HOST_PORTS, n - n_at)] {
            if socket.n_elements(family, TABLE, set)? != wanted {
                return Ok(false);
            }
        }
        Ok(socket.n_rules(family, TABLE)? == n_rules(self.network, family))
    }

    fn load_whole(&self, ports: &Ports, sets: &Sets) -> Result<(), NodeError> {
        let mut text = String::new();
        for family in self.families {
            text += &table(self.way_out(), self.network, *family);
            text += &fill(sets, *family);
        }
        text += &host_ports(ports.iter().map(|(address, ports)| (*address, ports.as_slice())));
        run(&text)
    }

    fn load_frames(&self, ported: &Ported, uplink: Uplink) -> Result<(), NodeError> {
        let table = bridging::frames(&self.nic, uplink.mac, uplink.address);
        run(&[table, bridging::admit(ported.values())].concat())
    }

    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().expect("nothing panics while it holds the rules")
    }
}

/// Whether the table of frames has all its rules, and as many pods as it must have.
fn are_frames_whole(ported: &Ported) -> Result<bool, NodeError> {
    let mut socket = Nfnetlink::open()?;
    for set in [bridging::MACS, bridging::SENDERS, bridging::HERE] {
        if socket.n_elements(TableFamily::Bridge, TABLE, set)? != ported.len() {
            return Ok(false);
        }
    }
    Ok(socket.n_rules(TableFamily::Bridge, TABLE)? == bridging::N_RULES)
}

/// Has `nft` carry out `text` in one transaction. Once per change of the node, never per pod.
fn run(text: &str) -> Result<(), NodeError> {
    let failed = |source| NodeError::Nft { source };
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let written = nft.stdin.take().map_or(Ok(()), |mut input| input.write_all(text.as_bytes()));
    let output = nft.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return written.map_err(failed);
    }
    Err(NodeError::Rules { text: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
}
