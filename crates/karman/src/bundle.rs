//! `karman bundle`: what a cluster says of itself, in one file for whoever helps. No secrets and no messages: nodes hide their
//! secrets before they answer, and nothing that holds a body is asked for. What does not answer is noted and does not stop it.
//! On the main thread; blocks while it writes.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use karman_remoting::secret::HIDDEN;
use serde::Serialize;

use crate::cluster::node_config::{self, NodeConfigJson};
use crate::node::Node;
use crate::output::{self, Format, bytes};
use crate::user::UserJson;
use crate::{client, cluster, controller, doctor, group, ready, time, topic, user};

/// Of the metrics of one node.
const METRICS_MAX_BYTES: u64 = 16 << 20;
/// Of the end of one log file.
const LOG_MAX_BYTES: u64 = 4 << 20;
/// Topics whose routes are asked for.
const ROUTES_MAX: usize = 200;

pub(crate) const AFTER_HELP: &str = "\
In it: versions, brokers, controllers, configurations, topics with their routes, groups with what waits for them, clients,
users and what they may do, metrics, what karman doctor finds, the end of the log files that are named. Not in it:
secrets, and messages. It names hosts, topics, groups, clients and users: look into it before it leaves the house. Nodes write their
logs where they run; no call gives them out.

Example:
  karman bundle karman.tar.gz
  karman bundle karman.tar.gz --log /var/log/karman/broker.log --node broker-b:8081";

#[derive(Args, Debug)]
pub(crate) struct BundleArgs {
    /// Where to; a file that is there is an error
    #[arg(value_name = "FILE.tar.gz", value_parser = archive)]
    file: PathBuf,
    /// One more node to look at from here, as karman doctor does: a broker that is down is in no list of its cluster
    #[arg(long, value_name = "HOST:PORT")]
    node: Vec<String>,
    /// The metrics address of one more node; those that nodes are configured with are asked anyway
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Vec<String>,
    /// A log file of this machine, of which the last 4 MiB are taken; may be given several times
    #[arg(long, value_name = "FILE")]
    log: Vec<PathBuf>,
}

fn archive(text: &str) -> Result<PathBuf, String> {
    let is_one = text.ends_with(".tar.gz") || text.ends_with(".tgz");
    if is_one { Ok(PathBuf::from(text)) } else { Err("it is a .tar.gz or .tgz".to_owned()) }
}

/// The files of a bundle, and what is missing in it.
#[derive(Default)]
struct Collected {
    files: Vec<(String, Vec<u8>)>,
    problems: Vec<String>,
}

impl Collected {
    fn add<T: Serialize>(&mut self, name: &str, found: anyhow::Result<T>) -> Option<T> {
        let written = found.and_then(|found| Ok((serde_json::to_vec_pretty(&found)?, found)));
        match written {
            Ok((content, found)) => {
                self.files.push((name.to_owned(), content));
                Some(found)
            }
            Err(error) => {
                self.problems.push(format!("{name}: {error:#}"));
                None
            }
        }
    }
}

#[derive(Serialize)]
struct VersionsJson {
    karman: &'static str,
    architecture: &'static str,
    system: String,
    now_ms: u64,
    endpoint: String,
}

#[derive(Serialize)]
struct RouteJson {
    topic: String,
    /// What clients are told, or why they are told nothing.
    brokers: Vec<String>,
    error: Option<String>,
}

#[derive(Serialize)]
struct BundleJson {
    file: String,
    bytes: u64,
    entries: Vec<EntryJson>,
    /// What is missing in it.
    problems: Vec<String>,
}

#[derive(Serialize)]
struct EntryJson {
    name: String,
    bytes: usize,
}

pub(crate) async fn run(args: BundleArgs, node: &Node, format: Format) -> anyhow::Result<()> {
    // Before anybody is asked: it would be for nothing.
    let made = File::create_new(&args.file);
    let file = made.with_context(|| format!("make {}", args.file.display()))?;
    let mut collected = collect(&args, node).await;
    hide(&mut collected, node.cluster_secret.reveal());
    let packed = pack(&file, &collected);
    packed.with_context(|| format!("write {}", args.file.display()))?;
    let bundle = BundleJson {
        file: args.file.display().to_string(),
        bytes: file.metadata()?.len(),
        entries: collected
            .files
            .iter()
            .map(|(name, content)| EntryJson { name: name.clone(), bytes: content.len() })
            .collect(),
        problems: collected.problems,
    };
    if output::programs(format, &bundle, |bundle| [bundle.file.as_str()])? {
        return Ok(());
    }
    for problem in &bundle.problems {
        output::paragraph(0, &format!("missing: {problem}"))?;
    }
    let (count, size) = (bundle.entries.len(), bytes(bundle.bytes));
    Ok(output::line(&format!("{count} files, {size}: {}", bundle.file))?)
}

async fn collect(args: &BundleArgs, node: &Node) -> Collected {
    let mut collected = Collected::default();
    let kernel = rustix::system::uname();
    let words = [kernel.sysname(), kernel.release(), kernel.version()];
    let versions = VersionsJson {
        karman: env!("CARGO_PKG_VERSION"),
        architecture: std::env::consts::ARCH,
        system: words.map(|word| word.to_string_lossy().into_owned()).join(" "),
        now_ms: time::now_ms(),
        endpoint: node.endpoint.clone(),
    };
    collected.add("versions.json", Ok(versions));
    collected.add("cluster.json", cluster::rows(node).await);
    match controller::shown(node).await {
        Ok((shown, _)) => drop(collected.add("controllers.json", Ok(shown))),
        // Without controllers roles are fixed, and a broker has none to ask.
        Err(error) if error.is::<controller::NoController>() => {}
        Err(error) => collected.problems.push(format!("controllers.json: {error:#}")),
    }
    let configs = collected.add("config.json", node_config::rows(node).await).unwrap_or_default();
    for silent in configs.iter().filter(|config| !config.is_known()) {
        collected.problems.push(format!("config.json: {} did not answer", silent.node));
    }
    let topics = collected.add("topics.json", topic::rows(node).await).unwrap_or_default();
    let names: BTreeSet<&str> = topics.iter().map(topic::TopicJson::name).collect();
    if names.len() > ROUTES_MAX {
        collected.problems.push(format!("routes.json: only {ROUTES_MAX} of {} topics", names.len()));
    }
    let mut routes = Vec::new();
    for name in names.into_iter().take(ROUTES_MAX) {
        routes.push(route(name, node).await);
    }
    collected.add("routes.json", Ok(routes));
    collected.add("groups.json", group::rows(node).await);
    collected.add("clients.json", client::rows(String::new(), String::new(), node).await);
    let users = user::list(node, "").await;
    let users = users.map(|users| users.into_iter().map(UserJson::of).collect::<Vec<_>>());
    collected.add("users.json", users);
    let findings = doctor::look(node, &args.node).await;
    collected.problems.extend(findings.iter().filter_map(doctor::Finding::error_text));
    collected.add("doctor.json", Ok(findings));
    metrics(args, node, &configs, &mut collected);
    for path in &args.log {
        match end_of(path) {
            Ok(content) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let number = collected.files.len();
                collected.files.push((format!("logs/{number}-{name}"), content));
            }
            Err(error) => collected.problems.push(format!("{}: {error}", path.display())),
        }
    }
    let problems = collected.problems.iter().map(|problem| format!("{problem}\n")).collect::<String>();
    collected.files.push(("missing.txt".to_owned(), problems.into_bytes()));
    collected
}

async fn route(topic: &str, node: &Node) -> RouteJson {
    let masters = node.masters_of(topic).await;
    let (brokers, error) = match masters {
        Ok(masters) => (masters.into_iter().map(|master| master.address).collect(), None),
        Err(error) => (Vec::new(), Some(format!("{error:#}"))),
    };
    RouteJson { topic: topic.to_owned(), brokers, error }
}

/// Of every node whose configuration says where they are, and of those that are named.
fn metrics(args: &BundleArgs, node: &Node, configs: &[NodeConfigJson], collected: &mut Collected) {
    let asked = configs.iter().filter_map(|config| {
        let listens = config.config.get("metricsListenAddress").filter(|address| !address.is_empty())?;
        // It listens everywhere: where it is called is where clients or the asked one are.
        let advertised = config.config.get("brokerIP1").filter(|host| !host.is_empty());
        let host = advertised.map_or_else(|| host_of(node.address()), String::as_str);
        let (own, port) = listens.rsplit_once(':')?;
        let is_anywhere = ["0.0.0.0", "[::]", ""].contains(&own);
        let address = if is_anywhere { format!("{host}:{port}") } else { listens.clone() };
        Some((config.node.replace(' ', "-"), address))
    });
    let named = args.metrics.iter().map(|address| (address.replace([':', '/'], "-"), address.clone()));
    for (name, address) in asked.chain(named) {
        match ready::get(&address, "/metrics", METRICS_MAX_BYTES) {
            Ok(answer) => {
                let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
                collected.files.push((format!("metrics/{name}.txt"), body.as_bytes().to_vec()));
            }
            Err(error) => collected.problems.push(format!("metrics of {name} at {address}: {error}")),
        }
    }
}

fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

fn end_of(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_MAX_BYTES)))?;
    let mut content = Vec::new();
    file.take(LOG_MAX_BYTES).read_to_end(&mut content)?;
    Ok(content)
}

/// No node tells its secret; a log of somebody else may.
fn hide(collected: &mut Collected, secret: &str) {
    if secret.is_empty() {
        return;
    }
    for (_, content) in &mut collected.files {
        let text = String::from_utf8_lossy(content);
        if text.contains(secret) {
            *content = text.replace(secret, HIDDEN).into_bytes();
        }
    }
}

fn pack(file: &File, collected: &Collected) -> std::io::Result<()> {
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    for (name, content) in &collected.files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(time::now_ms() / 1000);
        archive.append_data(&mut header, format!("karman-bundle/{name}"), content.as_slice())?;
    }
    archive.into_inner()?.finish()?.flush()?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_in_a_log_is_hidden() {
        let mut collected = Collected::default();
        collected.files.push(("logs/other.log".into(), b"secret=pssst, again pssst".to_vec()));
        hide(&mut collected, "pssst");
        assert_eq!(collected.files[0].1, b"secret=<hidden>, again <hidden>");
        // Where there is none, nothing is hidden.
        hide(&mut collected, "");
        assert_eq!(collected.files[0].1, b"secret=<hidden>, again <hidden>");
    }

    #[test]
    fn only_the_end_of_a_log_is_taken() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(LOG_MAX_BYTES + 10).unwrap();
        assert_eq!(end_of(file.path()).unwrap().len() as u64, LOG_MAX_BYTES);
    }
}
