//! The door behind a real socket, with a client that trusts nothing but the authority's file.
#![allow(clippy::unwrap_used, reason = "a test that panics says where")]

mod lab;

use std::{fs, net::SocketAddr, sync::Arc};

use azure::{axum::Router, serve_until, tls::Authority};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

async fn get(address: SocketAddr, trusted: &str, name: &str) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let request = "GET /metadata/endpoints?api-version=2022-09-01 HTTP/1.1\r\nhost: lab:1\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn clients_that_trust_the_authority_are_served_until_it_closes() {
    let folder = tempfile::tempdir().unwrap();
    let first = Authority::load_or_create(folder.path()).unwrap();
    let trusted = fs::read_to_string(first.certificate_file()).unwrap();
    // What is read from disk later makes certificates that the same file vouches for.
    let later = Authority::load_or_create(folder.path()).unwrap();
    let tls = later.server_config(&["lab.test".to_owned()]).unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (close, closed) = oneshot::channel::<()>();
    let router: Router = lab::Lab::empty().into_router();
    let served = tokio::spawn(serve_until(vec![listener], tls, router, async {
        let _ = closed.await;
    }));

    for name in ["localhost", "127.0.0.1", "::1", "lab.test"] {
        let answer = get(address, &trusted, name).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{name}: {answer}");
        assert!(answer.contains("https://lab:1/adfs"), "{answer}");
    }
    assert!(get(address, &trusted, "elsewhere.test").await.is_err());
    let other = tempfile::tempdir().unwrap();
    let other = Authority::load_or_create(other.path()).unwrap();
    assert!(get(address, other.certificate_pem(), "localhost").await.is_err());

    // A connection that says nothing doesn't hold the door open.
    let _silent = TcpStream::connect(address).await.unwrap();
    close.send(()).unwrap();
    served.await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}
