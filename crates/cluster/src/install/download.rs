//! Upstream's release of Kubernetes' programs, each with its checksum.

use std::{fs::File, io, path::Path, time::Duration};

use sha2::{Digest, Sha256};
use ureq::Agent;

use super::{InstallError, file};

const RELEASES: &str = "https://dl.k8s.io/release";

/// Downloads a program. [`InstallError::Unreachable`] means that there is no way to upstream from here.
pub(super) fn release(program: &str, version: &str, target: &Path) -> Result<(), InstallError> {
    let arch = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    };
    let url = format!("{RELEASES}/v{version}/bin/linux/{arch}/{program}");
    let agent: Agent = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(3)))
        .timeout_recv_response(Some(Duration::from_secs(10)))
        .timeout_recv_body(Some(Duration::from_mins(10)))
        .build()
        .into();
    let wanted_url = format!("{url}.sha256");
    let unreachable = |url: &str| {
        let url = url.to_owned();
        move |source| InstallError::Unreachable { url, source: Box::new(source) }
    };
    let mut wanted = get(&agent, &wanted_url)?;
    let wanted = wanted.read_to_string().map_err(unreachable(&wanted_url))?;
    let wanted = wanted.split_whitespace().next().unwrap_or_default();
    let mut body = get(&agent, &url)?;
    let mut output =
        Hashing { file: File::create(target).map_err(file("make", target))?, hash: Sha256::new() };
    io::copy(&mut body.as_reader(), &mut output).map_err(file("write", target))?;
    let found = crate::images::render_hex(&output.hash.finalize());
    if found == wanted {
        Ok(())
    } else {
        Err(InstallError::Checksum { url, wanted: wanted.to_owned(), found })
    }
}

fn get(agent: &Agent, url: &str) -> Result<ureq::Body, InstallError> {
    let answer = agent.get(url).call().map_err(|source| InstallError::Unreachable {
        url: url.to_owned(),
        source: Box::new(source),
    })?;
    match answer.status().as_u16() {
        200 => Ok(answer.into_body()),
        // A proxy that forbids it, or a portal: nothing was learnt about the release.
        status @ (401 | 403 | 407 | 502 | 503) => Err(InstallError::Unreachable {
            url: url.to_owned(),
            source: Box::new(ureq::Error::StatusCode(status)),
        }),
        status => Err(InstallError::NoRelease { url: url.to_owned(), status }),
    }
}

/// A file whose content is hashed as it is written.
struct Hashing {
    file: File,
    hash: Sha256,
}

impl io::Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n_bytes = self.file.write(bytes)?;
        self.hash.update(&bytes[..n_bytes]);
        Ok(n_bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
