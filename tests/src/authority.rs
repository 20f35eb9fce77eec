//! Certificates for the nodes and clients of a test.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// Signs certificates, each authority in a name of its own.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Default for Authority {
    fn default() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = format!("authority {}", NUMBER.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }
}

impl Authority {
    /// Its own certificate, as PEM.
    pub fn pem(&self) -> String {
        self.0.as_ref().pem()
    }

    /// Puts `ca.pem`, `cert.pem` and `key.pem` into `directory`: a new certificate whose subject is called `name`.
    pub fn write(&self, directory: &Path, name: &str) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        std::fs::create_dir_all(directory).unwrap();
        let write = |name: &str, pem: String| std::fs::write(directory.join(name), pem).unwrap();
        write("ca.pem", self.pem());
        write("key.pem", key.serialize_pem());
        write("cert.pem", certificate.pem());
    }
}
