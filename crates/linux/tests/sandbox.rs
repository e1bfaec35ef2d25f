//! Sandboxes on the real kernel. Needs root.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use linux::sandbox::{Bind, FileSpec, Launcher, Ready, Sandbox, SandboxSpec, Unit, in_group_of};

/// A network namespace and folders that go with the test.
struct World {
    name: String,
    dir: PathBuf,
}

impl World {
    fn new(test: &str) -> Self {
        let name = format!("sbxtest-{}-{test}", std::process::id());
        let dir = std::env::temp_dir().join(&name);
        fs::create_dir_all(dir.join("run")).expect("a folder");
        run("ip", &["netns", "add", &name]);
        Self { name, dir }
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    fn spec(&self, script: &str) -> SandboxSpec {
        SandboxSpec {
            name: "node".to_owned(),
            digest: "1".to_owned(),
            netns: Path::new("/run/netns").join(&self.name),
            hostname: "aks-pool-1".to_owned(),
            cgroup: format!("{}/lab/node", self.name),
            log_dir: self.dir.join("log"),
            binds: vec![Bind {
                source: self.dir.join("state"),
                target: PathBuf::from("/var/lib/sbxtest"),
            }],
            files: vec![FileSpec {
                path: PathBuf::from("/etc/sbxtest/own"),
                text: "inside\n".to_owned(),
                mode: 0o600,
            }],
            units: vec![Unit {
                name: "main".to_owned(),
                argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
                env: BTreeMap::new(),
                after: Vec::new(),
            }],
        }
    }

    fn start(&self, spec: &SandboxSpec) -> Sandbox {
        Sandbox::start(&launcher(), &self.run_dir(), spec).expect("it starts")
    }

    fn find(&self) -> Option<Sandbox> {
        Sandbox::find(&self.run_dir(), "node")
    }

    fn state(&self, file: &str) -> String {
        fs::read_to_string(self.dir.join("state").join(file)).unwrap_or_default()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for name in Sandbox::list(&self.run_dir()) {
            let _ = Sandbox::stop_named(&self.run_dir(), &name);
        }
        run("ip", &["netns", "del", &self.name]);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The example of this name, which cargo builds beside the tests.
fn launcher() -> Launcher {
    let test = std::env::current_exe().expect("this program");
    let profile = test.ancestors().nth(2).expect("target/<profile>/deps/<test>");
    Launcher { program: profile.join("examples/sandbox_init"), args: Vec::new() }
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().expect("it runs");
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "not within ten seconds: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Every folder of the test's in any cgroup hierarchy.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(top).expect("cgroups").flatten().map(|entry| entry.path());
    std::iter::once(top.to_owned())
        .chain(hierarchies)
        .map(|hierarchy| hierarchy.join(name))
        .filter(|folder| folder.exists())
        .collect()
}

#[test]
fn has_everything_of_its_own() {
    let world = World::new("own");
    let script = "cd /var/lib/sbxtest; hostname > hostname; cat /etc/sbxtest/own > file; \
                  cat /proc/self/cgroup | cut -d: -f3 | sort -u > cgroup; ls /run > run; \
                  ls /sys/class/net > links; echo $PPID > init; touch /etc/sbxtest-trace; \
                  grep -c netns /proc/self/mountinfo > pinned; echo end > end; exec sleep 1000";
    let sandbox = world.start(&world.spec(script));
    eventually("the script ends", || world.state("end") == "end\n");
    assert!(sandbox.is_alive());
    assert_eq!(world.state("hostname"), "aks-pool-1\n");
    assert_eq!(world.state("file"), "inside\n");
    assert!(matches!(world.state("cgroup").as_str(), "/\n" | "/init\n"));
    assert_eq!(world.state("run"), "lock\n");
    assert_eq!(world.state("links"), "lo\n");
    assert_eq!(world.state("init"), "1\n");
    assert_eq!(world.state("pinned"), "0\n", "no namespace of the machine is kept alive");
    assert!(!Path::new("/etc/sbxtest").exists());
    assert!(!Path::new("/etc/sbxtest-trace").exists());
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains(&format!("{}/run", world.name)), "mounts stay inside:\n{mounts}");
}

#[test]
fn a_process_is_in_its_group_for_a_while() {
    let world = World::new("group");
    let sandbox = world.start(&world.spec("exec sleep 1000"));
    let groups = || fs::read_to_string("/proc/self/cgroup").expect("groups");
    let before = groups();
    let meanwhile = in_group_of(sandbox.pid(), groups).expect("it may enter");
    let of =
        |groups: &str| groups.lines().find_map(|line| line.strip_prefix("0::").map(str::to_owned));
    let wanted = format!("/{}/lab/node", world.name);
    assert!(of(&meanwhile).is_some_and(|group| group.starts_with(&wanted)), "{meanwhile}");
    assert_eq!(groups(), before, "and out of it again");
    let others = |groups: &str| groups.lines().filter(|it| !it.starts_with("0::")).count();
    assert_eq!(others(&meanwhile), others(&before));
    assert!(in_group_of(i32::MAX, || ()).is_err(), "there is no such process");
}

#[test]
fn is_found_again_and_left_alone() {
    let world = World::new("adopt");
    let spec = world.spec("echo started >> /var/lib/sbxtest/starts; exec sleep 1000");
    let first = world.start(&spec);
    eventually("the unit runs", || world.state("starts") == "started\n");
    let second = world.start(&spec);
    assert_eq!(second.pid(), first.pid());
    assert_eq!(world.find().map(|found| found.pid()), Some(first.pid()));
    assert_eq!(Sandbox::list(&world.run_dir()), ["node"]);

    let changed = SandboxSpec { digest: "2".to_owned(), ..spec };
    let third = world.start(&changed);
    assert_ne!(third.pid(), first.pid(), "another digest means another sandbox");
    assert!(!first.is_alive());
}

#[test]
fn units_start_in_order_and_again() {
    let world = World::new("order");
    let mut spec = world.spec("sleep 0.3; echo first >> /var/lib/sbxtest/order; exec sleep 1000");
    let mut second = spec.units[0].clone();
    second.name = "second".to_owned();
    second.argv[2] = "echo second >> /var/lib/sbxtest/order".to_owned();
    second.after = vec![Ready::Path(PathBuf::from("/var/lib/sbxtest/order"))];
    spec.units.insert(0, second);
    let sandbox = world.start(&spec);
    eventually("the second starts twice", || {
        world.state("order").starts_with("first\nsecond\nsecond\n")
    });
    drop(sandbox);
}

#[test]
fn stop_leaves_nothing() {
    let world = World::new("stop");
    // A child that ignores the polite signal, in a cgroup of its own making.
    let script = "cd /sys/fs/cgroup; test ! -d pids || cd pids; \
                  mkdir child && echo $$ > child/cgroup.procs || exit; \
                  trap '' TERM; (trap '' TERM; sleep 1000) & echo up > /var/lib/sbxtest/up; wait";
    let sandbox = world.start(&world.spec(script));
    eventually("the script is up", || world.state("up") == "up\n");
    assert!(!cgroups(&world.name).is_empty());
    sandbox.stop().expect("it stops");
    assert!(world.find().is_none());
    assert_eq!(cgroups(&world.name), Vec::<PathBuf>::new());
    assert_eq!(fs::read_dir(world.run_dir()).expect("the folder").count(), 0);
}

#[test]
fn comes_back_after_its_first_process_was_killed() {
    let world = World::new("crash");
    let spec = world.spec(
        "cd /sys/fs/cgroup; test ! -d pids || cd pids; \
         test ! -e pod || echo stale > /var/lib/sbxtest/stale; \
         mkdir pod; echo up >> /var/lib/sbxtest/up; exec sleep 1000",
    );
    let first = world.start(&spec);
    eventually("it is up", || world.state("up") == "up\n");
    run("kill", &["-9", &first.pid().to_string()]);
    eventually("it is dead", || !first.is_alive());
    assert!(world.find().is_none());
    let second = world.start(&spec);
    eventually("it is up again", || world.state("up") == "up\nup\n");
    assert_ne!(first.pid(), second.pid());
    assert_eq!(world.state("stale"), "", "a computer that crashed comes back without old cgroups");
}

#[test]
fn says_why_it_cannot_start() {
    let world = World::new("refused");
    let spec =
        SandboxSpec { netns: PathBuf::from("/run/netns/sbxtest-none"), ..world.spec("true") };
    let err = Sandbox::start(&launcher(), &world.run_dir(), &spec).expect_err("no such namespace");
    assert!(err.to_string().contains("/run/netns/sbxtest-none"), "{err}");
}

#[test]
fn settings_of_the_whole_machine_are_read_and_not_written() {
    let world = World::new("guarded");
    // The value that is there, so that the machine is as it was even if it were taken.
    let script = "for name in timer_migration unprivileged_bpf_disabled; do \
                    file=/proc/sys/kernel/$name; value=$(cat $file) || continue; \
                    if echo $value 2>/dev/null >$file; then echo written; else echo kept; fi; \
                  done >/var/lib/sbxtest/answers; echo $value >/proc/sys/net/ipv4/ip_forward; sleep 60";
    world.start(&world.spec(script));
    eventually("the answers", || world.state("answers").lines().count() == 2);
    assert_eq!(world.state("answers"), "kept\nkept\n");
}
