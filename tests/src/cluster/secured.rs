//! Clusters that ask every caller who it is, and clusters whose nodes know one another by certificates.

use std::path::Path;

use super::{Builder, Cluster, Node};
use crate::Raw;
use crate::authority::Authority;

/// The super user of a secured cluster, and its secret.
pub const ROOT: (&str, &str) = ("root", "secret of root");
/// What its nodes believe one another by.
pub const CLUSTER_SECRET: &str = "the-secret-of-the-cluster";

impl Builder {
    /// All callers must prove who they are, and may do only what policies allow; there is [`ROOT`].
    pub fn secured(mut self) -> Self {
        self.secured = true;
        self.of_all.extend([
            format!("clusterSecret={CLUSTER_SECRET}"),
            "authenticationEnabled=true".to_owned(),
            "authorizationEnabled=true".to_owned(),
            format!("initAuthenticationUser={}:{}", ROOT.0, ROOT.1),
        ]);
        self
    }

    /// Clients may show certificates of `authority`.
    pub fn client_certificates(mut self, authority: &Authority) -> Self {
        let path = self.directory.path().join("clients.pem");
        std::fs::write(&path, authority.pem()).unwrap();
        self.of_all.push(format!("tlsServerTrustCertPath={}", path.display()));
        self.of_all.push("tlsServerNeedClientAuth=optional".to_owned());
        self
    }

    /// All traffic between nodes is TLS with certificates of `authority`, which are in [`Cluster::node_tls`].
    pub fn internal_tls(mut self, authority: &Authority) -> Self {
        authority.write(&self.directory.path().join(NODE_TLS), "a node");
        self.of_all.extend(internal_tls(&self.directory.path().join(NODE_TLS)));
        self
    }
}

const NODE_TLS: &str = "node-tls";

/// What a node is told that has its certificate in `directory`.
pub fn internal_tls(directory: &Path) -> [String; 3] {
    [("Ca", "ca"), ("Cert", "cert"), ("Key", "key")].map(|(key, file)| {
        format!("internalTls{key}Path={}", directory.join(file).with_extension("pem").display())
    })
}

impl Cluster {
    /// A client of `node` that may do everything.
    pub fn raw(&self, node: &Node) -> Raw {
        let raw = Raw::connect(&node.endpoint());
        if self.secured { raw.signed_by(ROOT.0, ROOT.1) } else { raw }
    }

    /// Where the certificate is that all nodes show one another.
    pub fn node_tls(&self) -> std::path::PathBuf {
        self.path().join(NODE_TLS)
    }
}
