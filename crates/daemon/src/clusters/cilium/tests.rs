use std::{
    fs,
    net::SocketAddrV4,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use cluster::images::{REGISTRY_PORT, has_image};
use linux::netns::Netns;
use serde_json::json;
use sha2::{Digest, Sha256};
use vnet::host::names;

use super::*;
use crate::clusters::{Clusters, Nodes, Settings};

/// Asks; the answer as text, and whether work was begun.
fn ask(wanted: &Wanted) -> (String, bool) {
    let mut has_begun = false;
    let answer = match wanted.ask("1.20.2", || has_begun = true) {
        Ok(Images::Ready) => "ready".to_owned(),
        Ok(Images::Underway(text)) => text,
        Err(err) => Chain(&err).to_string(),
    };
    (answer, has_begun)
}

#[test]
fn whoever_asks_is_told_how_far_it_is_and_the_work_is_done_once() {
    let wanted = Wanted::default();
    assert_eq!(ask(&wanted), ("waiting for its turn".to_owned(), true));
    assert_eq!(ask(&wanted), ("waiting for its turn".to_owned(), false));
    wanted.tell("1.20.2", "building cilium-agent (1 of 8)");
    assert_eq!(ask(&wanted), ("building cilium-agent (1 of 8)".to_owned(), false));
    assert_eq!(wanted.underway(), ["Cilium 1.20.2: building cilium-agent (1 of 8)"]);
    wanted.finish("1.20.2", Ok(()));
    assert_eq!(ask(&wanted), ("ready".to_owned(), false));
    assert_eq!(wanted.underway(), Vec::<String>::new());
}

#[test]
fn a_failure_is_told_for_a_while_and_then_it_is_tried_again() {
    let wanted = Wanted::default();
    ask(&wanted);
    let why: Why = Arc::new(std::io::Error::other("no Go here"));
    wanted.finish("1.20.2", Err(why.clone()));
    let told = ("Cilium 1.20.2 cannot be had: no Go here".to_owned(), false);
    assert_eq!(ask(&wanted), told);
    let Some(at) = Instant::now().checked_sub(PAUSE) else { return };
    wanted.lock().insert("1.20.2".to_owned(), State::Failed { at, why });
    assert_eq!(ask(&wanted), ("waiting for its turn".to_owned(), true));
}

/// A lab that is nothing but the namespace of its internet, and folders. It goes with this.
struct World {
    lab: String,
    dir: PathBuf,
    registry: Option<Child>,
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(registry) = &mut self.registry {
            let _ = registry.kill();
            let _ = registry.wait();
        }
        let _ = Netns::delete(&names::internet_ns(&self.lab));
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl World {
    fn new() -> Self {
        let lab = format!("cil{}", std::process::id());
        let name = names::internet_ns(&lab);
        Netns::create(&name).expect("a namespace");
        let dir = std::env::temp_dir().join(format!("aksnet-test-{lab}"));
        fs::create_dir_all(&dir).expect("a folder");
        let world = Self { lab, dir, registry: None };
        let address = format!("{}/32", names::REGISTRY_ADDRESS);
        for words in [["link", "set", "lo", "up"], ["address", "add", &address, "dev lo"]] {
            let words: Vec<&str> = words.iter().flat_map(|word| word.split(' ')).collect();
            let done = Command::new("ip").args(["-n", &name]).args(words).status();
            assert!(done.expect("ip runs").success());
        }
        world
    }

    fn clusters(&self) -> Clusters {
        let folder = |name: &str| self.dir.join(name);
        Clusters::new(Settings {
            lab: self.lab.clone(),
            nodes: Nodes::Kubernetes,
            state_dir: folder("state"),
            run_dir: folder("run"),
            log_dir: folder("log"),
            cache_dir: folder("cache"),
            kubernetes: install::DEFAULT_VERSION.to_owned(),
        })
    }

    /// What containerd, started with this root, says that it has.
    fn images(&self, root: &Path) -> String {
        let socket = self.dir.join("socket");
        let config = self.dir.join("containerd.toml");
        let text = format!(
            "version = 2\nroot = '{}'\nstate = '{}'\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = '{}'\n",
            root.display(),
            self.dir.join("containerd").display(),
            socket.display()
        );
        fs::write(&config, text).expect("written");
        let containerd = Command::new("unshare")
            .args(["--mount", "setpriv", "--pdeathsig", "KILL", "containerd", "--config"])
            .arg(&config)
            .stderr(std::process::Stdio::null())
            .spawn();
        let mut containerd = containerd.expect("containerd runs");
        let ask = || {
            let mut ctr = Command::new("ctr");
            ctr.args(["--namespace", "k8s.io", "--address"]).arg(&socket);
            ctr.args(["images", "list", "--quiet"]).output().expect("ctr runs")
        };
        let mut answer = ask();
        for _ in 0..200 {
            if answer.status.success() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
            answer = ask();
        }
        containerd.kill().expect("killed");
        containerd.wait().expect("ended");
        String::from_utf8_lossy(&answer.stdout).into_owned()
    }

    fn start_registry(&mut self) {
        let address = format!("{}:{REGISTRY_PORT}", names::REGISTRY_ADDRESS);
        let root = self.dir.join("registry");
        let config = self.dir.join("registry.yml");
        let settings = json!({
            "version": 0.1,
            "log": {"level": "error", "accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": root}},
            "http": {"addr": address, "relativeurls": true},
        });
        // JSON is YAML.
        fs::write(&config, settings.to_string()).expect("written");
        let registry = Command::new("ip")
            .args(["netns", "exec", &names::internet_ns(&self.lab), "docker-registry", "serve"])
            .arg(&config)
            .spawn();
        self.registry = Some(registry.expect("docker-registry runs"));
    }
}

/// An image of one file, `word`, with this text, as an OCI layout, as an installation leaves it that could pull.
fn pulled(folder: &Path, text: &str) {
    let blobs: PathBuf = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("a folder");
    let put = |kind: &str, bytes: &[u8]| {
        let hash = Sha256::digest(bytes);
        let hash = hash.iter().fold(String::new(), |it, byte| format!("{it}{byte:02x}"));
        fs::write(blobs.join(&hash), bytes).expect("written");
        let kind = format!("application/vnd.oci.image.{kind}");
        json!({"mediaType": kind, "digest": format!("sha256:{hash}"), "size": bytes.len()})
    };
    fs::write(folder.join("word"), text).expect("written");
    let layer = Command::new("tar").args(["-c", "-C"]).arg(folder).arg("word").output();
    let layer = put("layer.v1.tar", &layer.expect("tar runs").stdout);
    let arch = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": arch,
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put("config.v1+json", config.to_string().as_bytes()),
        "layers": [layer],
    });
    let manifest = put("manifest.v1+json", manifest.to_string().as_bytes());
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(folder.join("index.json"), index.to_string()).expect("written");
}

#[test]
fn images_are_pushed_once_the_registry_is_there_and_nodes_begin_with_them() {
    let mut world = World::new();
    let folder = install::cilium_dir(&world.dir.join("cache"), "1.20.2");
    for name in [install::AGENT_IMAGE, install::OPERATOR_IMAGE] {
        pulled(&folder.join(name), "unpacked");
    }
    let Clusters(shared) = world.clusters();
    let wait_for = |wanted: &Images| {
        for _ in 0..400 {
            if ensure(&shared, "1.20.2").expect("no failure") == *wanted {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("never {wanted:?}, but {:?}", ensure(&shared, "1.20.2"));
    };
    wait_for(&Images::Underway("waiting for the lab's registry".to_owned()));
    let why = why_no_envoy(&shared).expect("nobody knows");
    assert!(
        why.starts_with("its registry does not say what it has (images: cannot reach"),
        "{why}"
    );
    world.start_registry();
    wait_for(&Images::Ready);
    assert_eq!(why_no_envoy(&shared), None);
    let address = SocketAddrV4::new(names::REGISTRY_ADDRESS, REGISTRY_PORT);
    for name in ["oss/cilium/cilium:1.20.2", "oss/cilium/operator-generic:1.20.2"] {
        let reference = name.parse().expect("a name");
        let found = in_internet(&world.lab, || has_image(address, &reference));
        assert!(found.expect("the registry answers"), "{name}");
    }
    let seed = shared.cilium.seed().expect("it is prepared");
    let node = world.dir.join("node");
    assert!(seed::plant(&seed, &node).expect("planted"));
    let snapshot = node.join("io.containerd.snapshotter.v1.overlayfs/snapshots/1/fs/word");
    assert_eq!(fs::read_to_string(snapshot).expect("it is unpacked"), "unpacked");
    // A node that runs may be looked at in its own way; containerd's databases are whole.
    let names = world.images(&node);
    assert_eq!(names, "mcr.microsoft.com/oss/cilium/cilium:1.20.2\n");
    // Another one is pulled, which this lab does not get.
    pulled(&folder.join(install::AGENT_IMAGE), "another");
    let why = why_no_envoy(&shared).expect("it is another");
    assert!(why.starts_with("its registry has another image of Cilium 1.20.2"), "{why}");
    fs::remove_dir_all(folder.join(install::AGENT_IMAGE)).expect("removed");
    let why = why_no_envoy(&shared).expect("it is none of upstream's");
    assert!(why.starts_with("Cilium 1.20.2 was built with Go, without it"), "{why}");
}
