//! The way from the machine's loopback to an API server: the port that kubeconfigs name. Not here: TLS,
//! which goes through untouched.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    time::Duration,
};

use linux::netns::Netns;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinSet, spawn_blocking},
};

/// The ports that API servers get on loopback, below those that the kernel gives to outgoing connections.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// A port on loopback that leads to an API server as long as this value lives.
pub(super) struct Proxy {
    port: u16,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Listens on the port that the file `kept` names, or on a free one near `preferred`, which is then
    /// kept. Connections go to `to` from inside the network namespace `netns`.
    pub(super) async fn start(
        kept: &Path,
        preferred: u16,
        netns: String,
        to: SocketAddrV4,
    ) -> io::Result<Self> {
        let before = fs::read_to_string(kept).ok().and_then(|text| text.trim().parse().ok());
        let listener = listen(before, preferred).await?;
        let port = listener.local_addr()?.port();
        if before != Some(port) {
            if let Some(before) = before {
                tracing::warn!(before, port, "a cluster's port is taken; its kubeconfig changes");
            }
            fs::write(kept, format!("{port}\n"))?;
        }
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, netns, to));
        Ok(Self { port, _tasks: tasks })
    }

    /// The port.
    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

/// A port for this name, the same every time.
pub(super) fn preferred_port(name: &str) -> u16 {
    let n_ports = u32::from(PORTS.end - PORTS.start);
    let hash = name.bytes().fold(7_u32, |hash, byte| hash.wrapping_mul(31) ^ u32::from(byte));
    PORTS.start + u16::try_from(hash % n_ports).unwrap_or_default()
}

async fn listen(before: Option<u16>, preferred: u16) -> io::Result<TcpListener> {
    let others = (preferred..PORTS.end).chain(PORTS.start..preferred);
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for port in before.into_iter().chain(others).take(100) {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            Ok(listener) => return Ok(listener),
            Err(err) => last = err,
        }
    }
    Err(last)
}

async fn serve(listener: TcpListener, netns: String, to: SocketAddrV4) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => { connections.spawn(forward(client, netns.clone(), to)); }
                // Out of descriptors, perhaps: connections that end give some back.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection. When the API server cannot be reached, the client sees its connection end.
async fn forward(mut client: TcpStream, netns: String, to: SocketAddrV4) {
    let connect = move || {
        let namespace = Netns::open(&netns).ok()?;
        let server = namespace.tcp_connect(None, to, Duration::from_secs(5)).ok()?;
        server.set_nonblocking(true).ok()?;
        Some(server)
    };
    let Ok(Some(server)) = spawn_blocking(connect).await else { return };
    let Ok(mut server) = TcpStream::from_std(server) else { return };
    // Small requests and answers: do not wait for more to send.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    // Either end may break off at any time; that ends both.
    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}
