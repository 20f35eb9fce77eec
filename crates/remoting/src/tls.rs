//! Certificates: of the port for clients, from PEM files, or self-signed and kept; and those by which nodes know one another.
//! Read at start, on the calling thread, and again when the files have changed.
//!
//! rustls works with the ring provider named here, so that no process-wide default has to be installed.

mod any_name;
mod nodes;
mod renewed;
mod subject;

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};
use schemars::JsonSchema;

pub(crate) use self::any_name::AnyName;
pub(crate) use self::nodes::NodeTls;
use self::renewed::Renewed;
pub(crate) use self::subject::common_name;
use crate::config::Unusable;
use crate::server::TlsMode;

/// gRPC clients insist on it.
const ALPN_H2: &[u8] = b"h2";

/// A certificate with its key, ready to serve; ALPN is `h2`. A clone shares it.
#[derive(Clone, Debug)]
pub struct Tls(Arc<Renewed<ServerConfig, 3>>);

/// What is asked of clients: RocketMQ's `tls.server.need.client.auth`, in its words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum ClientAuth {
    /// No certificate.
    #[default]
    None,
    /// A client may show one; one that is shown has to be good.
    Optional,
    /// None is taken without one.
    Require,
}

/// What a node is told of TLS with clients: keys of its configuration, empty where it is told nothing.
#[derive(Clone, Copy, Debug)]
pub struct TlsKeys<'a> {
    /// `tlsServerMode`
    pub mode: TlsMode,
    /// `tlsServerCertPath`
    pub cert_path: &'a str,
    /// `tlsServerKeyPath`
    pub key_path: &'a str,
    /// `tlsServerTrustCertPath`
    pub trust_cert_path: &'a str,
    /// `tlsServerNeedClientAuth`
    pub need_client_auth: ClientAuth,
    /// `internalTlsCaPath`
    pub internal_ca_path: &'a str,
}

impl TlsKeys<'_> {
    /// What is asked of each value, and whether it is so.
    pub fn rules(&self) -> [(Unusable, bool); 3] {
        let need = match self.need_client_auth {
            ClientAuth::None => "none",
            ClientAuth::Optional => "optional",
            ClientAuth::Require => "require",
        };
        let rule =
            |key, value: &str, allowed, good| (Unusable { key, value: value.to_owned(), allowed }, good);
        let (key, trust) = (self.key_path, self.trust_cert_path);
        [
            rule(
                "tlsServerKeyPath",
                key,
                "set both tlsServerCertPath and tlsServerKeyPath, or none",
                self.cert_path.is_empty() == key.is_empty(),
            ),
            rule(
                "tlsServerNeedClientAuth",
                need,
                "optional needs tlsServerTrustCertPath and TLS, and require tlsServerMode = \"enforcing\" as well: who comes in plaintext shows nothing",
                match self.need_client_auth {
                    ClientAuth::None => true,
                    ClientAuth::Optional => !trust.is_empty() && self.mode != TlsMode::Disabled,
                    ClientAuth::Require => !trust.is_empty() && self.mode == TlsMode::Enforcing,
                },
            ),
            rule(
                "tlsServerTrustCertPath",
                trust,
                "another authority than internalTlsCaPath is needed: whoever has a certificate of that one is a node",
                trust.is_empty() || trust != self.internal_ca_path,
            ),
        ]
    }

    fn clients(&self) -> Option<(PathBuf, bool)> {
        let is_asked = self.need_client_auth != ClientAuth::None;
        is_asked.then(|| (self.trust_cert_path.into(), self.need_client_auth == ClientAuth::Require))
    }
}

/// Why there is no usable certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing, unreadable, or not PEM.
    #[error("read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// A missing section or an I/O error.
        source: pem::Error,
    },
    /// A file or directory could not be written.
    #[error("write {path}: {source}", path = path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Both were read, but they do not fit together or are of an unknown kind.
    #[error("use the certificate {cert} with the key {key}: {source}", cert = cert.display(), key = key.display())]
    Unusable {
        /// The certificate file.
        cert: PathBuf,
        /// The key file.
        key: PathBuf,
        /// What rustls said.
        source: rustls::Error,
    },
    /// What has authority is not to be used as one.
    #[error("trust the certificates of {path}: {source}", path = path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What rustls said.
        source: rustls::Error,
    },
    /// The own certificate is none that others with the same authority would take.
    #[error("{cert} is not usable with the authority {ca}, both as a server's and as a client's: {source}", cert = cert.display(), ca = ca.display())]
    Strange {
        /// The certificate file.
        cert: PathBuf,
        /// The file of the authority.
        ca: PathBuf,
        /// What rustls said.
        source: rustls::Error,
    },
    /// The same, with the key of the configuration that led here.
    #[error("{key}: {source}")]
    OfKey {
        /// The key.
        key: &'static str,
        /// What is wrong with its value.
        source: Box<TlsError>,
    },
    /// A name cannot stand in a certificate.
    #[error("make a certificate for {names:?}: {source}")]
    Generate {
        /// The names asked for.
        names: Vec<String>,
        /// What rcgen said.
        source: rcgen::Error,
    },
}

impl Tls {
    /// Reads a certificate chain (leaf first) and its private key, both PEM. They are read anew when they have changed.
    pub fn from_pem(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        Self::open(cert, key, None)
    }

    /// `clients`: who signs their certificates, and whether they have to show one.
    fn open(cert: &Path, key: &Path, clients: Option<(PathBuf, bool)>) -> Result<Self, TlsError> {
        let (trust, required) = clients.unwrap_or_default();
        let files = [cert.to_owned(), key.to_owned(), trust];
        Renewed::open(files, move |files| serving(files, required)).map(|config| Self(Arc::new(config)))
    }

    /// The certificate of a node: the PEM files where they are configured, else a self-signed one that is kept in
    /// `dir`; none where TLS is switched off.
    pub fn of_node(keys: TlsKeys<'_>, dir: &Path, names: &[String]) -> Result<Option<Self>, TlsError> {
        let tls = match (keys.mode, keys.cert_path) {
            (TlsMode::Disabled, _) => return Ok(None),
            (_, "") => {
                let [cert, key] = kept(dir, names)?;
                Self::open(&cert, &key, keys.clients())
            }
            (_, cert) => Self::open(Path::new(cert), Path::new(keys.key_path), keys.clients()),
        };
        tls.map(Some)
    }

    /// Uses `cert.pem` and `key.pem` in `dir`; makes them first when there is no `cert.pem`.
    ///
    /// The certificate made is self-signed, for `names` (host names or IP addresses), `localhost` and `127.0.0.1`.
    /// The key file is readable by its owner only.
    pub fn self_signed(dir: &Path, names: &[String]) -> Result<Self, TlsError> {
        let [cert, key] = kept(dir, names)?;
        Self::from_pem(&cert, &key)
    }

    /// For the handshake that begins now.
    pub(crate) fn server_config(&self) -> Arc<ServerConfig> {
        self.0.current()
    }
}

/// For clients, who are asked for a certificate where there is an authority for them.
fn serving([cert, key, trust]: &[PathBuf; 3], required: bool) -> Result<ServerConfig, TlsError> {
    let certificate = certified(cert, key)?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|source| TlsError::Unusable { cert: cert.clone(), key: key.clone(), source })?;
    let config = match trust.as_os_str().is_empty() {
        true => config.with_no_client_auth(),
        false => config.with_client_cert_verifier(verifier(trust, Arc::new(authority(trust)?), required)?),
    };
    let mut config = config.with_cert_resolver(Arc::new(SingleCertAndKey::from(certificate)));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    Ok(config)
}

/// The certificates of a file, of which there is one at least.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |source| TlsError::Read { path: path.to_owned(), source };
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(|certificates| certificates.collect())
        .map_err(unreadable)?;
    if found.is_empty() { Err(unreadable(pem::Error::NoItemsFound)) } else { Ok(found) }
}

/// Those of a file that others are verified by.
fn authority(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        let added = roots.add(certificate);
        added.map_err(|source| TlsError::Authority { path: path.to_owned(), source })?;
    }
    Ok(roots)
}

/// Of whoever comes: its certificate, if it shows one, has to lead to `roots`, which are those of the file.
fn verifier(
    path: &Path,
    roots: Arc<RootCertStore>,
    required: bool,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
    let verifier = if required { verifier } else { verifier.allow_unauthenticated() };
    verifier.build().map_err(|error| {
        let source = rustls::Error::General(error.to_string());
        TlsError::Authority { path: path.to_owned(), source }
    })
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

/// Both files, if they fit together.
fn certified(cert: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let (chain, private_key) = (certificates(cert)?, private_key(key)?);
    CertifiedKey::from_der(chain, private_key, &ring::default_provider())
        .map_err(|source| TlsError::Unusable { cert: cert.to_owned(), key: key.to_owned(), source })
}

/// `cert.pem` and `key.pem` of `dir`, which are made if they are not there.
fn kept(dir: &Path, names: &[String]) -> Result<[PathBuf; 2], TlsError> {
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    let missing = fs::metadata(&cert).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    if missing {
        make(dir, &cert, &key, names)?;
    }
    Ok([cert, key])
}

fn make(dir: &Path, cert: &Path, key: &Path, names: &[String]) -> Result<(), TlsError> {
    let mut names = names.to_vec();
    names.extend(["localhost".to_owned(), "127.0.0.1".to_owned()]);
    names.sort();
    names.dedup();
    let made = rcgen::generate_simple_self_signed(names.clone())
        .map_err(|source| TlsError::Generate { names, source })?;
    let unwritable = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Write { path, source }
    };
    fs::create_dir_all(dir).map_err(unwritable(dir))?;
    // The certificate comes last and whole: that it exists says that the key does.
    write_private(key, made.signing_key.serialize_pem().as_bytes()).map_err(unwritable(key))?;
    let aside = cert.with_extension("pem.new");
    write_private(&aside, made.cert.pem().as_bytes()).map_err(unwritable(&aside))?;
    fs::rename(&aside, cert).map_err(unwritable(cert))
}

/// Writes a new file of mode 0600; one that was there is replaced, for its mode could be another.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_certificate_is_made_once_and_its_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("tls");
        let names = ["broker-a.example".to_owned(), "10.1.2.3".to_owned(), "localhost".to_owned()];
        Tls::self_signed(&dir, &names).unwrap();
        let made = fs::read(dir.join("cert.pem")).unwrap();
        let mode = fs::metadata(dir.join("key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        Tls::self_signed(&dir, &[]).unwrap();
        assert_eq!(fs::read(dir.join("cert.pem")).unwrap(), made);
    }

    #[test]
    fn a_key_without_its_certificate_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("key.pem"), "left by a crash").unwrap();
        Tls::self_signed(dir.path(), &[]).unwrap();
        let mode = fs::metadata(dir.path().join("key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn errors_name_the_file() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dir in [&one, &other] {
            Tls::self_signed(dir.path(), &[]).unwrap();
        }
        let (cert, key) = (one.path().join("cert.pem"), one.path().join("key.pem"));
        let error = |cert: &Path, key: &Path| Tls::from_pem(cert, key).expect_err("refused").to_string();

        let absent = one.path().join("absent.pem");
        assert!(error(&absent, &key).contains("absent.pem"));
        assert!(error(&cert, &absent).contains("absent.pem"));
        let text = one.path().join("text.pem");
        fs::write(&text, "not PEM").unwrap();
        assert!(error(&text, &key).contains("text.pem"));
        assert!(error(&cert, &text).contains("text.pem"));
        // A key that belongs to another certificate.
        let strange = error(&cert, &other.path().join("key.pem"));
        assert!(strange.contains("cert.pem") && strange.contains("key.pem"), "{strange}");
        let bad_name =
            Tls::self_signed(&one.path().join("new"), &["ä".to_owned()]).expect_err("not a host name");
        assert!(bad_name.to_string().contains('ä'), "{bad_name}");
    }
}
