//! Pulls upstream's images of Cilium. Not here: the protocol.

use std::path::Path;

use super::{AGENT_IMAGE, OPERATOR_IMAGE};
use crate::{
    images::{self, ImageError, Reference, Upstream},
    install::{InstallError, Progress, folder::put},
};

const REGISTRY: &str = "quay.io";
const MEGABYTE: u64 = 1_000_000;

/// Pulls both images. [`InstallError::Unreachable`] means that there is no way to upstream from here.
pub(super) fn images(
    upstream: &Upstream,
    version: &str,
    partial: &Path,
    progress: Progress<'_>,
) -> Result<(), InstallError> {
    let wanted = [(AGENT_IMAGE, "cilium/cilium"), (OPERATOR_IMAGE, "cilium/operator-generic")];
    for (name, repository) in wanted {
        let reference = Reference { repository: repository.to_owned(), tag: format!("v{version}") };
        put(partial, name, |folder| {
            let mut last = None;
            let mut told = |done: u64, total: u64| {
                if last.replace(done / MEGABYTE) != Some(done / MEGABYTE) {
                    let (done, total) = (done / MEGABYTE, total / MEGABYTE);
                    progress(&format!("pulling {REGISTRY}/{reference} ({done} of {total} MB)"));
                }
            };
            images::pull(upstream, REGISTRY, &reference, folder, &mut told).map_err(translate)
        })?;
    }
    Ok(())
}

/// The version of the image in a folder that [`images`] has filled.
pub(super) fn version_of(folder: &Path) -> Option<String> {
    let name = images::pulled_name(folder)?;
    name.rsplit_once(":v").map(|(_, version)| version.to_owned())
}

fn translate(error: ImageError) -> InstallError {
    match error {
        ImageError::Http { url, source } => InstallError::Unreachable { url, source },
        // A proxy that forbids it, or a portal: nothing was learnt about the image.
        ImageError::Refused { url, status: status @ (401 | 403 | 407 | 502 | 503), .. } => {
            InstallError::Unreachable { url, source: Box::new(ureq::Error::StatusCode(status)) }
        }
        ImageError::Refused { url, status, .. } => InstallError::NoRelease { url, status },
        ImageError::Digest { url, wanted, found } => InstallError::Checksum { url, wanted, found },
        other => InstallError::Image(other),
    }
}
