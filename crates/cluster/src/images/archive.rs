//! Reads image archives: what `docker save` writes, and OCI layouts. Not here: making images.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;
use serde_json::json;

use super::{Blob, CONFIG, Image, ImageError, LAYER, MANIFEST, Reference, Source, architecture};

/// An entry of `manifest.json`, Docker's form.
#[derive(Deserialize)]
struct DockerEntry {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags")]
    tags: Option<Vec<String>>,
    #[serde(rename = "Layers")]
    layers: Vec<String>,
}

/// An index or a manifest, OCI's form.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// Unpacks an archive into `folder`, which must exist as long as the images are used, and finds the
/// images in it, each with its names.
pub fn read_archive(
    archive: &Path,
    folder: &Path,
) -> Result<Vec<(Vec<Reference>, Image)>, ImageError> {
    let wrong = |reason: String| ImageError::Archive { path: archive.to_owned(), reason };
    let output = Command::new("tar")
        .args(["--extract", "--no-same-owner", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(folder)
        .output()
        .map_err(|source| ImageError::File {
            action: "unpack",
            path: archive.to_owned(),
            source,
        })?;
    if !output.status.success() {
        return Err(wrong(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    read(folder, &wrong)
}

/// The images of an OCI layout in a folder, which must exist as long as they are used.
pub(super) fn read_layout(folder: &Path) -> Result<Vec<(Vec<Reference>, Image)>, ImageError> {
    read(folder, &|reason| ImageError::Archive { path: folder.to_owned(), reason })
}

fn read(
    folder: &Path,
    wrong: &dyn Fn(String) -> ImageError,
) -> Result<Vec<(Vec<Reference>, Image)>, ImageError> {
    let layout = Layout { folder, wrong };
    // Docker writes both forms since version 25; its own one names the tags in full.
    if folder.join("manifest.json").exists() {
        layout.docker()
    } else if folder.join("index.json").exists() {
        layout.oci()
    } else {
        Err(wrong("it has neither manifest.json nor index.json".to_owned()))
    }
}

struct Layout<'a> {
    folder: &'a Path,
    wrong: &'a dyn Fn(String) -> ImageError,
}

impl Layout<'_> {
    fn docker(&self) -> Result<Vec<(Vec<Reference>, Image)>, ImageError> {
        let entries: Vec<DockerEntry> = self.json("manifest.json")?;
        entries
            .into_iter()
            .map(|entry| {
                let config = self.blob(&entry.config)?;
                let layers: Vec<Blob> =
                    entry.layers.iter().map(|layer| self.blob(layer)).collect::<Result<_, _>>()?;
                let described: Vec<_> =
                    layers.iter().map(|layer| layer.descriptor(layer_type(layer))).collect();
                let manifest = json!({
                    "schemaVersion": 2,
                    "mediaType": MANIFEST,
                    "config": config.descriptor(CONFIG),
                    "layers": described,
                });
                let image = Image {
                    manifest: manifest.to_string().into_bytes(),
                    media_type: MANIFEST.to_owned(),
                    blobs: layers.into_iter().chain([config]).collect(),
                };
                Ok((parse_names(&entry.tags.unwrap_or_default())?, image))
            })
            .collect()
    }

    fn oci(&self) -> Result<Vec<(Vec<Reference>, Image)>, ImageError> {
        let index: Document = self.json("index.json")?;
        index
            .manifests
            .iter()
            .map(|descriptor| {
                let full = descriptor.annotations.get("io.containerd.image.name");
                let short = descriptor.annotations.get("org.opencontainers.image.ref.name");
                let names: Vec<String> = full.or(short).into_iter().cloned().collect();
                Ok((parse_names(&names)?, self.manifest(descriptor)?))
            })
            .collect()
    }

    /// The image of a manifest, or of this machine's entry in an index.
    fn manifest(&self, descriptor: &Descriptor) -> Result<Image, ImageError> {
        let path = self.blob_path(&descriptor.digest)?;
        let document: Document = self.json(&path)?;
        let Some(config) = &document.config else {
            let ours = document.manifests.iter().find(|inner| {
                inner.platform.as_ref().is_some_and(|platform| {
                    platform.os == "linux" && platform.architecture == architecture()
                })
            });
            let missing = || format!("it has no image for linux/{}", architecture());
            return self.manifest(ours.ok_or_else(|| (self.wrong)(missing()))?);
        };
        let blobs = document.layers.iter().chain([config]).map(|part| {
            Ok(Blob {
                digest: part.digest.clone(),
                size: part.size,
                source: Source::File(self.folder.join(self.blob_path(&part.digest)?)),
            })
        });
        let media_type = [&document.media_type, &descriptor.media_type]
            .into_iter()
            .find(|text| !text.is_empty())
            .map_or(MANIFEST, String::as_str);
        Ok(Image {
            manifest: self.read(&path)?,
            media_type: media_type.to_owned(),
            blobs: blobs.collect::<Result<_, ImageError>>()?,
        })
    }

    fn blob(&self, path: &str) -> Result<Blob, ImageError> {
        Blob::of_file(&self.inside(path)?)
    }

    fn blob_path(&self, digest: &str) -> Result<String, ImageError> {
        let (algorithm, hash) = digest
            .split_once(':')
            .ok_or_else(|| (self.wrong)(format!("`{digest}` is no digest")))?;
        Ok(format!("blobs/{algorithm}/{hash}"))
    }

    fn json<T: for<'de> Deserialize<'de>>(&self, path: &str) -> Result<T, ImageError> {
        serde_json::from_slice(&self.read(path)?)
            .map_err(|err| (self.wrong)(format!("{path}: {err}")))
    }

    fn read(&self, path: &str) -> Result<Vec<u8>, ImageError> {
        let path = self.inside(path)?;
        fs::read(&path).map_err(|source| ImageError::File { action: "read", path, source })
    }

    /// A file of the archive, which must not name one outside.
    fn inside(&self, path: &str) -> Result<PathBuf, ImageError> {
        let full = self.folder.join(path);
        let real = full.canonicalize();
        let real = real.map_err(|err| (self.wrong)(format!("{path}: {err}")))?;
        let folder = self.folder.canonicalize();
        if folder.is_ok_and(|folder| real.starts_with(folder)) {
            Ok(real)
        } else {
            Err((self.wrong)(format!("`{path}` points out of the archive")))
        }
    }
}

/// Compressed layers are passed on as they are.
fn layer_type(layer: &Blob) -> &'static str {
    const GZIP: [u8; 2] = [0x1f, 0x8b];
    let is_gzip = match &layer.source {
        Source::File(path) => {
            let mut start = [0; 2];
            let read = fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
            read.is_ok() && start == GZIP
        }
        Source::Memory(bytes) => bytes.starts_with(&GZIP),
    };
    if is_gzip { "application/vnd.oci.image.layer.v1.tar+gzip" } else { LAYER }
}

fn parse_names(names: &[String]) -> Result<Vec<Reference>, ImageError> {
    names.iter().map(|name| name.parse()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packs files as an archive and says which images are found in it.
    fn check(files: &[(&str, &str)], expected: &str) {
        let world = tempfile::tempdir().expect("a folder");
        let tree = world.path().join("tree");
        for (path, text) in files {
            let path = tree.join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(path, text).expect("written");
        }
        let archive = world.path().join("image.tar");
        let mut packing = Command::new("tar");
        packing.arg("-cf").arg(&archive).arg("-C").arg(&tree).arg(".");
        assert!(packing.status().expect("tar runs").success());
        let folder = world.path().join("unpacked");
        fs::create_dir(&folder).expect("a folder");
        let found = match read_archive(&archive, &folder) {
            Ok(images) => images
                .iter()
                .map(|(names, image)| {
                    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
                    format!("{}: {} blobs", names.join(" "), image.blobs.len())
                })
                .collect::<Vec<_>>()
                .join("\n"),
            Err(ImageError::Archive { reason, .. }) => reason,
            Err(err) => err.to_string(),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn what_docker_saves() {
        let manifest = r#"[{"Config": "c.json", "RepoTags": ["nginx:1.27", "me/web:1"], "Layers": ["a/layer.tar", "b/layer.tar"]}]"#;
        check(
            &[
                ("manifest.json", manifest),
                ("c.json", "{}"),
                ("a/layer.tar", "A"),
                ("b/layer.tar", "B"),
            ],
            "library/nginx:1.27 me/web:1: 3 blobs",
        );
    }

    #[test]
    fn oci_layouts_with_an_index_of_platforms() {
        let arch = architecture();
        let index = r#"{"manifests": [{"digest": "sha256:i", "size": 1,
            "annotations": {"io.containerd.image.name": "quay.io/me/app:2"}}]}"#;
        let platforms = format!(
            r#"{{"manifests": [
                {{"digest": "sha256:w", "size": 1, "platform": {{"os": "windows", "architecture": "{arch}"}}}},
                {{"digest": "sha256:m", "size": 1, "platform": {{"os": "linux", "architecture": "{arch}"}}}}]}}"#
        );
        let manifest = r#"{"mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"digest": "sha256:c", "size": 2}, "layers": [{"digest": "sha256:l", "size": 1}]}"#;
        let files = [
            ("index.json", index),
            ("blobs/sha256/i", &platforms),
            ("blobs/sha256/m", manifest),
            ("blobs/sha256/c", "{}"),
            ("blobs/sha256/l", "L"),
        ];
        check(&files, "me/app:2: 2 blobs");
        let others = r#"{"manifests": []}"#;
        check(
            &[("index.json", index), ("blobs/sha256/i", others)],
            &format!("it has no image for linux/{arch}"),
        );
    }

    #[test]
    fn what_is_no_image_is_refused() {
        check(&[("readme", "x")], "it has neither manifest.json nor index.json");
        check(
            &[("manifest.json", r#"[{"Config": "../../../etc/passwd", "Layers": []}]"#)],
            "`../../../etc/passwd` points out of the archive",
        );
    }
}
