//! The instance metadata service at 169.254.169.254, over HTTP. Not here: what it says of a machine (see
//! [`super::instance`]).
//!
//! Sources: Azure documentation, "Azure Instance Metadata Service", "Scheduled Events for Linux VMs", "Retrieve load
//! balancer metadata by using Azure Instance Metadata Service".

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV4},
    sync::Arc,
};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Query, Request},
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use linux::{LinuxError, netns::Netns};
use serde_json::{Value, json};
use store::Store;
use tokio::{net::TcpListener, task::JoinSet};
use vnet::{
    host::{names::METADATA_ADDRESS, platform::machine_at},
    model::{Machine, Role},
    name::ArmId,
    region::Region,
};

use super::{instance, kept};

/// The versions of everything but scheduled events, newest first.
const VERSIONS: [&str; 35] = [
    "2025-04-07",
    "2024-07-17",
    "2024-03-15",
    "2023-11-15",
    "2023-07-01",
    "2021-12-13",
    "2021-11-15",
    "2021-11-01",
    "2021-10-01",
    "2021-08-01",
    "2021-05-01",
    "2021-03-01",
    "2021-02-01",
    "2021-01-01",
    "2020-12-01",
    "2020-10-01",
    "2020-09-01",
    "2020-07-15",
    "2020-06-01",
    "2019-11-01",
    "2019-08-15",
    "2019-08-01",
    "2019-06-04",
    "2019-06-01",
    "2019-04-30",
    "2019-03-11",
    "2019-02-01",
    "2018-10-01",
    "2018-04-02",
    "2018-02-01",
    "2017-12-01",
    "2017-10-01",
    "2017-08-01",
    "2017-04-02",
    "2017-03-01",
];
/// Those of scheduled events.
const EVENT_VERSIONS: [&str; 7] = [
    "2020-07-01",
    "2019-08-01",
    "2019-04-01",
    "2019-01-01",
    "2017-11-01",
    "2017-08-01",
    "2017-03-01",
];

/// Answers in one virtual network.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) store: Store,
    pub(super) vnet: ArmId,
    /// Gives tokens at `/metadata/identity/oauth2/token`.
    pub(super) identity: Option<Router>,
}

impl Server {
    /// Listens in the namespace. The task ends with the set.
    pub(super) fn serve(
        self,
        namespace: &Netns,
        tasks: &mut JoinSet<()>,
    ) -> Result<(), LinuxError> {
        let failed = |source| LinuxError::Socket { source };
        let listener = namespace.tcp_listen(SocketAddrV4::new(METADATA_ADDRESS, 80))?;
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = TcpListener::from_std(listener).map_err(failed)?;
        let server = Arc::new(self);
        let router = Router::new().fallback(
            move |ConnectInfo(peer): ConnectInfo<SocketAddr>, request: Request| {
                let server = Arc::clone(&server);
                async move { server.answer(peer.ip(), request).await }
            },
        );
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        tasks.spawn(async move {
            // It never ends of itself.
            drop(axum::serve(listener, service).await);
        });
        Ok(())
    }

    async fn answer(&self, source: IpAddr, request: Request) -> Response {
        let asked = match Asked::of(request.method(), request.uri(), request.headers()) {
            Ok(asked) => asked,
            Err(refused) => return refused.into_response(),
        };
        let region = self.store.snapshot();
        let machine = match source {
            IpAddr::V4(source) => machine_at(&region, &self.vnet, source),
            IpAddr::V6(_) => None,
        };
        // Azure: requests must come from the primary address of a machine.
        let Some(machine) = machine else { return Refused::not_found().into_response() };
        if asked.category == "identity" {
            if let Err(refused) = asked.version(&VERSIONS) {
                return refused.into_response();
            }
            return self.token(&asked, machine, request.uri()).await;
        }
        match asked.document(&region, machine) {
            Ok(answer) => answer.into_response(),
            Err(refused) => refused.into_response(),
        }
    }

    /// A token for a machine that has an identity: a node always has (its kubelet's), a VM when it was made with one.
    async fn token(&self, asked: &Asked<'_>, machine: &Machine, uri: &Uri) -> Response {
        let is_token = asked.rest.iter().map(String::as_str).eq(["oauth2", "token"]);
        let Some(identity) = self.identity.clone().filter(|_| is_token) else {
            return Refused::not_found().into_response();
        };
        let has = match machine.role {
            Role::Node(_) => true,
            Role::Vm => kept::text(&machine.meta, "/identity/type")
                .is_some_and(|kind| !kind.eq_ignore_ascii_case("None")),
        };
        if !has {
            let body =
                json!({ "error": "invalid_request", "error_description": "Identity not found" });
            return Refused { status: StatusCode::BAD_REQUEST, body }.into_response();
        }
        let request = Request::builder().uri(uri.clone()).body(Body::empty());
        match request {
            Ok(request) => {
                use tower::ServiceExt;
                let Ok(answer) = identity.oneshot(request).await;
                answer
            }
            Err(_) => Refused::not_found().into_response(),
        }
    }
}

/// A request that is one for this service.
#[derive(Debug)]
struct Asked<'a> {
    /// The first part of the path below `/metadata`.
    category: &'a str,
    /// The other parts.
    rest: Vec<String>,
    parameters: Vec<(String, String)>,
}

impl<'a> Asked<'a> {
    fn of(method: &Method, uri: &'a Uri, headers: &HeaderMap) -> Result<Self, Refused> {
        if method != Method::GET {
            return Err(Refused::new(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed"));
        }
        // A request that somebody else was tricked into sending has neither of these right.
        let is_meant = headers
            .get("metadata")
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.eq_ignore_ascii_case("true"));
        if !is_meant {
            return Err(Refused::bad("Required metadata header not specified"));
        }
        if headers.contains_key("x-forwarded-for") {
            return Err(Refused::bad("Requests with an X-Forwarded-For header are not accepted"));
        }
        let Ok(Query(parameters)) = Query::<Vec<(String, String)>>::try_from_uri(uri) else {
            return Err(Refused::bad("The query is not understood"));
        };
        for (n, (name, _)) in parameters.iter().enumerate() {
            if parameters[..n].iter().any(|(other, _)| other.eq_ignore_ascii_case(name)) {
                return Err(Refused::bad(&format!("Duplicate query parameter: {name}")));
            }
        }
        let mut parts = uri.path().split('/').filter(|part| !part.is_empty());
        match (parts.next(), parts.next()) {
            (Some(root), Some(category)) if root.eq_ignore_ascii_case("metadata") => {
                Ok(Self { category, rest: parts.map(str::to_owned).collect(), parameters })
            }
            _ => Err(Refused::not_found()),
        }
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        let mut given = self.parameters.iter();
        given.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The version that is asked for.
    fn version(&self, known: &'static [&'static str]) -> Result<&'static str, Refused> {
        let given = self.parameter("api-version");
        known.iter().copied().find(|version| Some(*version) == given).ok_or_else(|| Refused {
            status: StatusCode::BAD_REQUEST,
            body: json!({
                "error": "Bad request. api-version is invalid or was not specified in the request. \
                          For more information refer to aka.ms/azureimds",
                "newest-versions": known[..3],
            }),
        })
    }

    fn document(&self, region: &Region, machine: &Machine) -> Result<Answer, Refused> {
        match self.category.to_ascii_lowercase().as_str() {
            "versions" if self.rest.is_empty() => {
                let oldest_first: Vec<&str> = VERSIONS.iter().rev().copied().collect();
                Ok(Answer::Json(json!({ "apiVersions": oldest_first })))
            }
            "instance" => {
                let version = self.version(&VERSIONS)?;
                self.part_of(instance::document(region, machine, version))
            }
            "loadbalancer" => {
                let version = self.version(&VERSIONS)?;
                if version < "2020-10-01" {
                    return Err(Refused::not_found());
                }
                match instance::balancers(region, machine) {
                    Some(document) => self.part_of(json!({ "loadbalancer": document })),
                    None => Err(Refused::new(
                        StatusCode::NOT_FOUND,
                        "No load balancer metadata is found. Please check if your VM is using any non-basic SKU load \
                         balancer and retry later.",
                    )),
                }
            }
            "scheduledevents" if self.rest.is_empty() => {
                self.version(&EVENT_VERSIONS)?;
                Ok(Answer::Json(json!({ "DocumentIncarnation": 1, "Events": [] })))
            }
            _ => Err(Refused::not_found()),
        }
    }

    /// What the rest of the path leads to: an object or a list as JSON, or as the names in it; a leaf as text only.
    fn part_of(&self, mut document: Value) -> Result<Answer, Refused> {
        let as_text = match self.parameter("format") {
            None => false,
            Some(format) if format.eq_ignore_ascii_case("json") => false,
            Some(format) if format.eq_ignore_ascii_case("text") => true,
            Some(other) => {
                return Err(Refused::bad(&format!("Format '{other}' is not supported")));
            }
        };
        for part in &self.rest {
            let inner = match &mut document {
                Value::Object(object) => {
                    let name = object.keys().find(|name| name.eq_ignore_ascii_case(part)).cloned();
                    name.and_then(|name| object.remove(&name))
                }
                Value::Array(items) => {
                    let n = part.parse().ok().filter(|n| *n < items.len());
                    n.map(|n: usize| items.swap_remove(n))
                }
                _ => None,
            };
            document = inner.ok_or_else(Refused::not_found)?;
        }
        match document {
            Value::String(leaf) if as_text => Ok(Answer::Text(leaf)),
            Value::Object(_) | Value::Array(_) if as_text => Ok(Answer::Text(listing(&document))),
            Value::Object(_) | Value::Array(_) => Ok(Answer::Json(document)),
            _ => Err(Refused::bad("A single value has no json format: ask for format=text")),
        }
    }
}

/// What is in an object or a list, one a line; what has more in it ends with a slash.
fn listing(document: &Value) -> String {
    let line = |name: String, inner: &Value| match inner {
        Value::Object(_) | Value::Array(_) => format!("{name}/"),
        _ => name,
    };
    let lines: Vec<String> = match document {
        Value::Object(object) => {
            object.iter().map(|(name, inner)| line(name.clone(), inner)).collect()
        }
        Value::Array(items) => {
            items.iter().enumerate().map(|(n, inner)| line(n.to_string(), inner)).collect()
        }
        _ => Vec::new(),
    };
    lines.join("\n")
}

#[derive(Debug, PartialEq)]
enum Answer {
    Json(Value),
    Text(String),
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        match self {
            Self::Json(value) => {
                let kind = [(header::CONTENT_TYPE, "application/json; charset=utf-8")];
                (kind, value.to_string()).into_response()
            }
            Self::Text(text) => {
                ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
            }
        }
    }
}

#[derive(Debug)]
struct Refused {
    status: StatusCode,
    body: Value,
}

impl Refused {
    fn new(status: StatusCode, error: &str) -> Self {
        Self { status, body: json!({ "error": error }) }
    }

    fn bad(why: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, &format!("Bad request. {why}"))
    }

    fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "Not found")
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut response = Answer::Json(self.body).into_response();
        *response.status_mut() = self.status;
        response
    }
}
