//! The agent and the plugin as one program for tests and benches: `cni-lab agent CONFIG`,
//! `cni-lab plugin`. The tests of `lab` cannot name another package's binary.
#![forbid(unsafe_code)]
#![allow(clippy::print_stderr, reason = "a program of the laboratory, for developers")]

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some("agent"), Some(config)) => agent(Path::new(&config)),
        (Some("plugin"), None) => plugin(),
        _ => {
            eprintln!("usage: cni-lab agent CONFIG | cni-lab plugin");
            ExitCode::from(2)
        }
    }
}

fn agent(config: &Path) -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "info".into()))
        .with_writer(io::stderr)
        .with_ansi(false)
        .init();
    match daemon::node::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut cause: Option<&dyn std::error::Error> = Some(&error);
            while let Some(error) = cause {
                eprintln!("{error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn plugin() -> ExitCode {
    let outcome = cni::plugin::run(&|name| std::env::var_os(name), &mut io::stdin().lock());
    let printed = io::stdout().lock().write_all(outcome.stdout.as_bytes());
    if outcome.success && printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
