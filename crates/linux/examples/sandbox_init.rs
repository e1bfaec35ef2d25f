//! A launcher for tests: becomes the first process of the sandbox that its argument describes.

use std::{path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    let Some(spec) = std::env::args_os().nth(1).map(PathBuf::from) else {
        return ExitCode::from(2);
    };
    match linux::sandbox::init(&spec) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            use std::io::Write as _;
            let cause = std::error::Error::source(&err).map(ToString::to_string);
            let _ = writeln!(std::io::stderr(), "{err}: {}", cause.unwrap_or_default());
            ExitCode::FAILURE
        }
    }
}
