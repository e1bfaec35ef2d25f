//! `aksnet-cni`, the program that container runtimes start: see [`cni::plugin`].
#![forbid(unsafe_code)]

use std::{
    io::{self, Write},
    process::ExitCode,
};

fn main() -> ExitCode {
    let outcome = cni::plugin::run(&|name| std::env::var_os(name), &mut io::stdin().lock());
    // Nobody is left to tell when the runtime has closed its end; the exit code still says it.
    let printed = io::stdout().lock().write_all(outcome.stdout.as_bytes());
    if outcome.success && printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
