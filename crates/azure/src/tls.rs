//! The certificate authority that clients trust and the certificate that the door shows.
//! Not here: sockets (see [`crate::serve()`]).

use std::{
    fs,
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
};

/// Names that every certificate is good for.
const OWN_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// What can go wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of the authority could not be read or written.
    #[error("cannot {action} `{path}`")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A key or certificate could not be made, or what is on disk is none.
    #[error("cannot make or read a certificate")]
    Certificate(#[from] rcgen::Error),
    /// rustls refuses the certificate or key.
    #[error("the certificate and its key are not usable")]
    Config(#[from] rustls::Error),
    /// A file isn't the PEM that was written.
    #[error("`{path}` is not PEM")]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
}

/// A certificate authority kept in a folder: `ca.pem` and `ca.key`, `server.pem` and `server.key`.
/// Clients trust `ca.pem`; it stays the same for the folder's life.
#[derive(Debug)]
pub struct Authority {
    folder: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    /// The authority in `folder`, made when there is none.
    pub fn load_or_create(folder: &Path) -> Result<Self, TlsError> {
        fs::create_dir_all(folder).map_err(|source| TlsError::File {
            action: "make the folder",
            path: folder.to_owned(),
            source,
        })?;
        let folder = folder.to_owned();
        let (certificate_file, key_file) = (folder.join("ca.pem"), folder.join("ca.key"));
        if certificate_file.exists() && key_file.exists() {
            let key = KeyPair::from_pem(&read(&key_file)?)?;
            let issuer = CertifiedIssuer::self_signed(authority_params(), key)?;
            return Ok(Self { folder, issuer, certificate: read(&certificate_file)? });
        }
        let issuer = CertifiedIssuer::self_signed(authority_params(), KeyPair::generate()?)?;
        // The key first: a certificate without its key would be trusted and useless.
        write(&key_file, &issuer.key().serialize_pem(), 0o600)?;
        let certificate = issuer.pem();
        write(&certificate_file, &certificate, 0o644)?;
        Ok(Self { folder, issuer, certificate })
    }

    /// The file that clients must trust.
    #[must_use]
    pub fn certificate_file(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// The authority's certificate as PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate
    }

    /// A server's settings with a certificate for localhost, 127.0.0.1, `::1` and `names`. The certificate
    /// on disk is taken as long as it is good for all of them.
    pub fn server_config(&self, names: &[String]) -> Result<Arc<ServerConfig>, TlsError> {
        let mut wanted: Vec<String> = OWN_NAMES.map(str::to_owned).to_vec();
        wanted.extend(names.iter().filter(|name| !OWN_NAMES.contains(&name.as_str())).cloned());
        wanted.sort();
        wanted.dedup();

        let file = |name: &str| self.folder.join(name);
        let (certificate_file, key_file, names_file) =
            (file("server.pem"), file("server.key"), file("server.names"));
        // A third file says what the certificate is good for, so that nothing has to take it apart.
        let has = fs::read_to_string(&names_file).unwrap_or_default();
        let covers = wanted.iter().all(|name| has.lines().any(|line| line == name));
        if !(covers && certificate_file.exists() && key_file.exists()) {
            let key = KeyPair::generate()?;
            let certificate = leaf_params(&wanted)?.signed_by(&key, &self.issuer)?;
            let _ = fs::remove_file(&names_file);
            write(&key_file, &key.serialize_pem(), 0o600)?;
            write(&certificate_file, &certificate.pem(), 0o644)?;
            write(&names_file, &wanted.join("\n"), 0o644)?;
        }

        let pem = |path: PathBuf| move |source| TlsError::Pem { path, source };
        let certificate = CertificateDer::from_pem_slice(read(&certificate_file)?.as_bytes())
            .map_err(pem(certificate_file))?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(read(&key_file)?.as_bytes())
            .map_err(pem(key_file))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(key))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "aksnet lab authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    params.not_after = rcgen::date_time_ymd(2054, 1, 1);
    params
}

fn leaf_params(names: &[String]) -> Result<CertificateParams, TlsError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "aksnet");
    for name in names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.as_str().try_into()?),
        });
    }
    // Python 3.13 and later want it.
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    params.not_after = rcgen::date_time_ymd(2054, 1, 1);
    Ok(params)
}

fn read(path: &Path) -> Result<String, TlsError> {
    fs::read_to_string(path).map_err(|source| TlsError::File {
        action: "read",
        path: path.to_owned(),
        source,
    })
}

/// Writes a file whole or not at all, with these permissions from its first byte on.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    let staged = path.with_extension("new");
    let attempt = || {
        let _ = fs::remove_file(&staged);
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&staged)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&staged, path)
    };
    attempt().map_err(|source| TlsError::File { action: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn stays_the_same_and_renews_its_certificate_for_new_names() {
        let folder = tempfile::tempdir().unwrap();
        let first = Authority::load_or_create(folder.path()).unwrap();
        first.server_config(&[]).unwrap();
        let server = || fs::read_to_string(folder.path().join("server.pem")).unwrap();
        let before = server();

        let second = Authority::load_or_create(folder.path()).unwrap();
        assert_eq!(first.certificate_pem(), second.certificate_pem());
        second.server_config(&["127.0.0.1".to_owned()]).unwrap();
        assert_eq!(server(), before);
        second.server_config(&["lab.test".to_owned()]).unwrap();
        assert_ne!(server(), before);
        let renewed = server();
        second.server_config(&[]).unwrap();
        assert_eq!(server(), renewed, "a certificate for more names is good for fewer");

        for key in ["ca.key", "server.key"] {
            let mode = fs::metadata(folder.path().join(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
    }
}
