//! `aksnet up`, `down`, `reset` and what belongs to them.

use std::{
    fs::{self, File},
    io::{BufRead, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::{
        fs::{DirBuilderExt, MetadataExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use cluster::install::{self, InstallError, InstalledCilium};
use linux::sandbox::pidfile::{self, Process};

use crate::{
    azure_env,
    control::{Answer, Ask, ask},
    lab::{Config, Lab, Nodes},
    output::{self, Format, Progress, data, say},
};

/// How long the daemon may take from its start until it answers.
const PATIENCE: Duration = Duration::from_mins(1);

/// Starts the lab's daemon, unless it runs, and waits until it answers.
pub(crate) fn up(lab: &Lab, config: &Config) -> anyhow::Result<()> {
    if !is_root() {
        bail!("the lab makes network namespaces and needs root; run `sudo aksnet up`");
    }
    if let Ok(Answer::Status(_)) = ask(lab, &Ask::Status) {
        if lab.read_config()?.as_ref() != Some(config) {
            bail!("the lab runs with other settings; `aksnet down` first");
        }
        say(&format!("lab `{}` is up already", lab.name()));
        return Ok(());
    }
    if let Some(link) = &config.uplink {
        lab.uplink(Some(link))?.way_out().context("`--uplink`")?;
    }
    if config.nodes == Nodes::Kubernetes {
        install_kubernetes(&config.kubernetes, None)?;
    }
    // Found here it is a sentence; found by the daemon it would be a line of a log.
    if let Err(error) = TcpListener::bind(config.listen) {
        bail!(
            "{} cannot be listened on ({error}); `aksnet up --listen 127.0.0.1:PORT` takes another",
            config.listen
        );
    }
    if let Some(address) = config.metrics
        && let Err(error) = TcpListener::bind(address)
    {
        bail!(
            "{address} cannot be listened on for metrics ({error}); `--metrics` takes another, or `off`"
        );
    }
    // Keys of authorities and of clusters are in there.
    for folder in [lab.state_dir(), lab.run_dir(), lab.log_dir()] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("making {}", folder.display()))?;
    }
    lab.write_config(config)?;
    if config.nodes == Nodes::Kubernetes
        && let Err(error) = Lab::limits().raise(lab.name())
    {
        // A container may not; a few nodes do without.
        say(&format!(
            "note: {:#}; with more than ten nodes kubelets may fail with `too many open files`",
            anyhow::Error::new(error).context("raising the machine's limits on inotify")
        ));
    }
    let log = File::options().create(true).append(true).open(lab.daemon_log());
    let log = log.with_context(|| format!("opening {}", lab.daemon_log().display()))?;
    let mut daemon = Command::new(own_program()?)
        .args(["--name", lab.name(), "serve"])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C in this terminal is not meant for it.
        .process_group(0)
        .current_dir("/")
        .spawn()
        .context("starting the lab")?;
    let mut progress = Progress::new("starting the lab");
    let began = Instant::now();
    loop {
        if ask(lab, &Ask::Status).is_ok() && is_listening(config.listen) {
            break;
        }
        if let Some(status) = daemon.try_wait()? {
            bail!("the lab ended at once ({status}): {}", last_lines(&lab.daemon_log()));
        }
        if began.elapsed() > PATIENCE {
            bail!("the lab does not answer; its log is {}", lab.daemon_log().display());
        }
        progress.tell("waiting for it to answer");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(progress);
    say(&format!(
        "lab `{}` is up: Azure Resource Manager at {}",
        lab.name(),
        azure_env::endpoint(config)
    ));
    Ok(())
}

/// Where `aksnet` is, also when it has been built anew since this process began.
pub(crate) fn own_program() -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe().context("finding aksnet itself")?;
    let text = path.to_string_lossy();
    Ok(text.strip_suffix(" (deleted)").map_or(path.clone(), PathBuf::from))
}

fn is_root() -> bool {
    // The owner of /proc/self is this process' effective user.
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

fn is_listening(at: SocketAddr) -> bool {
    let at = match at {
        SocketAddr::V4(at) if at.ip().is_unspecified() => ([127, 0, 0, 1], at.port()).into(),
        SocketAddr::V6(at) if at.ip().is_unspecified() => {
            (std::net::Ipv6Addr::LOCALHOST, at.port()).into()
        }
        at => at,
    };
    TcpStream::connect_timeout(&at, Duration::from_millis(200)).is_ok()
}

fn last_lines(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// The two lines that point one's own tools at the lab, how to look around, how to stop.
pub(crate) fn say_how_to_go_on(lab: &Lab) {
    let own = own_program().map_or("aksnet".into(), |path| path.display().to_string());
    let own = if lab.name() == "aksnet" { own } else { format!("{own} --name {}", lab.name()) };
    say(&format!(
        "\nThe lab is yours. In your own shell:\n\n  \
         eval \"$({own} env)\"\n  \
         az aks list -o table; kubectl config get-contexts\n\n\
         Look around:  {own} status   {own} exec jump -- ping -c 1 172.20.0.4\n\
         Stop:         {own} down     (and forget everything: {own} reset)"
    ));
}

/// Stops everything and removes all of it from the machine, whether the daemon lives or not.
pub(crate) fn down(lab: &Lab) -> anyhow::Result<()> {
    let mut progress = Progress::new("stopping the lab");
    stop_daemon(lab, &mut progress);
    progress.tell("stopping clusters");
    daemon::clusters::down(lab.name(), &lab.run_dir()).context("stopping clusters")?;
    progress.tell("removing networks");
    lab.uplink(None)?.down().context("leaving the machine's network")?;
    daemon::fabric::down(lab.name()).context("removing networks")?;
    Lab::limits().give_back(lab.name()).context("giving the machine's limits back")?;
    match fs::remove_dir_all(lab.run_dir()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", lab.run_dir().display()));
        }
        _ => {}
    }
    drop(progress);
    say(&format!("lab `{}` is down; nothing of it runs", lab.name()));
    Ok(())
}

fn stop_daemon(lab: &Lab, progress: &mut Progress) {
    let path = lab.run_dir().join("daemon.pid");
    let Some(process) = pidfile::read(&path) else { return };
    let began = Instant::now();
    process.terminate();
    while process.is_alive() {
        progress.tell("waiting for its daemon");
        if began.elapsed() > Duration::from_secs(10) {
            process.kill();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Writes down which process the daemon is, so that `down` finds it and nothing else.
pub(crate) fn write_pid(lab: &Lab) -> anyhow::Result<()> {
    let path = lab.run_dir().join("daemon.pid");
    let own = Process::current().context("reading the own process' start time")?;
    pidfile::write(&path, &own).with_context(|| format!("writing {}", path.display()))
}

/// `down`, and the resources too.
pub(crate) fn reset(lab: &Lab, yes: bool) -> anyhow::Result<()> {
    if !yes {
        say(&format!(
            "This forgets every resource of lab `{}`. Type its name to go on:",
            lab.name()
        ));
        std::io::stderr().flush()?;
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line)?;
        if line.trim() != lab.name() {
            bail!("nothing was done");
        }
    }
    down(lab)?;
    for folder in [lab.state_dir(), lab.log_dir()] {
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", folder.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Gets Kubernetes' programs, showing how far it is.
pub(crate) fn install_kubernetes(version: &str, from: Option<&Path>) -> anyhow::Result<()> {
    get("Kubernetes", version, from, install::kubernetes)
}

/// Gets Cilium, showing how far it is.
pub(crate) fn install_cilium(version: &str, from: Option<&Path>) -> anyhow::Result<()> {
    get("Cilium", version, from, install::cilium)
}

/// Gets a version of `what` by its installer, and says where it is then.
fn get(
    what: &str,
    version: &str,
    from: Option<&Path>,
    installer: impl FnOnce(
        &Path,
        &str,
        Option<&Path>,
        install::Progress<'_>,
    ) -> Result<PathBuf, InstallError>,
) -> anyhow::Result<()> {
    let doing = format!("getting {what} {version}");
    let mut progress = Progress::new(&doing);
    let got = installer(&Lab::cache_dir(), version, from, &mut |how_far| progress.tell(how_far));
    let folder = got.context(doing)?;
    drop(progress);
    data(&format!("{what} {version}: {}", folder.display()));
    Ok(())
}

/// Shows the versions of Cilium that are in the cache.
pub(crate) fn list_cilium(format: Format) -> anyhow::Result<()> {
    let found = install::list_cilium(&Lab::cache_dir()).context("looking for Cilium")?;
    output::show(&found, format, |found| {
        if found.is_empty() {
            return "Cilium is not here; `aksnet cilium install` gets it".to_owned();
        }
        let row = |it: &InstalledCilium| {
            let size = format!("{} MB", it.bytes.div_ceil(1_000_000));
            vec![it.version.clone(), it.source.to_owned(), size, it.folder.display().to_string()]
        };
        let rows: Vec<_> = found.iter().map(row).collect();
        output::table(&["VERSION", "FROM", "SIZE", "FOLDER"], &rows)
    })
}

/// Gives an image archive to the registry of the running lab.
pub(crate) fn import_image(lab: &Lab, archive: &Path) -> anyhow::Result<()> {
    let mut progress = Progress::new(&format!("importing {}", archive.display()));
    progress.tell("reading");
    let names = daemon::clusters::import_image(lab.name(), archive)
        .with_context(|| format!("importing {}", archive.display()))?;
    drop(progress);
    for name in names {
        data(&name);
    }
    Ok(())
}
