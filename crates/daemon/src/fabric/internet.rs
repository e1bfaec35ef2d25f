//! What the internet answers: whoever asks any address over HTTP is told the source that was seen.

use std::net::{Ipv6Addr, SocketAddr};

use linux::{LinuxError, netns::Netns};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use vnet::host::names::internet_ns;

/// Longer than any request that a person makes.
const LONGEST_REQUEST: usize = 16 * 1024;

/// The responder in the internet's namespace. Ends with this value.
pub(super) struct Internet {
    namespace: String,
    task: Option<JoinHandle<()>>,
}

impl Internet {
    pub(super) fn new(lab: &str) -> Self {
        Self { namespace: internet_ns(lab), task: None }
    }

    /// Starts the responder, unless it runs already in the namespace that is there.
    pub(super) fn serve(&mut self, created: &[String]) -> Result<(), LinuxError> {
        let runs = self.task.as_ref().is_some_and(|task| !task.is_finished());
        if runs && !created.contains(&self.namespace) {
            return Ok(());
        }
        self.stop();
        let namespace = Netns::open(&self.namespace)?;
        let listener =
            namespace.tcp_listen_at(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 80))?;
        let failed = |source| LinuxError::Socket { source };
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = TcpListener::from_std(listener).map_err(failed)?;
        self.task = Some(tokio::spawn(accept(listener)));
        Ok(())
    }

    fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn accept(listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                drop(tokio::spawn(answer(stream, peer.ip().to_canonical().to_string())));
            }
            // Out of files, most likely: others end, and then there are some.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
        }
    }
}

/// Reads one request and answers it. A client that goes away is no news.
async fn answer(mut stream: TcpStream, source: String) {
    let mut request = Vec::new();
    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
        match stream.read_buf(&mut request).await {
            Ok(1..) if request.len() < LONGEST_REQUEST => {}
            _ => return,
        }
    }
    let body = if request.starts_with(b"HEAD ") { "" } else { &format!("{source}\n") };
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        source.len() + 1
    );
    if stream.write_all(answer.as_bytes()).await.is_ok() {
        let _ = stream.shutdown().await;
    }
}
