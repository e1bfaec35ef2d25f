//! The lab's own commands as a client of Azure Resource Manager: over HTTPS, like any other tool.

use std::{fs, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use serde_json::Value;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::{
    azure_env,
    lab::{Config, Lab},
};

const API_VERSION: &str = "api-version=2024-05-01";
const POLL: Duration = Duration::from_millis(100);

/// A client of the running lab.
pub(crate) struct ArmClient {
    agent: ureq::Agent,
    base: String,
}

impl ArmClient {
    /// Trusts the lab's authority and nobody else.
    pub(crate) fn new(lab: &Lab, config: &Config) -> anyhow::Result<Self> {
        let path = lab.ca_path();
        let pem = fs::read(&path)
            .with_context(|| format!("reading {}: does the lab run?", path.display()))?;
        let authority = Certificate::from_pem(&pem).context("reading the lab's authority")?;
        let tls =
            TlsConfig::builder().root_certs(RootCerts::Specific(Arc::new(vec![authority]))).build();
        let agent = ureq::Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(30)))
            .build()
            .new_agent();
        Ok(Self { agent, base: azure_env::endpoint(config) })
    }

    /// Reads the resource `id`.
    pub(crate) fn get(&self, id: &str) -> anyhow::Result<Value> {
        let url = format!("{}{id}?{API_VERSION}", self.base);
        let answer = self.agent.get(url).header("Authorization", "Bearer aksnet").call();
        Ok(read(answer, "GET", id)?.1)
    }

    /// Reads the resource `id`, if it is there.
    pub(crate) fn find(&self, id: &str) -> anyhow::Result<Option<Value>> {
        let url = format!("{}{id}?{API_VERSION}", self.base);
        let answer = self.agent.get(url).header("Authorization", "Bearer aksnet").call();
        match answer {
            Ok(answer) if answer.status() == ureq::http::StatusCode::NOT_FOUND => Ok(None),
            answer => Ok(Some(read(answer, "GET", id)?.1)),
        }
    }

    /// Makes or replaces the resource `id` and waits until it is real.
    pub(crate) fn put(&self, id: &str, body: &Value) -> anyhow::Result<Value> {
        let url = format!("{}{id}?{API_VERSION}", self.base);
        let request = self.agent.put(url).header("Authorization", "Bearer aksnet");
        let (operation, body) = read(request.send_json(body), "PUT", id)?;
        if operation.is_none() {
            return Ok(body);
        }
        self.wait(operation, id)?;
        self.get(id)
    }

    /// Removes the resource `id` and waits until it is gone. Removing what is not there succeeds.
    pub(crate) fn delete(&self, id: &str) -> anyhow::Result<()> {
        let url = format!("{}{id}?{API_VERSION}", self.base);
        let answer = self.agent.delete(url).header("Authorization", "Bearer aksnet").call();
        let (operation, _) = read(answer, "DELETE", id)?;
        self.wait(operation, id)
    }

    fn wait(&self, operation: Option<String>, id: &str) -> anyhow::Result<()> {
        let Some(url) = operation else { return Ok(()) };
        loop {
            let answer = self.agent.get(&url).header("Authorization", "Bearer aksnet").call();
            let (_, body) = read(answer, "GET", id)?;
            match body["status"].as_str() {
                Some("Succeeded") => return Ok(()),
                Some("InProgress") => std::thread::sleep(POLL),
                _ => bail!("{}", error_text(&body)),
            }
        }
    }
}

fn read(
    answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    method: &str,
    id: &str,
) -> anyhow::Result<(Option<String>, Value)> {
    let mut answer = answer.with_context(|| format!("{method} {id}"))?;
    let operation = answer.headers().get("Azure-AsyncOperation");
    let operation = operation.and_then(|url| url.to_str().ok()).map(str::to_owned);
    let text = answer.body_mut().read_to_string().with_context(|| format!("{method} {id}"))?;
    let body: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
    if answer.status().as_u16() >= 400 {
        bail!("{}", error_text(&body));
    }
    Ok((operation, body))
}

fn error_text(body: &Value) -> String {
    let error = body.get("error").unwrap_or(body);
    let text = |key: &str| error[key].as_str().unwrap_or("?").to_owned();
    format!("({}) {}", text("code"), text("message"))
}
