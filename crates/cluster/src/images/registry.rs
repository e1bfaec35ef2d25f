//! The lab's image registry, as a computer. Not here: pushing to it.

use std::net::Ipv4Addr;

use crate::programs::{Computer, Program, TextFile};

/// Where the registry listens.
pub const REGISTRY_PORT: u16 = 5000;
/// Where nodes ask for what the registry lacks; the lab asks upstream for them.
pub const UPSTREAM_PORT: u16 = 5001;

/// Docker's registry (Debian's package), listening on this address of its network.
#[must_use]
pub fn registry(address: Ipv4Addr) -> Computer {
    let config = format!(
        "version: 0.1\n\
         log:\n\
         \x20 level: warn\n\
         \x20 accesslog:\n\
         \x20   disabled: true\n\
         storage:\n\
         \x20 filesystem:\n\
         \x20   rootdirectory: /var/lib/registry\n\
         \x20 cache:\n\
         \x20   blobdescriptor: inmemory\n\
         http:\n\
         \x20 addr: {address}:{REGISTRY_PORT}\n\
         \x20 relativeurls: true\n"
    );
    let path = "/etc/docker/registry/config.yml";
    Computer {
        hostname: "registry".to_owned(),
        programs: vec![Program::new("registry", "docker-registry", ["serve", path])],
        files: vec![TextFile::public(path, config), TextFile::public("/etc/resolv.conf", "")],
        folders: vec!["/var/lib/registry"],
    }
}
