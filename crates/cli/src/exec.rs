//! `aksnet exec`: a command in somebody's network. Only the network and `/etc/resolv.conf` are theirs; other files and
//! users are the machine's.

use std::{path::Path, process};

use anyhow::Context;
use linux::netns::Netns;

use crate::{
    control::{Answer, Ask, ask},
    lab::Lab,
};

/// Runs `command` in the network of `target` and gives its exit status (128 + the signal that ended it).
pub(crate) fn run(lab: &Lab, target: &str, command: &[String]) -> anyhow::Result<u8> {
    let Answer::Found { netns, resolv_conf, .. } =
        ask(lab, &Ask::Find { name: target.to_owned() })?
    else {
        anyhow::bail!("the lab answered another question");
    };
    let namespace = Netns::at(Path::new(&netns), target)
        .with_context(|| format!("opening the network of {target}"))?;
    let (program, arguments) = command.split_first().context("no command was given")?;
    // A child is born in the namespace of the thread that starts it.
    let run = || process::Command::new(program).args(arguments).status();
    let status = match resolv_conf {
        Some(text) => namespace.run_with_resolver(&text, run),
        None => namespace.run(run),
    };
    let status = status
        .with_context(|| format!("entering the network of {target}"))?
        .with_context(|| format!("starting `{program}`"))?;
    Ok(exit_code(status))
}

fn exit_code(status: process::ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(u8::MAX)
}
