//! A lab without its doors, to look at clusters alone: the fabric and the clusters' loop, and one cluster
//! that brings its own CNI. `clusters up LAB COUNT` makes it and stays until Ctrl-C; `clusters down LAB`
//! removes everything. As root.
#![allow(clippy::print_stderr, reason = "this is an example, and it talks to people")]

use std::{
    error::Error,
    path::Path,
    time::{Duration, Instant},
};

use daemon::clusters::{Clusters, Nodes, Settings};
use store::Store;

mod region;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["sandbox-init", spec] => Ok(linux::sandbox::init(Path::new(spec))?),
        ["agent", "--config", path] => Ok(daemon::node::run(Path::new(path))?),
        ["down", lab] => down(lab),
        ["up", lab, count] => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(up(lab, count.parse()?))
        }
        _ => Err("clusters up LAB COUNT | clusters down LAB".into()),
    }
}

fn settings(lab: &str) -> Settings {
    let below = |folder: &str| Path::new(folder).join("aksnet").join(lab);
    Settings {
        lab: lab.to_owned(),
        nodes: Nodes::Kubernetes,
        state_dir: below("/var/lib"),
        run_dir: below("/run"),
        log_dir: below("/var/log"),
        cache_dir: region::cache_dir(),
        kubernetes: cluster::install::DEFAULT_VERSION.to_owned(),
    }
}

fn down(lab: &str) -> Result<(), Box<dyn Error>> {
    let settings = settings(lab);
    daemon::clusters::down(lab, &settings.run_dir)?;
    daemon::fabric::down(lab)?;
    for folder in [settings.state_dir, settings.run_dir, settings.log_dir] {
        if folder.exists() {
            std::fs::remove_dir_all(folder)?;
        }
    }
    Ok(())
}

async fn up(lab: &str, count: u32) -> Result<(), Box<dyn Error>> {
    let settings = settings(lab);
    std::fs::create_dir_all(&settings.state_dir)?;
    let store = Store::open(&settings.state_dir.join("region.redb"))?;
    let clusters = Clusters::new(settings.clone());
    let id = region::ask(&store, count)?;
    let began = Instant::now();
    let watching = async {
        while store.snapshot().running_write(&id).is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        eprintln!("real after {:?}", began.elapsed());
        let kubeconfig = clusters.credentials(&id).unwrap_or_default();
        let path = settings.state_dir.join("kubeconfig");
        if let Err(err) = std::fs::write(&path, kubeconfig) {
            eprintln!("{}: {err}", path.display());
        }
        eprintln!("KUBECONFIG={}", path.display());
        std::future::pending::<()>().await;
    };
    let fabric = daemon::fabric::Settings { lab: lab.to_owned(), ..Default::default() };
    tokio::select! {
        () = daemon::fabric::run(store.clone(), fabric) => {}
        () = clusters.run(store.clone()) => {}
        () = watching => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(())
}
