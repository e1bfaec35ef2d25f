//! The images that the lab makes from this machine's programs. Not here: where they are pushed.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use super::{Image, ImageError, Layer, Reference, archive, cilium, tree::Tree};
use crate::{addons::COREDNS_IMAGE, cache, install, programs::PAUSE_IMAGE};

/// An image that the lab makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Recipe {
    /// Holds a pod's namespaces.
    Pause,
    /// The cluster's name server.
    CoreDns,
    /// The web server, answering its welcome page.
    Nginx,
    /// A shell and small tools.
    Busybox,
    /// Cilium's agent, and what a node needs to load its programs.
    Cilium,
    /// Cilium's operator.
    CiliumOperator,
}

/// What is not found on `PATH`.
#[derive(Clone, Debug)]
pub struct Ingredients {
    /// The `coredns` executable.
    coredns: PathBuf,
    /// Cilium's folder (see [`install::cilium_dir`]).
    cilium: PathBuf,
    /// The version in it.
    cilium_version: String,
}

impl Ingredients {
    /// Those of a cache, with Cilium of a version.
    #[must_use]
    pub fn new(cache: &Path, cilium_version: &str) -> Self {
        Self {
            coredns: install::coredns_dir(cache).join("coredns"),
            cilium: install::cilium_dir(cache, cilium_version),
            cilium_version: cilium_version.trim_start_matches('v').to_owned(),
        }
    }
}

impl Recipe {
    /// Those that every lab has, those first without which no pod runs.
    pub const ALWAYS: [Self; 4] = [Self::Pause, Self::CoreDns, Self::Nginx, Self::Busybox];
    /// Those of clusters whose data plane is Cilium.
    pub const CILIUM: [Self; 2] = [Self::Cilium, Self::CiliumOperator];

    /// The names by which pods ask for it.
    pub fn references(self, ingredients: &Ingredients) -> Result<Vec<Reference>, ImageError> {
        let version = &ingredients.cilium_version;
        let names = match self {
            Self::Pause => vec![PAUSE_IMAGE.to_owned()],
            Self::CoreDns => vec![COREDNS_IMAGE.to_owned()],
            Self::Nginx => ["nginx:latest", "nginx:stable"].map(str::to_owned).to_vec(),
            Self::Busybox => ["busybox:latest", "busybox:stable"].map(str::to_owned).to_vec(),
            Self::Cilium => vec![cilium::agent_name(version)],
            Self::CiliumOperator => vec![cilium::operator_name(version)],
        };
        names.iter().map(|name| name.parse()).collect()
    }

    /// Makes the image. Its layer stays in `folder`, and is used again as long as the program that it is
    /// made from is the same.
    ///
    /// Upstream's image is taken as it is where it was pulled.
    pub fn make(self, folder: &Path, ingredients: &Ingredients) -> Result<Image, ImageError> {
        if let Some(pulled) = self.pulled(ingredients).filter(|pulled| pulled.is_dir()) {
            let images = archive::read_layout(&pulled)?;
            let image = images.into_iter().next().map(|(_, image)| image);
            let reason = || "no image is in it".to_owned();
            return image.ok_or_else(|| ImageError::Archive { path: pulled, reason: reason() });
        }
        let stem = folder.join(format!("{}-{}", self.name(), self.identity(ingredients)?));
        fs::create_dir_all(folder).map_err(|source| ImageError::File {
            action: "make",
            path: folder.to_owned(),
            source,
        })?;
        let layer = Layer::made_once(&stem, Self::CILIUM.contains(&self), |tree| {
            self.fill(tree, ingredients)
        })?;
        let used = layer.files();
        for file in &used {
            cache::mark_used(file);
        }
        cache::sweep(folder, |name| {
            is_layer_of(self.name(), name) && !used.contains(&folder.join(name))
        });
        Ok(Image::of_layer(layer, &self.config()))
    }

    /// Where upstream's own image is, if it was pulled.
    fn pulled(self, ingredients: &Ingredients) -> Option<PathBuf> {
        match self {
            Self::Cilium => Some(ingredients.cilium.join(install::AGENT_IMAGE)),
            Self::CiliumOperator => Some(ingredients.cilium.join(install::OPERATOR_IMAGE)),
            _ => None,
        }
    }

    /// Changes when the programs do.
    fn identity(self, ingredients: &Ingredients) -> Result<String, ImageError> {
        let programs = match self {
            Self::CoreDns => vec![ingredients.coredns.clone()],
            Self::Nginx => vec![self.find("nginx")?],
            Self::Pause | Self::Busybox => vec![self.find("busybox")?],
            Self::Cilium => {
                vec![ingredients.cilium.join("cilium-agent"), self.find(cilium::COMPILER)?]
            }
            Self::CiliumOperator => vec![ingredients.cilium.join(cilium::OPERATOR)],
        };
        let parts = programs.into_iter().map(|program| {
            let metadata = fs::metadata(&program).map_err(|source| ImageError::File {
                action: "read",
                path: program.clone(),
                source,
            })?;
            Ok(format!("{:x}-{:x}", metadata.mtime(), metadata.len()))
        });
        Ok(parts.collect::<Result<Vec<_>, ImageError>>()?.join("-"))
    }

    /// Puts everything into an empty tree.
    pub(super) fn fill(self, tree: &Tree, ingredients: &Ingredients) -> Result<(), ImageError> {
        match self {
            Self::Pause => tree.copy(&self.find("busybox")?, "/bin/busybox"),
            Self::CoreDns => tree.copy(&ingredients.coredns, "/coredns"),
            Self::Nginx => {
                self.busybox(tree)?;
                self.nginx(tree)
            }
            Self::Busybox => self.busybox(tree),
            Self::Cilium => {
                cilium::agent(tree, &ingredients.cilium, |program| self.find(program))?;
                // Last: it takes the names that are left.
                self.busybox(tree)
            }
            Self::CiliumOperator => cilium::operator(tree, &ingredients.cilium),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::CoreDns => "coredns",
            Self::Nginx => "nginx",
            Self::Busybox => "busybox",
            Self::Cilium => "cilium",
            Self::CiliumOperator => "cilium-operator",
        }
    }

    fn config(self) -> Value {
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        match self {
            Self::Pause => {
                json!({"Entrypoint": ["/bin/busybox", "sleep", "2147483647"], "Env": [path]})
            }
            Self::CoreDns => json!({
                "Entrypoint": ["/coredns"],
                "Env": [path],
                "ExposedPorts": {"53/tcp": {}, "53/udp": {}},
            }),
            Self::Nginx => json!({
                "Entrypoint": ["/usr/sbin/nginx"],
                "Cmd": ["-g", "daemon off;"],
                "Env": [path],
                "ExposedPorts": {"80/tcp": {}},
                "StopSignal": "SIGQUIT",
            }),
            Self::Busybox => json!({"Cmd": ["sh"], "Env": [path]}),
            Self::Cilium => json!({
                "Cmd": ["/usr/bin/cilium-dbg"],
                // Hubble's command asks the agent beside it, not a relay.
                "Env": [path, "HUBBLE_SERVER=unix:///var/run/cilium/hubble.sock"],
                "WorkingDir": "/home/cilium",
            }),
            Self::CiliumOperator => json!({"Cmd": [cilium::OPERATOR], "Env": [path]}),
        }
    }

    fn busybox(self, tree: &Tree) -> Result<(), ImageError> {
        let program = self.find("busybox")?;
        tree.copy(&program, "/bin/busybox")?;
        let error = |source| ImageError::File { action: "run", path: program.clone(), source };
        let applets = Command::new(&program).arg("--list").output().map_err(error)?;
        for applet in String::from_utf8_lossy(&applets.stdout).lines() {
            tree.link(&format!("/bin/{applet}"), "busybox")?;
        }
        tree.folder("/tmp", 0o1777)?;
        tree.file(
            "/etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/false\n",
        )?;
        tree.file("/etc/group", "root:x:0:\nwww-data:x:33:\n")
    }

    /// Debian's nginx, set up as Docker's: in the foreground, logs where the kubelet finds them.
    fn nginx(self, tree: &Tree) -> Result<(), ImageError> {
        tree.program(&self.find("nginx")?, "/usr/sbin/nginx")?;
        for file in ["/etc/nginx/mime.types", "/usr/share/nginx/html/index.html"] {
            tree.copy(Path::new(file), file)?;
        }
        // Docker's image has it, and readers of articles use it to look around.
        if let Ok(curl) = self.find("curl") {
            tree.program(&curl, "/usr/bin/curl")?;
        }
        for folder in ["/var/log/nginx", "/var/lib/nginx", "/run"] {
            tree.folder(folder, 0o755)?;
        }
        tree.link("/var/log/nginx/access.log", "/dev/stdout")?;
        tree.link("/var/log/nginx/error.log", "/dev/stderr")?;
        tree.file("/etc/nginx/nginx.conf", include_str!("nginx.conf"))
    }

    /// A program on `PATH`.
    fn find(self, program: &str) -> Result<PathBuf, ImageError> {
        let folders =
            ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
        folders
            .iter()
            .map(|folder| Path::new(folder).join(program))
            .find(|path| path.is_file())
            .ok_or_else(|| ImageError::Missing { program: program.to_owned(), image: self.name() })
    }
}

/// Whether a file is an image's layer or belongs to one, of whatever programs: `NAME-IDENTITY.EXTENSION`. `cilium` is also
/// how another image's name begins.
fn is_layer_of(image: &str, file: &str) -> bool {
    let rest = file.strip_prefix(image).and_then(|rest| rest.strip_prefix('-'));
    let identity = rest.and_then(|rest| rest.split_once('.')).map(|(identity, _)| identity);
    identity.is_some_and(|it| it.chars().all(|c| c == '-' || c.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_told_by_their_images() {
        for (image, file, expected) in [
            ("cilium", "cilium-6b0cb47f-7f840a2-685af6f5-20508.tar.zst", true),
            ("cilium", "cilium-6b0cb47f-7f840a2-685af6f5-20508.tar.zst.json", true),
            ("cilium", "cilium-6b0cb47f-7f840a2.4711.tmp", true),
            ("cilium", "cilium-operator-6b0cb48e-74730a2.tar", false),
            ("cilium-operator", "cilium-operator-6b0cb48e-74730a2.tar", true),
            ("cilium", "busybox-69fcf729-1e3f30.tar", false),
            ("cilium", "cilium.tar", false),
            ("cilium", "cilium-6b0cb47f", false),
        ] {
            assert_eq!(is_layer_of(image, file), expected, "{image} {file}");
        }
    }

    /// An older program's layer goes once the newer one's is used, and a day has passed.
    #[test]
    fn a_newer_layer_replaces_an_older_one() {
        let world = tempfile::tempdir().expect("a folder");
        let ingredients = Ingredients::new(world.path(), "1.20.2");
        let folder = world.path().join("images");
        let coredns = &ingredients.coredns;
        fs::create_dir_all(coredns.parent().expect("a folder")).expect("made");
        let names = || {
            let entries = fs::read_dir(&folder).expect("there");
            let names = entries.map(|it| it.expect("an entry").file_name());
            names.collect::<std::collections::BTreeSet<_>>()
        };
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_hours(48);
        let age = || {
            for name in names() {
                let file = fs::File::open(folder.join(name)).expect("there");
                file.set_modified(long_ago).expect("set");
            }
        };
        fs::write(coredns, "a program").expect("written");
        Recipe::CoreDns.make(&folder, &ingredients).expect("made");
        let old = names();
        age();
        Recipe::CoreDns.make(&folder, &ingredients).expect("found");
        fs::write(coredns, "another program").expect("written");
        Recipe::CoreDns.make(&folder, &ingredients).expect("made");
        assert!(names().is_superset(&old) && names().len() == 4, "used today: {:?}", names());
        age();
        Recipe::CoreDns.make(&folder, &ingredients).expect("found");
        assert!(names().is_disjoint(&old) && names().len() == 2, "{:?}", names());
    }

    #[test]
    fn pods_find_them_under_these_names() {
        let ingredients = Ingredients::new(Path::new("/nowhere"), "v1.20.2");
        let recipes = Recipe::ALWAYS.into_iter().chain(Recipe::CILIUM);
        let names = recipes.flat_map(|recipe| recipe.references(&ingredients).expect("names"));
        let names: Vec<String> = names.map(|reference| reference.to_string()).collect();
        insta::assert_snapshot!(names.join("\n"), @r"
        oss/kubernetes/pause:3.6
        oss/kubernetes/coredns:v1.14.7
        library/nginx:latest
        library/nginx:stable
        library/busybox:latest
        library/busybox:stable
        oss/cilium/cilium:1.20.2
        oss/cilium/operator-generic:1.20.2
        ");
    }
}
