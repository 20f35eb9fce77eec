//! The file of contexts: where it is, what it holds, and how it changes. It may hold secrets: it is made for its owner alone, and
//! nothing of it is printed that may be one.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use karman_remoting::secret::Secret;
use serde::{Deserialize, Serialize, Serializer};

use crate::cli::NotFound;

const NAME_MAX_BYTES: usize = 64;

/// Where a cluster is, and who calls there.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    pub(crate) endpoint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) access_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) secret_key_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "revealed")]
    pub(crate) cluster_secret: Option<Secret>,
}

/// This file is the one place where the secret is written down.
fn revealed<S: Serializer>(secret: &Option<Secret>, serializer: S) -> Result<S::Ok, S::Error> {
    secret.as_ref().map(Secret::reveal).serialize(serializer)
}

/// All contexts, and which is in use.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contexts {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    #[serde(default)]
    pub(crate) contexts: BTreeMap<String, Context>,
}

impl Contexts {
    /// The context of a name, or what there is instead.
    pub(crate) fn get(&self, name: &str) -> anyhow::Result<&Context> {
        self.contexts.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.contexts.keys().map(String::as_str).collect();
            let known = match known[..] {
                [] => "there is none yet".to_owned(),
                _ => format!("there are {}", known.join(", ")),
            };
            let how = "`karman context add NAME -e HOST:PORT` makes one";
            NotFound(format!("there is no context {name:?}: {known}; {how}")).into()
        })
    }
}

/// The file of whoever calls.
pub(crate) fn path() -> anyhow::Result<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let directory = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")));
    let directory = directory.context("neither XDG_CONFIG_HOME nor HOME says where contexts are kept")?;
    Ok(directory.join("karman/contexts.toml"))
}

/// What the file holds; nothing if it is not there.
pub(crate) fn load(path: &Path) -> anyhow::Result<Contexts> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        // Whoever has no home directory has no contexts either.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Contexts::default());
        }
        Err(error) => return Err(error).with_context(|| format!("read the contexts in {}", path.display())),
    };
    let contexts: Contexts = toml::from_str(&text).map_err(|error| {
        // The words of the error may show what stands there, and that may be a secret.
        let before = text.get(..error.span().unwrap_or_default().start).unwrap_or_default();
        let (path, line) = (path.display(), 1 + before.matches('\n').count());
        anyhow::anyhow!(
            "line {line} of {path} is not as `karman context add` writes it; mend it, or remove the file"
        )
    })?;
    let mode = std::fs::metadata(path)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 && contexts.contexts.values().any(|context| context.cluster_secret.is_some()) {
        let path = path.display();
        eprintln!("karman: others may read {path} (mode {mode:o}), which holds a secret: chmod 600 {path}");
    }
    Ok(contexts)
}

/// Puts the file in the place of the one before, whole or not at all.
pub(crate) fn store(path: &Path, contexts: &Contexts) -> anyhow::Result<()> {
    let write = || -> anyhow::Result<()> {
        // Where it is a link the file that it leads to changes.
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let directory = path.parent().context("it has no directory")?;
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        // It is made with mode 0600.
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(toml::to_string(contexts)?.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        Ok(())
    };
    write().with_context(|| format!("write the contexts to {}", path.display()))
}

/// What a context may be called: it stands in command lines and in keys of the file.
pub(crate) fn parse_name(text: &str) -> Result<String, String> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    match (1..=NAME_MAX_BYTES).contains(&text.len()) && text.bytes().all(is_allowed) {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is no name: 1 to {NAME_MAX_BYTES} of a-z A-Z 0-9 - _ . are")),
    }
}

/// Refuses an endpoint that no call could reach, before it is kept.
pub(crate) fn check_endpoint(endpoint: &str) -> anyhow::Result<()> {
    let address = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
    let port = address.unwrap_or(endpoint).rsplit_once(':').filter(|(host, _)| !host.is_empty());
    if port.is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
        bail!("-e {endpoint:?} is refused: HOST:PORT is allowed, or https://HOST:PORT for TLS");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(secret: &str) -> Context {
        let cluster_secret = Some(Secret::from(secret));
        Context { endpoint: "n:1".into(), access_key: None, secret_key_file: None, cluster_secret }
    }

    #[test]
    fn what_is_stored_is_for_its_owner_alone_and_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/karman/contexts.toml");
        assert!(load(&path).unwrap().contexts.is_empty());
        let mut contexts = Contexts { current: Some("prod".into()), ..Contexts::default() };
        contexts.contexts.insert("prod".into(), context("pssst"));
        store(&path, &contexts).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let read = load(&path).unwrap();
        assert_eq!(read.current.as_deref(), Some("prod"));
        assert_eq!(read.get("prod").unwrap().cluster_secret.as_ref().unwrap().reveal(), "pssst");
        assert!(!format!("{read:?}").contains("pssst"));
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "nothing is left beside it"
        );
    }

    #[test]
    fn a_file_that_is_wrong_is_named_with_the_line_and_without_what_stands_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("contexts.toml");
        for text in [
            "[contexts.a]\nendpoint = \"n:1\"\ncluster_secret = pssst\n",
            "[contexts.a]\nendpoint = \"n:1\"\npssst = 3\n",
            "[contexts.a]\nendpoint = \"n:1\"\ncluster_secret = [\"pssst\"]\n",
        ] {
            std::fs::write(&path, text).unwrap();
            let error = format!("{:#}", load(&path).unwrap_err());
            assert!(error.contains("line 3") && !error.contains("pssst"), "{error}");
        }
    }

    #[test]
    fn names_and_endpoints_that_cannot_be_are_refused() {
        assert!(["prod", "eu-1.a_b"].iter().all(|name| parse_name(name).is_ok()));
        assert!(["", "a b", "a/b", "ä", &"a".repeat(65)].iter().all(|name| parse_name(name).is_err()));
        assert!(["n:1", "https://n:1", "[::1]:8081"].iter().all(|endpoint| check_endpoint(endpoint).is_ok()));
        assert!(
            ["n", ":1", "https://n", "n:99999", ""].iter().all(|endpoint| check_endpoint(endpoint).is_err())
        );
    }
}
