//! The mixed load: all kinds of messages and all ways to end one, against two brokers of which one after the other is
//! killed, put down as a history for the checker.
//!
//! Who calls: the program `mixed_load` and `tests/waiting/mixed.rs`; the fault run uses the [`Load`] alone. The caller's thread owns
//! the cluster and kills; producers and consumers are tasks of a runtime of their own. Everything random follows from the seed, but the moment at which a kill
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
pub(crate) use plan::now_ms;
use plan::{Filter, KINDS, Plan, READERS};
use record::Recorder;

/// Queues of each topic on each broker.
const QUEUES: u32 = 4;
/// Members of each group on each broker.
const MEMBERS: usize = 2;
/// Nothing has come for so long: what was left to expire has come again, twice.
const QUIET: Duration = Duration::from_secs(12);
/// Until every node knows a new topic.
const ROUTE_DEADLINE: Duration = Duration::from_secs(15);
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
#[derive(Debug)]
struct Shared {
    options: Options,
    plan: Plan,
    recorder: Recorder,
    brokers: Vec<Target>,
    /// Delayed messages that were stored lately: broker, id, due time.
    delayed: Mutex<VecDeque<(String, String, u64)>>,
}

impl Shared {
    /// A connection to each broker, for one client.
    fn brokers(&self, client: &str) -> Vec<Broker> {
        let client = format!("{client}@mixed");
        self.brokers.iter().map(|target| Broker::new(target, &client)).collect()
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

/// A broker, or a broker set.
#[derive(Clone, Debug)]
pub struct Target {
    /// `brokerName`.
    pub name: String,
    /// Doors to it: when one fails, the next is tried.
    pub endpoints: Vec<String>,
}

/// Producers and consumers at work. Dropping it ends them where they are.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    runtime: Runtime,
    producing: tokio::task::JoinHandle<()>,
}

impl Load {
    /// Begins to send, to topics and groups that are there, and to write the history to `out`.
    pub fn start(options: Options, brokers: Vec<Target>, out: &Path) -> Self {
        let shared = Arc::new(Shared {
            plan: Plan::new(&options),
            recorder: Recorder::create(out).expect("the history can be written"),
            brokers,
            delayed: Mutex::default(),
            options,
        });
        introduce(&shared);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        start_readers(&runtime, &shared);
        let producing = runtime.spawn(produce::run(shared.clone()));
        Self { shared, runtime, producing }
    }

    /// One more line of the history.
    pub fn line(&self, event: &Event<'_>) {
        self.shared.recorder.line(event);
    }

    /// Sends answered OK, and deliveries.
    pub fn counts(&self) -> (u64, u64) {
        let (stored, delivered, _) = self.shared.recorder.counts();
        (stored, delivered)
    }

    /// Whether everything was sent.
    pub fn has_sent(&self) -> bool {
        self.producing.is_finished()
    }

    /// Waits for the producers, and until nothing comes any more; false when that does not happen.
    pub fn drain(&mut self) -> bool {
        let producing = &mut self.producing;
        self.runtime.block_on(producing).expect("producers do not panic");
        eprintln!("all is sent; reading what is left");
        let drained = drain(&self.shared);
        if drained {
            for reader in READERS {
                let drained = event::Drained { t: now_ms(), g: reader.name.into() };
                self.line(&Event::Drained(drained));
            }
        }
        drained
    }

    /// When something was delivered last. Milliseconds since 1970.
    pub fn last_delivery_ms(&self) -> u64 {
        self.shared.recorder.counts().2
    }

    /// No client asks for anything any more.
    pub fn stop(self) -> History {
        self.runtime.shutdown_timeout(Duration::from_secs(5));
        History { shared: self.shared }
    }
}

/// What is left of a [`Load`] that was stopped.
#[derive(Debug)]
pub struct History {
    shared: Arc<Shared>,
}

impl History {
    /// One more line.
    pub fn line(&self, event: &Event<'_>) {
        self.shared.recorder.line(event);
    }

    /// The last line.
    pub fn end(self) {
        self.line(&Event::Done { t: now_ms() });
        self.shared.recorder.flush();
    }
}

/// Starts a cluster, loads it, kills its brokers in turn, reads everything to its end and writes the history to `out`.
pub fn run(options: Options, out: &Path) -> Summary {
    eprintln!("{}", options.repeat());
    let builder = Cluster::builder().namesrvs(1).brokers(2);
    let mut cluster =
        builder.set("transactionTimeOut", "2000").set("transactionCheckInterval", "2000").start();
    let doors: Vec<String> =
        cluster.namesrvs.iter().chain(&cluster.brokers).map(crate::cluster::Node::endpoint).collect();
    set_up(&doors, cluster.brokers.len());
    let target = |node: &crate::cluster::Node| Target {
        name: node.name().to_owned(),
        endpoints: vec![node.endpoint()],
    };
    let targets = cluster.brokers.iter().map(target).collect();
    let began = Instant::now();
    let mut load = Load::start(options, targets, out);
    let (kills, flips) = kill_in_turn(&mut cluster, &load.shared, began);
    while !load.has_sent() {
        let_run(Duration::from_millis(100));
    }
    let sending = began.elapsed();
    let drained = load.drain();
    let (stored, delivered) = load.counts();
    load.stop().end();
    Summary { stored, delivered, kills, flips, sending, draining: began.elapsed() - sending, drained }
}

/// Topics and groups; returns when all `doors` know them on so many brokers.
pub fn set_up(doors: &[String], brokers: usize) {
    let raw = Raw::connect(&doors[0]);
    for kind in KINDS {
        let status = raw.make_topic(TopicConfig {
            name: kind.topic().to_owned(),
            message_type: kind.message_type().into(),
            queue_nums: QUEUES,
            ..Default::default()
        });
        assert_eq!(status.code, Code::Ok as i32, "{}: {status:?}", kind.topic());
    }
    for reader in READERS {
        let status = raw.make_group(GroupConfig {
            name: reader.name.to_owned(),
            retry_max_times: Some(reader.attempts_max - 1),
            ..Default::default()
        });
        assert_eq!(status.code, Code::Ok as i32, "{}: {status:?}", reader.name);
    }
    for door in doors {
        let raw = Raw::connect(door);
        for kind in KINDS {
            let what = format!("{door} knows {} on all brokers", kind.topic());
            crate::until(&what, ROUTE_DEADLINE, || {
                let mut known = raw.route_brokers(kind.topic());
                known.dedup();
                (known.len() == brokers).then_some(())
            });
        }
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
    // Who asks is whoever is master then: like every client, a producer is at all doors.
    for target in &shared.brokers {
        for endpoint in &target.endpoints {
            let door = Target { name: target.name.clone(), endpoints: vec![endpoint.clone()] };
            let broker = Broker::new(&door, "transactions@mixed");
            runtime.spawn(transaction::answer(shared.clone(), broker));
        }
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
