//! Which of a node's links have the shortcut. Not here: what it is (see [`crate::shortcut`]).

use vnet::pods::wiring::{Path, Wiring};

use super::{Wirer, index};
use crate::{
    LinuxError,
    shortcut::{self, Shortcut},
};

impl Wirer {
    /// Gives what a pod sends the shortcut. Does nothing for pods on a bridge, whose packets are not routed.
    ///
    /// Not for pods whose sending is limited: the packets would pass their token bucket by.
    pub fn shorten(&mut self, wiring: &Wiring, shortcut: &Shortcut) -> Result<(), LinuxError> {
        match wiring.path {
            Path::Routed => self.shorten_link(&wiring.host_link, shortcut),
            Path::Bridged(_) | Path::Switched(_) => Ok(()),
        }
    }

    /// Gives what comes in at the node's NIC the shortcut, and makes the node's connection tracking fit for it.
    pub fn shorten_nic(&mut self, nic: &str, shortcut: &Shortcut) -> Result<(), LinuxError> {
        shortcut::prepare()?;
        self.shorten_link(nic, shortcut)
    }

    fn shorten_link(&mut self, name: &str, shortcut: &Shortcut) -> Result<(), LinuxError> {
        shortcut.attach(&mut self.node, index(name)?, name)
    }
}
