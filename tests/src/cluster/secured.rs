//! Clusters that ask every caller who it is.

use super::{Builder, Cluster, Node};
use crate::Raw;

/// The super user of a secured cluster, and its secret.
pub const ROOT: (&str, &str) = ("root", "secret of root");

/// What makes a node ask.
pub(super) fn settings() -> Vec<String> {
    vec![
        "clusterSecret=the-secret-of-the-cluster".to_owned(),
        "authenticationEnabled=true".to_owned(),
        "authorizationEnabled=true".to_owned(),
        format!("initAuthenticationUser={}:{}", ROOT.0, ROOT.1),
    ]
}

impl Builder {
    /// All callers must prove who they are, and may do only what policies allow; there is [`ROOT`].
    pub fn secured(mut self) -> Self {
        self.secured = true;
        self.settings.extend(settings());
        self
    }
}

impl Cluster {
    /// A client of `node` that may do everything.
    pub fn raw(&self, node: &Node) -> Raw {
        let raw = Raw::connect(&node.endpoint());
        if self.secured { raw.signed_by(ROOT.0, ROOT.1) } else { raw }
    }
}
