//! What a lab has in the machine's kernel that does not carry its name, and what of the machine it must leave as it was.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

use libbpf_rs::{
    libbpf_sys::{bpf_link_get_next_id, bpf_map_get_next_id, bpf_prog_get_next_id},
    query::{LinkInfoIter, ProgInfoIter, ProgInfoQueryOptions},
};

use super::TestLab;

/// BPF programs, maps and links: which of the three, and its number. The kernel counts on, so that a number is not given
/// twice in a test's time.
pub(crate) type Objects = BTreeSet<(&'static str, u32)>;

/// A program's number, and those of the maps that it uses.
type Program = (u32, Vec<u32>);

fn programs() -> Vec<Program> {
    let with_maps = ProgInfoQueryOptions::default().include_map_ids(true);
    ProgInfoIter::with_query_opts(with_maps).map(|it| (it.id, it.map_ids)).collect()
}

/// Every one of the machine.
///
/// Numbers alone are asked for: who takes a descriptor of a map while it goes can keep it from going for ever. The kernel
/// empties a map of programs when its last descriptor is closed, and if that happens twice in a moment, the second one
/// leaves a reference behind (`prog_array_map_clear` in `kernel/bpf/arraymap.c` of Linux, seen with 6.18).
pub(crate) fn objects() -> Objects {
    let mut all = Objects::new();
    for (kind, next) in [
        ("program", bpf_prog_get_next_id as unsafe extern "C" fn(u32, *mut u32) -> i32),
        ("map", bpf_map_get_next_id),
        ("link", bpf_link_get_next_id),
    ] {
        let mut id = 0;
        #[expect(unsafe_code, reason = "the library lists no numbers without descriptors")]
        // SAFETY: each of the three reads a number, and writes one to where it is told to.
        while unsafe { next(id, &raw mut id) } == 0 {
            all.insert((kind, id));
        }
    }
    all
}

/// A running lab's: what its processes hold, and what hangs together with that. Cilium's agent holds maps, and the
/// programs that use them are held by the interfaces and control groups that they are attached to.
pub(crate) fn objects_of(lab: &TestLab) -> Objects {
    let mut own = held_by(lab);
    let programs = programs();
    loop {
        let n_known = own.len();
        for (id, maps) in &programs {
            if own.contains(&("program", *id)) || maps.iter().any(|it| own.contains(&("map", *it)))
            {
                own.insert(("program", *id));
                own.extend(maps.iter().map(|it| ("map", *it)));
            }
        }
        if own.len() == n_known {
            break;
        }
    }
    let links: Vec<_> = LinkInfoIter::default()
        .filter(|it| own.contains(&("program", it.prog_id)))
        .map(|it| ("link", it.id))
        .collect();
    own.extend(links);
    own
}

/// What the lab's processes have descriptors of.
fn held_by(lab: &TestLab) -> Objects {
    let mark = format!("/aksnet/{}/", lab.name());
    let mut held = Objects::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let groups = fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
        if !groups.contains(&mark) {
            continue;
        }
        let descriptors = fs::read_dir(process.path().join("fdinfo"));
        for descriptor in descriptors.into_iter().flatten().flatten() {
            let text = fs::read_to_string(descriptor.path()).unwrap_or_default();
            for (key, kind) in [("map_id:", "map"), ("prog_id:", "program"), ("link_id:", "link")] {
                let value = text.lines().find_map(|line| line.strip_prefix(key));
                held.extend(value.and_then(|it| it.trim().parse().ok()).map(|id| (kind, id)));
            }
        }
    }
    held
}

/// Whether this machine has network namespaces of other labs or tests than this one: they make objects of their own at any
/// time.
pub(crate) fn has_others(lab: &TestLab) -> bool {
    let own = format!("{}-", lab.name());
    let namespaces = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    namespaces.map(|it| it.file_name()).any(|name| !name.to_string_lossy().starts_with(&own))
}

/// What a lab leaves as it was: the links and nftables tables of the machine's own network namespace, what is mounted
/// where the machine sees it, and the settings of the whole machine that Cilium's agent writes.
pub(crate) fn machine() -> BTreeSet<String> {
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let mut seen = BTreeSet::new();
    let links = said("ip", &["-o", "link"]);
    let names = links.lines().filter_map(|line| line.split(": ").nth(1));
    seen.extend(names.map(|name| format!("link {name}")));
    seen.extend(said("nft", &["list", "tables"]).lines().map(str::to_owned));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    // Named namespaces are a lab's by their names (see `TestLab::traces`), and other tests make some.
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    seen.extend(
        places.filter(|it| !it.starts_with("/run/netns/")).map(|place| format!("mount {place}")),
    );
    for name in ["timer_migration", "unprivileged_bpf_disabled"] {
        let path = PathBuf::from("/proc/sys/kernel").join(name);
        let value = fs::read_to_string(path).unwrap_or_default();
        seen.insert(format!("kernel.{name}={}", value.trim()));
    }
    seen
}
