//! Kubeconfig files. Not here: who gets one.

use base64::{Engine, prelude::BASE64_STANDARD};

use crate::pki::Pair;

/// One user's way to one API server.
#[derive(Clone, Debug)]
pub struct Kubeconfig<'a> {
    /// The cluster's name; the context has it too.
    pub cluster: &'a str,
    /// The user's name in the file.
    pub user: &'a str,
    /// `https://…`.
    pub server: &'a str,
    /// The name in the API server's certificate, when `server` has another.
    pub tls_server_name: Option<&'a str>,
    /// The authority's certificate.
    pub authority: &'a str,
    /// The user's certificate and key.
    pub client: &'a Pair,
}

impl Kubeconfig<'_> {
    /// The file's text.
    #[must_use]
    pub fn render(&self) -> String {
        let Self { cluster, user, server, .. } = self;
        let tls_server_name = self
            .tls_server_name
            .map(|name| format!("    tls-server-name: {name}\n"))
            .unwrap_or_default();
        let [authority, certificate, key] =
            [self.authority, &self.client.certificate, &self.client.key]
                .map(|text| BASE64_STANDARD.encode(text));
        format!(
            "apiVersion: v1\n\
             kind: Config\n\
             clusters:\n\
             - cluster:\n\
             \x20   certificate-authority-data: {authority}\n\
             \x20   server: {server}\n\
             {tls_server_name}\
             \x20 name: {cluster}\n\
             contexts:\n\
             - context:\n\
             \x20   cluster: {cluster}\n\
             \x20   user: {user}\n\
             \x20 name: {cluster}\n\
             current-context: {cluster}\n\
             preferences: {{}}\n\
             users:\n\
             - name: {user}\n\
             \x20 user:\n\
             \x20   client-certificate-data: {certificate}\n\
             \x20   client-key-data: {key}\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_kubectl_reads_it() {
        let pair = Pair { certificate: "CERT".to_owned(), key: "KEY".to_owned() };
        let text = Kubeconfig {
            cluster: "demo",
            user: "clusterUser_rg_demo",
            server: "https://127.0.0.1:40001",
            tls_server_name: Some("demo.hcp.eastus.azmk8s.io"),
            authority: "CA",
            client: &pair,
        }
        .render();
        let read = kube::config::Kubeconfig::from_yaml(&text).expect("kube reads it");
        assert_eq!(read.current_context.as_deref(), Some("demo"));
        let cluster = read.clusters[0].cluster.as_ref().expect("a cluster");
        assert_eq!(cluster.server.as_deref(), Some("https://127.0.0.1:40001"));
        assert_eq!(cluster.tls_server_name.as_deref(), Some("demo.hcp.eastus.azmk8s.io"));
        assert_eq!(cluster.certificate_authority_data.as_deref(), Some("Q0E="));
    }
}
