//! `karman bench ceiling`: the load against a process that answers at once. What is lost between this and `produce` is
//! what storing costs; what is lost above it is the RPC layer's.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use karman_remoting::between::Between;
use karman_remoting::proto::v2;
use karman_remoting::proto::v2::messaging_service_server::{MessagingService, MessagingServiceServer};
use karman_remoting::server::{Limits, MAX_DECODING_SIZE_BYTES, Server, ServerOptions, TlsMode};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use super::load::{self, Load};
use super::template::Run;
use super::{Figures, LoadArgs, judge, used_since};
use crate::node::Caller;
use crate::output::{self, Format};
use crate::signals::stop_on_signals;

const START_TIMEOUT: Duration = Duration::from_secs(10);
/// As long as what clients make theirs.
const MESSAGE_ID: &str = "0100000000000000000000000000000000";

pub(crate) async fn run(args: LoadArgs, format: Format) -> anyhow::Result<()> {
    let stop = stop_on_signals();
    // Ends with this process, whatever ends it: its stdin does.
    let (child, line) = start_child(&["bench", "echo"]).await?;
    let target = value_of(&line, "endpoint")?;
    let (run, caller) = (Run::new(), Caller::nobody("load"));
    let load = Load { targets: vec![target], topic: "bench".into(), args, run, caller };
    let before = cpu_micros(&child);
    let outcome = load::run(load, &stop).await?;
    let cpu = used_since(before, cpu_micros(&child));
    judge(&outcome)?;
    Figures::of(&outcome, cpu).print(format)
}

/// Another process of this program, and the first line it printed. It is killed when the handle is dropped.
pub(crate) async fn start_child(arguments: &[&str]) -> anyhow::Result<(Child, String)> {
    let program = std::env::current_exe().context("find this program")?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // A hundred topics are a hundred lines between the figures.
        .env("RUST_LOG", "warn")
        .kill_on_drop(true)
        .spawn()
        .context("start another process of this program")?;
    let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let mut line = String::new();
    let read = tokio::time::timeout(START_TIMEOUT, stdout.read_line(&mut line)).await;
    let what = arguments.join(" ");
    read.with_context(|| format!("karman {what} was not ready within {} s", START_TIMEOUT.as_secs()))??;
    anyhow::ensure!(!line.is_empty(), "karman {what} ended before it was ready");
    Ok((child, line))
}

/// `value` of `key=value` in a line of words.
pub(crate) fn value_of(line: &str, key: &str) -> anyhow::Result<String> {
    let value = line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    value.map(str::to_owned).with_context(|| format!("no {key}= in {line:?}"))
}

/// User and system time, from /proc.
pub(super) fn cpu_micros(child: &Child) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id()?)).ok()?;
    ticks_of(&stat).map(|ticks| ticks * 1_000_000 / rustix::param::clock_ticks_per_second())
}

fn ticks_of(stat: &str) -> Option<u64> {
    // The name of the program, in parentheses, may hold anything; the fields count from behind it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

struct Echo;

#[tonic::async_trait]
impl MessagingService for Echo {
    async fn send_message(
        &self,
        request: Request<v2::SendMessageRequest>,
    ) -> Result<Response<v2::SendMessageResponse>, Status> {
        let status = Some(karman_remoting::status::ok());
        let entry = |(offset, _)| v2::SendResultEntry {
            status: status.clone(),
            message_id: MESSAGE_ID.to_owned(),
            offset: offset as i64,
            ..Default::default()
        };
        let entries = request.get_ref().messages.iter().enumerate().map(entry).collect();
        Ok(Response::new(v2::SendMessageResponse { status: status.clone(), entries }))
    }
}

/// Serves until stdin ends.
pub(crate) async fn echo() -> anyhow::Result<()> {
    let service = MessagingServiceServer::new(Echo).max_decoding_message_size(MAX_DECODING_SIZE_BYTES);
    let options = ServerOptions {
        name: "echo",
        listen: "127.0.0.1:0".parse()?,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        tls: None,
        tls_mode: TlsMode::Disabled,
        nodes: Between::default(),
        shutdown_grace: Duration::from_secs(1),
        takes_over: false,
        limits: Limits::default(),
    };
    let server = Server::start(options, Routes::new(service))?;
    // A signal to the whole process group is for the load: it still wants answers, and ends this process after.
    let _ignored = stop_on_signals();
    output::line(&format!("karman echo endpoint={}", server.local_addr()))?;
    let until_end = || std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    tokio::task::spawn_blocking(until_end).await.context("wait for the end of stdin")??;
    server.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_program_name() {
        let stat = "42 (a (b) c) S 1 42 42 0 -1 4194560 100 0 0 0 70 30 0 0 20 0 3 0 1000 1 1";
        assert_eq!(ticks_of(stat), Some(100));
        assert_eq!(ticks_of("42 (a) S"), None);
    }

    #[test]
    fn values_are_found_by_their_whole_key() {
        let line = "karman ready endpoint=127.0.0.1:1 namesrv=127.0.0.1:2\n";
        assert_eq!(value_of(line, "endpoint").unwrap(), "127.0.0.1:1");
        assert_eq!(value_of(line, "namesrv").unwrap(), "127.0.0.1:2");
        assert!(value_of(line, "name").is_err());
    }
}
