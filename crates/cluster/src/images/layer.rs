//! The layer of an image that the lab makes: packed once, and kept in a folder. Not here: what is in it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use serde::{Deserialize, Serialize};

use super::{Blob, ImageError, LAYER, Source, ZSTD_LAYER, tree::Tree};

/// A layer that is a file.
pub(super) struct Layer {
    pub(super) blob: Blob,
    /// The digest before it was compressed.
    pub(super) plain_digest: String,
    pub(super) media_type: &'static str,
}

/// Where what is known of a layer is kept.
fn about(layer: &Path) -> PathBuf {
    layer.with_added_extension("json")
}

/// What is kept of a layer beside it.
#[derive(Deserialize, Serialize)]
struct Known {
    digest: String,
    size: u64,
    plain_digest: String,
}

impl Layer {
    /// The layer whose files are named after `stem`; it is made from what `fill` puts into an empty tree, unless it is
    /// there. Two calls at a time do no harm.
    pub(super) fn made_once(
        stem: &Path,
        is_compressed: bool,
        fill: impl FnOnce(&Tree) -> Result<(), ImageError>,
    ) -> Result<Self, ImageError> {
        // What is packed without it serves as well.
        let is_compressed = is_compressed && has_zstd();
        let (extension, media_type) =
            if is_compressed { ("tar.zst", ZSTD_LAYER) } else { ("tar", LAYER) };
        let layer = stem.with_added_extension(extension);
        let about = about(&layer);
        // What is known of it is written last.
        let known = fs::read(&about).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let known: Option<Known> = known.filter(|_| layer.exists());
        if let Some(Known { digest, size, plain_digest }) = known {
            let blob = Blob { digest, size, source: Source::File(layer) };
            return Ok(Self { blob, plain_digest, media_type });
        }
        let scratch = stem.with_added_extension(format!("{}.tmp", std::process::id()));
        let made = Self::make(&scratch, &layer, is_compressed, fill);
        let removed = fs::remove_dir_all(&scratch);
        let (blob, plain_digest) = made?;
        removed.map_err(error("remove", &scratch))?;
        let (digest, size) = (blob.digest.clone(), blob.size);
        let known = Known { digest, size, plain_digest: plain_digest.clone() };
        let text = serde_json::to_vec(&known).map_err(|err| error("write", &about)(err.into()))?;
        fs::write(&about, text).map_err(error("write", &about))?;
        Ok(Self { blob, plain_digest, media_type })
    }

    /// Its own file and what is kept beside it.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        match &self.blob.source {
            Source::File(layer) => vec![layer.clone(), about(layer)],
            Source::Memory(_) => Vec::new(),
        }
    }

    fn make(
        scratch: &Path,
        layer: &Path,
        is_compressed: bool,
        fill: impl FnOnce(&Tree) -> Result<(), ImageError>,
    ) -> Result<(Blob, String), ImageError> {
        let tree = Tree::new(&scratch.join("tree"))?;
        fill(&tree)?;
        let packed = scratch.join("layer.tar");
        tree.pack(&packed)?;
        let plain = Blob::of_file(&packed)?;
        let ready = if is_compressed { compress(&packed)? } else { packed };
        fs::rename(&ready, layer).map_err(error("write", layer))?;
        let blob = Blob::of_file(layer)?;
        Ok((blob, plain.digest))
    }
}

fn has_zstd() -> bool {
    Command::new("zstd").arg("--version").output().is_ok_and(|output| output.status.success())
}

/// The compressed file beside a file, by all processors.
fn compress(file: &Path) -> Result<PathBuf, ImageError> {
    let target = file.with_added_extension("zst");
    let output = Command::new("zstd")
        .args(["--quiet", "-3", "--threads=0", "-o"])
        .args([&target, file])
        .output()
        .map_err(error("run zstd for", file))?;
    if output.status.success() {
        return Ok(target);
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ImageError::Program { program: "zstd", message })
}

fn error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError + use<> {
    let path = path.to_owned();
    move |source| ImageError::File { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_made_once_and_its_plain_digest_is_that_of_what_is_in_it() {
        let world = tempfile::tempdir().expect("a folder");
        let check = |name: &str, is_compressed: bool| {
            let stem = world.path().join(name);
            let fill = |tree: &Tree| tree.file("/etc/word", &"word ".repeat(1000));
            let made = Layer::made_once(&stem, is_compressed, fill).expect("made");
            let never = |_: &Tree| panic!("it is there");
            let again = Layer::made_once(&stem, is_compressed, never).expect("found");
            assert_eq!(again.blob.digest, made.blob.digest);
            assert_eq!(again.plain_digest, made.plain_digest);
            made
        };
        let (plain, small) = (check("plain", false), check("small", true));
        assert_eq!(plain.blob.digest, plain.plain_digest);
        assert_eq!(small.plain_digest, plain.plain_digest);
        if has_zstd() {
            assert_eq!(small.media_type, ZSTD_LAYER);
            assert!(small.blob.size < plain.blob.size / 10, "{}", small.blob.size);
        }
        let left = fs::read_dir(world.path()).expect("there").count();
        assert_eq!(left, 4, "a layer and what is known of it, twice");
    }
}
