//! A local Azure that simulates everything behind its door, for trying az and for tests.
//!
//! `cargo run -p aksnet-azure --example simulated -- 127.0.0.1:8443 /tmp/ca` prints the endpoint and the
//! file to trust, and serves until it is killed. A third argument is the pace in milliseconds, a fourth
//! one where the instance metadata service's token route listens without TLS.

mod world;

use std::{env, error::Error, path::PathBuf, sync::Arc, time::Duration};

use azure::{Door, Nodes, RetryAfter, tls::Authority};
use store::Store;
use tokio::net::TcpListener;
use vnet::{model::Timestamp, name::ArmId};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let listen = arguments.next().unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let folder = PathBuf::from(arguments.next().unwrap_or_else(|| "aksnet-simulated".to_owned()));
    let pace = Duration::from_millis(arguments.next().map_or(Ok(300), |text| text.parse())?);

    let authority = Authority::load_or_create(&folder)?;
    let store = Store::in_memory()?;
    let door = Door {
        store: store.clone(),
        clock: Arc::new(now),
        credentials: Arc::new(|cluster: &ArmId| Some(kubeconfig(cluster))),
        available_versions: vec!["1.36.3".to_owned()],
        retry_after: RetryAfter::Seconds(1),
        nodes: Nodes::Simulated,
        why_no_envoy: Arc::new(|| Some("nothing runs here".to_owned())),
    };
    let listener = TcpListener::bind(listen).await?;
    #[allow(clippy::print_stdout, reason = "an example talks to people")]
    {
        println!("https://localhost:{}", listener.local_addr()?.port());
        println!("{}", authority.certificate_file().display());
    }

    let metadata = arguments.next();
    let imds = async {
        match metadata {
            None => std::future::pending::<Result<(), Box<dyn Error>>>().await,
            Some(listen) => {
                let router = azure::imds_router(Arc::new(now));
                Ok(azure::axum::serve(TcpListener::bind(listen).await?, router).await?)
            }
        }
    };
    let mut woken = store.watch();
    let world = async {
        while woken.changed().await.is_ok() {
            // Long enough to be seen by a client that looks at states.
            tokio::time::sleep(pace).await;
            let store = store.clone();
            tokio::task::spawn_blocking(move || world::settle(&store, now())).await??;
        }
        Ok::<(), Box<dyn Error>>(())
    };
    tokio::select! {
        ended = world => ended,
        served = imds => served,
        served = azure::serve(listener, &authority, azure::router(door)) => Ok(served?),
    }
}

fn now() -> Timestamp {
    Timestamp(jiff::Timestamp::now().as_millisecond())
}

/// What a kubeconfig looks like; nobody answers behind it.
fn kubeconfig(cluster: &ArmId) -> String {
    let name = cluster.name();
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: {name}\n  cluster:\n    server: https://{name}.invalid:443\ncontexts:\n- name: {name}\n  context:\n    cluster: {name}\n    user: clusterUser_{name}\ncurrent-context: {name}\npreferences: {{}}\nusers:\n- name: clusterUser_{name}\n  user:\n    token: simulated\n"
    )
}
