//! Pushes images by the OCI distribution protocol, 1.1. Blocking: to be called on a thread that is in the
//! registry's network namespace.

use std::{fs::File, net::SocketAddrV4, time::Duration};

use ureq::{
    Agent, SendBody,
    http::{Response, header},
};

use super::{Blob, Image, ImageError, Reference, Source};

/// Every form of a manifest.
pub(super) const ACCEPTED: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// Whether the registry has an image of this name.
pub fn has_image(registry: SocketAddrV4, reference: &Reference) -> Result<bool, ImageError> {
    let Reference { repository, tag } = reference;
    let url = format!("http://{registry}/v2/{repository}/manifests/{tag}");
    let answer = agent().head(&url).header(header::ACCEPT, ACCEPTED).call();
    Ok(answer.map_err(unreachable(&url))?.status().is_success())
}

/// The digest of the image that the registry has under this name.
pub fn digest_of(
    registry: SocketAddrV4,
    reference: &Reference,
) -> Result<Option<String>, ImageError> {
    let Reference { repository, tag } = reference;
    let url = format!("http://{registry}/v2/{repository}/manifests/{tag}");
    let answer = agent().head(&url).header(header::ACCEPT, ACCEPTED).call();
    let answer = answer.map_err(unreachable(&url))?;
    let digest = answer.headers().get("docker-content-digest");
    let digest = digest.filter(|_| answer.status().is_success());
    Ok(digest.and_then(|value| value.to_str().ok()).map(str::to_owned))
}

/// Pushes an image under a name. What the registry has already is not sent again.
pub fn push(
    registry: SocketAddrV4,
    reference: &Reference,
    image: &Image,
) -> Result<(), ImageError> {
    let agent = agent();
    let base = format!("http://{registry}/v2/{}", reference.repository);
    for blob in &image.blobs {
        push_blob(&agent, registry, &base, blob)?;
    }
    let url = format!("{base}/manifests/{}", reference.tag);
    let answer = agent
        .put(&url)
        .header(header::CONTENT_TYPE, &image.media_type)
        .send(&image.manifest[..])
        .map_err(unreachable(&url))?;
    accepted(&url, answer).map(drop)
}

fn push_blob(
    agent: &Agent,
    registry: SocketAddrV4,
    base: &str,
    blob: &Blob,
) -> Result<(), ImageError> {
    let url = format!("{base}/blobs/{}", blob.digest);
    if agent.head(&url).call().map_err(unreachable(&url))?.status().is_success() {
        return Ok(());
    }
    let url = format!("{base}/blobs/uploads/");
    let answer = accepted(&url, agent.post(&url).send_empty().map_err(unreachable(&url))?)?;
    let location = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| ImageError::Refused {
        url: url.clone(),
        status: answer.status().as_u16(),
        text: "no Location".to_owned(),
    })?;
    let place = if location.starts_with('/') {
        format!("http://{registry}{location}")
    } else {
        location.to_owned()
    };
    let separator = if place.contains('?') { '&' } else { '?' };
    let url = format!("{place}{separator}digest={}", blob.digest);
    let request = agent
        .put(&url)
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, blob.size.to_string());
    let answer = match &blob.source {
        Source::Memory(bytes) => request.send(&bytes[..]),
        Source::File(path) => {
            let mut file = File::open(path).map_err(|source| ImageError::File {
                action: "read",
                path: path.clone(),
                source,
            })?;
            request.send(SendBody::from_reader(&mut file))
        }
    };
    accepted(&url, answer.map_err(unreachable(&url))?).map(drop)
}

fn agent() -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .timeout_connect(Some(Duration::from_secs(5)))
        .timeout_global(Some(Duration::from_mins(2)))
        .build()
        .into()
}

fn unreachable(url: &str) -> impl FnOnce(ureq::Error) -> ImageError + use<> {
    let url = url.to_owned();
    move |source| ImageError::Http { url, source: Box::new(source) }
}

fn accepted(
    url: &str,
    mut answer: Response<ureq::Body>,
) -> Result<Response<ureq::Body>, ImageError> {
    if answer.status().is_success() {
        return Ok(answer);
    }
    let text = answer.body_mut().read_to_string().unwrap_or_default();
    Err(ImageError::Refused { url: url.to_owned(), status: answer.status().as_u16(), text })
}
