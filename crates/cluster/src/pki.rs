//! A cluster's certificates. Not here: where they are kept, who uses which file (see
//! [`crate::programs`]).
//!
//! A cluster has an authority of its own. Keys are ECDSA P-256.

use std::net::Ipv4Addr;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use serde::{Deserialize, Serialize};

/// The form of both structures as they are kept in files.
const VERSION: u32 = 1;

/// A certificate or public key, and the private key, in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// The certificate; for service accounts the public key.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

/// What a control plane needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterCertificates {
    version: u32,
    /// The authority that everybody in the cluster trusts.
    pub authority: Pair,
    /// The authority of requests that the API server passes on to extensions.
    pub front_proxy_authority: Pair,
    /// Signs service accounts' tokens.
    pub service_accounts: Pair,
    /// The API server's own.
    pub apiserver: Pair,
    /// The API server, to kubelets.
    pub kubelet_client: Pair,
    /// The API server, to extensions.
    pub front_proxy_client: Pair,
    /// The controller manager.
    pub controller_manager: Pair,
    /// The scheduler.
    pub scheduler: Pair,
    /// Whoever may do everything: the lab, and `az aks get-credentials`.
    pub admin: Pair,
}

/// What a node needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeCertificates {
    version: u32,
    /// The kubelet, to the API server.
    pub kubelet: Pair,
    /// The kubelet's own, for logs and exec.
    pub kubelet_server: Pair,
    /// kube-proxy.
    pub kube_proxy: Pair,
    /// The network agent.
    pub agent: Pair,
}

/// Names and addresses of an API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiServerNames {
    /// Its public name.
    pub fqdn: String,
    /// Its public address.
    pub address: Ipv4Addr,
    /// Its address inside: the first of the service range.
    pub service_address: Ipv4Addr,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The certificate cannot be made.
    #[error("cannot make a certificate for `{subject}`")]
    Certificate {
        /// Whose.
        subject: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// The file is not one that this release can read.
    #[error("the certificates cannot be read: {reason}")]
    Form {
        /// What is wrong.
        reason: String,
    },
}

impl ClusterCertificates {
    /// Makes a new authority and everything that it signs.
    pub fn generate(names: &ApiServerNames) -> Result<Self, PkiError> {
        let authority = make_authority("kubernetes")?;
        let front_proxy_authority = make_authority("front-proxy")?;
        let issuer = issuer(&authority)?;
        let client = |name: &str, group: Option<&str>| sign(&issuer, &client_params(name, group));
        Ok(Self {
            version: VERSION,
            service_accounts: make_key("service accounts")?,
            apiserver: sign(&issuer, &apiserver_params(names)?)?,
            kubelet_client: client("kube-apiserver-kubelet-client", None)?,
            front_proxy_client: sign(
                &self::issuer(&front_proxy_authority)?,
                &client_params("front-proxy-client", None),
            )?,
            controller_manager: client("system:kube-controller-manager", None)?,
            scheduler: client("system:kube-scheduler", None)?,
            admin: client("masterclient", Some("system:masters"))?,
            authority,
            front_proxy_authority,
        })
    }

    /// Makes a node's certificates.
    pub fn sign_node(
        &self,
        hostname: &str,
        address: Ipv4Addr,
    ) -> Result<NodeCertificates, PkiError> {
        let issuer = issuer(&self.authority)?;
        let client = |name: &str, group: Option<&str>| sign(&issuer, &client_params(name, group));
        let kubelet = format!("system:node:{hostname}");
        let mut server = params(&kubelet, Some("system:nodes"));
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        server.subject_alt_names = vec![dns(hostname)?, SanType::IpAddress(address.into())];
        Ok(NodeCertificates {
            version: VERSION,
            kubelet: client(&kubelet, Some("system:nodes"))?,
            kubelet_server: sign(&issuer, &server)?,
            kube_proxy: client("system:kube-proxy", None)?,
            agent: client("aksnet:agent", Some("aksnet:agents"))?,
        })
    }

    /// Reads what [`to_json`](Self::to_json) wrote.
    pub fn from_json(text: &[u8]) -> Result<Self, PkiError> {
        read(text)
    }

    /// For a file that only its owner may read.
    ///
    /// # Panics
    /// Never: texts and numbers are JSON.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers are JSON")
    }
}

impl NodeCertificates {
    /// Reads what [`to_json`](Self::to_json) wrote.
    pub fn from_json(text: &[u8]) -> Result<Self, PkiError> {
        read(text)
    }

    /// For a file that only its owner may read.
    ///
    /// # Panics
    /// Never: texts and numbers are JSON.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers are JSON")
    }
}

fn read<T: for<'de> Deserialize<'de>>(text: &[u8]) -> Result<T, PkiError> {
    /// Read first and alone, so that a later form is refused by its number.
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let form = |err: serde_json::Error| PkiError::Form { reason: err.to_string() };
    let Version { version } = serde_json::from_slice(text).map_err(form)?;
    if version != VERSION {
        let reason = format!("version {version}, and this release reads {VERSION}");
        return Err(PkiError::Form { reason });
    }
    serde_json::from_slice(text).map_err(form)
}

fn params(name: &str, group: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    // A lab is never old enough for renewal, and its clock may be wrong.
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2099, 1, 1);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

fn client_params(name: &str, group: Option<&str>) -> CertificateParams {
    let mut params = params(name, group);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn apiserver_params(names: &ApiServerNames) -> Result<CertificateParams, PkiError> {
    let mut params = params("kube-apiserver", None);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    for name in [
        names.fqdn.as_str(),
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ] {
        params.subject_alt_names.push(dns(name)?);
    }
    for address in [names.address, names.service_address, Ipv4Addr::LOCALHOST] {
        params.subject_alt_names.push(SanType::IpAddress(address.into()));
    }
    Ok(params)
}

fn dns(name: &str) -> Result<SanType, PkiError> {
    let name = name.try_into().map_err(certificate_error(name))?;
    Ok(SanType::DnsName(name))
}

fn make_authority(name: &str) -> Result<Pair, PkiError> {
    let key = KeyPair::generate().map_err(certificate_error(name))?;
    let mut params = params(name, None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(certificate_error(name))?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn make_key(name: &str) -> Result<Pair, PkiError> {
    let key = KeyPair::generate().map_err(certificate_error(name))?;
    Ok(Pair { certificate: key.public_key_pem(), key: key.serialize_pem() })
}

fn issuer(authority: &Pair) -> Result<Issuer<'static, KeyPair>, PkiError> {
    let error = certificate_error("the authority");
    let key = KeyPair::from_pem(&authority.key).map_err(&error)?;
    Issuer::from_ca_cert_pem(&authority.certificate, key).map_err(&error)
}

fn sign(issuer: &Issuer<'_, KeyPair>, params: &CertificateParams) -> Result<Pair, PkiError> {
    let name = format!("{:?}", params.distinguished_name.get(&DnType::CommonName));
    let key = KeyPair::generate().map_err(certificate_error(&name))?;
    let certificate = params.signed_by(&key, issuer).map_err(certificate_error(&name))?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn certificate_error(subject: &str) -> impl Fn(rcgen::Error) -> PkiError + use<> {
    let subject = subject.to_owned();
    move |source| PkiError::Certificate { subject: subject.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificates() -> ClusterCertificates {
        ClusterCertificates::generate(&ApiServerNames {
            fqdn: "demo-1234.hcp.eastus.azmk8s.io".to_owned(),
            address: Ipv4Addr::new(198, 18, 0, 9),
            service_address: Ipv4Addr::new(10, 0, 0, 1),
        })
        .expect("certificates")
    }

    #[test]
    fn what_is_written_is_read() {
        let cluster = certificates();
        assert_eq!(ClusterCertificates::from_json(&cluster.to_json()).expect("read"), cluster);
        let node = cluster.sign_node("aks-p-1-vmss000000", Ipv4Addr::new(10, 1, 0, 4)).expect("n");
        assert_eq!(NodeCertificates::from_json(&node.to_json()).expect("read"), node);
    }

    #[test]
    fn a_later_form_is_refused_by_its_version() {
        let err = NodeCertificates::from_json(br#"{"version":2,"new":1}"#).expect_err("refused");
        assert_eq!(
            err.to_string(),
            "the certificates cannot be read: version 2, and this release reads 1"
        );
    }
}
