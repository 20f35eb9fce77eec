//! Effects that happen once: each store of message ids by what it promises, and with consumers that are killed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::future::pending;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use karman_client::{
    Claim, ClaimToken, Client, ClientOptions, Code, DedupeError, DedupeLimits, DedupeStore, FileStore,
    FilterExpression, MemoryStore, Message, MessageView, PushOptions, RedisStore, once,
};
use karman_remoting::proto::karman::{GroupConfig, TopicConfig};
use karman_remoting::proto::v2::retry_policy::Strategy;
use karman_remoting::proto::v2::{CustomizedBackoff, MessageType, RetryPolicy};
use karman_tests::process::Process;
use karman_tests::{Cluster, Raw, Redis};
use tempfile::TempDir;

/// A delivery that was lost with its consumer comes again after at most 60 s.
const DEADLINE: Duration = Duration::from_secs(150);
const RETRY_MS: i32 = 200;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waited = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waited).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// What every store promises.
async fn keeps_its_promises(store: &impl DedupeStore) {
    let claims = futures_util::future::join_all((0..20).map(|_| store.claim("g", "a"))).await;
    let claims: Vec<Claim> = claims.into_iter().map(Result::unwrap).collect();
    let news = claims.iter().filter_map(|claim| match claim {
        Claim::New(token) => Some(*token),
        _ => None,
    });
    let [token] = news.collect::<Vec<_>>()[..] else { panic!("not one alone has it: {claims:?}") };
    assert_eq!(claims.iter().filter(|claim| **claim == Claim::InProgress).count(), 19);

    store.release("g", "a", ClaimToken::random()).await.unwrap();
    assert_eq!(store.claim("g", "a").await.unwrap(), Claim::InProgress, "released with another's token");
    store.release("g", "a", token).await.unwrap();
    let Claim::New(second) = store.claim("g", "a").await.unwrap() else {
        panic!("a release does not free it")
    };

    store.done("g", "a").await.unwrap();
    assert_eq!(store.claim("g", "a").await.unwrap(), Claim::Done);
    store.release("g", "a", second).await.unwrap();
    assert_eq!(store.claim("g", "a").await.unwrap(), Claim::Done, "a release took back what is done");
    assert!(matches!(store.claim("h", "a").await.unwrap(), Claim::New(_)), "another group");
    assert!(matches!(store.claim("g", "b").await.unwrap(), Claim::New(_)), "another message");
}

/// Of a store that remembers everything for a moment.
async fn forgets_in_time(store: &impl DedupeStore) {
    let is_new = async || matches!(store.claim("g", "a").await.unwrap(), Claim::New(_));
    assert!(is_new().await);
    until("a claim is over", &is_new).await;
    store.done("g", "a").await.unwrap();
    until("what was done is forgotten", &is_new).await;
}

fn moment() -> DedupeLimits {
    DedupeLimits::default().window(Duration::from_millis(100)).claim(Duration::from_millis(100))
}

#[test]
fn a_store_in_memory_keeps_its_promises() {
    block_on(async {
        keeps_its_promises(&MemoryStore::new(DedupeLimits::default())).await;
        forgets_in_time(&MemoryStore::new(moment())).await;
    });
}

#[test]
fn a_store_of_files_keeps_its_promises() {
    let directory = TempDir::new().unwrap();
    let open = |name: &str, limits| FileStore::open(directory.path().join(name), limits).unwrap();
    block_on(async {
        keeps_its_promises(&open("a", DedupeLimits::default())).await;
        forgets_in_time(&open("b", moment())).await;
    });
}

#[test]
fn a_store_in_redis_keeps_its_promises() {
    let redis = Redis::start(&[]);
    block_on(async {
        let connect = async |limits| RedisStore::connect(&redis.url(), limits).await.unwrap();
        keeps_its_promises(&connect(DedupeLimits::default()).await).await;
        // Of the message that is done there.
        let short = connect(moment()).await;
        short.done("g", "a").await.unwrap();
        until("it is forgotten", async || matches!(short.claim("g", "a").await.unwrap(), Claim::New(_)))
            .await;
        until("its claim, too", async || matches!(short.claim("g", "a").await.unwrap(), Claim::New(_))).await;
    });
}

#[test]
fn a_redis_that_may_throw_away_keys_is_refused() {
    let redis = Redis::start(&["--maxmemory", "50mb", "--maxmemory-policy", "volatile-ttl"]);
    let error = block_on(RedisStore::connect(&redis.url(), DedupeLimits::default())).unwrap_err();
    assert!(matches!(error, DedupeError::RedisEvicts { .. }), "{error}");
    assert!(error.to_string().contains("volatile-ttl"), "{error}");
}

#[test]
fn without_redis_a_store_says_so_and_it_goes_on_with_what_redis_has_kept() {
    let mut redis = Redis::start(&[]);
    block_on(async {
        let store = RedisStore::connect(&redis.url(), DedupeLimits::default()).await.unwrap();
        store.done("g", "a").await.unwrap();
        redis.kill();
        let error = store.claim("g", "b").await.unwrap_err();
        assert!(matches!(error, DedupeError::Redis { .. }), "{error}");
        redis.restart();
        until("it is connected again", async || store.claim("g", "a").await.is_ok()).await;
        assert_eq!(store.claim("g", "a").await.unwrap(), Claim::Done);
    });
}

/// A server with the topic `orders`, and these groups, whose failed messages come again at once, and often.
fn server(groups: &[&str]) -> Cluster {
    let cluster = Cluster::builder().namesrvs(1).brokers(1).start();
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    let topic = TopicConfig {
        name: "orders".into(),
        message_type: MessageType::Normal.into(),
        queue_nums: 4,
        ..Default::default()
    };
    let status = raw.make_topic(topic);
    assert_eq!(status.code, Code::Ok as i32, "{status:?}");
    for group in groups {
        let next = vec![prost_types::Duration { seconds: 0, nanos: RETRY_MS * 1_000_000 }];
        let strategy = Some(Strategy::CustomizedBackoff(CustomizedBackoff { next }));
        let status = raw.make_group(GroupConfig {
            name: (*group).into(),
            retry_max_times: Some(1000),
            retry_policy: Some(RetryPolicy { max_attempts: 0, strategy }),
            ..Default::default()
        });
        assert_eq!(status.code, Code::Ok as i32, "{status:?}");
    }
    cluster.wait_route("orders");
    cluster
}

fn orders() -> [(&'static str, FilterExpression); 1] {
    [("orders", FilterExpression::all())]
}

#[test]
fn a_message_that_comes_twice_to_a_process_has_its_effect_once() {
    let cluster = server(&["shipping"]);
    block_on(async {
        let client = Client::connect(&cluster.brokers[0].endpoint(), ClientOptions::default()).await.unwrap();
        let store = MemoryStore::new(DedupeLimits::default());
        let counts = Arc::new((AtomicU32::new(0), AtomicU32::new(0)));
        let counting = counts.clone();
        let handle = move |order: MessageView| {
            let (store, counts) = (store.clone(), counting.clone());
            async move {
                let effect = async {
                    counts.0.fetch_add(1, Ordering::SeqCst);
                    Ok::<(), String>(())
                };
                once(&store, "shipping", &order, effect).await.map_err(|error| error.to_string())?;
                // It is done, and the broker does not hear of it, twice.
                match counts.1.fetch_add(1, Ordering::SeqCst) {
                    0 | 1 => Err("the acknowledgement is lost".to_owned()),
                    _ => Ok(()),
                }
            }
        };
        let _consumer = client.push_consumer("shipping", orders(), &PushOptions::default(), handle).unwrap();
        client.producer().send(Message::new("orders", "a book")).await.unwrap();
        until("three deliveries", async || counts.1.load(Ordering::SeqCst) == 3).await;
        assert_eq!(counts.0.load(Ordering::SeqCst), 1);
        client.close().await;
    });
}

/// What a consumer of its own process is to do, in its environment.
const ENDPOINT: &str = "KARMAN_ONCE_ENDPOINT";
const GROUP: &str = "KARMAN_ONCE_GROUP";
/// A directory, or the URL of a Redis.
const STORE: &str = "KARMAN_ONCE_STORE";
/// The file that an effect writes a line to.
const LEDGER: &str = "KARMAN_ONCE_LEDGER";
/// Where it stands still: `within` the effect, `behind` it and its note, or `nowhere`.
const STOPS: &str = "KARMAN_ONCE_STOPS";

#[test]
#[ignore = "a consumer that other tests start as a process"]
fn consumer() {
    let Ok(endpoint) = std::env::var(ENDPOINT) else { return };
    let store = std::env::var(STORE).unwrap();
    let limits = DedupeLimits::default().claim(Duration::from_secs(2));
    block_on(async {
        if store.starts_with("redis:") {
            consume(&endpoint, RedisStore::connect(&store, limits).await.unwrap()).await;
        } else {
            consume(&endpoint, FileStore::open(&store, limits).unwrap()).await;
        }
    });
}

async fn consume(endpoint: &str, store: impl DedupeStore + Clone + 'static) {
    let variable = |name| std::env::var(name).unwrap();
    let (group, stops, ledger) = (variable(GROUP), variable(STOPS), variable(LEDGER));
    let client = Client::connect(endpoint, ClientOptions::default()).await.unwrap();
    let of = group.clone();
    let handle = move |order: MessageView| {
        let (store, group, stops, ledger) = (store.clone(), of.clone(), stops.clone(), ledger.clone());
        async move {
            let effect = async {
                let mut ledger = File::options().create(true).append(true).open(ledger).unwrap();
                writeln!(ledger, "{}", order.message_id()).unwrap();
                println!("effect");
                if stops == "within" {
                    pending::<()>().await;
                }
                Ok::<(), String>(())
            };
            let result = once(&store, &group, &order, effect).await;
            println!("handled {}", result.is_ok());
            if stops == "behind" {
                pending::<()>().await;
            }
            result
        }
    };
    let _consumer = client.push_consumer(group, orders(), &PushOptions::default(), handle).unwrap();
    pending::<()>().await;
}

/// One group with its store.
struct Scene {
    group: &'static str,
    stops: &'static str,
    store: String,
    directory: PathBuf,
}

impl Scene {
    fn start(&self, endpoint: &str, stops: &str) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["consumer", "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
        command.env(ENDPOINT, endpoint).env(GROUP, self.group).env(STORE, &self.store);
        command.env(LEDGER, self.ledger()).env(STOPS, stops);
        Process::start(&format!("{}-{stops}", self.group), command, &self.directory)
    }

    fn ledger(&self) -> PathBuf {
        self.directory.join(format!("{}.ledger", self.group))
    }

    fn effects(&self) -> usize {
        fs::read_to_string(self.ledger()).unwrap().lines().count()
    }
}

fn wait(process: &Process, word: &str) {
    process.wait_line(word, DEADLINE, |line| line.contains(word).then_some(()));
}

#[test]
fn a_consumer_killed_before_its_acknowledgement_does_nothing_twice_and_one_killed_before_its_note_does() {
    let redis = Redis::start(&[]);
    let cluster = server(&["file", "redis", "file-torn", "redis-torn"]);
    let endpoint = cluster.brokers[0].endpoint();
    let directory: &Path = cluster.path();
    let scene = |group: &'static str, stops: &'static str| {
        let store = match group.starts_with("redis") {
            true => redis.url(),
            false => directory.join(format!("{group}.store")).to_str().unwrap().to_owned(),
        };
        Scene { group, stops, store, directory: directory.to_owned() }
    };
    let scenes = [
        scene("file", "behind"),
        scene("redis", "behind"),
        scene("file-torn", "within"),
        scene("redis-torn", "within"),
    ];
    let mut first: Vec<Process> = scenes.iter().map(|scene| scene.start(&endpoint, scene.stops)).collect();
    block_on(async {
        let client = Client::connect(&endpoint, ClientOptions::default()).await.unwrap();
        client.producer().send(Message::new("orders", "a book")).await.unwrap();
        client.close().await;
    });
    for (process, scene) in first.iter_mut().zip(&scenes) {
        wait(process, if scene.stops == "within" { "effect" } else { "handled true" });
        process.kill();
        assert_eq!(scene.effects(), 1, "{}", scene.group);
    }
    let second: Vec<Process> = scenes.iter().map(|scene| scene.start(&endpoint, "nowhere")).collect();
    for (process, scene) in second.iter().zip(&scenes) {
        wait(process, "handled true");
        let expected = if scene.stops == "within" { 2 } else { 1 };
        assert_eq!(scene.effects(), expected, "{}", scene.group);
    }
}
