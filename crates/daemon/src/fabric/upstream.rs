//! Resolvers of the machine's own, asked for names that are not the lab's. Only a lab with an uplink asks them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

/// How long one server may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Servers, asked one after the other.
pub(super) struct Upstream {
    servers: Vec<SocketAddr>,
}

impl Upstream {
    /// Those of a `resolv.conf`; `None` when it names nobody.
    pub(super) fn of(resolv_conf: &str) -> Option<Self> {
        let servers: Vec<SocketAddr> = resolv_conf
            .lines()
            .filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok())
            .map(|address: IpAddr| SocketAddr::new(address, 53))
            .collect();
        (!servers.is_empty()).then_some(Self { servers })
    }

    /// The first answer, as it came.
    pub(super) async fn ask(&self, query: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        for server in &self.servers {
            let asked = async {
                if over_tcp { ask_tcp(*server, query).await } else { ask_udp(*server, query).await }
            };
            if let Ok(Ok(answer)) = timeout(PATIENCE, asked).await {
                return Some(answer);
            }
        }
        None
    }
}

async fn ask_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    // A new socket each time: its port is the second half of what a forger must guess.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let n = socket.recv(&mut buffer).await?;
        if buffer[..n].get(..2) == query.get(..2) {
            buffer.truncate(n);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend(query);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::Upstream;

    #[test]
    fn a_resolv_conf_names_servers() {
        let text = "# nobody\nsearch a.b\nnameserver 127.0.0.53\n nameserver\t::1 \nnameserver x\n";
        let servers = Upstream::of(text).map(|it| it.servers);
        let expected = vec!["127.0.0.53:53".parse().expect("v4"), "[::1]:53".parse().expect("v6")];
        assert_eq!(servers, Some(expected));
        assert!(Upstream::of("search a\n").is_none());
    }
}
