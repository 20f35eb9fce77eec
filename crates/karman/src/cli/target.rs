//! Whom a command talks to, and in whose name: what was typed, what a context says, what the environment says, in that order.

use std::io;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args};
use karman_client::Credentials;
use karman_remoting::secret::Secret;

use super::Incomplete;
use crate::context::file::{self, Context};
use crate::node::Node;
use crate::user;

const DEFAULT_ENDPOINT: &str = "127.0.0.1:8081";
const HEADING: &str = "Where to, and who";

#[derive(Args, Debug)]
#[command(next_help_heading = HEADING)]
pub(super) struct TargetArgs {
    /// Any node of the cluster: HOST:PORT, or https://HOST:PORT for TLS; 127.0.0.1:8081 when nothing says one
    #[arg(short, long, global = true, env = "KARMAN_ENDPOINT")]
    endpoint: Option<String>,

    /// Endpoint and user as `karman context add` keeps them; else the context of `karman context use`
    #[arg(long, global = true, value_name = "NAME", env = "KARMAN_CONTEXT")]
    context: Option<String>,

    /// What `clusterSecret` of the nodes says, if it is set
    #[arg(long, global = true, env = "KARMAN_CLUSTER_SECRET", hide_env_values = true)]
    cluster_secret: Option<Secret>,

    /// Who calls, where the nodes ask for it (`authenticationEnabled`): a user's name
    #[arg(long, global = true, env = "KARMAN_ACCESS_KEY")]
    access_key: Option<String>,

    /// Where the user's secret is, unless KARMAN_SECRET_KEY holds it
    #[arg(long, global = true, value_name = "FILE")]
    secret_key_file: Option<PathBuf>,
}

/// What one place says of a target.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said {
    pub(crate) endpoint: Option<String>,
    pub(crate) access_key: Option<String>,
    pub(crate) secret_key_file: Option<PathBuf>,
    pub(crate) cluster_secret: Option<Secret>,
}

impl Said {
    fn of(context: &Context) -> Self {
        let Context { endpoint, access_key, secret_key_file, cluster_secret } = context.clone();
        Self { endpoint: Some(endpoint), access_key, secret_key_file, cluster_secret }
    }

    /// What `self` leaves open is as `other` says.
    fn or(self, other: Self) -> Self {
        // A secret is that of its user.
        let secret_key_file = match &self.access_key {
            Some(_) => self.secret_key_file,
            None => self.secret_key_file.or(other.secret_key_file),
        };
        Self {
            endpoint: self.endpoint.or(other.endpoint),
            access_key: self.access_key.or(other.access_key),
            secret_key_file,
            cluster_secret: self.cluster_secret.or(other.cluster_secret),
        }
    }
}

/// The command line and the environment told apart.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) typed: Said,
    pub(super) environment: Said,
    /// A context that the command line names.
    typed_context: Option<String>,
    /// One that the environment names.
    environment_context: Option<String>,
}

/// `value` as the first of the pair if it was typed, else as the second. What is empty says nothing.
fn parted<T>(value: Option<T>, typed: bool, empty: impl Fn(&T) -> bool) -> (Option<T>, Option<T>) {
    let value = value.filter(|value| !empty(value));
    if typed { (value, None) } else { (None, value) }
}

impl Target {
    pub(super) fn new(args: TargetArgs, matches: &ArgMatches) -> Self {
        let typed = |name| matches.value_source(name) == Some(ValueSource::CommandLine);
        let TargetArgs { endpoint, context, cluster_secret, access_key, secret_key_file } = args;
        let endpoint = parted(endpoint, typed("endpoint"), String::is_empty);
        let context = parted(context, typed("context"), String::is_empty);
        let access_key = parted(access_key, typed("access_key"), String::is_empty);
        let cluster_secret = parted(cluster_secret, typed("cluster_secret"), Secret::is_empty);
        Self {
            typed: Said {
                endpoint: endpoint.0,
                access_key: access_key.0,
                secret_key_file,
                cluster_secret: cluster_secret.0,
            },
            environment: Said {
                endpoint: endpoint.1,
                access_key: access_key.1,
                secret_key_file: None,
                cluster_secret: cluster_secret.1,
            },
            typed_context: context.0,
            environment_context: context.1,
        }
    }

    /// The secret of nodes that are started here: contexts are about others.
    pub(super) fn own_secret(&self) -> Secret {
        self.typed.clone().or(self.environment.clone()).cluster_secret.unwrap_or_default()
    }

    /// The context that the command line names, or else the environment.
    pub(super) fn named_context(&self) -> Option<String> {
        self.typed_context.clone().or_else(|| self.environment_context.clone())
    }

    /// The node, with the name of the context that says where it is.
    pub(super) fn node(&self) -> anyhow::Result<(Node, Option<String>)> {
        let context = if self.asks_for_context() { self.context()? } else { None };
        let said = self.chosen(context.as_ref().map(|(_, context)| context));
        let name = context.map(|(name, _)| name).filter(|_| self.typed.endpoint.is_none());
        let endpoint = said.endpoint.unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let node = Node::new(endpoint, said.cluster_secret.unwrap_or_default());
        let Some(access_key) = said.access_key else { return Ok((node, name)) };
        let secret_key = match &said.secret_key_file {
            Some(path) => user::read_secret(path)?,
            None => std::env::var("KARMAN_SECRET_KEY").map_err(|_| {
                let how = "give --secret-key-file or KARMAN_SECRET_KEY with it";
                Incomplete(format!("the secret of user {access_key:?} is missing: {how}"))
            })?,
        };
        let credentials = Credentials::new(&access_key, &secret_key);
        let refused =
            || Incomplete(format!("access key {access_key:?} is refused: visible ASCII is allowed"));
        Ok((node.signed_by(credentials.ok_or_else(refused)?), name))
    }

    /// A cluster's secret goes nowhere but to that cluster: where somebody else says where, a context counts only if it was named
    /// beside that.
    fn asks_for_context(&self) -> bool {
        let is_elsewhere = self.typed.endpoint.is_some() || self.environment.endpoint.is_some();
        self.typed_context.is_some() || !is_elsewhere
    }

    fn chosen(&self, context: Option<&Context>) -> Said {
        let typed = self.typed.clone();
        match (context.map(Said::of), &self.typed_context) {
            (Some(context), Some(_)) => typed.or(context),
            (Some(context), None) => typed.or(self.environment.clone()).or(context),
            (None, _) => typed.or(self.environment.clone()),
        }
    }

    /// The context that was named, or is in use.
    fn context(&self) -> anyhow::Result<Option<(String, Context)>> {
        let named = self.named_context();
        let path = match (file::path(), &named) {
            (Ok(path), _) => path,
            // Whoever has no home directory has no contexts, and needs none.
            (Err(_), None) => return Ok(None),
            (Err(error), Some(_)) => return Err(error),
        };
        let contexts = match file::load(&path) {
            Err(error) if named.is_none() && is_denied(&error) => {
                eprintln!("karman: {error:#}; no context is used");
                return Ok(None);
            }
            loaded => loaded?,
        };
        let Some(name) = named.or_else(|| contexts.current.clone()) else { return Ok(None) };
        let context = contexts.get(&name)?.clone();
        Ok(Some((name, context)))
    }
}

/// Whoever runs a command in another's name has that one's HOME, and may not read there.
fn is_denied(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_file_that_may_not_be_read_is_told_apart_from_one_that_is_wrong() {
        let failed =
            |kind: io::ErrorKind| Err::<(), _>(io::Error::from(kind)).context("read it").unwrap_err();
        assert!(is_denied(&failed(io::ErrorKind::PermissionDenied)));
        assert!(!is_denied(&failed(io::ErrorKind::InvalidData)) && !is_denied(&anyhow::anyhow!("line 2")));
    }

    fn said(prefix: &str) -> Said {
        Said {
            endpoint: Some(format!("{prefix}:1")),
            access_key: Some(format!("{prefix}-key")),
            secret_key_file: Some(format!("{prefix}-file").into()),
            cluster_secret: Some(Secret::from(format!("{prefix}-secret").as_str())),
        }
    }

    fn words(said: &Said) -> String {
        let secret = said.cluster_secret.as_ref().map(Secret::reveal).unwrap_or_default();
        let file = said.secret_key_file.as_deref().map(|path| path.display().to_string());
        let [endpoint, key] = [&said.endpoint, &said.access_key].map(|text| text.as_deref().unwrap_or("-"));
        format!("{endpoint} {key} {} {secret}", file.as_deref().unwrap_or("-"))
    }

    fn chosen(typed: Said, typed_context: bool, environment: Said) -> (bool, String) {
        let typed_context = typed_context.then(|| "c".to_owned());
        let target = Target { typed, environment, typed_context, environment_context: None };
        let context = Context {
            endpoint: "context:1".into(),
            access_key: Some("context-key".into()),
            secret_key_file: Some("context-file".into()),
            cluster_secret: Some(Secret::from("context-secret")),
        };
        let context = target.asks_for_context().then_some(&context);
        (context.is_some(), words(&target.chosen(context)))
    }

    #[test]
    fn what_is_typed_goes_before_a_context_and_that_before_the_environment() {
        let none = Said::default;
        let whole = |who: &str| format!("{who}:1 {who}-key {who}-file {who}-secret");
        assert_eq!(chosen(none(), false, none()), (true, whole("context")));
        assert_eq!(chosen(none(), true, said("env")), (true, whole("context")));
        assert_eq!(chosen(said("typed"), true, said("env")), (true, whole("typed")));
        let elsewhere = Said { endpoint: Some("typed:1".into()), ..none() };
        assert_eq!(
            chosen(elsewhere.clone(), true, none()).1,
            "typed:1 context-key context-file context-secret"
        );
        let key = Said { access_key: Some("typed-key".into()), ..none() };
        assert_eq!(chosen(key, true, none()).1, "context:1 typed-key - context-secret");
    }

    #[test]
    fn a_context_that_nobody_named_sends_no_secret_to_an_endpoint_of_another_place() {
        let none = Said::default;
        let elsewhere = |who: &str| Said { endpoint: Some(format!("{who}:1")), ..none() };
        assert_eq!(chosen(elsewhere("typed"), false, none()), (false, "typed:1 - - ".to_owned()));
        assert_eq!(chosen(none(), false, elsewhere("env")), (false, "env:1 - - ".to_owned()));
    }
}
