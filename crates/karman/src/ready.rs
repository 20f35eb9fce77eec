//! `karman ready`: asks the port at which a node is watched, and waits if it is told to. On the main thread. Images without a
//! shell check their health by it, and scripts wait by it.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use serde::Serialize;

use crate::output::{self, Format};
use crate::time;

/// A node answers this at once, or not at all.
const TIMEOUT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(50);
const ANSWER_MAX_BYTES: u64 = 64 << 10;

pub(crate) const AFTER_HELP: &str = "\
Exit code 0 when it is ready, 1 when it is not; what is missing is said on stderr.

Example:
  karman ready 127.0.0.1:5558 --wait 30s";

#[derive(Args, Debug)]
pub(crate) struct ReadyArgs {
    /// metricsListenAddress of the node
    #[arg(value_name = "HOST:PORT", default_value = "127.0.0.1:5557")]
    address: String,
    /// Go on asking for so long
    #[arg(long, value_name = "DURATION", value_parser = time::parse_duration)]
    wait: Option<Duration>,
}

#[derive(Serialize)]
struct ReadyJson<'a> {
    ready: bool,
    address: &'a str,
}

pub(crate) fn run(args: &ReadyArgs, format: Format) -> anyhow::Result<()> {
    let end = Instant::now() + args.wait.unwrap_or_default();
    loop {
        match ask(&args.address) {
            Ok(()) => {
                let answer = ReadyJson { ready: true, address: &args.address };
                if !output::programs(format, &answer, |answer| [answer.address])? {
                    output::line("ready")?;
                }
                return Ok(());
            }
            Err(error) if Instant::now() >= end => return Err(error),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// `Err` says why the node is not ready, or what keeps it from answering.
fn ask(address: &str) -> anyhow::Result<()> {
    let answer = get(address, "/readyz", ANSWER_MAX_BYTES).with_context(|| format!("ask {address}"))?;
    let (head, body) =
        answer.split_once("\r\n\r\n").ok_or_else(|| anyhow!("{address} does not speak HTTP"))?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(()),
        Some("503") => bail!("{address} is not ready: {}", body.trim_end().replace('\n', "; ")),
        _ => {
            bail!("{address} answers {:?}: it is not the metricsListenAddress of a node", head.lines().next())
        }
    }
}

/// What the metrics address of a node answers, head and body, cut at `max_bytes`. Blocks.
pub(crate) fn get(address: &str, path: &str, max_bytes: u64) -> std::io::Result<String> {
    let mut last = std::io::ErrorKind::AddrNotAvailable.into();
    for socket in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&socket, TIMEOUT) {
            Ok(mut stream) => {
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                // In one piece: who answers before it has read all resets the connection.
                let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
                stream.write_all(request.as_bytes())?;
                let mut answer = String::new();
                stream.take(max_bytes).read_to_string(&mut answer)?;
                return Ok(answer);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Answers each of the connections with one of the texts.
    fn node(answers: &'static [&'static str]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    const UNREADY: &str = "HTTP/1.1 503 Service Unavailable\r\n\r\nno namesrv\nrecovering\n";
    const READY: &str = "HTTP/1.1 200 OK\r\n\r\nready\n";

    #[test]
    fn a_node_that_is_not_ready_says_what_is_missing() {
        let error = ask(&node(&[UNREADY])).unwrap_err().to_string();
        assert!(error.ends_with("is not ready: no namesrv; recovering"), "{error}");
        let error = ask(&node(&["HTTP/1.1 404 Not Found\r\n\r\n"])).unwrap_err().to_string();
        assert!(error.contains("metricsListenAddress"), "{error}");
    }

    #[test]
    fn who_waits_sees_it_become_ready() {
        let address = node(&[UNREADY, READY]);
        run(&ReadyArgs { address, wait: Some(Duration::from_secs(20)) }, Format::Json).unwrap();
    }

    #[test]
    fn nobody_there_is_an_error_at_once() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let error = run(&ReadyArgs { address: free.clone(), wait: None }, Format::Table).unwrap_err();
        assert!(format!("{error:#}").contains(&free), "{error:#}");
    }
}
