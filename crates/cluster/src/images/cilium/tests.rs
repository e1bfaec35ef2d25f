use std::{fs, process::Command};

use super::*;
use crate::{
    images::{Ingredients, Recipe},
    install::{self, CILIUM_PROGRAMS, CILIUM_VERSION},
};

/// Runs a shell's words with a tree as root folder; the answer is what it prints.
fn run(root: &Path, words: &str) -> Result<String, String> {
    let output = Command::new("chroot")
        .arg(root)
        .args(["/bin/bash", "-euc", words])
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .expect("chroot runs");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) }
}

/// A folder as [`install::cilium_dir`] is, with programs that do nothing.
fn fake(folder: &Path) {
    for name in CILIUM_PROGRAMS.into_iter().chain(SCRIPTS).chain(["LICENSE", "bpf/lib/common.h"]) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, name).expect("written");
    }
}

/// Where every file of a tree is, but for the libraries and the links to busybox, which depend on Debian's version.
fn list(root: &Path) -> String {
    let words = "find . ! -type d ! -lname busybox ! -path './lib*' ! -path './usr/lib*' | sort";
    let output = Command::new("sh").args(["-c", words]).current_dir(root).output().expect("runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn what_the_agent_and_its_chart_call_is_in_the_image_and_runs() {
    let world = tempfile::tempdir().expect("a folder");
    let (cache, root) = (world.path().join("cache"), world.path().join("scratch/tree"));
    fake(&install::cilium_dir(&cache, CILIUM_VERSION));
    let ingredients = Ingredients::new(&cache, CILIUM_VERSION);
    Recipe::Cilium.fill(&Tree::new(&root).expect("a folder"), &ingredients).expect("made");
    insta::assert_snapshot!("agent", list(&root));
    let check = |words: &str, expected: &str| {
        let said = run(&root, words).expect(words);
        assert!(said.contains(expected), "{words}: {said}");
    };
    check("clang --version", "clang version 19");
    check("iptables --version; ip6tables-save --version", "(nf_tables)");
    check("ipset --version", "ipset v");
    check("nsenter --version; mount --version", "util-linux");
    // Busybox has no word of these two.
    check("nsenter --help", "--mount[=<file>]");
    check("readlink -f /usr/bin/cilium", "/usr/bin/cilium-dbg");
    // What matches and targets are libraries for, as far as it can be asked without a network.
    check("iptables -m socket --help", "socket match options");
    check("iptables -j TPROXY --help", "TPROXY target options");
    let program = "echo 'int f(void) { return 7; }' | clang --target=bpf -mcpu=v3 -O2 -g -c -x c - -o - | wc -c";
    assert_ne!(run(&root, program).expect("compiled"), "0");
}

#[test]
fn the_operators_image_is_one_program() {
    let world = tempfile::tempdir().expect("a folder");
    let (cache, root) = (world.path().join("cache"), world.path().join("scratch/tree"));
    fake(&install::cilium_dir(&cache, CILIUM_VERSION));
    let ingredients = Ingredients::new(&cache, CILIUM_VERSION);
    Recipe::CiliumOperator.fill(&Tree::new(&root).expect("a folder"), &ingredients).expect("made");
    assert_eq!(list(&root), "./LICENSE\n./usr/bin/cilium-operator-generic\n");
}

/// Compiles three of the data path's programs, and says what is in front of each: an object file's mark.
const COMPILE: &str = "cd /var/lib/cilium/bpf
    for it in bpf_lxc bpf_host bpf_sock; do
      clang -I. -Iinclude -g -O2 --target=bpf -std=gnu99 -nostdinc -ftrap-function=__undefined_trap -mcpu=v3 \
        -c $it.c -o /tmp/$it.o
      head -c 4 /tmp/$it.o | tail -c 3; printf ' '
    done";

/// The real programs, with the flags by which the agent compiles what it loads (`pkg/datapath/loader/compile.go`).
#[test]
fn the_installed_cilium_runs_and_compiles_in_its_image() {
    let cache = std::env::var_os("AKSNET_CACHE").unwrap_or_else(|| "/var/cache/aksnet".into());
    let cache = PathBuf::from(cache);
    let folder = install::cilium_dir(&cache, CILIUM_VERSION);
    assert!(folder.exists(), "{} is missing; `aksnet cilium install` makes it", folder.display());
    if folder.join(install::AGENT_IMAGE).exists() {
        return; // Upstream's own image, which upstream tests.
    }
    let world = tempfile::tempdir().expect("a folder");
    let root = world.path().join("tree");
    let ingredients = Ingredients::new(&cache, CILIUM_VERSION);
    Recipe::Cilium.fill(&Tree::new(&root).expect("a folder"), &ingredients).expect("made");
    for (words, expected) in [
        ("cilium-agent --version", CILIUM_VERSION),
        ("cilium version", CILIUM_VERSION),
        ("hubble version", CILIUM_VERSION),
        ("/opt/cni/bin/cilium-cni --version 2>&1", CILIUM_VERSION),
        (COMPILE, "ELF ELF ELF"),
        (
            "mkdir -p /host/opt /tmp/cilium/config-map; /install-plugin.sh; ls /host/opt/cni/bin",
            "cilium-cni",
        ),
        (
            "mkdir -p /dev /host/etc/cni/net.d; touch /dev/null /host/etc/cni/net.d/05-cilium.conflist; \
          printf true >/tmp/cilium/config-map/cni-uninstall; /cni-uninstall.sh; ls /host/etc/cni/net.d | wc -l",
            "\n0",
        ),
    ] {
        let said = run(&root, words).expect(words);
        assert!(said.contains(expected), "{words}: {said}");
    }
}
