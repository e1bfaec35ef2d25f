//! Asks upstream registries for what the lab's own lacks, by the OCI distribution protocol, 1.1, with
//! anonymous bearer tokens (distribution/distribution, `docs/content/spec/auth/token.md`). Blocking.
//! Not here: who listens to nodes.

use std::{io::Read, time::Duration};

use serde_json::Value;
use ureq::{
    Agent,
    http::{Response, StatusCode, header},
};

use super::ImageError;

/// What of an answer a node needs.
const PASSED_ON: [&str; 4] = ["content-type", "content-length", "docker-content-digest", "etag"];

/// The upstream registries.
#[derive(Clone, Debug)]
pub struct Upstream {
    agent: Agent,
    /// Stands for every registry, in tests.
    base: Option<String>,
}

/// What an upstream registry answered.
pub struct Fetched {
    /// HTTP's status.
    pub status: u16,
    /// The headers that a node needs.
    pub headers: Vec<(&'static str, String)>,
    /// The body, empty for a question about existence.
    pub body: Box<dyn Read + Send>,
}

/// A registry, image or blob that a node may ask for: nothing else of a URL is passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// `docker.io`, `mcr.microsoft.com`, `localhost:5000`.
    registry: String,
    /// `/v2/library/nginx/manifests/latest`.
    path: String,
}

impl Question {
    /// From a request's path and the query `ns` by which containerd names the registry; `None` when it is
    /// none of the three kinds of question that a pull consists of.
    #[must_use]
    pub fn parse(path: &str, registry: &str) -> Option<Self> {
        let is_plain = |text: &str, more: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        let (name, reference) = ["/manifests/", "/blobs/"]
            .iter()
            .find_map(|kind| path.strip_prefix("/v2/")?.rsplit_once(kind))?;
        let fits = is_plain(registry, ".-:")
            && is_plain(name, "._-/")
            && is_plain(reference, "._-:")
            && !path.contains("..");
        fits.then(|| Self { registry: registry.to_owned(), path: path.to_owned() })
    }
}

impl Upstream {
    /// The registries that images' names name, by HTTPS.
    #[must_use]
    pub fn new() -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // A machine without internet should say so before a person wonders.
            .timeout_connect(Some(Duration::from_secs(5)))
            .timeout_global(Some(Duration::from_mins(10)))
            .build()
            .into();
        Self { agent, base: None }
    }

    /// One server that stands for all registries.
    #[must_use]
    pub fn at(base: &str) -> Self {
        Self { base: Some(base.to_owned()), ..Self::new() }
    }

    /// Asks; `wants_body` is false for a question about existence. `accept` is the node's header.
    ///
    /// # Errors
    /// When the registry, or whoever gives tokens for it, cannot be reached.
    pub fn fetch(
        &self,
        question: &Question,
        wants_body: bool,
        accept: &str,
    ) -> Result<Fetched, ImageError> {
        let host = match question.registry.as_str() {
            // The name in images is not the one that answers.
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let base = self.base.clone().unwrap_or_else(|| format!("https://{host}"));
        let url = format!("{base}{}", question.path);
        let mut answer = self.ask(&url, wants_body, accept, None)?;
        if answer.status() == StatusCode::UNAUTHORIZED
            && let Some(token) = self.token(&answer)?
        {
            answer = self.ask(&url, wants_body, accept, Some(&token))?;
        }
        let header = |name: &&'static str| {
            let value = answer.headers().get(*name)?.to_str().ok()?;
            Some((*name, value.to_owned()))
        };
        Ok(Fetched {
            status: answer.status().as_u16(),
            headers: PASSED_ON.iter().filter_map(header).collect(),
            body: Box::new(answer.into_body().into_reader()),
        })
    }

    fn ask(
        &self,
        url: &str,
        wants_body: bool,
        accept: &str,
        token: Option<&str>,
    ) -> Result<Response<ureq::Body>, ImageError> {
        let request = if wants_body { self.agent.get(url) } else { self.agent.head(url) };
        let mut request = request.header(header::ACCEPT, accept);
        if let Some(token) = token {
            // Not sent on to where a registry redirects to: that has a signature in its URL.
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        request.call().map_err(unreachable(url))
    }

    /// An anonymous token for what was refused; `None` when it is not given for a question.
    fn token(&self, refused: &Response<ureq::Body>) -> Result<Option<String>, ImageError> {
        let challenge = refused.headers().get(header::WWW_AUTHENTICATE);
        let challenge = challenge.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let Some(url) = token_url(challenge, self.base.is_none()) else { return Ok(None) };
        let mut answer = self.agent.get(&url).call().map_err(unreachable(&url))?;
        let body: Value = answer.body_mut().read_json().map_err(unreachable(&url))?;
        let token = body["token"].as_str().or(body["access_token"].as_str());
        Ok(token.map(str::to_owned))
    }
}

impl Default for Upstream {
    fn default() -> Self {
        Self::new()
    }
}

/// Where the challenge `Bearer realm="…",service="…",scope="…"` says that tokens are given.
fn token_url(challenge: &str, only_https: bool) -> Option<String> {
    let parameters = challenge.strip_prefix("Bearer ")?;
    let parameter = |name: &str| {
        let start = parameters.find(&format!("{name}=\""))? + name.len() + 2;
        parameters[start..].split('"').next()
    };
    let realm = parameter("realm")?;
    if only_https && !realm.starts_with("https://") {
        return None;
    }
    let mut url = realm.to_owned();
    for name in ["service", "scope"] {
        if let Some(value) = parameter(name) {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.extend([name, "=", &value.replace(' ', "%20")]);
        }
    }
    Some(url)
}

fn unreachable(url: &str) -> impl FnOnce(ureq::Error) -> ImageError + use<> {
    let url = url.to_owned();
    move |source| ImageError::Http { url, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pulls_are_passed_on() {
        let check = |path| Question::parse(path, "docker.io").map(|question| question.path);
        for good in [
            "/v2/library/nginx/manifests/latest",
            "/v2/a/b/c/blobs/sha256:0123",
            "/v2/manifests/blobs/blobs/sha256:0123",
        ] {
            assert_eq!(check(good).as_deref(), Some(good));
        }
        for bad in [
            "",
            "/",
            "/v2/",
            "/v2/_catalog",
            "/v2/nginx/tags/list",
            "/v2//manifests/x",
            "/v2/../x/manifests/y",
            "/v2/nginx/manifests/a b",
            "/v2/nginx/manifests/",
        ] {
            assert_eq!(check(bad), None, "{bad}");
        }
        assert_eq!(Question::parse("/v2/nginx/manifests/latest", "evil.example/path?"), None);
    }

    #[test]
    fn a_challenge_says_where_tokens_are() {
        let challenge = r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:library/nginx:pull""#;
        assert_eq!(
            token_url(challenge, true).as_deref(),
            Some(
                "https://auth.example/token?service=registry.example&scope=repository:library/nginx:pull"
            )
        );
        assert_eq!(token_url(r#"Bearer realm="http://auth.example/token""#, true), None);
        assert_eq!(token_url("Basic realm=\"x\"", true), None);
    }
}
