//! Runs the lab's image registry and fills it with the images that clusters need. Not here: how images
//! are made.

use std::{net::SocketAddrV4, path::Path, sync::Arc, time::Duration};

use cluster::{
    images::{self, ImageError, Ingredients, REGISTRY_PORT, Recipe},
    install,
};
use linux::sandbox::Sandbox;
use vnet::host::names;

use super::{ClustersError, RESYNC, Shared, blocking, in_internet};
use crate::reconcile::Chain;

/// The registry's sandbox.
pub(super) const NAME: &str = "registry";

/// How often filling fails before clusters no longer wait for it.
const PATIENCE: u32 = 20;

/// Keeps the registry running, for ever.
pub(super) async fn keep(shared: Arc<Shared>) {
    let mut n_failures = 0;
    loop {
        let mut wait = RESYNC;
        if linux::netns::path(&names::internet_ns(&shared.places.lab)).exists() {
            match pass(&shared).await {
                Ok(()) => {
                    shared.images.send_replace(true);
                }
                Err(err) => {
                    n_failures += 1;
                    wait = Duration::from_millis(250);
                    if n_failures == PATIENCE {
                        tracing::warn!(error = %Chain(&err), "the image registry is not complete");
                        shared.images.send_replace(true);
                    }
                }
            }
        } else {
            wait = Duration::from_millis(100);
        }
        if n_failures > PATIENCE {
            wait = RESYNC * 5;
        }
        tokio::time::sleep(wait).await;
    }
}

/// Starts the registry if it does not run, and pushes what it lacks.
async fn pass(shared: &Arc<Shared>) -> Result<(), ClustersError> {
    let shared = shared.clone();
    blocking(move || {
        let places = &shared.places;
        let computer = images::registry(names::REGISTRY_ADDRESS);
        let netns = names::internet_ns(&places.lab);
        let spec = places.sandbox(NAME, &netns, &computer, Path::new("/usr/bin"));
        let was_there = Sandbox::find(&places.run_dir(), NAME).is_some();
        Sandbox::start(&places.launcher(), &places.run_dir(), &spec)
            .map_err(|source| ClustersError::Sandbox { name: NAME.to_owned(), source })?;
        if was_there && *shared.images.borrow() {
            return Ok(());
        }
        let folder = places.cache.join("images");
        let ingredients = Ingredients::new(&places.cache, install::CILIUM_VERSION);
        in_internet(&places.lab, || push_missing(&Recipe::ALWAYS, &folder, &ingredients))
    })
    .await
}

/// Pushes every image of these that is not there. One that a user has put in its place stays.
pub(super) fn push_missing(
    recipes: &[Recipe],
    folder: &Path,
    ingredients: &Ingredients,
) -> Result<(), ImageError> {
    let address = SocketAddrV4::new(names::REGISTRY_ADDRESS, REGISTRY_PORT);
    let mut first_error = None;
    for recipe in recipes {
        let push = || {
            let mut image = None;
            for reference in recipe.references(ingredients)? {
                if images::has_image(address, &reference)? {
                    continue;
                }
                let image = match &mut image {
                    Some(image) => image,
                    none => none.insert(recipe.make(folder, ingredients)?),
                };
                images::push(address, &reference, image)?;
                tracing::info!(image = %reference, "pushed to the lab's registry");
            }
            Ok(())
        };
        // One that cannot be made must not cost the others.
        first_error = first_error.or(push().err());
    }
    first_error.map_or(Ok(()), Err)
}
