//! The door to Kubernetes: how its programs are started, with which certificates and add-ons, and how
//! its objects become values of `vnet`.
//!
//! Entry points, in the order of a cluster's life: [`install`] fetches or builds the programs,
//! [`pki`] makes certificates, [`programs`] says what a control plane and a node run, [`images`] packs what
//! pods need, [`addons`] puts the cluster's own objects into it, [`view`] reads its nodes, [`masquerade`] the settings of
//! azure-ip-masq-agent. [`cache`] removes what earlier versions have made.
//!
//! Deliberately absent: Azure's requests, kernel calls, and starting anything that stays: what is to run is a
//! value that somebody else carries out.
#![forbid(unsafe_code)]

pub mod addons;
pub mod cache;
pub mod images;
pub mod install;
pub mod kubeconfig;
pub mod masquerade;
pub mod pki;
pub mod programs;
pub mod view;
