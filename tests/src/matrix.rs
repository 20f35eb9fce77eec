//! What each official client is shown to do against a cluster: a row for each thing, a column for each client, and the
//! table of it in `docs/clients.md`. Every cell is played with the unmodified client and its defaults, once with a namesrv
//! and once with a broker as access point (`client_matrix`), or at one of them (`tests/tests/matrix.rs`). What a cell says
//! other than "pass" stands in `exception`, and the play shows it. Owned by the test or program that runs it.

mod lite;
mod messages;
mod order;
mod retry;
mod security;
mod table;
mod time;
mod transactions;
mod upheaval;

use std::any::Any;
use std::collections::VecDeque;
use std::fmt::{self, Display, Formatter};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread;

use crate::{Cluster, Language, Stage, stage};

pub use self::retry::refused_until_dead_and_redriven;
pub use self::table::{is_written, write};

/// What is shown by one run of some drivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Play {
    Normal,
    Batch,
    Fifo,
    Delay,
    Recall,
    Transactions,
    Push,
    FifoPush,
    Retry,
    Filters,
    Lite,
    Renew,
    Large,
    Acl,
    /// Of all clients at once: servers go and come.
    Upheaval,
}

/// The rows, and which play shows each.
const ROWS: [(&str, Play); 22] = [
    ("normal message", Play::Normal),
    ("batch in one call", Play::Batch),
    ("FIFO message", Play::Fifo),
    ("delayed message", Play::Delay),
    ("recall", Play::Recall),
    ("transaction: commit", Play::Transactions),
    ("transaction: rollback", Play::Transactions),
    (CHECK_BACK, Play::Transactions),
    ("simple consumer", Play::Normal),
    ("push consumer", Play::Push),
    ("FIFO push consumer", Play::FifoPush),
    (BACK_OFF, Play::Retry),
    ("dead letters", Play::Retry),
    ("tag filter", Play::Filters),
    ("SQL filter", Play::Filters),
    (LITE, Play::Lite),
    ("auto-renew", Play::Renew),
    (LARGE, Play::Large),
    ("ACL", Play::Acl),
    (NAMESRV_RESTART, Play::Upheaval),
    (BROKER_RESTART, Play::Upheaval),
    (BROKERS_CHANGE, Play::Upheaval),
];
const CHECK_BACK: &str = "transaction: check-back";
const BACK_OFF: &str = "retry with back-off";
const LITE: &str = "lite push consumer";
const LARGE: &str = "body of 4 MiB";
const NAMESRV_RESTART: &str = "namesrv restart";
const BROKER_RESTART: &str = "broker restart while streams are open";
const BROKERS_CHANGE: &str = "broker added and drained";

/// The columns.
pub const COLUMNS: [Language; 5] =
    [Language::Java, Language::Go, Language::Python, Language::Node, Language::Rust];

/// Why a cell is no pass.
#[derive(Clone, Copy, Debug)]
enum Exception {
    /// The client has no such feature: its driver answers `unsupported` to these words.
    Lacks(&'static str, &'static [(&'static str, &'static str)]),
    /// A defect of the client, with its place in the client's source. The play shows what there is nevertheless.
    Defect(&'static str),
}

const NO_PUSH: Exception = Exception::Lacks("consume-push", &[]);

/// What is known of a cell other than that it passes.
fn exception(row: &str, language: Language) -> Option<Exception> {
    use Exception::{Defect, Lacks};
    use Language::{Go, Java, Node, Python, Rust};
    Some(match (row, language) {
        ("batch in one call", language) if language != Rust => Lacks("produce-batch", &[]),
        ("recall", Rust) => Lacks("recall", &[]),
        ("push consumer" | "FIFO push consumer" | "auto-renew", Rust) => NO_PUSH,
        (BACK_OFF, Rust) => Lacks("consume-simple", &[("nack-attempts", "1")]),
        (LITE, Rust) => Lacks("consume-lite", &[]),
        (CHECK_BACK, Java) => Defect(
            "the answer is awaited on a pool with one thread for each processor, which the answer needs, too \
             (`ProducerImpl.onRecoverOrphanedTransactionCommand`): asked by as many brokers at once as there are \
             processors, it stands still. It passes with more processors than brokers, of which its driver is told",
        ),
        (CHECK_BACK, Rust) => Defect(
            "of the streams to brokers only that to the access point is kept: the session that is put by for others is a copy, \
             which has none (`session.rs`, `get_or_create_session`). Other brokers cannot ask; what they do not learn is never \
             delivered",
        ),
        (LITE, Python) => Defect(
            "a new lite topic is announced letter by letter (`lite_topic_set.extend` of a string, \
             `lite_topic_subscription_manager.py`), and rightly with the next complete announcement, every 30 s; its driver asks \
             for one",
        ),
        (NAMESRV_RESTART, Go) => Defect(
            "an access point that does not answer is taken for one that assigns nothing (`push_consumer.go`, \
             `scanAssignments`): after 5 to 10 s without it a push consumer stops, until it answers again. Producers go on",
        ),
        (BROKERS_CHANGE, Go) => Defect(
            "a broker that is gone is dialled for 5 s again and again under the lock that every call takes \
             (`client_manager.go`, `getRpcClient`): all calls of the process come too late, also the one that would tell it that the \
             broker is gone. Consumers with a stream to a broker that goes are started anew; one that joins is found",
        ),
        (BROKERS_CHANGE, Node) => Defect(
            "a producer keeps the queues of a topic's first route for ever (`Producer.ts`, `#getPublishingLoadBalancer`): it \
             uses a broker that joins when it is started anew. Push consumers find it",
        ),
        (BROKERS_CHANGE, Rust) => Defect(
            "the first route of a topic is kept for ever (`client.rs`, `topic_route`): of a broker that joins, and of one \
             that goes, it learns when it is started anew",
        ),
        (LARGE, Node) => Defect(
            "an answer above 4 MiB is refused: the channel keeps the default of its gRPC library (`RpcClient.ts`). It sends \
             4 MiB and receives 64 KiB less",
        ),
        (LARGE, Rust) => Defect(
            "an answer above 4 MiB is refused: the stub keeps the default of its gRPC library (`session.rs`, \
             `Session::new`). It sends 4 MiB and receives 64 KiB less",
        ),
        (BACK_OFF, Node) => Defect(
            "the seconds of the group's curve are taken for milliseconds (`ExponentialBackoffRetryPolicy.ts`): the \
             attempts are right, the waits are not",
        ),
        _ => return None,
    })
}

/// Where a client is told the cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The first namesrv.
    Namesrv,
    /// The first broker.
    Broker,
}

/// A client at an access point, and what of it is to be played.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Which client.
    pub language: Language,
    /// Its access point.
    pub access: Access,
}

impl Column {
    /// Part of the names of its topics and groups.
    fn name(self) -> String {
        format!("{:?}-{:?}", self.language, self.access).to_lowercase()
    }

    fn stage(self, cluster: &Cluster) -> Stage<'_> {
        let endpoint = match self.access {
            Access::Namesrv => cluster.namesrvs[0].endpoint(),
            Access::Broker => cluster.brokers[0].endpoint(),
        };
        Stage { language: self.language, endpoint, cluster }
    }
}

/// Cells that are not what they are said to be.
#[derive(Debug)]
struct Failure {
    rows: Vec<&'static str>,
    column: Column,
    why: String,
}

impl Display for Failure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {}: {}", self.rows.join(", "), self.column.name(), self.why)
    }
}

/// The rows that a play shows with a client that can do them.
fn rows_of(play: Play, language: Language) -> Vec<&'static str> {
    let has = |row: &str| !matches!(exception(row, language), Some(Exception::Lacks(..)));
    let shown = ROWS.iter().filter(|(row, by)| *by == play && has(row));
    shown.map(|(row, _)| *row).collect()
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned())).unwrap_or_default()
}

/// Plays; what was wrong if anything was.
fn judged(rows: Vec<&'static str>, column: Column, play: impl FnOnce()) -> Option<Failure> {
    let why = said(&*catch_unwind(AssertUnwindSafe(play)).err()?);
    let failure = Failure { rows, column, why };
    eprintln!("FAILED: {failure}");
    Some(failure)
}

/// Plays all cells of these columns that `wanted` takes by the name of their row, some at a time, and panics unless each is what
/// the table says. Two brokers and two namesrvs, and the same once more where every caller is asked who it is.
pub fn play(columns: &[Column], wanted: &dyn Fn(&str) -> bool) {
    let is_wanted = |play: Play| ROWS.iter().any(|(row, by)| *by == play && wanted(row));
    let mut failures = lacking(columns, wanted);
    if is_wanted(Play::Acl) {
        let cluster = security::cluster();
        failures.extend(pool(columns, &[Play::Acl], &cluster));
    }
    let mut cluster = stage::cluster_with(2, &transactions::SETTINGS);
    let alone: Vec<Play> = PLAYS.into_iter().filter(|play| is_wanted(*play)).collect();
    failures.extend(pool(columns, &alone, &cluster));
    if is_wanted(Play::Upheaval) {
        failures.extend(upheaval::play(columns, &mut cluster));
    }
    let said: Vec<String> = failures.iter().map(Failure::to_string).collect();
    assert!(said.is_empty(), "{} plays failed:\n{}", said.len(), said.join("\n"));
}

/// What is played by one client at a time, the longest first.
const PLAYS: [Play; 13] = [
    Play::Renew,
    Play::Retry,
    Play::Fifo,
    Play::FifoPush,
    Play::Transactions,
    Play::Recall,
    Play::Delay,
    Play::Lite,
    Play::Large,
    Play::Filters,
    Play::Normal,
    Play::Push,
    Play::Batch,
];

/// Clients without a feature say so, whatever the cluster.
fn lacking(columns: &[Column], wanted: &dyn Fn(&str) -> bool) -> Vec<Failure> {
    let cluster = Cluster::builder().start();
    let probe = |row: &'static str, column: Column| {
        let Some(Exception::Lacks(scenario, options)) = exception(row, column.language) else { return None };
        let stage =
            Stage { language: column.language, endpoint: "127.0.0.1:9".to_owned(), cluster: &cluster };
        judged(vec![row], column, || {
            let events = stage.run(scenario, "none", &[options, &[("group", "none")]].concat());
            assert!(stage::named(&events, "unsupported").next().is_some(), "{events:?}");
        })
    };
    let cells = columns.iter().flat_map(|column| ROWS.iter().map(|(row, _)| (*row, *column)));
    cells.filter(|(row, _)| wanted(row)).filter_map(|(row, column)| probe(row, column)).collect()
}

/// Each of these plays with each client that can do any of it.
fn pool(columns: &[Column], plays: &[Play], cluster: &Cluster) -> Vec<Failure> {
    /// Most of a play is waiting.
    const AT_ONCE: usize = 5;
    let jobs = plays.iter().flat_map(|play| columns.iter().map(|column| (*play, *column)));
    let jobs = jobs.filter(|(play, column)| !rows_of(*play, column.language).is_empty());
    // A listener at work for a minute takes nobody's turn.
    let (sleepy, jobs): (Vec<_>, Vec<_>) = jobs.partition(|(play, _)| *play == Play::Renew);
    let (jobs, failures) = (Mutex::new(VecDeque::from(jobs)), Mutex::new(Vec::new()));
    let do_one = |(play, column): (Play, Column)| {
        let rows = rows_of(play, column.language);
        let began = std::time::Instant::now();
        let failure = judged(rows, column, || play_one(play, column, cluster));
        eprintln!("{:?} of {} took {:?}", play, column.name(), began.elapsed());
        failures.lock().unwrap().extend(failure);
    };
    thread::scope(|scope| {
        for job in sleepy {
            scope.spawn(move || do_one(job));
        }
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some(job) = jobs.lock().unwrap().pop_front() else { break };
                    do_one(job);
                }
            });
        }
    });
    failures.into_inner().unwrap()
}

fn play_one(play: Play, column: Column, cluster: &Cluster) {
    let stage = column.stage(cluster);
    let name = format!("{play:?}-{}", column.name()).to_lowercase();
    match play {
        Play::Normal => messages::normal(&stage, &name),
        Play::Batch => messages::batch(&stage, &name),
        Play::Fifo => order::simple(&stage, &name),
        Play::Delay => time::delayed(&stage, &name),
        Play::Recall => time::recalled(&stage, &name),
        Play::Transactions => transactions::decided(&stage, &name),
        Play::Push => messages::push(&stage, &name),
        Play::FifoPush => order::push(&stage, &name),
        Play::Retry => retry::play(&stage, &name),
        Play::Filters => messages::filters(&stage, &name),
        Play::Lite => lite::play(&stage, &name),
        Play::Renew => messages::renewed(&stage, &name),
        Play::Large => messages::large(&stage, &name),
        Play::Acl => security::signed(&stage, &column.name()),
        Play::Upheaval => unreachable!("it is played by all clients at once"),
    }
}
