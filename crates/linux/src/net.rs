//! Links, addresses, routes, rules, neighbours and kernel settings of a namespace: what is there
//! ([`observe()`]), and how it is changed ([`apply()`]). Not here: what ought to be there (see `vnet::host`).
//!
//! [`netlink`] and [`wire`] are the layer below, for who needs single requests.

mod apply;
pub mod netlink;
mod observe;
mod sysctl;
pub(crate) mod traffic;
pub mod wire;

pub use self::{
    apply::{Actor, apply, apply_steps},
    netlink::{Netlink, Request},
    observe::{addresses_of, link_index, link_indexes, observe},
};
