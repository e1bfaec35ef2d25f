//! Listens, speaks TLS and HTTP/1.1, and stops when told. Not here: what is answered.

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::tls::{Authority, TlsError};

/// How long a client may take for its part of the handshake and for the head of a request.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long open requests may take when the door closes.
const GRACE: Duration = Duration::from_secs(5);

/// Why the door closed by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A listening socket is gone.
    #[error("a listening socket failed")]
    Listener(#[source] io::Error),
    /// The certificate could not be made or read.
    #[error("the endpoint's certificate")]
    Tls(#[from] TlsError),
}

/// Serves `router` with a certificate of `authority` for as long as the future lives.
pub async fn serve(
    listener: TcpListener,
    authority: &Authority,
    router: Router,
) -> Result<(), ServeError> {
    let address = listener.local_addr().map_err(ServeError::Listener)?.ip();
    // Clients on other machines name the address that is listened on.
    let names = if address.is_unspecified() { Vec::new() } else { vec![address.to_string()] };
    let tls = authority.server_config(&names)?;
    serve_until(vec![listener], tls, router, std::future::pending()).await
}

/// Serves `router` with TLS on every listener until `shutdown` resolves; then open requests have five
/// seconds to end.
pub async fn serve_until(
    listeners: Vec<TcpListener>,
    tls: Arc<ServerConfig>,
    router: Router,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let (closing, is_closing) = watch::channel(false);
    let mut doors = JoinSet::new();
    for listener in listeners {
        doors.spawn(accept(
            listener,
            TlsAcceptor::from(tls.clone()),
            router.clone(),
            is_closing.clone(),
        ));
    }
    tokio::pin!(shutdown);
    let mut outcome = Ok(());
    tokio::select! {
        () = &mut shutdown => (),
        Some(ended) = doors.join_next() => {
            outcome = ended.unwrap_or(Ok(())).map_err(ServeError::Listener);
        }
    }
    closing.send_replace(true);
    let _ = timeout(GRACE, async { while doors.join_next().await.is_some() {} }).await;
    outcome
}

async fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    router: Router,
    mut closing: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (tls, router, closing) = (tls.clone(), router.clone(), closing.clone());
                    connections.spawn(converse(stream, tls, router, closing));
                }
                Err(error) if is_of_one_connection(&error) => {}
                // Out of file descriptors, say: whoever has them will give some back.
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => (),
            () = closed(&mut closing) => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
    Ok(())
}

/// Resolves when the door closes, or when whoever could close it is gone.
async fn closed(closing: &mut watch::Receiver<bool>) {
    let _ = closing.wait_for(|closing| *closing).await;
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

async fn converse(
    stream: TcpStream,
    tls: TlsAcceptor,
    router: Router,
    mut closing: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let handshake = tokio::select! {
        ended = timeout(PATIENCE, tls.accept(stream)) => ended,
        () = closed(&mut closing) => return,
    };
    let stream = match handshake {
        Ok(Ok(stream)) => TokioIo::new(stream),
        // A client that does not trust the authority ends here; it says so better than we could.
        Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => return,
    };
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(stream, TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = closed(&mut closing) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended badly");
    }
}
