//! Pulls upstream's images of Cilium. Not here: the protocol.

use std::{path::Path, thread, time::Duration};

use super::{AGENT_IMAGE, OPERATOR_IMAGE};
use crate::{
    images::{self, ImageError, Reference, Upstream},
    install::{InstallError, Progress, folder::put},
};

const REGISTRY: &str = "quay.io";
const MEGABYTE: u64 = 1_000_000;
/// How often a pull goes on after its connection broke off.
const TRIES: u32 = 3;

/// Pulls both images. [`InstallError::Unreachable`] means that there is no way to upstream from here, and only that:
/// a pull that broke off is no reason to build for minutes.
pub(super) fn images(
    upstream: &Upstream,
    version: &str,
    partial: &Path,
    progress: Progress<'_>,
) -> Result<(), InstallError> {
    let wanted = [(AGENT_IMAGE, "cilium/cilium"), (OPERATOR_IMAGE, "cilium/operator-generic")];
    let wanted = wanted.map(|(name, repository)| {
        (name, Reference { repository: repository.to_owned(), tag: format!("v{version}") })
    });
    images::ask(upstream, REGISTRY, &wanted[0].1).map_err(translate)?;
    for (name, reference) in wanted {
        put(partial, name, |folder| {
            let mut last = None;
            let mut told = |done: u64, total: u64| {
                if last.replace(done / MEGABYTE) != Some(done / MEGABYTE) {
                    let (done, total) = (done / MEGABYTE, total / MEGABYTE);
                    progress(&format!("pulling {REGISTRY}/{reference} ({done} of {total} MB)"));
                }
            };
            let mut pull = || images::pull(upstream, REGISTRY, &reference, folder, &mut told);
            let mut pulled = pull();
            for _ in 1..TRIES {
                if !matches!(pulled, Err(ImageError::Http { .. })) {
                    break;
                }
                thread::sleep(Duration::from_secs(1));
                pulled = pull();
            }
            pulled.map_err(|error| match error {
                ImageError::Http { .. } => InstallError::Image(error),
                other => translate(other),
            })
        })?;
    }
    Ok(())
}

/// The version of the image in a folder that [`images()`] has filled.
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
