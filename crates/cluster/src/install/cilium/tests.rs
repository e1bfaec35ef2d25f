use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    process::Command,
};

use sha2::{Digest, Sha256};

use super::*;

const VERSION: &str = CILIUM_VERSION;

/// A folder as [`cilium_dir`] is where everything was built.
fn built(folder: &Path, version: &str) {
    for program in CILIUM_PROGRAMS {
        let path = folder.join(program);
        let text = format!("#!/bin/sh\necho '{program} {version} unknown go version go1.26.8'\n");
        fs::write(&path, text).expect("written");
        make_executable(&path).expect("executable");
    }
    for (_, name) in SOURCES {
        let path = folder.join(name);
        if name.contains('.') || name == "LICENSE" {
            fs::write(&path, name).expect("written");
        } else {
            fs::create_dir_all(path.join("lib")).expect("a folder");
            fs::write(path.join("lib/file"), name).expect("written");
        }
    }
}

/// Installs from a folder; the answer is what was said, or why not.
fn check(cache: &Path, from: &Path, version: &str) -> Result<Vec<String>, String> {
    let mut said = Vec::new();
    let nobody = Upstream::at("http://127.0.0.1:1");
    let mut progress = |text: &str| said.push(text.to_owned());
    cilium_by(&nobody, cache, version, Some(from), &mut progress)
        .map(|_| said)
        .map_err(|err| err.to_string().replace(&*from.to_string_lossy(), "FROM"))
}

#[test]
fn a_folder_of_the_right_version_is_taken_whole() {
    let world = tempfile::tempdir().expect("a folder");
    let (cache, given) = (world.path().join("cache"), world.path().join("given"));
    fs::create_dir_all(&given).expect("a folder");
    built(&given, VERSION);
    let said = check(&cache, &given, "v1.20.2").expect("installed");
    assert_eq!(said[0], "copying cilium-agent");
    let folder = cilium_dir(&cache, VERSION);
    assert!(CILIUM_PROGRAMS.iter().all(|program| folder.join(program).exists()));
    assert_eq!(fs::read_to_string(folder.join("bpf/lib/file")).expect("there"), "bpf");
    assert_eq!(check(&cache, &given, VERSION), Ok(Vec::new()), "nothing is done twice");
    // One that is being made is none yet.
    fs::create_dir_all(cilium_dir(&cache, "1.20.3.partial")).expect("a folder");
    let (version, source) = (VERSION.to_owned(), "programs, built with Go");
    let sizes = Command::new("find").arg(&folder).args(["-type", "f", "-printf", "%s\n"]).output();
    let sizes = String::from_utf8(sizes.expect("find runs").stdout).expect("UTF-8");
    let bytes = sizes.lines().map(|it| it.parse::<u64>().expect("a number")).sum();
    let listed = list_cilium(&cache).expect("listed");
    assert_eq!(listed, [InstalledCilium { version, source, bytes, folder }]);
    for version in ["1.9.0", "1.20.10"] {
        fs::create_dir_all(cilium_dir(&cache, version)).expect("a folder");
    }
    let listed = list_cilium(&cache).expect("listed").into_iter().map(|it| it.version);
    assert_eq!(listed.collect::<Vec<_>>(), ["1.9.0", VERSION, "1.20.10"]);
    assert_eq!(list_cilium(world.path()).expect("listed"), []);
}

#[test]
fn a_folder_that_does_not_fit_is_refused_and_leaves_nothing() {
    let world = tempfile::tempdir().expect("a folder");
    let (cache, given) = (world.path().join("cache"), world.path().join("given"));
    fs::create_dir_all(&given).expect("a folder");
    built(&given, "1.19.0");
    let refused = check(&cache, &given, VERSION).expect_err("another version");
    assert_eq!(
        refused,
        "`FROM/cilium-agent` is not cilium-agent 1.20.2: it says `cilium-agent 1.19.0 unknown go version go1.26.8`"
    );
    fs::remove_dir_all(given.join("bpf")).expect("removed");
    let refused = check(&cache, &given, VERSION).expect_err("something is missing");
    assert_eq!(refused, "`FROM/bpf` is not bpf 1.20.2: it does not exist");
    let refused = check(&cache, &given, "1.20").expect_err("no version");
    assert_eq!(refused, "`1.20` is not a version of three numbers, such as 1.2.3");
    assert!(!cilium_dir(&cache, VERSION).exists());
}

#[test]
fn sources_are_taken_without_their_tests() {
    let world = tempfile::tempdir().expect("a folder");
    let (module, partial) = (world.path().join("module"), world.path().join("partial"));
    fs::create_dir_all(&partial).expect("a folder");
    for (place, name) in SOURCES {
        let path = module.join(place);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        match name {
            "bpf" | "crds" => fs::create_dir_all(path.join("tests")).expect("a folder"),
            _ => fs::write(&path, "text").expect("written"),
        }
    }
    fs::write(module.join("bpf/bpf_lxc.c"), "code").expect("written");
    take_sources(&module, &partial).expect("taken");
    let names: Vec<_> = fs::read_dir(partial.join("bpf")).expect("there").collect();
    assert_eq!(names.len(), 1, "{names:?}");
    assert_eq!(fs::read_to_string(partial.join("bpf/bpf_lxc.c")).expect("there"), "code");
}

/// A registry that has these answers by path, until the test ends. It breaks off the first `n_broken` blobs. Its
/// address.
fn registry(answers: BTreeMap<String, Vec<u8>>, mut n_broken: u32) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(&stream).lines();
            let first = lines.next().and_then(Result::ok).unwrap_or_default();
            // All of the question is read before it is answered.
            lines.map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
            let path = first.split(' ').nth(1).unwrap_or_default();
            let (status, body) = match answers.get(path) {
                Some(body) => ("200 OK", &body[..]),
                None => ("404 Not Found", &b"no such thing"[..]),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            let is_broken = n_broken > 0 && path.contains("/blobs/") && status.starts_with("200");
            n_broken -= u32::from(is_broken);
            let body = if is_broken { &body[..body.len() / 2] } else { body };
            let mut stream = &stream;
            let _gone = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        }
    });
    format!("http://{address}")
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", crate::images::render_hex(&Sha256::digest(bytes)))
}

/// Upstream's images, as an index of platforms each.
fn images() -> BTreeMap<String, Vec<u8>> {
    let arch = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    let mut answers = BTreeMap::new();
    for name in ["cilium/cilium", "cilium/operator-generic"] {
        let (layer, config) = (format!("layer of {name}"), "{}".to_owned());
        let part = |text: &str| serde_json::json!({"mediaType": "x", "digest": digest(text.as_bytes()), "size": text.len()});
        let manifest = serde_json::json!({
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": part(&config),
            "layers": [part(&layer)],
        })
        .to_string();
        let entry = |arch: &str, digest: &str| serde_json::json!({"digest": digest, "platform": {"os": "linux", "architecture": arch}});
        let ours = digest(manifest.as_bytes());
        let index =
            serde_json::json!({"manifests": [entry("s390x", "sha256:0"), entry(arch, &ours)]});
        let mut put = |path: String, text: String| {
            answers.insert(format!("/v2/{name}/{path}"), text.into_bytes());
        };
        put(format!("manifests/v{VERSION}"), index.to_string());
        put(format!("manifests/{ours}"), manifest);
        put(format!("blobs/{}", digest(layer.as_bytes())), layer);
        put(format!("blobs/{}", digest(config.as_bytes())), config);
    }
    answers
}

/// Installs from a registry; the answer is what was said, or why not.
fn pull(cache: &Path, answers: BTreeMap<String, Vec<u8>>) -> Result<Vec<String>, String> {
    pull_from(cache, &registry(answers, 0))
}

fn pull_from(cache: &Path, base: &str) -> Result<Vec<String>, String> {
    let mut said = Vec::new();
    let mut progress = |text: &str| said.push(text.to_owned());
    let done = cilium_by(&Upstream::at(base), cache, VERSION, None, &mut progress);
    done.map(|_| said).map_err(|err| err.to_string())
}

#[test]
fn upstreams_images_are_taken_where_they_can_be_pulled() {
    let world = tempfile::tempdir().expect("a folder");
    let said = pull(world.path(), images()).expect("pulled");
    assert_eq!(said[0], "pulling quay.io/cilium/cilium:v1.20.2 (0 of 0 MB)");
    let folder = cilium_dir(world.path(), VERSION);
    assert_eq!(pull::version_of(&folder.join(AGENT_IMAGE)).as_deref(), Some(VERSION));
    let ingredients = crate::images::Ingredients::new(world.path(), VERSION);
    for recipe in crate::images::Recipe::CILIUM {
        // Nothing is packed: the folder for layers is not needed.
        recipe.make(Path::new("/proc/nowhere"), &ingredients).expect("an image");
    }
    // What one machine has pulled serves another.
    let other = world.path().join("other");
    let said = check(&other, &folder, VERSION).expect("copied");
    assert_eq!(said, ["copying agent-image", "copying operator-image"]);
    let other = world.path().join("third");
    assert_eq!(
        check(&other, &folder, "1.20.3").expect_err("another version"),
        "`FROM/agent-image` is not agent-image 1.20.3: it is 1.20.2"
    );
}

#[test]
fn who_needs_envoy_is_told_what_would_do() {
    let world = tempfile::tempdir().expect("a folder");
    let (cache, given) = (world.path().join("cache"), world.path().join("given"));
    let why = || {
        let text = why_no_envoy(&cache, VERSION)?;
        Some(text.replace(&*cache.to_string_lossy(), "CACHE"))
    };
    let upstream = "`aksnet cilium install` pulls upstream's images, which have it, where quay.io can be reached";
    assert_eq!(why(), Some(format!("Cilium 1.20.2 is not installed; {upstream}")));
    fs::create_dir_all(&given).expect("a folder");
    built(&given, VERSION);
    check(&cache, &given, VERSION).expect("installed");
    let built =
        "Cilium 1.20.2 was built with Go, without it; when `CACHE/cilium/v1.20.2` is removed, ";
    assert_eq!(why(), Some(format!("{built}{upstream}")));
    fs::remove_dir_all(cilium_dir(&cache, VERSION)).expect("removed");
    pull(&cache, images()).expect("pulled");
    assert_eq!(why(), None);
}

#[test]
fn damaged_or_missing_images_are_said_so() {
    let world = tempfile::tempdir().expect("a folder");
    let mut damaged = images();
    let layer = damaged.values_mut().find(|body| body.starts_with(b"layer"));
    layer.expect("a layer").push(b'!');
    let said = pull(world.path(), damaged).expect_err("damaged");
    assert!(said.contains(" has SHA-256 sha256:"), "{said}");
    assert!(!cilium_dir(world.path(), VERSION).exists());
    let said = pull(world.path(), BTreeMap::new()).expect_err("not there");
    assert_eq!(said, "https://quay.io/v2/cilium/cilium/manifests/v1.20.2 answers 404");
    // What was whole is not asked for again.
    pull(world.path(), images()).expect("pulled");
}

#[test]
fn a_pull_that_breaks_off_goes_on_and_nothing_is_built_instead() {
    let world = tempfile::tempdir().expect("a folder");
    pull_from(world.path(), &registry(images(), 2)).expect("pulled at the third try");
    assert!(cilium_dir(world.path(), VERSION).join(OPERATOR_IMAGE).exists());
    let world = tempfile::tempdir().expect("a folder");
    let said = pull_from(world.path(), &registry(images(), 3)).expect_err("it breaks off again");
    assert_eq!(said, "pulling an image");
    assert!(!cilium_dir(world.path(), VERSION).exists());
}
