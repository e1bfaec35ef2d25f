//! TLS for health probes: with whatever certificate the member has.
//!
//! Azure's probes take self-signed certificates, and do not look at names (Azure documentation, "Azure Load Balancer
//! health probes"). What is asked is whether somebody speaks TLS there; the signature of the handshake must be right.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    sync::{Arc, LazyLock},
};

use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

/// Speaks TLS on a connection to `to`.
pub(super) fn over<S: Read + Write>(
    stream: S,
    to: SocketAddr,
) -> io::Result<StreamOwned<ClientConnection, S>> {
    static CONFIG: LazyLock<Result<Arc<ClientConfig>, Error>> = LazyLock::new(config);
    let config = CONFIG.clone().map_err(io::Error::other)?;
    let name = ServerName::IpAddress(to.ip().into());
    let session = ClientConnection::new(config, name).map_err(io::Error::other)?;
    Ok(StreamOwned::new(session, stream))
}

fn config() -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Takes every certificate.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use super::*;

    /// What a client hears of a server that has a certificate of its own.
    fn heard(serve: impl FnOnce(TcpStream) + Send + 'static) -> io::Result<Vec<u8>> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let SocketAddr::V4(to) = listener.local_addr().expect("an address") else {
            panic!("an address of the other family");
        };
        let serving = std::thread::spawn(move || serve(listener.accept().expect("a client").0));
        let mut stream = over(TcpStream::connect(to)?, to.into())?;
        let mut byte = vec![0];
        let done = stream.write_all(b"?").and_then(|()| stream.read_exact(&mut byte));
        // The server waits for the client to go.
        drop(stream);
        serving.join().expect("a server");
        done.map(|()| byte)
    }

    #[test]
    fn a_certificate_that_nobody_signed_is_good_enough() {
        let pair = rcgen::generate_simple_self_signed(vec!["other.example".to_owned()]);
        let pair = pair.expect("a certificate");
        let key = rustls::pki_types::PrivateKeyDer::try_from(pair.signing_key.serialize_der());
        let config =
            rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_no_client_auth()
                .with_single_cert(vec![pair.cert.der().clone()], key.expect("a key"))
                .expect("a configuration");
        let answer = heard(move |stream| {
            let session = rustls::ServerConnection::new(Arc::new(config)).expect("a session");
            let mut stream = StreamOwned::new(session, stream);
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a question");
            stream.write_all(b"!").expect("an answer");
            // Read until the client goes, so that nothing is lost on the way.
            let _ = stream.read(&mut byte);
        });
        assert_eq!(answer.expect("TLS"), b"!");
    }

    #[test]
    fn who_speaks_no_tls_is_not_well() {
        assert!(heard(|mut stream| drop(stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n"))).is_err());
    }
}
