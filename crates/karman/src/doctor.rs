//! `karman doctor`: looks at a cluster from where its clients are, and says what is wrong and what to do. Changes nothing. Main
//! thread; addresses are tried beside one another.

mod disk;
mod judge;
mod probe;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use karman_remoting::proto::karman as v1;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::controller::{self, NoController};
use crate::node::Node;
use crate::output::{self, Format, text};
use crate::time;

pub(crate) const AFTER_HELP: &str = "\
It looks at the node of -e, at those that are named, and at every master and controller that they know of: whether it
answers and how fast, what addresses clients are told, TLS and when certificates end, clocks, versions, disks, open files,
replicas. Clocks are compared by what answers say of the time, to a second. -o name writes the nodes that something is
wrong with.

Exit codes: 0 no errors, maybe warnings; 1 errors.

Example:
  karman doctor
  karman doctor -e namesrv-1:9876 namesrv-2:9876 namesrv-3:9876
  karman doctor --disk /var/lib/karman-broker -o json";

#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Further nodes to look at, for example all namesrvs
    #[arg(value_name = "HOST:PORT")]
    nodes: Vec<String>,
    /// Measure the disk with this directory of this machine: 64 MiB are written there for a moment
    #[arg(long, value_name = "DIR")]
    disk: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    Warning,
    Error,
}

/// One line of what was found.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    level: Level,
    /// What was looked at.
    check: &'static str,
    /// Where; addresses have the names of their brokers beside them.
    node: String,
    message: String,
    /// What to do; none if nothing is wrong.
    advice: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, node: &str, message: String) -> Self {
        Self { level: Level::Ok, check, node: node.to_owned(), message, advice: None }
    }

    fn warning(check: &'static str, node: &str, message: String, advice: &str) -> Self {
        Self { level: Level::Warning, advice: Some(advice.to_owned()), ..Self::ok(check, node, message) }
    }

    fn error(check: &'static str, node: &str, message: String, advice: &str) -> Self {
        Self { level: Level::Error, ..Self::warning(check, node, message, advice) }
    }
}

impl Finding {
    /// An error in one line.
    pub(crate) fn error_text(&self) -> Option<String> {
        let is_error = self.level == Level::Error;
        is_error.then(|| format!("{} {}: {}", self.node, self.check, self.message))
    }
}

#[derive(Serialize)]
struct ReportJson {
    errors: usize,
    warnings: usize,
    findings: Vec<Finding>,
}

pub(crate) async fn run(args: DoctorArgs, node: &Node, format: Format) -> anyhow::Result<()> {
    let mut findings = match &args.disk {
        Some(directory) => disk::look(directory),
        None => Vec::new(),
    };
    findings.extend(look(node, &args.nodes).await);
    report(findings, format)
}

/// What is found from here, the named nodes included.
pub(crate) async fn look(node: &Node, nodes: &[String]) -> Vec<Finding> {
    let mut addresses = Addresses::default();
    for named in std::iter::once(&node.endpoint).chain(nodes) {
        addresses.add(named, "");
    }
    let asked = format!("{} (asked)", node.address());
    let mut findings = brokers(node, &asked, &mut addresses).await;
    findings.extend(controllers(node, &asked, &mut addresses).await);
    for probe in addresses.probe().await {
        let name = addresses.name(&probe.address);
        findings.extend(judge::address(&probe, &name, time::now_ms()));
    }
    findings
}

/// What is to be tried, each address once, with whose it is.
#[derive(Default)]
struct Addresses(BTreeMap<String, Vec<String>>);

impl Addresses {
    fn add(&mut self, endpoint: &str, whose: &str) {
        let bare = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
        let names = self.0.entry(bare.unwrap_or(endpoint).to_owned()).or_default();
        if !whose.is_empty() {
            names.push(whose.to_owned());
        }
    }

    fn name(&self, address: &str) -> String {
        match self.0.get(address).map(Vec::as_slice).unwrap_or_default() {
            [] => address.to_owned(),
            names => format!("{address} ({})", names.join(", ")),
        }
    }

    /// In the order of the addresses, whoever answers first.
    async fn probe(&self) -> Vec<probe::Probe> {
        let mut tried = JoinSet::new();
        for address in self.0.keys() {
            tried.spawn(probe::run(address.clone()));
        }
        let mut probes = tried.join_all().await;
        probes.sort_by(|a, b| a.address.cmp(&b.address));
        probes
    }
}

/// What brokers say of themselves; their addresses are noted.
async fn brokers(node: &Node, asked: &str, addresses: &mut Addresses) -> Vec<Finding> {
    let call = async {
        let request = node.request(v1::DescribeClusterRequest {});
        node.answer(node.admin()?.describe_cluster(request)).await
    };
    let brokers = match call.await {
        Ok(response) => response.brokers,
        Err(error) => {
            let advice = "name a node that runs with -e HOST:PORT, and say who calls: karman doctor --help";
            return vec![Finding::error("cluster", asked, format!("{error:#}"), advice)];
        }
    };
    let mut findings = vec![judge::cluster(&brokers, asked)];
    findings.extend(judge::versions(&brokers, asked));
    for broker in brokers {
        if !broker.endpoint.is_empty() {
            addresses.add(&broker.endpoint, &broker.broker_name);
            findings.push(judge::advertised(&broker, node.address()));
        }
        findings.extend(judge::broker(&broker));
    }
    findings
}

/// What the controllers say, if the node that is asked has one; their addresses are noted.
async fn controllers(node: &Node, asked: &str, addresses: &mut Addresses) -> Vec<Finding> {
    match controller::describe(node).await {
        Ok((response, checked)) => {
            for controller in &response.controllers {
                addresses.add(&controller.address, &format!("controller {}", controller.id));
            }
            judge::controllers(&response, checked.err().map(|error| format!("{error:#}")), asked)
        }
        // Without controllers roles are fixed, and a broker has none to ask.
        Err(error) if error.is::<NoController>() => Vec::new(),
        // That it does not answer is said already.
        Err(_) => Vec::new(),
    }
}

fn report(findings: Vec<Finding>, format: Format) -> anyhow::Result<()> {
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let report = ReportJson { errors: count(Level::Error), warnings: count(Level::Warning), findings };
    let wrong = |finding: &&Finding| finding.level != Level::Ok;
    let is_written = output::programs(format, &report, |report| {
        report.findings.iter().filter(wrong).map(|finding| finding.node.as_str())
    })?;
    if !is_written {
        let cells = |finding: &Finding| {
            let level = match finding.level {
                Level::Ok => "ok",
                Level::Warning => "warning",
                Level::Error => "ERROR",
            };
            let advice = finding.advice.iter().map(|advice| format!("\n-> {advice}"));
            let told = std::iter::once(finding.message.clone()).chain(advice).collect();
            vec![level.to_owned(), finding.check.to_owned(), finding.node.clone(), told]
        };
        let columns = [text("STATE"), text("CHECK"), text("NODE"), text("FOUND")];
        output::table(&columns, report.findings.iter().map(cells).collect())?;
    }
    match report.errors {
        0 => Ok(()),
        1 => anyhow::bail!("1 error, see above"),
        errors => anyhow::bail!("{errors} errors, see above"),
    }
}
