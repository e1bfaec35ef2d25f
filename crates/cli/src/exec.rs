//! `aksnet exec`: a command in somebody's network. Only the network and `/etc/resolv.conf` are theirs; other files and
//! users are the machine's. Cilium's own tools are the exception: they look at the node that they are in.

use std::{convert::Infallible, os::unix::process::CommandExt, path::Path, process::Command};

use anyhow::Context;
use cluster::{
    install::{CILIUM_VERSION, cilium_dir},
    programs::CILIUM,
};
use linux::{netns::Netns, sandbox};

use crate::{
    control::{Answer, Ask, ask},
    lab::Lab,
    trace::has_cilium,
};

/// Programs that talk to a node's Cilium by files of the node.
const CILIUM_TOOLS: [&str; 2] = ["cilium-dbg", "hubble"];

/// Becomes `command` in the network of `target`: whoever ends this process ends the command. Returns when that fails.
pub(crate) fn run(lab: &Lab, target: &str, command: &[String]) -> anyhow::Result<Infallible> {
    let Answer::Found { kind, netns, resolv_conf, first_process } =
        ask(lab, &Ask::Find { name: target.to_owned() })?
    else {
        anyhow::bail!("the lab answered another question");
    };
    let (program, arguments) = command.split_first().context("no command was given")?;
    let is_tool = kind == "node" && CILIUM_TOOLS.contains(&program.as_str());
    if let Some(pid) = first_process.filter(|_| is_tool) {
        return inside(pid, program, arguments);
    }
    let namespace = Netns::at(Path::new(&netns), target)
        .with_context(|| format!("opening the network of {target}"))?;
    // Whichever thread does it, the whole process becomes the program, where the thread is.
    let become_it = || Command::new(program).args(arguments).exec();
    let become_it_there = || match resolv_conf {
        Some(text) => namespace.run_with_resolver(&text, become_it),
        None => namespace.run(become_it),
    };
    // Cilium translates services where sockets are made, by programs that hang on the node's control group.
    let failed = match first_process.filter(|pid| has_cilium(*pid)) {
        Some(pid) => sandbox::in_group_of(pid, become_it_there)
            .with_context(|| format!("entering the control group of {target}"))?,
        None => become_it_there(),
    };
    let error = failed.with_context(|| format!("entering the network of {target}"))?;
    Err(error).with_context(|| format!("starting `{program}`"))
}

/// Becomes one of Cilium's tools in all namespaces of the computer whose first process has this pid.
fn inside(pid: i32, program: &str, arguments: &[String]) -> anyhow::Result<Infallible> {
    if !cilium_dir(&Lab::cache_dir(), CILIUM_VERSION).join(program).exists() {
        anyhow::bail!(
            "`{program}` is not on this machine: Cilium is not installed, or its images are upstream's; \
             `kubectl -n kube-system exec ds/cilium -- {program}` runs the one in the agent's container"
        );
    }
    let error = Command::new("nsenter")
        // As upstream's image says it: the node's own, where its default is a relay.
        .env("HUBBLE_SERVER", "unix:///var/run/cilium/hubble.sock")
        .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--target"])
        .arg(pid.to_string())
        .arg(format!("{CILIUM}/{program}"))
        .args(arguments)
        .exec();
    Err(error).with_context(|| format!("starting `nsenter` for `{program}`"))
}
