//! Joins the lab's internet to the machine's own network, and takes that away again. Not here: what is made (see
//! `vnet::host::uplink`).
//!
//! # Guarantees
//! The machine's network namespace gets one link and one nftables table, both named after the lab, and forwards; that
//! is written down before it is done, and [`Uplink::down`] undoes it. Doing either twice changes nothing.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use linux::{
    LinuxError,
    net::{
        Netlink, Request, link_indexes,
        wire::{self, VethEnd},
    },
    netns::Netns,
    nft,
};
use vnet::host::{
    Fabric,
    names::internet_ns,
    uplink::{OUTSIDE, Uplink as Ends},
};

const MTU: u32 = 1500;
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
/// The file in a lab's folder of running state that says that the machine did not forward before.
const FORWARDS: &str = "uplink-forwards";

/// A lab's uplink.
#[derive(Debug)]
pub struct Uplink {
    lab: String,
    ends: Ends,
    /// Where the machine's own network is.
    machine: Netns,
    /// The link that flows leave by; `None` is that of the default route.
    link: Option<String>,
    run_dir: PathBuf,
}

/// Why there can be no uplink.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// The kernel refused.
    #[error("joining the lab's internet to the machine's network")]
    Linux(#[from] LinuxError),
    /// The machine's settings cannot be read or written.
    #[error("{verb} {}", path.display())]
    File {
        /// What was being done.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no way out.
    #[error("the machine has no default route, so there is nothing to join the lab's internet to")]
    NoDefaultRoute,
    /// There is no such link.
    #[error("the machine has no link `{0}`")]
    NoLink(String),
}

impl Uplink {
    /// The uplink of `lab` in the network namespace `machine`, by `link` or by the default route. `run_dir` is where
    /// the lab's running state is.
    #[must_use]
    pub fn new(machine: Netns, lab: &str, link: Option<String>, run_dir: &Path) -> Self {
        let ends = Ends::of(lab);
        Self { lab: lab.to_owned(), ends, machine, link, run_dir: run_dir.to_owned() }
    }

    /// The link that flows leave by now.
    pub fn way_out(&self) -> Result<String, UplinkError> {
        let Some(link) = &self.link else {
            let path = Path::new("/proc/thread-self/net/route");
            let text = self.machine.run(|| fs::read_to_string(path))?;
            let text = text.map_err(file("reading", path))?;
            return default_link(&text).ok_or(UplinkError::NoDefaultRoute);
        };
        let mut netlink = Netlink::open_in(&self.machine)?;
        if link_indexes(&mut netlink)?.contains_key(link) {
            Ok(link.clone())
        } else {
            Err(UplinkError::NoLink(link.clone()))
        }
    }

    /// Makes what the machine must have, as far as it is not there. Says the name of the internet's namespace when
    /// that is new.
    pub(super) fn ensure(&self) -> Result<Option<String>, UplinkError> {
        let out = self.way_out()?;
        let name = internet_ns(&self.lab);
        let is_new = !Netns::list()?.contains(&name);
        let internet = Netns::ensure(&name)?;
        self.pair(&internet)?;
        let rules = self.ends.rules(&out);
        if nft::loaded_table(&self.machine, &self.ends.table)? != Some(vnet::host::digest(&rules)) {
            nft::load_table(&self.machine, &self.ends.table, &rules)?;
        }
        self.forward()?;
        Ok(is_new.then_some(name))
    }

    /// Adds the internet's side to what its namespace must look like.
    pub(super) fn join(&self, fabric: &mut Fabric) {
        self.ends.join(fabric, &self.lab);
    }

    fn pair(&self, internet: &Netns) -> Result<(), UplinkError> {
        use std::os::fd::AsFd;
        let mut inside = Netlink::open_in(internet)?;
        let mut machine = Netlink::open_in(&self.machine)?;
        let here = link_indexes(&mut machine)?.get(&self.ends.link).copied();
        if link_indexes(&mut inside)?.contains_key(OUTSIDE) && here.is_some() {
            return Ok(());
        }
        // Half a pair belongs to a namespace that was removed, and is about to go.
        if let Some(index) = here {
            let what = format!("delete link {}", self.ends.link);
            machine.send_all(&[Request::change(wire::link_delete(index), what)])?;
        }
        let end =
            |name, namespace, up| VethEnd { name, mac: None, mtu: MTU, namespace, up, group: 0 };
        let pair = wire::new_veth(
            end(&self.ends.link, None, true),
            end(OUTSIDE, Some(internet.as_fd()), false),
        );
        machine.send_all(&[Request::create(pair, format!("pair {}", self.ends.link))])?;
        let index = |netlink: &mut Netlink, link: &str, namespace: &Netns| {
            link_indexes(netlink)?.get(link).copied().ok_or_else(|| LinuxError::NoLink {
                link: link.to_owned(),
                namespace: namespace.name().to_owned(),
            })
        };
        let there = index(&mut inside, OUTSIDE, internet)?;
        inside.send_all(&[Request::change(wire::link_up(there, true), "set outside up")])?;
        let here = index(&mut machine, &self.ends.link, &self.machine)?;
        let address = wire::new_address(here, self.ends.machine, Ends::LENGTH);
        machine.send_all(&[Request::replace(address, "address of the uplink")])?;
        Ok(())
    }

    fn forward(&self) -> Result<(), UplinkError> {
        let path = Path::new(IP_FORWARD);
        let value =
            self.machine.run(|| fs::read_to_string(path))?.map_err(file("reading", path))?;
        if value.trim() != "0" {
            return Ok(());
        }
        // Written down first: a lab that ends in between restores what it need not.
        let note = self.run_dir.join(FORWARDS);
        fs::write(&note, "").map_err(file("writing", &note))?;
        self.machine.run(|| fs::write(path, "1"))?.map_err(file("writing", path))
    }

    /// Takes everything away.
    pub fn down(&self) -> Result<(), UplinkError> {
        let mut netlink = Netlink::open_in(&self.machine)?;
        if let Some(index) = link_indexes(&mut netlink)?.get(&self.ends.link) {
            let what = format!("delete link {}", self.ends.link);
            netlink.send_all(&[Request::change(wire::link_delete(*index), what)])?;
        }
        if nft::loaded_table(&self.machine, &self.ends.table)?.is_some() {
            nft::unload_table(&self.machine, &self.ends.table)?;
        }
        let note = self.run_dir.join(FORWARDS);
        if !note.exists() {
            return Ok(());
        }
        if let Some(heir) = self.heir() {
            // Another lab still needs it, and will restore it.
            let note = heir.join(FORWARDS);
            fs::write(&note, "").map_err(file("writing", &note))?;
        } else {
            let path = Path::new(IP_FORWARD);
            self.machine.run(|| fs::write(path, "0"))?.map_err(file("writing", path))?;
        }
        fs::remove_file(&note).map_err(file("removing", &note))
    }

    /// The folder of another lab that has an uplink here.
    fn heir(&self) -> Option<PathBuf> {
        let mut netlink = Netlink::open_in(&self.machine).ok()?;
        let links = link_indexes(&mut netlink).ok()?;
        let labs = fs::read_dir(self.run_dir.parent()?).ok()?.flatten();
        labs.map(|lab| lab.path()).find(|folder| {
            let name = folder.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name != self.lab && links.contains_key(&Ends::of(name).link))
        })
    }
}

fn file(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> UplinkError {
    let path = path.to_owned();
    move |source| UplinkError::File { verb, path, source }
}

/// The link of the default route that the kernel prefers, of a `/proc/net/route`.
fn default_link(text: &str) -> Option<String> {
    let routes = text.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [link, destination, _, flags, _, _, metric, mask, ..] = fields.as_slice() else {
            return None;
        };
        let is_up = u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 1);
        let is_default = *destination == "00000000" && *mask == "00000000" && is_up;
        is_default.then(|| Some((metric.parse::<u32>().ok()?, (*link).to_owned())))?
    });
    routes.min().map(|(_, link)| link)
}

#[cfg(test)]
mod tests {
    use super::default_link;

    #[test]
    fn the_default_route_of_the_lowest_metric_is_the_way_out() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            wlan0\t00000000\t0100A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
            eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
            down0\t00000000\t0100000A\t0002\t0\t0\t1\t00000000\t0\t0\t0\n\
            tun0\t00000000\t0100000A\t0001\t0\t0\t0\t00000080\t0\t0\t0\n\
            eth0\t0000000A\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(default_link(text).as_deref(), Some("eth0"));
        assert_eq!(default_link("Iface\n"), None);
        assert_eq!(default_link(""), None);
    }
}
