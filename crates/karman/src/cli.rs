//! What can be typed, and what becomes of an error. Everything runs on the main thread; `bench` starts its own.

#[cfg(test)]
mod mqadmin;
mod target;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use clap_complete::Shell;
use karman_client::{ClientError, Code};

use crate::node::Node;
use crate::output::Format;
use crate::{
    acl, backup, bench, bundle, client, cluster, config, context, dev, dlq, doctor, generate, group, message,
    offset, output, ready, shell, store, top, topic, user,
};

pub(crate) use target::Said;
use target::{Target, TargetArgs};

const EXIT_FAILED: u8 = 1;
/// Also clap's.
const EXIT_COMMAND_LINE: u8 = 2;
const EXIT_NOT_FOUND: u8 = 3;
const EXIT_DAMAGED: u8 = 4;

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 failed or refused, 2 the command line is wrong or a script left out --yes, 3 a topic, group or
message does not exist, 4 a store is damaged or needs a repair, or a backup is damaged

Example:
  karman dev --topic orders
  karman message send orders --body 'a book'
  karman message receive orders --group shipping";

/// The command of Karman, a message queue.
#[derive(Debug, Parser)]
#[command(name = "karman", version, after_help = AFTER_HELP)]
struct Cli {
    /// How results are written
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,

    #[command(flatten)]
    target: TargetArgs,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a namesrv and a broker in one process; nothing else is needed
    #[command(after_help = dev::AFTER_HELP)]
    Dev(dev::DevArgs),
    /// Verify, look at and repair what a broker has stored
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Print what a configuration may hold, check one, import one of RocketMQ
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Keep clusters under names: an endpoint, and who calls there
    #[command(subcommand)]
    Context(context::ContextCommand),
    /// Write what a shell needs to complete command lines
    #[command(after_help = shell::COMPLETIONS_HELP)]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write manual pages, one for each command
    #[command(after_help = shell::MAN_HELP)]
    Man {
        /// Where to; it is made if it is missing
        directory: PathBuf,
    },
    /// Write what a deployment needs: compose, systemd, Grafana, Prometheus
    #[command(subcommand)]
    Generate(generate::GenerateCommand),
    /// Ask a node whether it is ready
    #[command(after_help = ready::AFTER_HELP)]
    Ready(ready::ReadyArgs),
    #[command(flatten)]
    Online(OnlineCommand),
}

impl Command {
    /// Whether results have no names, as is known before there are any.
    fn is_nameless(&self) -> bool {
        use OnlineCommand::{Backup, Bench, Restore};
        matches!(self, Self::Store(_) | Self::Generate(_) | Self::Online(Bench(_) | Backup(_) | Restore(_)))
    }
}

/// Something that was asked for does not exist; the text says what.
#[derive(Debug)]
pub(crate) struct NotFound(pub(crate) String);

/// The command line leaves something open; the text says what to add.
#[derive(Debug)]
pub(crate) struct Incomplete(pub(crate) String);

/// A store is not as it should be, which was printed; the text sums it up.
#[derive(Debug)]
pub(crate) struct Damaged(pub(crate) String);

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Incomplete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotFound {}
impl std::error::Error for Incomplete {}
impl std::error::Error for Damaged {}

/// What is done through a node of a cluster.
#[derive(Debug, Subcommand)]
enum OnlineCommand {
    /// Create, list, show, change and delete topics
    #[command(subcommand)]
    Topic(topic::TopicCommand),
    /// Create, show, change, suspend and list consumer groups
    #[command(subcommand)]
    Group(group::GroupCommand),
    /// Move a group on a topic: back, forward, or to where another group is
    #[command(subcommand)]
    Offset(offset::OffsetCommand),
    /// Look at dead letters, export them and send them back
    #[command(subcommand)]
    Dlq(dlq::DlqCommand),
    /// Send, receive, find and explain messages
    #[command(subcommand)]
    Message(message::MessageCommand),
    /// Look at producers and consumers
    #[command(subcommand)]
    Client(client::ClientCommand),
    /// Create, change, delete and list users
    #[command(subcommand)]
    User(user::UserCommand),
    /// Say what users may do
    #[command(subcommand)]
    Acl(acl::AclCommand),
    /// Look at the brokers
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Look for what is wrong with a cluster, from here, and say what to do
    #[command(after_help = doctor::AFTER_HELP)]
    Doctor(doctor::DoctorArgs),
    /// Watch brokers, topics and groups: what comes in, what goes out, what waits
    #[command(after_help = top::AFTER_HELP)]
    Top(top::TopArgs),
    /// Copy topics, groups, users and messages into files
    #[command(after_help = backup::BACKUP_HELP)]
    Backup(backup::BackupArgs),
    /// Put what a backup holds into a cluster
    #[command(after_help = backup::RESTORE_HELP)]
    Restore(backup::RestoreArgs),
    /// Collect what whoever helps needs to see, without secrets, in one file
    #[command(after_help = bundle::AFTER_HELP)]
    Bundle(bundle::BundleArgs),
    /// Measure a cluster, or the RPC layer under it
    #[command(subcommand)]
    Bench(bench::BenchCommand),
}

/// Runs the command of the process's arguments.
pub(crate) fn run() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match execute(cli, &matches) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough of it.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output_error(&error);
            ExitCode::from(exit_code(&error))
        }
    }
}

fn execute(cli: Cli, matches: &ArgMatches) -> anyhow::Result<()> {
    let Cli { output, target, command } = cli;
    if output == Format::Name && command.is_nameless() {
        return Err(Incomplete(output::NAMELESS.to_owned()).into());
    }
    let target = Target::new(target, matches);
    match command {
        Command::Dev(args) => dev::run(args, target.own_secret()),
        Command::Ready(args) => ready::run(&args, output),
        Command::Config(command) => config::run(command, output),
        Command::Context(command) => {
            let named = target.named_context();
            context::run(command, target.typed, named, output)
        }
        Command::Completions { shell } => shell::completions(shell, &mut Cli::command()),
        Command::Man { directory } => shell::man(&directory, Cli::command()),
        Command::Generate(command) => generate::run(command),
        Command::Store(command) => store::run(command, || Ok(target.node()?.0), output),
        Command::Online(command) => {
            let (node, context) = target.node()?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let result = runtime.block_on(operate(command, &node, output));
            // Whoever typed no endpoint wants to know whose it is.
            result.map_err(|error| match context {
                Some(name) if error.is::<ClientError>() => error.context(format!("context {name}")),
                _ => error,
            })
        }
    }
}

async fn operate(command: OnlineCommand, node: &Node, format: Format) -> anyhow::Result<()> {
    match command {
        OnlineCommand::Topic(command) => topic::run(command, node, format).await,
        OnlineCommand::Group(command) => group::run(command, node, format).await,
        OnlineCommand::Offset(command) => offset::run(command, node, format).await,
        OnlineCommand::Dlq(command) => dlq::run(command, node, format).await,
        OnlineCommand::Client(command) => client::run(command, node, format).await,
        OnlineCommand::Message(command) => message::run(command, node, format).await,
        OnlineCommand::User(command) => user::run(command, node, format).await,
        OnlineCommand::Acl(command) => acl::run(command, node, format).await,
        OnlineCommand::Cluster(command) => cluster::run(command, node, format).await,
        OnlineCommand::Doctor(args) => doctor::run(args, node, format).await,
        OnlineCommand::Top(args) => top::run(args, node, format).await,
        OnlineCommand::Backup(args) => backup::backup(args, node, format).await,
        OnlineCommand::Restore(args) => backup::restore(args, node, format).await,
        OnlineCommand::Bundle(args) => bundle::run(args, node, format).await,
        OnlineCommand::Bench(command) => bench::run(command, node, format).await,
    }
}

fn output_error(error: &anyhow::Error) {
    eprintln!("karman: {error:#}");
    if let Some(hint) = error.downcast_ref::<ClientError>().and_then(hint) {
        eprintln!("{hint}");
    }
}

/// What to type next.
fn hint(error: &ClientError) -> Option<&'static str> {
    match error {
        ClientError::Unreachable { .. } => Some(
            "Start a node with `karman dev`, or name one of a running cluster with -e HOST:PORT or KARMAN_ENDPOINT.",
        ),
        ClientError::Refused { code: Code::TopicNotFound, .. } => {
            Some("`karman topic list` shows the topics there are, `karman topic create NAME` makes one.")
        }
        ClientError::Refused { code: Code::ConsumerGroupNotFound, .. } => {
            Some("`karman group list` shows the groups there are, `karman group create NAME` makes one.")
        }
        _ => None,
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<Damaged>() {
        return EXIT_DAMAGED;
    }
    if error.is::<Incomplete>() {
        return EXIT_COMMAND_LINE;
    }
    if error.is::<NotFound>() {
        return EXIT_NOT_FOUND;
    }
    match error.downcast_ref::<ClientError>().and_then(ClientError::code) {
        Some(Code::TopicNotFound | Code::ConsumerGroupNotFound | Code::NotFound) => EXIT_NOT_FOUND,
        _ => EXIT_FAILED,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            let leaf = command.get_subcommands().next().is_none();
            let example = command.get_after_help().is_some_and(|help| help.to_string().contains("Example"));
            assert!(!leaf || command.is_hide_set() || example, "{path} has no example");
            command.get_subcommands().for_each(|sub| check(sub, &path));
        }
        check(&Cli::command(), "");
    }

    #[test]
    fn what_does_not_exist_has_an_exit_code_of_its_own() {
        let refused = |code| ClientError::Refused { endpoint: "n:1".into(), code, message: String::new() };
        assert_eq!(exit_code(&refused(Code::TopicNotFound).into()), EXIT_NOT_FOUND);
        assert_eq!(exit_code(&refused(Code::Forbidden).into()), EXIT_FAILED);
        assert_eq!(
            exit_code(&anyhow::Error::from(refused(Code::TopicNotFound)).context("more")),
            EXIT_NOT_FOUND
        );
        assert_eq!(exit_code(&anyhow::anyhow!("else")), EXIT_FAILED);
        assert_eq!(exit_code(&NotFound(String::new()).into()), EXIT_NOT_FOUND);
        assert_eq!(exit_code(&Incomplete(String::new()).into()), EXIT_COMMAND_LINE);
        assert_eq!(exit_code(&Damaged(String::new()).into()), EXIT_DAMAGED);
    }
}
