//! `aksnet`: AKS networking that one can plan, run and have explained, on one Linux machine.
//!
//! Wires the other crates together and talks to people. Nothing here is wanted by another crate.
#![forbid(unsafe_code)]

mod arm_client;
mod azure_env;
mod capture;
mod control;
mod exec;
mod flow_logs;
mod in_process_arm;
mod lab;
mod output;
mod places;
mod pod;
mod run;
mod serve;
mod service_tags;
mod status;
mod top;
mod tour;
mod trace;
mod vm;
mod watch;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::{
    lab::{Config, Lab, LabName, Nodes},
    output::{Format, say},
};

/// AKS networking on one Linux machine: a local Azure, real Kubernetes, real packets
///
/// `aksnet up` starts the lab, `eval "$(aksnet env)"` points az and kubectl at it, `aksnet tour` plays
/// the article that it implements.
#[derive(Debug, Parser)]
#[command(name = "aksnet", version)]
struct Cli {
    /// The lab's name: everything it makes on the machine begins with it
    #[arg(long, global = true, env = "AKSNET_NAME", default_value = "aksnet")]
    name: LabName,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the lab in the background, or heal one that has crashed
    Up(Up),
    /// Stop the lab and remove everything it made; its resources come back with the next `up`
    Down,
    /// Forget everything: `down`, and the resources too
    Reset {
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Show clusters, nodes, VMs, and subnets and how full each is
    Status {
        /// The form of the answer
        #[arg(long, short, value_enum, default_value = "table")]
        output: Format,
    },
    /// Print `export` lines that point az, the Azure SDKs and kubectl at the lab
    Env,
    /// Play the article, command by command, and compare each answer
    Tour {
        /// Wait for Enter before each command
        #[arg(long)]
        pause: bool,
    },
    /// Machines in a subnet
    #[command(subcommand)]
    Vm(vm::Vm),
    /// Pods of network-only clusters (`up --nodes network-only`)
    #[command(subcommand)]
    Pod(pod::Pod),
    /// Run a command in the network of a VM, a node or a pod, or on the internet
    #[command(
        after_help = "Examples:\n  aksnet exec jump -- ping -c 1 172.20.0.4\n  aksnet exec testns/testdeploy-7c5ddbdf54-x2x4k -- tcpdump -n -c 5\n  aksnet exec aks-nodepool1-12345678-vmss000000 -- cilium-dbg status"
    )]
    Exec {
        #[arg(
            help = "The VM's or node's name, [GROUP:]NAME where groups have the same, or [CLUSTER:]NAMESPACE/NAME of a pod ([CLUSTER:]NAME in network-only clusters); or vm/NAME, node/NAME, pod/NAME; or internet"
        )]
        target: String,
        /// The command and its arguments, after `--`
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Service tags: names for addresses that security rules and routes can name
    #[command(subcommand)]
    ServiceTags(service_tags::Tags),
    /// Show or keep the packets at points of their path
    Capture(capture::Capture),
    /// Send one packet and show what it meets, beside what the model says
    Trace(trace::Trace),
    /// Show flows, drops by rule and addresses by subnet, live
    Top(top::Top),
    /// Print the lab's numbers as Prometheus reads them; `up --metrics` serves them
    Metrics,
    /// Show flow logs: time in milliseconds, NIC, rule, and Azure's flow tuple
    ///
    /// The tuple is: source, destination, their ports, protocol, direction (I or O), state (B begun, C continuing, E
    /// ended, D denied), encryption, packets and bytes sent, packets and bytes received.
    FlowLogs {
        /// Go on with what comes
        #[arg(long, short)]
        follow: bool,
    },
    /// Kubernetes' programs
    #[command(subcommand)]
    Kubernetes(Kubernetes),
    /// Cilium, for clusters whose data plane it is
    #[command(subcommand)]
    Cilium(Cilium),
    /// Images that pods can use
    #[command(subcommand)]
    Image(Image),
    /// Print a completion script
    Completion {
        /// For this shell
        shell: clap_complete::Shell,
    },
    /// The lab itself, in the foreground
    #[command(hide = true)]
    Serve,
    /// The first process of a node or control plane
    #[command(hide = true)]
    SandboxInit {
        /// What it should be
        spec: PathBuf,
    },
    /// What answers in the pods of network-only clusters
    #[command(hide = true)]
    Echo {
        /// Where it is told of them
        #[arg(long)]
        socket: PathBuf,
    },
    /// The agent on a node
    #[command(hide = true)]
    Agent {
        /// Its configuration
        #[arg(long)]
        config: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Up {
    /// What clusters' nodes are; kept for the next `up`
    #[arg(long, value_enum)]
    nodes: Option<Nodes>,
    /// Where Azure Resource Manager listens; kept for the next `up` [default: 127.0.0.1:8443]
    ///
    /// It accepts every token, so whoever reaches another address than loopback owns the lab.
    #[arg(long)]
    listen: Option<std::net::SocketAddr>,
    /// Where `/metrics` is served for Prometheus, such as 127.0.0.1:9464, or `off`; kept for the next `up` [default: off]
    #[arg(long, value_name = "ADDRESS", value_parser = metrics_address)]
    metrics: Option<MetricsAddress>,
    /// The version of Kubernetes that clusters get; kept for the next `up`
    #[arg(long)]
    kubernetes: Option<String>,
    /// Join the lab's internet to the machine's own, through LINK or the default route; kept for the next `up`
    ///
    /// Flows of the lab to addresses that are not its own leave with the machine's address, and names that are not its
    /// own are asked of the machine's resolvers. The machine's network gets one link, one nftables table and, until
    /// `down`, forwards packets. Nobody outside can begin a flow into the lab.
    #[arg(long, value_name = "LINK", num_args = 0..=1, default_missing_value = "")]
    uplink: Option<String>,
    /// Keep the lab's internet to itself again
    #[arg(long, conflicts_with = "uplink")]
    no_uplink: bool,
    /// Write virtual network flow logs, which `aksnet flow-logs` shows; kept for the next `up`
    #[arg(long)]
    flow_logs: bool,
    /// Write no flow logs any more
    #[arg(long, conflicts_with = "flow_logs")]
    no_flow_logs: bool,
}

/// Where metrics are served; `None`: nowhere.
type MetricsAddress = Option<std::net::SocketAddr>;

fn metrics_address(text: &str) -> Result<MetricsAddress, String> {
    match text {
        "off" => Ok(None),
        text => text.parse().map(Some).map_err(|_| {
            "it is an address with a port, such as 127.0.0.1:9464, or `off`".to_owned()
        }),
    }
}

#[derive(Debug, Subcommand)]
enum Kubernetes {
    /// Get Kubernetes' programs: from a folder, from upstream, or built with Go
    Install {
        /// The version
        #[arg(long, default_value = cluster::install::DEFAULT_VERSION)]
        version: String,
        /// Take the programs from this folder
        #[arg(long)]
        from: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
enum Cilium {
    /// Get Cilium: from a folder, upstream's images, or built with Go
    ///
    /// Where quay.io can be reached, upstream's images are pulled and used as they are. Elsewhere Go builds Cilium's programs
    /// from its module, which takes about 8 minutes on two cores, and the lab makes images of them; these have no Envoy, so
    /// no HTTP rules. Clusters that need Cilium get it by themselves; this is for getting it beforehand.
    ///
    /// Other versions than the default are built as far as Go's module proxy serves what they require.
    #[command(
        after_help = "Examples:\n  aksnet cilium install\n  aksnet cilium install --from /mnt/other-machine/aksnet/cilium/v1.20.2"
    )]
    Install {
        /// The version
        #[arg(long, default_value = cluster::install::CILIUM_VERSION)]
        version: String,
        /// Take it from this folder, such as the one that `aksnet cilium list` shows on another machine
        #[arg(long, value_name = "FOLDER")]
        from: Option<PathBuf>,
    },
    /// Show the versions that are here, and where each came from
    List {
        /// The form of the answer
        #[arg(long, short, value_enum, default_value = "table")]
        output: Format,
    },
}

#[derive(Debug, Subcommand)]
enum Image {
    /// Give an image archive (`docker save`, OCI layout in a tar) to the lab's registry
    Import {
        /// The archive
        archive: PathBuf,
    },
}

/// What the exit status says. Wrong use is 2, from clap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    /// 0: done.
    Done,
    /// 1: the answer is no, such as a tour that was not as expected.
    No,
    /// 3: the world failed; the message says how.
    Failed,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::No => 1,
            Exit::Failed => 3,
        })
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli) {
        Ok(exit) => exit,
        Err(error) => {
            say(&format!("error: {error:#}"));
            Exit::Failed
        }
    }
    .into()
}

fn dispatch(cli: Cli) -> anyhow::Result<Exit> {
    let lab = Lab::new(cli.name);
    let running = || -> anyhow::Result<Config> {
        lab.read_config()?
            .with_context(|| format!("there is no lab `{}`; `aksnet up` makes it", lab.name()))
    };
    match cli.command {
        Command::Up(up) => {
            let mut config = lab.read_config()?.unwrap_or_else(Config::new);
            config.nodes = up.nodes.unwrap_or(config.nodes);
            config.listen = up.listen.unwrap_or(config.listen);
            config.metrics = up.metrics.unwrap_or(config.metrics);
            if up.no_uplink {
                config.uplink = None;
            }
            config.uplink = up.uplink.or(config.uplink);
            config.flow_logs = (config.flow_logs || up.flow_logs) && !up.no_flow_logs;
            if let Some(version) = up.kubernetes {
                version.trim_start_matches('v').clone_into(&mut config.kubernetes);
            }
            run::up(&lab, &config)?;
        }
        Command::Down => run::down(&lab)?,
        Command::Reset { yes } => run::reset(&lab, yes)?,
        Command::Status { output } => status::show(&lab, output)?,
        Command::Env => {
            let config = running()?;
            azure_env::prepare_az(&lab, &config)?;
            output::data(&azure_env::export_lines(&azure_env::variables(&lab, &config)));
        }
        Command::Tour { pause } => {
            if !tour::play(&lab, &running()?, pause)? {
                return Ok(Exit::No);
            }
            run::say_how_to_go_on(&lab);
        }
        Command::Vm(command) => vm::run(&lab, &running()?, &command)?,
        Command::Pod(command) => {
            running()?;
            if !pod::run(&lab, command)? {
                return Ok(Exit::No);
            }
        }
        Command::Exec { target, command } => match exec::run(&lab, &target, &command)? {},
        Command::ServiceTags(wanted) => service_tags::run(&lab, &wanted)?,
        Command::Capture(wanted) => capture::run(&lab, &wanted)?,
        Command::Trace(wanted) => return trace::run(&lab, &wanted),
        Command::Top(wanted) => top::run(&lab, &wanted)?,
        Command::Metrics => top::metrics(&lab)?,
        Command::FlowLogs { follow } => flow_logs::show(&lab, follow)?,
        Command::Kubernetes(Kubernetes::Install { version, from }) => {
            run::install_kubernetes(version.trim_start_matches('v'), from.as_deref())?;
        }
        Command::Cilium(Cilium::Install { version, from }) => {
            run::install_cilium(version.trim_start_matches('v'), from.as_deref())?;
        }
        Command::Cilium(Cilium::List { output }) => run::list_cilium(output)?,
        Command::Image(Image::Import { archive }) => run::import_image(&lab, &archive)?,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "aksnet", &mut script);
            output::data(&String::from_utf8(script)?);
        }
        Command::Serve => serve::run(&lab, &running()?)?,
        Command::SandboxInit { spec } => {
            linux::sandbox::init(&spec).context("being a first process")?;
        }
        Command::Echo { socket } => {
            linux::echo::run(&socket).context("answering in pods")?;
        }
        Command::Agent { config } => daemon::node::run(&config).context("being a node's agent")?,
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
