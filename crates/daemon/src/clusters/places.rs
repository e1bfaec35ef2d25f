//! Where a lab's clusters keep their things, and how a computer becomes a sandbox. Not here: which
//! computers there are.

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use cluster::{
    install,
    programs::{AKSNET, CILIUM, Computer, Need, PROGRAMS},
};
use linux::sandbox::{Bind, FileSpec, Launcher, Ready, Sandbox, SandboxSpec, Unit};
use sha2::{Digest, Sha256};

use super::ClustersError;

/// Folders and programs of a lab.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// The lab's name.
    pub(super) lab: String,
    /// What survives a reboot.
    pub(super) state: PathBuf,
    /// What does not.
    pub(super) run: PathBuf,
    /// Logs.
    pub(super) logs: PathBuf,
    /// Programs and images by version, shared by labs.
    pub(super) cache: PathBuf,
    /// The `aksnet` executable: the sandboxes' first process and the nodes' agent.
    pub(super) aksnet: PathBuf,
}

impl Places {
    /// Where pid files are.
    pub(super) fn run_dir(&self) -> PathBuf {
        run_dir(&self.run)
    }

    /// The CNI plugin's executable, beside the other one.
    pub(super) fn cni_plugin(&self) -> PathBuf {
        self.aksnet.with_file_name("aksnet-cni")
    }

    /// The folder of Kubernetes' programs of a version.
    pub(super) fn programs(&self, version: &str) -> Result<PathBuf, ClustersError> {
        let folder = install::dir(&self.cache, version);
        let paths = install::PROGRAMS.iter().map(|name| folder.join(name));
        match paths.into_iter().find(|path| !path.exists()) {
            Some(missing) => Err(ClustersError::Programs { version: version.to_owned(), missing }),
            None => Ok(folder),
        }
    }

    /// The sandbox in a network namespace, if one runs there.
    pub(super) fn sandbox_in(&self, netns: &str) -> Option<Sandbox> {
        Sandbox::find(&self.run_dir(), self.sandbox_name(netns))
    }

    /// The program that sandboxes begin with.
    pub(super) fn launcher(&self) -> Launcher {
        Launcher { program: self.aksnet.clone(), args: vec!["sandbox-init".to_owned()] }
    }

    /// The folder of a sandbox's own in the lab's state.
    pub(super) fn state_of(&self, sandbox: &str) -> PathBuf {
        self.state.join("sandboxes").join(sandbox)
    }

    /// The name of the sandbox in a network namespace: the namespace's without the lab's.
    pub(super) fn sandbox_name<'a>(&self, netns: &'a str) -> &'a str {
        netns.strip_prefix(&self.lab).and_then(|rest| rest.strip_prefix('-')).unwrap_or(netns)
    }

    /// The sandbox `name` for a computer in the namespace `netns`. `programs` is the folder of Kubernetes'
    /// programs.
    pub(super) fn sandbox(
        &self,
        name: &str,
        netns: &str,
        computer: &Computer,
        programs: &Path,
    ) -> SandboxSpec {
        let mut binds = vec![bind(programs, PROGRAMS), bind(&self.aksnet, AKSNET)];
        let cilium = install::cilium_dir(&self.cache, install::CILIUM_VERSION);
        if cilium.join(install::CILIUM_PROGRAMS[0]).exists() {
            binds.push(bind(&cilium, CILIUM));
        }
        let folders = computer.folders.iter();
        binds.extend(folders.map(|folder| bind(&self.folder_of(name, folder), folder)));
        let mut spec = SandboxSpec {
            name: name.to_owned(),
            digest: String::new(),
            netns: linux::netns::path(netns),
            hostname: computer.hostname.clone(),
            cgroup: format!("aksnet/{}/{name}", self.lab),
            log_dir: self.logs.join(name),
            binds,
            files: computer
                .files
                .iter()
                .map(|file| FileSpec {
                    path: PathBuf::from(&file.path),
                    text: file.text.clone(),
                    mode: file.mode,
                })
                .collect(),
            units: computer.programs.iter().map(unit).collect(),
        };
        spec.digest = digest(&spec, programs);
        spec
    }

    /// The folder behind a folder of a sandbox's.
    pub(super) fn folder_of(&self, sandbox: &str, folder: &str) -> PathBuf {
        let file_name = folder.trim_start_matches('/').replace('/', "-");
        self.state_of(sandbox).join("root").join(file_name)
    }
}

/// Where pid files are, below a lab's folder of running state.
pub(super) fn run_dir(run: &Path) -> PathBuf {
    run.join("sandboxes")
}

fn bind(source: &Path, target: &str) -> Bind {
    Bind { source: source.to_owned(), target: PathBuf::from(target) }
}

fn unit(program: &cluster::programs::Program) -> Unit {
    let after = program.after.iter().map(|need| match need {
        Need::Path(path) => Ready::Path(path.clone()),
        Need::Tcp(address) => Ready::Tcp((*address).into()),
    });
    Unit {
        name: program.name.to_owned(),
        argv: program.argv.clone(),
        env: program.env.clone(),
        after: after.collect(),
    }
}

/// Files that hold what a user may change while a node runs: a pool's taints, a virtual network's
/// prefixes and name servers, a pod CIDR that grows. They count when a node starts, and do not restart one.
const SOFT_FILES: [&str; 4] = ["kubelet.json", "agent.json", "kube-proxy.json", "resolv.conf"];

/// Says what the sandbox is made from, as far as a change of it is worth a restart.
fn digest(spec: &SandboxSpec, programs: &Path) -> String {
    let mut hash = Sha256::new();
    let mut take = |text: &str| hash.update(format!("{}:{text}", text.len()));
    for unit in &spec.units {
        take(&unit.name);
        unit.argv.iter().filter(|arg| !arg.starts_with("--node-labels=")).for_each(|arg| take(arg));
    }
    let is_soft = |path: &Path| SOFT_FILES.iter().any(|name| path.ends_with(name));
    for file in spec.files.iter().filter(|file| !is_soft(&file.path)) {
        take(&file.path.to_string_lossy());
        take(&file.text);
    }
    // Cilium may be installed while nodes run.
    for bind in spec.binds.iter().filter(|bind| bind.target != Path::new(CILIUM)) {
        take(&bind.source.to_string_lossy());
    }
    // Programs that were built anew under the same name.
    let changed = programs.metadata().and_then(|metadata| metadata.modified());
    let changed = changed.ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    take(&format!("{changed:?}"));
    hash.finalize().iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}
