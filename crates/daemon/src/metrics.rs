//! What the lab counts, for Prometheus and for `aksnet top`.
//!
//! # Guarantees
//! A rule's count never falls while its virtual network lives, although the kernel counts from nothing whenever the
//! table is loaded anew: the fabric has the table read before it loads another, and the sum is kept here.
//!
//! # Caveats
//! Sums are as old as the daemon; after its restart they begin with what the kernel has counted since the last load.
//! What passes between that reading and the load, a millisecond or two, is not counted.

mod meter;
mod sample;
mod text;

use std::sync::Arc;

use axum::{Router, extract::State, http::header::CONTENT_TYPE, routing::get};
use store::Store;

pub use self::{
    meter::{METER, Meter, Passes, Trouble},
    sample::{FlowSample, RuleSample, Sample, SubnetSample, VnetSample, groups, sample},
    text::prometheus,
};

/// The content type of the text format (prometheus.io, "Exposition formats").
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers `GET /metrics`, for ever.
pub async fn serve(
    listener: tokio::net::TcpListener,
    store: Store,
    lab: String,
) -> std::io::Result<()> {
    let router = Router::new().route("/metrics", get(answer)).with_state(Arc::new((store, lab)));
    axum::serve(listener, router).await
}

async fn answer(
    State(lab): State<Arc<(Store, String)>>,
) -> Result<([(axum::http::HeaderName, &'static str); 1], String), axum::http::StatusCode> {
    let text = tokio::task::spawn_blocking(move || {
        let (store, lab) = &*lab;
        prometheus(&sample(lab, &store.snapshot(), 0))
    });
    match text.await {
        Ok(text) => Ok(([(CONTENT_TYPE, TEXT)], text)),
        Err(_) => Err(axum::http::StatusCode::INTERNAL_SERVER_ERROR),
    }
}
