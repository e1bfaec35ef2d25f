//! Answers nodes that ask for an image that the lab's registry lacks: asks upstream from the machine's own
//! network, since the lab's internet leads nowhere. Nothing is kept; a node keeps what it has pulled.

use std::{io::Read, net::SocketAddrV4, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Query, Request, State},
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use cluster::images::{Fetched, Question, UPSTREAM_PORT, Upstream};
use linux::netns::Netns;
use serde::Deserialize;
use tokio::{net::TcpListener, sync::mpsc};
use vnet::host::names;

use super::{ClustersError, blocking};
use crate::reconcile::Chain;

const CHUNK: usize = 64 << 10;
/// How many chunks may wait for a slow node.
const AHEAD: usize = 4;

/// Listens in the lab's internet, for ever.
pub(super) async fn keep(lab: String) {
    let mut is_told = false;
    loop {
        match listen(&lab).await {
            Ok(Some(listener)) => {
                if let Err(error) = axum::serve(listener, router(Upstream::new())).await {
                    tracing::warn!(%error, "nobody asks upstream for images any more; trying again");
                }
            }
            Ok(None) => {}
            Err(error) if !is_told => {
                tracing::warn!(error = %Chain(&error), "nobody asks upstream for images");
                is_told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// `None` while the lab's internet is not there.
async fn listen(lab: &str) -> Result<Option<TcpListener>, ClustersError> {
    let name = names::internet_ns(lab);
    blocking(move || {
        if !linux::netns::path(&name).exists() {
            return Ok(None);
        }
        let failed = |source| ClustersError::Namespace { name: name.clone(), source };
        let at = SocketAddrV4::new(names::REGISTRY_ADDRESS, UPSTREAM_PORT);
        let listener = Netns::open(&name).and_then(|space| space.tcp_listen(at)).map_err(failed)?;
        let handed_over =
            listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
        handed_over.map(Some).map_err(|source| ClustersError::File {
            action: "listen in",
            path: linux::netns::path(&name),
            source,
        })
    })
    .await
}

fn router(upstream: Upstream) -> Router {
    Router::new().fallback(answer).with_state(upstream)
}

/// How containerd says which registry an image's name names.
#[derive(Debug, Deserialize)]
struct Namespace {
    ns: Option<String>,
}

async fn answer(
    State(upstream): State<Upstream>,
    Query(Namespace { ns: registry }): Query<Namespace>,
    request: Request,
) -> Response {
    let wants_body = match *request.method() {
        Method::GET => true,
        Method::HEAD => false,
        _ => return StatusCode::METHOD_NOT_ALLOWED.into_response(),
    };
    let path = request.uri().path();
    let Some(question) = registry.and_then(|registry| Question::parse(path, &registry)) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let accept = accept.unwrap_or("*/*").to_owned();
    let fetched = tokio::task::spawn_blocking(move || {
        let fetched = upstream.fetch(&question, wants_body, &accept);
        if let Err(error) = &fetched {
            tracing::warn!(?question, error = %Chain(error), "an image is not here, and upstream is not reached");
        }
        fetched
    });
    match fetched.await {
        Ok(Ok(fetched)) => pass_on(fetched),
        // What containerd says of it stands in the pod's event.
        Ok(Err(_)) | Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}

/// The answer with its body as it comes.
fn pass_on(fetched: Fetched) -> Response {
    let mut response = Response::builder().status(fetched.status);
    for (name, value) in fetched.headers {
        response = response.header(name, value);
    }
    let (sender, receiver) = mpsc::channel(AHEAD);
    let mut body = fetched.body;
    tokio::task::spawn_blocking(move || {
        loop {
            let mut chunk = vec![0; CHUNK];
            let piece = body.read(&mut chunk).map(|length| {
                chunk.truncate(length);
                chunk
            });
            let is_last = !matches!(&piece, Ok(chunk) if !chunk.is_empty());
            if matches!(&piece, Ok(chunk) if chunk.is_empty())
                || sender.blocking_send(piece).is_err()
                || is_last
            {
                return;
            }
        }
    });
    let stream = futures::stream::unfold(receiver, async |mut receiver| {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    let response = response.body(Body::from_stream(stream));
    response.unwrap_or_else(|_| StatusCode::BAD_GATEWAY.into_response())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on says so")]
mod tests {
    use super::*;

    async fn serve(router: Router) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("http://{address}")
    }

    /// A registry that wants a token for everything but the token.
    async fn registry() -> String {
        let handle = async |request: Request| {
            let host = request.headers()["host"].to_str().unwrap().to_owned();
            let path = request.uri().path().to_owned();
            let is_known =
                request.headers().get("authorization").is_some_and(|it| it == "Bearer t");
            match path.as_str() {
                "/token" => "{\"token\":\"t\"}".into_response(),
                _ if !is_known => {
                    let realm = format!(
                        "Bearer realm=\"http://{host}/token\",service=\"s\",scope=\"pull\""
                    );
                    (StatusCode::UNAUTHORIZED, [("www-authenticate", realm)]).into_response()
                }
                "/v2/library/nginx/blobs/sha256:1" => {
                    ([("docker-content-digest", "sha256:1")], vec![7_u8; 3 * CHUNK + 5])
                        .into_response()
                }
                _ => StatusCode::NOT_FOUND.into_response(),
            }
        };
        serve(Router::new().fallback(handle)).await
    }

    /// Status, digest header and length of the body of what a node gets.
    async fn check(base: &str, method: &str, path: &str) -> (u16, Option<String>, usize) {
        let address = base.trim_start_matches("http://").to_owned();
        let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let answer = tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            answer
        });
        let answer = answer.await.unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let digest = head.lines().find_map(|line| line.strip_prefix("docker-content-digest: "));
        (status, digest.map(str::to_owned), answer.len() - end - 4)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_upstream_has_comes_through() {
        let base = serve(router(Upstream::at(&registry().await))).await;
        let blob = "/v2/library/nginx/blobs/sha256:1?ns=docker.io";
        assert_eq!(
            check(&base, "GET", blob).await,
            (200, Some("sha256:1".to_owned()), 3 * CHUNK + 5)
        );
        assert_eq!(check(&base, "HEAD", blob).await, (200, Some("sha256:1".to_owned()), 0));
        assert_eq!(check(&base, "GET", "/v2/library/nope/manifests/1?ns=docker.io").await.0, 404);
        let with_port = blob.replace("docker.io", "registry.example%3A5000");
        assert_eq!(check(&base, "HEAD", &with_port).await.0, 200);
        assert_eq!(check(&base, "GET", "/v2/_catalog?ns=docker.io").await.0, 404);
        assert_eq!(check(&base, "GET", "/v2/library/nginx/blobs/sha256:1").await.0, 404);
        assert_eq!(check(&base, "POST", blob).await.0, 405);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_upstream_that_is_not_reached_is_said_so() {
        // Nobody listens on a port that has just been given back.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let nobody = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let base = serve(router(Upstream::at(&nobody))).await;
        assert_eq!(check(&base, "GET", "/v2/library/nginx/manifests/1?ns=docker.io").await.0, 502);
    }
}
