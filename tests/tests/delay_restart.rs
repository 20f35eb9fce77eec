//! How late delayed messages are that a restart of their broker comes between. Alone in its file: what else runs beside it
//! would be measured too.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Seek as _, Write as _};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use karman_remoting::proto::v2::{self, MessageType};
use karman_tests::raw::{delayed, is_ok, millis, now_ms, raw, receive_request, seconds, system};
use karman_tests::{Cluster, let_run, until};

const TOPIC: &str = "later";
const DEADLINE: Duration = Duration::from_secs(40);
/// What is promised.
const LATE_MAX_MS: i64 = 100;
/// Threads that a delivery wakes one behind the other: who delivers, who writes the log, who answers.
const WAKES: i64 = 3;
const COUNT: i64 = 400;
/// Between two of them.
const STEP_MS: i64 = 20;
/// Who ask for them at the same time.
const READERS: usize = 4;
/// How often it is tried what this machine needs for the same.
const BEAT: Duration = Duration::from_millis(10);

/// A message that came, and when: milliseconds since 1970.
#[derive(Clone, Copy, Debug)]
struct Came {
    due_ms: i64,
    /// When its broker made it visible.
    shown_ms: i64,
    at_ms: i64,
}

/// For how long this machine kept a thread waiting that wanted to wake up and to flush a page, at worst, until `done`: no
/// timer can be better than that while others use its processors and its disk.
fn worst_of_machine(directory: &Path, done: &AtomicBool) -> i64 {
    let mut file = std::fs::File::create(directory.join("beat")).unwrap();
    let mut worst = Duration::ZERO;
    while !done.load(Ordering::Relaxed) {
        let began = Instant::now();
        std::thread::sleep(BEAT);
        file.rewind().unwrap();
        file.write_all(&[0; 4096]).unwrap();
        file.sync_data().unwrap();
        worst = worst.max(began.elapsed().saturating_sub(BEAT));
    }
    i64::try_from(worst.as_millis()).unwrap()
}

/// Receives until all messages have come.
fn receive_all(cluster: &Cluster) -> Vec<Came> {
    let came = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                let raw = raw(cluster);
                until("all messages come", DEADLINE, || {
                    let seconds = Some(seconds(1));
                    let request = receive_request(TOPIC, "billing", "broker-a");
                    let request = v2::ReceiveMessageRequest { long_polling_timeout: seconds, ..request };
                    let (_, messages) = raw.receive(request);
                    let at_ms = now_ms();
                    let mut came = came.lock().unwrap();
                    came.extend(messages.iter().map(|message| came_at(message, at_ms)));
                    (came.len() as i64 >= COUNT).then_some(())
                });
            });
        }
    });
    came.into_inner().unwrap()
}

fn came_at(message: &v2::Message, at_ms: i64) -> Came {
    let system = system(message);
    let times = [system.delivery_timestamp, system.store_timestamp];
    let [due_ms, shown_ms] = times.map(|time| millis(&time.unwrap()));
    Came { due_ms, shown_ms, at_ms }
}

/// The median, the 99th of a hundred, and the worst.
fn told(mut late_ms: Vec<i64>) -> (i64, i64, i64) {
    late_ms.sort_unstable();
    let at = |part: usize| late_ms[(late_ms.len() - 1) * part / 100];
    (at(50), at(99), at(100))
}

#[test]
fn after_a_restart_what_was_missed_comes_at_once_and_the_rest_in_time() {
    let mut cluster = Cluster::builder().brokers(1).start();
    is_ok(raw(&cluster).create_topic(TOPIC, MessageType::Delay));
    let start_ms = now_ms();
    let due_ms = |number: i64| start_ms + 2000 + STEP_MS * number;
    let messages: Vec<v2::Message> =
        (0..COUNT).map(|number| delayed(TOPIC, &format!("id-{number}"), due_ms(number))).collect();
    for batch in messages.chunks(100) {
        is_ok(raw(&cluster).send(batch).status);
    }
    assert!(now_ms() < due_ms(0), "too slow a machine for this test");
    cluster.brokers[0].kill();
    let_run(Duration::from_millis(u64::try_from(due_ms(COUNT / 4) - now_ms()).unwrap()));
    let (path, done) = (cluster.path().to_owned(), AtomicBool::new(false));
    let (ready_ms, came, machine_ms) = std::thread::scope(|scope| {
        let beat = scope.spawn(|| worst_of_machine(&path, &done));
        cluster.brokers[0].start();
        let ready_ms = now_ms();
        let came = receive_all(&cluster);
        done.store(true, Ordering::Relaxed);
        (ready_ms, came, beat.join().unwrap())
    });
    assert!(came.iter().all(|one| one.due_ms <= one.shown_ms.min(one.at_ms)), "early: {came:?}");
    let mut due: Vec<i64> = came.iter().map(|one| one.due_ms).collect();
    due.sort_unstable();
    assert_eq!(due, (0..COUNT).map(due_ms).collect::<Vec<_>>(), "each comes once");
    let (missed, rest): (Vec<Came>, Vec<Came>) = came.into_iter().partition(|one| one.due_ms <= ready_ms);
    assert!(!missed.is_empty() && rest.len() as i64 > COUNT / 4, "too slow a machine for this test");
    // What was missed may come before the broker says that it is ready.
    let shown =
        |some: &[Came]| told(some.iter().map(|one| one.shown_ms - one.due_ms.max(ready_ms)).collect());
    let at = |some: &[Came]| told(some.iter().map(|one| one.at_ms - one.due_ms.max(ready_ms)).collect());
    println!(
        "median, p99 and worst, in ms; {} missed: shown {:?}, received {:?}; {} not: shown {:?}, received {:?}; \
         this machine: {machine_ms}",
        missed.len(),
        shown(&missed),
        at(&missed),
        rest.len(),
        shown(&rest),
        at(&rest),
    );
    let allowed_ms = LATE_MAX_MS + WAKES * machine_ms;
    assert!(
        shown(&missed).2 <= allowed_ms && shown(&rest).2 <= allowed_ms,
        "late by more than {allowed_ms} ms"
    );
    assert!(at(&rest).2 <= allowed_ms, "received late by more than {allowed_ms} ms");
}
