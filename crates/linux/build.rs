//! Compiles the eBPF programs of `alias` and `shortcut` with clang.

#![allow(clippy::print_stdout, reason = "this is how a build script talks to cargo")]

use std::{
    env, io,
    path::PathBuf,
    process::{Command, ExitCode},
};

/// Of `bpf/NAME.bpf.c`, which becomes `NAME.bpf.o`.
const PROGRAMS: [&str; 2] = ["alias", "shortcut"];
/// What Debian 12 calls it, then whatever is there.
const COMPILERS: [&str; 2] = ["clang-19", "clang"];

fn main() -> ExitCode {
    println!("cargo::rerun-if-env-changed=CLANG");
    for name in PROGRAMS {
        let source = format!("bpf/{name}.bpf.c");
        println!("cargo::rerun-if-changed={source}");
        if let Err(why) = compile(name, &source) {
            println!("cargo::error={why}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn compile(name: &str, source: &str) -> Result<(), String> {
    let object = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let object = object.join(format!("{name}.bpf.o"));
    let wanted = env::var("CLANG").ok();
    let compilers: Vec<&str> =
        wanted.as_deref().map_or_else(|| COMPILERS.to_vec(), |clang| vec![clang]);
    for compiler in &compilers {
        let mut clang = Command::new(compiler);
        clang.args(["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-target", "bpf", "-mcpu=v3"]);
        // Debian has `asm/types.h` there, where clang looks only when it compiles for the machine itself.
        let machine = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
        clang.arg(format!("-I/usr/include/{machine}-linux-gnu"));
        clang.args(["-c", source, "-o"]).arg(&object);
        match clang.status() {
            Ok(status) if status.success() => return Ok(()),
            Ok(status) => return Err(format!("{compiler} {source}: {status}")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{compiler}: {error}")),
        }
    }
    Err(format!(
        "{source} is compiled with clang, and there is no {}; install it (`scripts/setup.sh lab`) or set CLANG",
        compilers.join(" and no ")
    ))
}
