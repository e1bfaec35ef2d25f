//! Gets Cilium's images into the lab's registry once a cluster asks for them: installs Cilium where it is
//! missing, makes its images, pushes them, and prepares what nodes begin with. Not here: how each is done, and what clusters do with them.
//!
//! It takes minutes where Cilium is built, so it is done beside the loops, once for each version, and whoever
//! asks is told how far it is.

use std::{
    collections::BTreeMap,
    error::Error,
    io,
    net::SocketAddrV4,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use cluster::{
    images::{self, ImageError, Ingredients, REGISTRY_PORT, Recipe},
    install,
};
use vnet::host::names;

use super::{ClustersError, Nodes, Shared, in_internet, registry, seed};
use crate::reconcile::Chain;

/// After a failure nothing is tried for so long: what it needs, such as Go, is put there by people.
const PAUSE: Duration = Duration::from_secs(30);
/// How often the registry is tried while it does not answer, which it does not before it has started.
const TRIES: u32 = 120;

/// How far Cilium's images are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Images {
    /// The lab's registry has them.
    Ready,
    /// They are being got; what is being done.
    Underway(String),
}

/// What is known of the images of each version that a cluster has asked for.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    versions: Mutex<BTreeMap<String, State>>,
    /// What nodes begin with, once it is prepared.
    seed: OnceLock<PathBuf>,
}

#[derive(Debug)]
enum State {
    Known(Images),
    Failed { at: Instant, why: Why },
}

type Why = Arc<dyn Error + Send + Sync>;

/// Asks for the images of a version. It never waits: what is missing is begun, and the answer says how far it is.
/// To be called again and again until it says [`Images::Ready`]; a failure is told for a while, then it is tried
/// again.
pub(super) fn ensure(shared: &Arc<Shared>, version: &str) -> Result<Images, ClustersError> {
    let (worker, wanted_version) = (shared.clone(), version.to_owned());
    shared.cilium.ask(version, move || {
        // A thread of its own, not one of the runtime's: a daemon that ends must not wait for a build.
        std::thread::spawn(move || {
            let told = |text: &str| worker.cilium.tell(&wanted_version, text);
            let work = || get(&worker, &wanted_version, &told);
            // Clusters would wait for ever for a thread that is gone.
            let done = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_panic| {
                Err(Arc::new(io::Error::other("getting them ended with a panic; see the log"))
                    as Why)
            });
            worker.cilium.finish(&wanted_version, done);
        });
    })
}

impl Wanted {
    /// What is being done now, a sentence for each version.
    pub(super) fn underway(&self) -> Vec<String> {
        let states = self.lock();
        let lines = states.iter().filter_map(|(version, state)| match state {
            State::Known(Images::Underway(text)) => Some(format!("Cilium {version}: {text}")),
            _ => None,
        });
        lines.collect()
    }

    /// What nodes that Cilium forwards on may begin with (see [`seed::plant`]).
    pub(super) fn seed(&self) -> Option<PathBuf> {
        self.seed.get().cloned()
    }

    /// How far a version is; `begin` is called if nobody works on it.
    fn ask(&self, version: &str, begin: impl FnOnce()) -> Result<Images, ClustersError> {
        let mut states = self.lock();
        match states.get(version) {
            Some(State::Known(images)) => return Ok(images.clone()),
            Some(State::Failed { at, why }) if at.elapsed() < PAUSE => {
                return Err(ClustersError::Cilium {
                    version: version.to_owned(),
                    source: why.clone(),
                });
            }
            _ => {}
        }
        let underway = Images::Underway("waiting for its turn".to_owned());
        states.insert(version.to_owned(), State::Known(underway.clone()));
        drop(states);
        begin();
        Ok(underway)
    }

    fn tell(&self, version: &str, text: &str) {
        let images = Images::Underway(text.to_owned());
        let before = self.lock().insert(version.to_owned(), State::Known(images));
        // Numbers that change often, in brackets, are for those who look.
        let stage = |text: &str| text.split(" (").next().unwrap_or_default().to_owned();
        let was = match before {
            Some(State::Known(Images::Underway(text))) => stage(&text),
            _ => String::new(),
        };
        if stage(text) != was {
            tracing::info!(version, "Cilium: {text}");
        }
    }

    fn finish(&self, version: &str, done: Result<(), Why>) {
        let state = match done {
            Ok(()) => State::Known(Images::Ready),
            Err(why) => {
                tracing::warn!(version, error = %Chain(&*why), "Cilium's images are not to be had");
                State::Failed { at: Instant::now(), why }
            }
        };
        self.lock().insert(version.to_owned(), state);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, State>> {
        // Only whole values are put in.
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Installs, makes and pushes; blocking, for minutes.
fn get(shared: &Shared, version: &str, told: &dyn Fn(&str)) -> Result<(), Why> {
    let places = &shared.places;
    install::cilium(&places.cache, version, None, &mut |how_far| told(how_far))
        .map_err(|err| Arc::new(err) as Why)?;
    told("making its images");
    let folder = places.cache.join("images");
    let ingredients = Ingredients::new(&places.cache, version);
    // Prepared earlier, it is there before the first node starts. What is wrong is told when it is prepared.
    if let Ok(Some(seed)) = find_seed(shared, &folder, &ingredients)
        && seed.is_dir()
    {
        shared.cilium.seed.get_or_init(|| seed);
    }
    let push = || {
        in_internet(&places.lab, || registry::push_missing(&Recipe::CILIUM, &folder, &ingredients))
    };
    let mut pushed = push();
    for _ in 0..TRIES {
        // It has not started yet, or starts anew.
        let is_away = matches!(
            pushed,
            Err(ClustersError::Image(ImageError::Http { .. }) | ClustersError::Namespace { .. })
        );
        if !is_away {
            break;
        }
        told("waiting for the lab's registry");
        std::thread::sleep(Duration::from_millis(500));
        pushed = push();
    }
    pushed.map_err(|err| Arc::new(err) as Why)?;
    told("preparing it for nodes");
    let prepared = find_seed(shared, &folder, &ingredients).and_then(|seed| {
        let Some(seed) = seed else { return Ok(()) };
        let references =
            Recipe::Cilium.references(&ingredients).map_err(|err| Arc::new(err) as Why)?;
        let name = images::agent_name(version);
        let wanted: Vec<_> = references.into_iter().map(|it| (it, name.clone())).collect();
        seed::prepare(&places.lab, &places.run, &seed, &wanted)
            .map_err(|err| Arc::new(err) as Why)?;
        // The first version's stays: clusters have one.
        shared.cilium.seed.get_or_init(|| seed);
        Ok(())
    });
    if let Err(error) = prepared {
        // Nodes pull, then.
        tracing::warn!(error = %Chain(&*error), "nodes will begin without Cilium's images");
    }
    Ok(())
}

/// Where that is, or will be, which nodes begin with: the agent's image, which every node needs. `None` where another
/// image is in its place.
fn find_seed(
    shared: &Shared,
    folder: &Path,
    ingredients: &Ingredients,
) -> Result<Option<PathBuf>, Why> {
    let digest = agent_digest(shared, folder, ingredients).map_err(|err| Arc::new(err) as Why)?;
    let name = |digest: String| digest.trim_start_matches("sha256:").to_owned();
    Ok(digest.map(|it| shared.places.cache.join("containerd").join(name(it))))
}

/// The digest of the agent's image. `None` where the lab's registry has another one, which a user has given it or which was
/// made before Cilium was installed anew.
fn agent_digest(
    shared: &Shared,
    folder: &Path,
    ingredients: &Ingredients,
) -> Result<Option<String>, ClustersError> {
    let image = Recipe::Cilium.make(folder, ingredients)?;
    let references = Recipe::Cilium.references(ingredients)?;
    let address = SocketAddrV4::new(names::REGISTRY_ADDRESS, REGISTRY_PORT);
    let digest = image.digest();
    for reference in references {
        let found = in_internet(&shared.places.lab, || images::digest_of(address, &reference))?;
        if found.is_some_and(|found| found != digest) {
            return Ok(None);
        }
    }
    Ok(Some(digest))
}

/// Why policies of layer 7 cannot be had, and what would do (see [`install::why_no_envoy`]): the image that counts is
/// that of the lab's registry, which keeps what it once was given.
pub(super) fn why_no_envoy(shared: &Shared) -> Option<String> {
    let (cache, version) = (&shared.places.cache, install::CILIUM_VERSION);
    let missing = install::why_no_envoy(cache, version);
    if missing.is_some() || shared.nodes != Nodes::Kubernetes {
        return missing;
    }
    let ingredients = Ingredients::new(cache, version);
    match agent_digest(shared, &cache.join("images"), &ingredients) {
        Ok(Some(_)) => None,
        Ok(None) => Some(format!(
            "its registry has another image of Cilium {version} than the one that is installed; a lab that is made \
             anew (`aksnet reset`) has that"
        )),
        Err(error) => Some(format!("its registry does not say what it has ({})", Chain(&error))),
    }
}

#[cfg(test)]
mod tests;
