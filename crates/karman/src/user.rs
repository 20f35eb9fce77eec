//! `karman user`: who may call.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::change_user_request::Change;
use serde::Serialize;

use crate::acl::{self, PolicyJson};
use crate::cli::{Incomplete, NotFound};
use crate::confirm::confirm;
use crate::node::{Node, print_changed};
use crate::output::{self, Format, number, text};
use crate::quota::{self, QuotaArgs};

#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Make a user; without --secret-file a secret is made and printed once
    #[command(after_help = "\
A normal user may do nothing until `karman acl create` says what. The file holds the secret and nothing else; - reads it
from stdin. 8 to 256 bytes.

Example:
  karman user create shop
  karman user create root --type super --secret-file /run/secrets/root
  karman user create guest --max-messages-per-second 100 --max-connections 4")]
    Create {
        /// The access key of its clients: 1 to 64 of a-z A-Z 0-9 - _ . @
        name: String,
        /// Where its secret is
        #[arg(long, value_name = "FILE")]
        secret_file: Option<PathBuf>,
        /// What it may do: what policies allow, or everything
        #[arg(long = "type", value_enum, default_value_t = TypeWord::Normal)]
        user_type: TypeWord,
        #[command(flatten)]
        quotas: UserQuotaArgs,
    },
    /// Change a user: its secret, its type, its quotas, or whether it may call at all
    #[command(after_help = "\
What is not named stays as it is. It holds on all nodes within a second, also for calls that are under way.

Example:
  karman user update shop --disable
  karman user update shop --enable --secret-file new-secret
  karman user update shop --max-bytes-per-second 10000000", group = ArgGroup::new("change")
        .args(CHANGES).required(true).multiple(true))]
    Update(UpdateArgs),
    /// Delete a user and what it may do
    #[command(after_help = "\
Without --yes it is asked first; a script gives --yes.

Example:
  karman user delete shop --yes")]
    Delete {
        /// The user
        name: String,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
    },
    /// List the users
    #[command(after_help = "Example:\n  karman user list")]
    List,
    /// Show a user and what it may do
    #[command(after_help = "Example:\n  karman user show shop")]
    Show {
        /// The user
        name: String,
    },
}

#[derive(Args, Debug)]
pub(crate) struct UpdateArgs {
    /// The user
    name: String,
    /// Where its new secret is; - is stdin
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// What it may do from now on
    #[arg(long = "type", value_enum)]
    user_type: Option<TypeWord>,
    /// It may call again
    #[arg(long, conflicts_with = "disable")]
    enable: bool,
    /// It may not call any more
    #[arg(long)]
    disable: bool,
    #[command(flatten)]
    quotas: UserQuotaArgs,
}

/// The names of [`UpdateArgs`]: an update has at least one.
const CHANGES: &[&str] = &[
    "secret_file",
    "user_type",
    "enable",
    "disable",
    "max_messages_per_second",
    "max_bytes_per_second",
    "max_connections",
];

#[derive(Args, Debug)]
pub(crate) struct UserQuotaArgs {
    #[command(flatten)]
    sends: QuotaArgs,
    /// Connections it may have to each node; 0: as many as come. Those it has stay
    #[arg(long, value_name = "N")]
    max_connections: Option<u32>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum TypeWord {
    /// What its policies allow
    Normal,
    /// Everything
    Super,
}

impl TypeWord {
    fn to_proto(self) -> i32 {
        match self {
            Self::Normal => v1::UserType::Normal.into(),
            Self::Super => v1::UserType::Super.into(),
        }
    }
}

#[derive(Serialize)]
pub(crate) struct UserJson {
    name: String,
    /// normal or super
    r#type: &'static str,
    enabled: bool,
    /// On each node that it is connected to. None: as much as it likes.
    max_messages_per_second: Option<u64>,
    max_bytes_per_second: Option<u64>,
    max_connections: Option<u32>,
    policies: Vec<PolicyJson>,
}

impl UserJson {
    pub(crate) fn of(user: v1::User) -> Self {
        let r#type = if user.user_type() == v1::UserType::Super { "super" } else { "normal" };
        let policies = user.policies.into_iter().map(PolicyJson::of).collect();
        Self {
            name: user.name,
            r#type,
            enabled: !user.disabled,
            max_messages_per_second: quota::shown(user.messages_per_second),
            max_bytes_per_second: quota::shown(user.bytes_per_second),
            max_connections: Some(user.connections_max).filter(|max| *max > 0),
            policies,
        }
    }
}

#[derive(Serialize)]
struct MadeJson<'a> {
    name: &'a str,
    /// Of one that was made up: shown here and never again.
    secret: Option<&'a str>,
}

pub(crate) async fn run(command: UserCommand, node: &Node, format: Format) -> anyhow::Result<()> {
    match command {
        UserCommand::Create { name, secret_file, user_type, quotas } => {
            let given = secret_file.as_deref().map(read_secret).transpose()?;
            if given.is_none() && format == Format::Name {
                let how = "-o name would not show the secret that is made: give --secret-file, or another -o";
                return Err(Incomplete(how.to_owned()).into());
            }
            let made = given.is_none().then(new_secret);
            let text = given.or_else(|| made.clone()).unwrap_or_default();
            let secret = Some(v1::Secret { text });
            let mut new = v1::NewUser { secret, user_type: user_type.to_proto(), ..Default::default() };
            quotas.sends.set(&mut new.messages_per_second, &mut new.bytes_per_second);
            new.connections_max = quotas.max_connections.unwrap_or(0);
            let brokers = change(node, &name, Change::Create(new)).await?;
            let secret = made.as_deref();
            if output::programs(format, &MadeJson { name: &name, secret }, |made| [made.name])? {
                return Ok(());
            }
            print_changed(&name, &brokers, format)?;
            secret.map_or(Ok(()), |secret| {
                Ok(output::line(&format!("secret: {secret}\nIt is not shown again."))?)
            })
        }
        UserCommand::Update(args) => {
            let secret = args.secret_file.as_deref().map(read_secret).transpose()?;
            let (messages_per_second, bytes_per_second) = args.quotas.sends.typed();
            let settings = v1::UserSettings {
                messages_per_second,
                bytes_per_second,
                connections_max: args.quotas.max_connections,
                secret: secret.map(|text| v1::Secret { text }),
                user_type: args.user_type.map_or(v1::UserType::Unspecified.into(), TypeWord::to_proto),
                disabled: (args.enable || args.disable).then_some(args.disable),
            };
            let brokers = change(node, &args.name, Change::Update(settings)).await?;
            print_changed(&args.name, &brokers, format)
        }
        UserCommand::Delete { name, yes } => {
            if !confirm(&format!("Delete user {name}? Its clients are refused at once."), yes)? {
                return Ok(());
            }
            let brokers = change(node, &name, Change::Delete(true)).await?;
            print_changed(&name, &brokers, format)
        }
        UserCommand::List => {
            let users: Vec<UserJson> = list(node, "").await?.into_iter().map(UserJson::of).collect();
            if output::programs(format, &users, |users| users.iter().map(|user| user.name.as_str()))? {
                return Ok(());
            }
            table(users)
        }
        UserCommand::Show { name } => {
            let users: Vec<UserJson> = list(node, &name).await?.into_iter().map(UserJson::of).collect();
            let known = users.into_iter().next();
            let user = known.ok_or_else(|| NotFound(format!("there is no user {name:?}")))?;
            if output::programs(format, &user, |user| [user.name.as_str()])? {
                return Ok(());
            }
            let state = if user.enabled { "enabled" } else { "disabled" };
            output::line(&format!("{}: {} user, {state}", user.name, user.r#type))?;
            if let Some(rates) =
                quota::rates_in_words(user.max_messages_per_second, user.max_bytes_per_second)
            {
                output::line(&format!("sends at most {rates} through each node"))?;
            }
            if let Some(max) = user.max_connections {
                output::line(&format!("has at most {max} connections to each node"))?;
            }
            acl::table(user.policies)
        }
    }
}

fn table(users: Vec<UserJson>) -> anyhow::Result<()> {
    let cells = |user: UserJson| {
        let state = if user.enabled { "enabled" } else { "disabled" };
        vec![user.name, user.r#type.to_owned(), state.to_owned(), user.policies.len().to_string()]
    };
    let columns = [text("USER"), text("TYPE"), text("STATUS"), number("POLICIES")];
    Ok(output::table(&columns, users.into_iter().map(cells).collect())?)
}

/// A secret that nobody guesses.
pub(crate) fn new_secret() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Changes a user on all brokers.
pub(crate) async fn change(node: &Node, name: &str, change: Change) -> anyhow::Result<Vec<v1::BrokerResult>> {
    let request = v1::ChangeUserRequest { name: name.to_owned(), change: Some(change) };
    let response = node.answer(node.admin()?.change_user(node.request(request))).await?;
    Ok(response.brokers)
}

/// All users, or the one of this name.
pub(crate) async fn list(node: &Node, name: &str) -> anyhow::Result<Vec<v1::User>> {
    let request = node.request(v1::ListUsersRequest { name: name.to_owned() });
    Ok(node.answer(node.admin()?.list_users(request)).await?.users)
}

/// What the file holds, without the end of its line.
pub(crate) fn read_secret(path: &Path) -> anyhow::Result<String> {
    let read = if path == Path::new("-") {
        let mut text = String::new();
        io::stdin().lock().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    let text = read.with_context(|| format!("read the secret in {}", path.display()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}
