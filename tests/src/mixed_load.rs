//! The mixed load: all kinds of messages and all ways to end one, against two brokers of which one after the other is
//! killed, put down as a history for the checker.
//!
//! Who calls: the program `mixed_load` and `tests/mixed.rs`. The caller's thread owns the cluster and kills; producers and
//! consumers are tasks of a runtime of their own. Everything random follows from the seed, but the moment at which a kill
//! meets an operation.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use karman_checker::event::{self, Event, VERSION};
use karman_remoting::proto::karman::{GroupConfig, TopicConfig};
use karman_remoting::proto::v2::Code;
use tokio::runtime::Runtime;

use crate::{Cluster, Raw, let_run};

mod broker;
mod consume;
mod flip;
mod plan;
mod produce;
mod record;
mod transaction;

use broker::Broker;
use plan::{Filter, KINDS, Plan, READERS, now_ms};
use record::Recorder;

/// Queues of each topic on each broker.
const QUEUES: u32 = 4;
/// Members of each group on each broker.
const MEMBERS: usize = 2;
/// Nothing has come for so long: what was left to expire has come again, twice.
const QUIET: Duration = Duration::from_secs(12);
/// Then the history ends without saying that all is read.
const DRAIN_DEADLINE: Duration = Duration::from_secs(300);
/// A killed broker stays away for at most so long.
const DOWN_MAX_MS: u64 = 2000;
/// How much is remembered of delayed messages, to flip a bit of one.
const DELAYED_MAX: usize = 512;
/// The due time of a message whose bit is flipped is at least so far away.
const FLIP_AHEAD_MS: u64 = 4000;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Options {
    pub messages: u64,
    /// For which messages are sent, evenly.
    pub seconds: u64,
    pub kill_every_seconds: u64,
    pub seed: u64,
    /// Of a hundred messages: normal, FIFO, delayed, transactional, filtered, large.
    pub shares: [u64; 6],
    /// Size of large bodies.
    pub large_bytes: (u64, u64),
    /// How far ahead the time of delayed messages lies.
    pub delay_ms: (u64, u64),
    /// So many times a bit of the log is flipped while its broker is down.
    pub flips: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            messages: 500_000,
            seconds: 360,
            kill_every_seconds: 20,
            seed: 0,
            shares: [40, 20, 15, 10, 10, 5],
            large_bytes: (256 << 10, 1 << 20),
            delay_ms: (1000, 60_000),
            flips: 0,
        }
    }
}

impl Options {
    /// The command line that does the same.
    pub fn repeat(&self) -> String {
        let mut line = format!(
            "mixed_load --messages {} --seconds {} --kill-every {} --seed {} --shares ",
            self.messages, self.seconds, self.kill_every_seconds, self.seed
        );
        line += &self.shares.map(|share| share.to_string()).join(",");
        let (large, delay) = (self.large_bytes, self.delay_ms);
        let _ = write!(line, " --large-bytes {},{} --delay-ms {},{}", large.0, large.1, delay.0, delay.1);
        let _ = write!(line, " --flips {}", self.flips);
        line
    }
}

/// What a run came to; whether it was well is for the checker.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    pub stored: u64,
    pub delivered: u64,
    pub kills: u64,
    pub flips: u64,
    pub sending: Duration,
    pub draining: Duration,
    pub drained: bool,
}

/// What all tasks share.
struct Shared {
    options: Options,
    plan: Plan,
    recorder: Recorder,
    /// Name and address.
    brokers: Vec<(String, String)>,
    /// Delayed messages that were stored lately: broker, id, due time.
    delayed: Mutex<VecDeque<(String, String, u64)>>,
}

impl Shared {
    /// A connection to each broker, for one client.
    fn brokers(&self, client: &str) -> Vec<Broker> {
        let client = format!("{client}@mixed");
        self.brokers.iter().map(|(name, endpoint)| Broker::new(name, endpoint, &client)).collect()
    }

    /// A delayed message was stored.
    fn delayed(&self, broker: &str, id: &str, due_ms: u64) {
        let mut delayed = self.delayed.lock().unwrap();
        if delayed.len() == DELAYED_MAX {
            delayed.pop_front();
        }
        delayed.push_back((broker.to_owned(), id.to_owned(), due_ms));
    }
}

/// Starts a cluster, loads it, kills its brokers in turn, reads everything to its end and writes the history to `out`.
pub fn run(options: Options, out: &Path) -> Summary {
    eprintln!("{}", options.repeat());
    let builder = Cluster::builder().namesrvs(1).brokers(2);
    let mut cluster =
        builder.set("transactionTimeOut", "2000").set("transactionCheckInterval", "2000").start();
    set_up(&cluster);
    let named = |node: &crate::cluster::Node| (node.name().to_owned(), node.endpoint());
    let shared = Arc::new(Shared {
        plan: Plan::new(&options),
        recorder: Recorder::create(out).expect("the history can be written"),
        brokers: cluster.brokers.iter().map(named).collect(),
        delayed: Mutex::default(),
        options,
    });
    introduce(&shared);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let began = Instant::now();
    start_readers(&runtime, &shared);
    let producing = runtime.spawn(produce::run(shared.clone()));
    let (kills, flips) = kill_in_turn(&mut cluster, &shared, began);
    runtime.block_on(producing).expect("producers do not panic");
    let sending = began.elapsed();
    eprintln!("sent after {sending:.1?}; reading what is left");
    let drained = drain(&shared);
    if drained {
        for reader in READERS {
            shared.recorder.line(&Event::Drained(event::Drained { t: now_ms(), g: reader.name.into() }));
        }
    }
    runtime.shutdown_timeout(Duration::from_secs(5));
    shared.recorder.line(&Event::Done { t: now_ms() });
    shared.recorder.flush();
    let (stored, delivered, _) = shared.recorder.counts();
    Summary { stored, delivered, kills, flips, sending, draining: began.elapsed() - sending, drained }
}

/// Topics and groups.
fn set_up(cluster: &Cluster) {
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    for kind in KINDS {
        let status = raw.make_topic(TopicConfig {
            name: kind.topic().to_owned(),
            message_type: kind.message_type().into(),
            queue_nums: QUEUES,
            ..Default::default()
        });
        assert_eq!(status.code, Code::Ok as i32, "{}: {status:?}", kind.topic());
        cluster.wait_route(kind.topic());
    }
    for reader in READERS {
        let status = raw.make_group(GroupConfig {
            name: reader.name.to_owned(),
            retry_max_times: Some(reader.attempts_max - 1),
            ..Default::default()
        });
        assert_eq!(status.code, Code::Ok as i32, "{}: {status:?}", reader.name);
    }
}

/// The first lines of the history.
fn introduce(shared: &Shared) {
    let repeat = shared.options.repeat().into();
    shared.recorder.line(&Event::Run(event::Run { version: VERSION, repeat }));
    for reader in READERS {
        let wants = match reader.filter {
            Filter::All => None,
            Filter::Tag(_, labels) | Filter::Sql(_, labels) => {
                Some(labels.iter().map(|&label| label.into()).collect())
            }
        };
        shared.recorder.line(&Event::Group(event::Group {
            g: reader.name.into(),
            topic: reader.kind.topic().into(),
            attempts_max: reader.attempts_max,
            orderly: reader.kind == plan::Kind::Fifo,
            wants,
        }));
    }
}

/// Consumers, readers of dead letters, who answers questions about transactions, and who looks at progress.
fn start_readers(runtime: &Runtime, shared: &Arc<Shared>) {
    let _entered = runtime.enter();
    for reader in READERS {
        for member in 0..MEMBERS {
            for broker in shared.brokers(&format!("{}-{member}", reader.name)) {
                runtime.spawn(consume::read(shared.clone(), reader, broker));
            }
        }
        for broker in shared.brokers(&format!("undertaker-{}", reader.name)) {
            runtime.spawn(consume::undertake(shared.clone(), reader, broker.clone()));
            if reader.filter == Filter::All {
                runtime.spawn(consume::look(shared.clone(), reader, broker));
            }
        }
    }
    for broker in shared.brokers("transactions") {
        runtime.spawn(transaction::answer(shared.clone(), broker));
    }
}

/// `kill -9` of one broker after the other, and a start soon after; how many of them, and how many bits were flipped.
fn kill_in_turn(cluster: &mut Cluster, shared: &Shared, began: Instant) -> (u64, u64) {
    let Options { seconds, kill_every_seconds, seed, flips, .. } = shared.options;
    let mut flipped = 0;
    for kill in 0u64.. {
        let at = Duration::from_secs(kill_every_seconds.saturating_mul(kill + 1));
        if at >= Duration::from_secs(seconds) {
            return (kill, flipped);
        }
        let_run(at.saturating_sub(began.elapsed()));
        let index = usize::try_from(kill).expect("a few") % cluster.brokers.len();
        let root = cluster.path().join(cluster.brokers[index].name());
        let node = &mut cluster.brokers[index];
        let fault =
            |node: &crate::cluster::Node| event::Fault { t: now_ms(), broker: node.name().to_owned().into() };
        // Before it is done: what comes of it must not seem to come before it.
        shared.recorder.line(&Event::Kill(fault(node)));
        node.kill();
        let down = Instant::now();
        if flipped < flips {
            flipped += u64::from(flip_one(shared, node.name(), &root));
        }
        let (stored, delivered, _) = shared.recorder.counts();
        eprintln!("{:>4} s  {stored} stored, {delivered} delivered, {} killed", at.as_secs(), node.name());
        let away = Duration::from_millis(plan::spread(seed, kill) % DOWN_MAX_MS);
        let_run(away.saturating_sub(down.elapsed()));
        node.start();
        shared.recorder.line(&Event::Up(fault(node)));
    }
    unreachable!("a run has an end");
}

fn flip_one(shared: &Shared, broker: &str, root: &Path) -> bool {
    let ahead_ms = now_ms() + FLIP_AHEAD_MS;
    let young = {
        let delayed = shared.delayed.lock().unwrap();
        delayed.iter().find(|(of, _, due_ms)| of == broker && *due_ms > ahead_ms).cloned()
    };
    let Some((_, id, _)) = young else { return false };
    let found = flip::flip(root, &id).expect("the files of a killed broker can be changed");
    if found {
        let flip = event::Flip { t: now_ms(), m: id.as_str().into(), broker: broker.to_owned().into() };
        shared.recorder.line(&Event::Flip(flip));
    }
    found
}

/// Waits until nothing comes any more; false when that does not happen.
fn drain(shared: &Shared) -> bool {
    let (began, began_ms) = (Instant::now(), now_ms());
    let quiet_ms = u64::try_from(QUIET.as_millis()).expect("a few seconds");
    // What is delayed was sent before.
    let all_due_ms = began_ms + shared.options.delay_ms.1;
    while began.elapsed() < DRAIN_DEADLINE {
        let (_, _, last_ms) = shared.recorder.counts();
        if now_ms() > last_ms.max(all_due_ms) + quiet_ms {
            return true;
        }
        let_run(Duration::from_millis(200));
    }
    false
}
