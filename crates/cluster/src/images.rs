//! Container images: made from the machine's own files, read from archives, pulled from upstream, pushed to the
//! lab's registry. Not here: how nodes pull.
//!
//! Small layers are plain tar files; nothing is gained by compressing what stays on one machine. Those of Cilium are
//! compressed, since every node keeps a copy: a pull of 618 MB took 8.5 s and 1.2 GB plain, 5.0 s and 0.77 GB by zstd.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    str::FromStr,
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

mod archive;
mod cilium;
mod layer;
mod pull;
mod push;
mod recipes;
mod registry;
mod tree;
mod upstream;

use layer::Layer;

pub use archive::read_archive;
pub use cilium::{agent_name, operator_name};
pub(crate) use pull::{ask, pull, pulled_name};
pub use push::{digest_of, has_image, push};
pub use recipes::{Ingredients, Recipe};
pub use registry::{REGISTRY_PORT, UPSTREAM_PORT, registry};
pub use upstream::{Fetched, Question, Upstream};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const ZSTD_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// An image whose parts are files or in memory.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its manifest.
    manifest: Vec<u8>,
    /// The manifest's media type.
    media_type: String,
    /// Configuration and layers.
    blobs: Vec<Blob>,
}

/// A part of an image.
#[derive(Clone, Debug)]
struct Blob {
    digest: String,
    size: u64,
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    File(PathBuf),
    Memory(Vec<u8>),
}

/// Where an image is in a registry, without the registry's name: what a mirror of all registries sees.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// `library/nginx`.
    pub repository: String,
    /// `latest`.
    pub tag: String,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file could not be read, written or copied.
    #[error("cannot {action} `{path}`")]
    File {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A program that an image is made from is not on this machine.
    #[error("`{program}` is not on this machine, and image `{image}` is made from it")]
    Missing {
        /// The program.
        program: String,
        /// The image.
        image: &'static str,
    },
    /// A helper program failed.
    #[error("`{program}` failed: {message}")]
    Program {
        /// Which.
        program: &'static str,
        /// What it said.
        message: String,
    },
    /// The archive is of no known form.
    #[error("`{path}` is not an image archive: {reason}")]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The text is not an image's name.
    #[error("`{text}` is not the name of an image, such as `nginx:1.27`")]
    Name {
        /// What was given.
        text: String,
    },
    /// What was pulled is damaged.
    #[error("{url} has digest {found}, and {wanted} was asked for")]
    Digest {
        /// What was asked.
        url: String,
        /// The digest that was asked for.
        wanted: String,
        /// Its own.
        found: String,
    },
    /// The registry could not be asked.
    #[error("cannot reach the registry at {url}")]
    Http {
        /// What was asked.
        url: String,
        /// Why not.
        #[source]
        source: Box<ureq::Error>,
    },
    /// The registry refused.
    #[error("the registry answered {status} to {url}: {text}")]
    Refused {
        /// What was asked.
        url: String,
        /// HTTP's status.
        status: u16,
        /// The answer.
        text: String,
    },
}

impl Image {
    /// The digest of its manifest, which names it and all that is in it.
    #[must_use]
    pub fn digest(&self) -> String {
        render_digest(&Sha256::digest(&self.manifest))
    }

    /// An image of one layer.
    fn of_layer(layer: Layer, config: &Value) -> Self {
        let Layer { blob: layer, plain_digest, media_type } = layer;
        let config = Blob::of_bytes(
            json!({
                "architecture": architecture(),
                "os": "linux",
                "config": config,
                "rootfs": {"type": "layers", "diff_ids": [plain_digest]},
                "history": [{"created_by": "aksnet"}],
            })
            .to_string()
            .into_bytes(),
        );
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(CONFIG),
            "layers": [layer.descriptor(media_type)],
        });
        Self {
            manifest: manifest.to_string().into_bytes(),
            media_type: MANIFEST.to_owned(),
            blobs: vec![layer, config],
        }
    }
}

impl Blob {
    fn of_file(path: &Path) -> Result<Self, ImageError> {
        let error = |source| ImageError::File { action: "read", path: path.to_owned(), source };
        let mut file = File::open(path).map_err(error)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut size = 0;
        loop {
            let n_bytes = file.read(&mut buffer).map_err(error)?;
            if n_bytes == 0 {
                break;
            }
            hash.update(&buffer[..n_bytes]);
            size += n_bytes as u64;
        }
        let digest = render_digest(&hash.finalize());
        Ok(Self { digest, size, source: Source::File(path.to_owned()) })
    }

    fn of_bytes(bytes: Vec<u8>) -> Self {
        Self {
            digest: render_digest(&Sha256::digest(&bytes)),
            size: bytes.len() as u64,
            source: Source::Memory(bytes),
        }
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.digest, "size": self.size})
    }
}

impl FromStr for Reference {
    type Err = ImageError;

    /// Reads a name as people write it: `nginx`, `nginx:1.27`, `quay.io/cilium/cilium:v1.18`.
    fn from_str(text: &str) -> Result<Self, ImageError> {
        let wrong = || ImageError::Name { text: text.to_owned() };
        let without_digest = text.split('@').next().unwrap_or_default();
        let (path, tag) = match without_digest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, tag),
            _ => (without_digest, "latest"),
        };
        let repository = match path.split_once('/') {
            // Docker's rule for telling a host from a folder.
            Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => {
                if host == "docker.io" && !rest.contains('/') {
                    format!("library/{rest}")
                } else {
                    rest.to_owned()
                }
            }
            Some(_) => path.to_owned(),
            None => format!("library/{path}"),
        };
        let fits = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        let has_host = path
            .split('/')
            .next()
            .is_none_or(|host| host.starts_with(|c: char| c.is_ascii_alphanumeric()));
        if has_host && fits(tag) && repository.split('/').all(fits) {
            Ok(Self { repository, tag: tag.to_owned() })
        } else {
            Err(wrong())
        }
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

fn render_digest(hash: &[u8]) -> String {
    format!("sha256:{}", render_hex(hash))
}

/// Lower-case hexadecimal digits.
pub(crate) fn render_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes everything");
        text
    })
}

/// This machine's, in the words of images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let read = text.parse::<Reference>().map_or_else(|err| err.to_string(), |r| r.to_string());
        assert_eq!(read, expected, "{text}");
    }

    #[test]
    fn names_are_read_as_docker_reads_them() {
        check("nginx", "library/nginx:latest");
        check("nginx:1.27", "library/nginx:1.27");
        check("docker.io/nginx", "library/nginx:latest");
        check("docker.io/library/nginx:1", "library/nginx:1");
        check("me/app", "me/app:latest");
        check("quay.io/cilium/cilium:v1.18@sha256:00", "cilium/cilium:v1.18");
        check("localhost:5000/app", "app:latest");
        let wrong = "is not the name of an image, such as `nginx:1.27`";
        check("", &format!("`` {wrong}"));
        check("../x", &format!("`../x` {wrong}"));
        check("a b", &format!("`a b` {wrong}"));
    }
}
