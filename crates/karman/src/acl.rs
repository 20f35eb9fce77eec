//! `karman acl`: what users may do.

use clap::{Args, Subcommand, ValueEnum};
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::change_user_request::Change;
use serde::Serialize;

use crate::cli::NotFound;
use crate::confirm::confirm;
use crate::node::{Node, print_changed};
use crate::output::{self, Format, text};
use crate::user::{change, list};

#[derive(Debug, Subcommand)]
pub(crate) enum AclCommand {
    /// Allow or deny a user something; a policy of the same resource is refused
    #[command(after_help = "\
Of the policies that fit, the most specific decides: a name before a prefix, a longer prefix before a shorter, then *;
of two that are equal, deny. What none fits is denied.

Example:
  karman acl create shop --resource Topic:orders --actions Pub
  karman acl create shop --resource 'Group:shop-*' --actions Sub --source-ip 10.0.0.0/8
  karman acl create shop --resource 'Topic:*' --actions All --decision deny")]
    Create(PolicyArgs),
    /// Replace the policies of these resources, or add them
    #[command(after_help = "\
Example:
  karman acl update shop --resource Topic:orders --actions Pub,Sub")]
    Update(PolicyArgs),
    /// Take back what was said of one resource, or of all
    #[command(after_help = "\
Without --yes it is asked first; a script gives --yes.

Example:
  karman acl delete shop --resource Topic:orders --yes
  karman acl delete shop --yes")]
    Delete {
        /// The user
        user: String,
        /// Only this resource
        #[arg(long)]
        resource: Option<String>,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
    },
    /// List what all users may do
    #[command(after_help = "Example:\n  karman acl list")]
    List,
    /// Show what one user may do
    #[command(after_help = "Example:\n  karman acl show shop")]
    Show {
        /// The user
        user: String,
    },
}

#[derive(Args, Debug)]
pub(crate) struct PolicyArgs {
    /// The user
    user: String,
    /// *, or Topic:, Group: or Cluster: with a name, the beginning of names and *, or *; several separated by commas
    #[arg(long, required = true, value_delimiter = ',')]
    resource: Vec<String>,
    /// All, or some of Pub Sub Create Update Delete Get List, separated by commas
    #[arg(long, required = true, value_delimiter = ',')]
    actions: Vec<String>,
    /// Only from this address or network, for example 10.0.0.0/8; several separated by commas
    #[arg(long, value_delimiter = ',')]
    source_ip: Vec<String>,
    /// What it says
    #[arg(long, value_enum, default_value_t = DecisionWord::Allow)]
    decision: DecisionWord,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum DecisionWord {
    Allow,
    Deny,
}

impl PolicyArgs {
    fn policies(&self) -> v1::Policies {
        let decision = match self.decision {
            DecisionWord::Allow => v1::Decision::Allow,
            DecisionWord::Deny => v1::Decision::Deny,
        };
        let policy = |resource: &String| v1::Policy {
            resource: resource.clone(),
            actions: self.actions.clone(),
            source_ips: self.source_ip.clone(),
            decision: decision.into(),
        };
        v1::Policies { policies: self.resource.iter().map(policy).collect() }
    }
}

/// A policy as programs read it.
#[derive(Serialize)]
pub(crate) struct PolicyJson {
    resource: String,
    actions: Vec<String>,
    /// Empty: from anywhere.
    source_ips: Vec<String>,
    /// allow or deny
    decision: &'static str,
}

impl PolicyJson {
    pub(crate) fn of(policy: v1::Policy) -> Self {
        let decision = if policy.decision() == v1::Decision::Allow { "allow" } else { "deny" };
        let v1::Policy { resource, actions, source_ips, .. } = policy;
        Self { resource, actions, source_ips, decision }
    }

    fn cells(self) -> Vec<String> {
        let from = if self.source_ips.is_empty() { "anywhere".to_owned() } else { self.source_ips.join(" ") };
        vec![self.resource, self.actions.join(" "), from, self.decision.to_owned()]
    }
}

#[derive(Serialize)]
struct AclJson {
    user: String,
    policies: Vec<PolicyJson>,
}

impl AclJson {
    fn of(user: v1::User) -> Self {
        Self { user: user.name, policies: user.policies.into_iter().map(PolicyJson::of).collect() }
    }
}

pub(crate) async fn run(command: AclCommand, node: &Node, format: Format) -> anyhow::Result<()> {
    match command {
        AclCommand::Create(args) => {
            let known = list(node, &args.user).await?;
            let mut resources = known.iter().flat_map(|user| &user.policies).map(|policy| &policy.resource);
            if let Some(there) = resources.find(|resource| args.resource.contains(resource)) {
                anyhow::bail!(
                    "user {:?} has a policy for {there} already; change it with an update",
                    args.user
                );
            }
            put(&args, node, format).await
        }
        AclCommand::Update(args) => put(&args, node, format).await,
        AclCommand::Delete { user, resource, yes } => {
            let what = resource.as_deref().unwrap_or("everything");
            if !confirm(&format!("Delete what was said of {what} for user {user}?"), yes)? {
                return Ok(());
            }
            let wanted = resource.map_or(Change::DeletePolicies(true), Change::DeletePolicy);
            let brokers = change(node, &user, wanted).await?;
            print_changed(&user, &brokers, format)
        }
        AclCommand::List => {
            let acls: Vec<AclJson> = list(node, "").await?.into_iter().map(AclJson::of).collect();
            if output::programs(format, &acls, |acls| acls.iter().map(|acl| acl.user.as_str()))? {
                return Ok(());
            }
            let rows = acls.into_iter().flat_map(|acl| {
                let user = acl.user;
                acl.policies.into_iter().map(move |policy| [vec![user.clone()], policy.cells()].concat())
            });
            let columns = [text("USER"), text("RESOURCE"), text("ACTIONS"), text("FROM"), text("DECISION")];
            Ok(output::table(&columns, rows.collect())?)
        }
        AclCommand::Show { user } => {
            let known = list(node, &user).await?.into_iter().next();
            let acl = AclJson::of(known.ok_or_else(|| NotFound(format!("there is no user {user:?}")))?);
            let is_written = output::programs(format, &acl, |acl| {
                acl.policies.iter().map(|policy| policy.resource.as_str())
            });
            if is_written? { Ok(()) } else { table(acl.policies) }
        }
    }
}

async fn put(args: &PolicyArgs, node: &Node, format: Format) -> anyhow::Result<()> {
    let brokers = change(node, &args.user, Change::PutPolicies(args.policies())).await?;
    print_changed(&args.user, &brokers, format)
}

pub(crate) fn table(policies: Vec<PolicyJson>) -> anyhow::Result<()> {
    let columns = [text("RESOURCE"), text("ACTIONS"), text("FROM"), text("DECISION")];
    Ok(output::table(&columns, policies.into_iter().map(PolicyJson::cells).collect())?)
}
