//! `karman generate`: the files of `deploy/` that this build comes with, with the few values in place that people change. No node
//! is asked; main thread.

use std::path::PathBuf;

use anyhow::ensure;
use clap::{Subcommand, ValueEnum};

use crate::output;

const COMPOSE: &str = include_str!("../../../docker-compose.yml");
/// What compose reads to have controllers.
const CONTROLLERS: &str = include_str!("../../../deploy/docker/ha.env");
const BOARD: &str = include_str!("../../../deploy/grafana/karman.json");
const ALERTS: &str = include_str!("../../../deploy/grafana/alerts.yml");
const BROKER_UNIT: &str = include_str!("../../../deploy/systemd/karman-broker.service");
const NAMESRV_UNIT: &str = include_str!("../../../deploy/systemd/karman-namesrv.service");
const SYSUSERS: &str = include_str!("../../../deploy/systemd/karman.conf");

const IMAGE: &str = "karman:local";
const BINARIES: &str = "/usr/local/bin";
const JOB: &str = "karman";
/// The services that read files of the repository beside them.
const OBSERVABILITY: [&str; 2] = ["prometheus", "grafana"];

#[derive(Debug, Subcommand)]
pub(crate) enum GenerateCommand {
    /// docker-compose.yml: two namesrvs, two broker sets of a master and a slave each
    #[command(after_help = "\
Example:
  karman generate compose --image registry.example/karman:0.1.0 > docker-compose.yml
  karman generate compose --host 192.0.2.7 --bind 0.0.0.0 --controllers > docker-compose.yml")]
    Compose {
        /// The image of all nodes
        #[arg(long, default_value = IMAGE)]
        image: String,
        /// By what address clients know this machine
        #[arg(long, default_value = "127.0.0.1")]
        host: String,
        /// Where ports are opened; 0.0.0.0 for clients elsewhere
        #[arg(long, default_value = "127.0.0.1")]
        bind: String,
        /// Three namesrvs with controllers, which elect the masters
        #[arg(long)]
        controllers: bool,
    },
    /// A unit of systemd, or the user that it runs as
    #[command(after_help = "\
Example:
  karman generate systemd broker > /etc/systemd/system/karman-broker.service
  karman generate systemd namesrv --bin /opt/karman > /etc/systemd/system/karman-namesrv.service
  karman generate systemd sysusers > /usr/lib/sysusers.d/karman.conf")]
    Systemd {
        /// Of what
        #[arg(value_enum)]
        what: Unit,
        /// Where karman-broker and karman-namesrv are
        #[arg(long, value_name = "DIR", default_value = BINARIES)]
        bin: PathBuf,
    },
    /// The board of Grafana
    #[command(after_help = "Example:\n  karman generate grafana > karman.json")]
    Grafana {
        /// The job by which Prometheus knows the nodes
        #[arg(long, default_value = JOB)]
        job: String,
    },
    /// Alerts for Prometheus; docs/operations.md says what to do about each
    #[command(after_help = "Example:\n  karman generate prometheus-alerts --job mq > karman-alerts.yml")]
    PrometheusAlerts {
        /// The job by which Prometheus knows the nodes
        #[arg(long, default_value = JOB)]
        job: String,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Unit {
    Broker,
    Namesrv,
    /// The user, for sysusers.d
    Sysusers,
}

pub(crate) fn run(command: GenerateCommand) -> anyhow::Result<()> {
    let text = match command {
        GenerateCommand::Compose { image, host, bind, controllers } => {
            for (flag, value) in [("--image", &image), ("--host", &host), ("--bind", &bind)] {
                check(flag, value)?;
            }
            compose(&image, &host, &bind, controllers)
        }
        GenerateCommand::Systemd { what, bin } => {
            let bin = bin.to_string_lossy();
            check("--bin", &bin)?;
            ensure!(bin.starts_with('/'), "--bin {bin:?} is refused: systemd wants a path from / on");
            unit(what).replace(BINARIES, bin.trim_end_matches('/'))
        }
        GenerateCommand::Grafana { job } => {
            check("--job", &job)?;
            of_job(BOARD, r#"\""#, &job)
        }
        GenerateCommand::PrometheusAlerts { job } => {
            check("--job", &job)?;
            of_job(ALERTS, r#"""#, &job)
        }
    };
    Ok(output::line(text.trim_end())?)
}

/// What stands in a file of YAML, JSON or systemd as it is, whatever is around it.
fn check(flag: &str, value: &str) -> anyhow::Result<()> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/@[]".contains(&byte);
    ensure!(
        !value.is_empty() && value.bytes().all(is_plain),
        "{flag} {value:?} is refused: letters, digits and - _ . : / @ [ ] are allowed"
    );
    Ok(())
}

fn unit(what: Unit) -> &'static str {
    match what {
        Unit::Broker => BROKER_UNIT,
        Unit::Namesrv => NAMESRV_UNIT,
        Unit::Sysusers => SYSUSERS,
    }
}

fn of_job(text: &str, quote: &str, job: &str) -> String {
    text.replace(&format!("job={quote}{JOB}{quote}"), &format!("job={quote}{job}{quote}"))
}

/// The file of the repository without what needs the repository beside it, and with other defaults for its variables.
fn compose(image: &str, host: &str, bind: &str, controllers: bool) -> String {
    let mut text = String::from(
        "# Written by `karman generate compose`. KARMAN_HOST, KARMAN_BIND and KARMAN_CLUSTER_SECRET may be set in the environment.\n\n",
    );
    let body = COMPOSE.lines().skip_while(|line| line.starts_with('#') || line.is_empty());
    let mut left_out = false;
    for line in body {
        let is_key = |indent: usize| line.len() > indent && line.find(|c| c != ' ') == Some(indent);
        if is_key(0) || is_key(2) {
            let name = line.trim_start().split(':').next().unwrap_or_default();
            left_out = OBSERVABILITY.contains(&name);
        }
        let is_of_repository = line.trim_start().starts_with("build:");
        let is_profile = controllers && line.trim() == "profiles: [ha]";
        if !left_out && !is_of_repository && !is_profile {
            text.push_str(line);
            text.push('\n');
        }
    }
    let mut text = text.replace(&format!("image: {IMAGE}"), &format!("image: {image}"));
    let values = CONTROLLERS.lines().filter_map(|line| line.split_once('=')).filter(|_| controllers);
    for (name, value) in values.chain([("KARMAN_HOST", host), ("KARMAN_BIND", bind)]) {
        text = with_default(&text, name, value);
    }
    text
}

/// `${NAME:-before}` as `${NAME:-value}`.
fn with_default(text: &str, name: &str, value: &str) -> String {
    let begin = format!("${{{name}:-");
    let mut parts = text.split(&begin);
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.split_once('}').map_or(part, |(_, rest)| rest);
        whole += &format!("{begin}{value}}}{rest}");
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compose_needs_no_repository_beside_it() {
        let text = compose("mq:1", "192.0.2.7", "0.0.0.0", false);
        for absent in ["deploy/", "build:", "prometheus", "grafana", IMAGE] {
            assert!(!text.contains(absent), "{absent}: {text}");
        }
        assert!(text.contains("image: mq:1") && text.contains("profiles: [ha]"), "{text}");
        assert!(text.contains("ADVERTISED_ADDRESS: ${KARMAN_HOST:-192.0.2.7}:8084"), "{text}");
        assert!(text.contains(r#"ports: ["${KARMAN_BIND:-0.0.0.0}:9876:9876"]"#), "{text}");
        let services =
            ["namesrv-1", "namesrv-2", "namesrv-3", "broker-a-1", "broker-a-2", "broker-b-1", "broker-b-2"];
        for service in services {
            assert_eq!(
                text.matches(&format!("\n  {service}:\n")).count(),
                2,
                "{service} and its volume: {text}"
            );
        }
    }

    #[test]
    fn controllers_are_in_all_three_namesrvs() {
        let text = compose(IMAGE, "127.0.0.1", "127.0.0.1", true);
        assert!(text.contains("ENABLE_CONTROLLER_IN_NAMESRV: ${KARMAN_CONTROLLERS:-true}"), "{text}");
        assert!(!text.contains("profiles:") && !text.contains(":-false}"), "{text}");
    }

    #[test]
    fn what_is_shipped_is_written_as_it_is_unless_a_flag_says_more() {
        assert_eq!(of_job(ALERTS, "\"", JOB), ALERTS);
        assert!(of_job(ALERTS, "\"", "mq").contains("up{job=\"mq\"} == 0"));
        let board: serde_json::Value = serde_json::from_str(&of_job(BOARD, "\\\"", "mq")).unwrap();
        assert!(!board.to_string().contains(r#"job=\"karman\""#), "{board}");
        assert!(unit(Unit::Broker).contains(&format!("ExecStart={BINARIES}/karman-broker ")));
    }

    #[test]
    fn a_value_that_would_change_the_file_around_it_is_refused() {
        for value in ["", "a b", "a\nb", "a\"b", "${HOME}", "a#b"] {
            let error = check("--image", value).unwrap_err().to_string();
            assert!(error.contains("--image") && error.contains(&format!("{value:?}")), "{error}");
        }
    }
}
