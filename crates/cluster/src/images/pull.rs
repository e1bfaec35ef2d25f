//! Pulls an image of an upstream registry into an OCI layout in a folder. Blocking. Not here: how registries are
//! asked.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    ImageError, MANIFEST, Reference, architecture,
    push::ACCEPTED,
    render_digest,
    upstream::{Question, Upstream},
};

/// Manifests and indexes are small; more than this is none.
const MOST: u64 = 4 << 20;
const NAME: &str = "org.opencontainers.image.ref.name";

/// Asks whether the registry has an image, and so whether it can be reached.
pub(crate) fn ask(
    upstream: &Upstream,
    registry: &str,
    reference: &Reference,
) -> Result<(), ImageError> {
    let source = Source { upstream, registry, repository: &reference.repository };
    source.manifest(&reference.tag).map(drop)
}

/// Pulls this machine's image of a name. Blobs that an interrupted call has left are taken. `told` hears how many
/// bytes of how many are there.
pub(crate) fn pull(
    upstream: &Upstream,
    registry: &str,
    reference: &Reference,
    folder: &Path,
    told: &mut dyn FnMut(u64, u64),
) -> Result<(), ImageError> {
    let source = Source { upstream, registry, repository: &reference.repository };
    let mut manifest = source.manifest(&reference.tag)?;
    if let Some(entries) = manifest.json["manifests"].as_array() {
        let is_ours = |entry: &&Value| {
            let platform = &entry["platform"];
            platform["os"] == "linux" && platform["architecture"] == architecture()
        };
        let digest = entries.iter().find(is_ours).and_then(|entry| entry["digest"].as_str());
        let digest = digest.ok_or_else(|| {
            manifest.wrong(folder, &format!("it has no image for linux/{}", architecture()))
        })?;
        manifest = source.manifest(digest)?;
    }
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(error("make", &blobs))?;
    let layers = manifest.json["layers"].as_array().into_iter().flatten();
    let parts: Vec<&Value> = layers.chain([&manifest.json["config"]]).collect();
    let size_of = |part: &Value| part["size"].as_u64().unwrap_or_default();
    let total = parts.iter().map(|part| size_of(part)).sum();
    let mut done = 0;
    for part in parts {
        let digest = part["digest"].as_str().unwrap_or_default();
        let name = hash_of(digest).ok_or_else(|| manifest.wrong(folder, "it names no SHA-256"))?;
        let target = blobs.join(name);
        if !target.exists() {
            source.blob(digest, &target, &mut |n_bytes| told(done + n_bytes, total))?;
        }
        done += size_of(part);
        told(done, total);
    }
    let digest = render_digest(&Sha256::digest(&manifest.bytes));
    let name = hash_of(&digest).unwrap_or_default();
    write(&blobs.join(name), &manifest.bytes)?;
    write(&folder.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": manifest.json["mediaType"].as_str().unwrap_or(MANIFEST),
            "digest": digest,
            "size": manifest.bytes.len(),
            "annotations": {NAME: format!("{registry}/{reference}")},
        }],
    });
    write(&folder.join("index.json"), index.to_string().as_bytes())
}

/// The name by which the image in a folder was pulled.
pub(crate) fn pulled_name(folder: &Path) -> Option<String> {
    let index = fs::read(folder.join("index.json")).ok()?;
    let index: Value = serde_json::from_slice(&index).ok()?;
    index["manifests"][0]["annotations"][NAME].as_str().map(str::to_owned)
}

struct Source<'a> {
    upstream: &'a Upstream,
    registry: &'a str,
    repository: &'a str,
}

/// A manifest or an index.
struct Document {
    url: String,
    bytes: Vec<u8>,
    json: Value,
}

impl Document {
    fn wrong(&self, folder: &Path, reason: &str) -> ImageError {
        ImageError::Archive {
            path: folder.to_owned(),
            reason: format!("{} answers something else: {reason}", self.url),
        }
    }
}

impl Source<'_> {
    /// The manifest or index of a tag or digest.
    fn manifest(&self, reference: &str) -> Result<Document, ImageError> {
        let (url, body) = self.ask("manifests", reference)?;
        let mut bytes = Vec::new();
        let read = body.take(MOST).read_to_end(&mut bytes);
        read.map_err(|source| broken(&url, source))?;
        if reference.contains(':') {
            check(&url, reference, &render_digest(&Sha256::digest(&bytes)))?;
        }
        let json = serde_json::from_slice(&bytes)
            .map_err(|source| broken(&url, io::Error::other(source)))?;
        Ok(Document { url, bytes, json })
    }

    fn blob(
        &self,
        digest: &str,
        target: &Path,
        told: &mut dyn FnMut(u64),
    ) -> Result<(), ImageError> {
        let (url, mut body) = self.ask("blobs", digest)?;
        let beside = target.with_extension("new");
        let mut file = File::create(&beside).map_err(error("make", &beside))?;
        let mut hash = Sha256::new();
        let mut chunk = vec![0; 1 << 20];
        let mut n_bytes = 0;
        loop {
            let length = body.read(&mut chunk).map_err(|source| broken(&url, source))?;
            if length == 0 {
                break;
            }
            hash.update(&chunk[..length]);
            file.write_all(&chunk[..length]).map_err(error("write", &beside))?;
            n_bytes += length as u64;
            told(n_bytes);
        }
        check(&url, digest, &render_digest(&hash.finalize()))?;
        fs::rename(&beside, target).map_err(error("write", target))
    }

    fn ask(&self, kind: &str, name: &str) -> Result<(String, Box<dyn Read + Send>), ImageError> {
        let path = format!("/v2/{}/{kind}/{name}", self.repository);
        let url = format!("https://{}{path}", self.registry);
        let question = Question::parse(&path, self.registry)
            .ok_or_else(|| ImageError::Name { text: url.clone() })?;
        let fetched = self.upstream.fetch(&question, true, ACCEPTED)?;
        if fetched.status == 200 {
            return Ok((url, fetched.body));
        }
        let mut text = String::new();
        // What it says of a refusal is no more than a help.
        let _unread = fetched.body.take(1 << 10).read_to_string(&mut text);
        Err(ImageError::Refused { url, status: fetched.status, text })
    }
}

/// The digits of a SHA-256, which become a file's name.
fn hash_of(digest: &str) -> Option<&str> {
    let hash = digest.strip_prefix("sha256:")?;
    let fits = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    fits.then_some(hash)
}

fn check(url: &str, wanted: &str, found: &str) -> Result<(), ImageError> {
    if found == wanted {
        return Ok(());
    }
    let (url, wanted, found) = (url.to_owned(), wanted.to_owned(), found.to_owned());
    Err(ImageError::Digest { url, wanted, found })
}

/// A connection that breaks off is as good as none.
fn broken(url: &str, source: io::Error) -> ImageError {
    ImageError::Http { url: url.to_owned(), source: Box::new(ureq::Error::Io(source)) }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    fs::write(path, bytes).map_err(error("write", path))
}

fn error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError + use<> {
    let path = path.to_owned();
    move |source| ImageError::File { action, path, source }
}
