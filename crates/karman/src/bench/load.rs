//! The load: connections spread over threads, each thread with a runtime of its own, as the servers have.
//!
//! It must be cheap, for it runs on the machine it measures: messages are copies of a template, a thread's tasks share
//! one histogram and never leave their thread. Without a rate each task sends when its last answer came; with one,
//! a pacer thread says when each request is due, and latency counts from then: a server that stalls is charged for the
//! requests it kept waiting.

use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hdrhistogram::Histogram;
use karman_remoting::proto::v2;
use karman_remoting::proto::v2::messaging_service_client::MessagingServiceClient;
use parking_lot::Mutex;
use tokio::sync::{Barrier, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::{Channel, Endpoint};

use super::template::{Run, Template};
use super::{LoadArgs, Outcome, new_histogram};
use crate::node::Caller;
use crate::output::grouped;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A task whose request failed waits, or it would fail as fast as it can.
const FAILURE_PAUSE: Duration = Duration::from_millis(10);
/// Requests that are due and have not begun; then the pacer waits, which the schedule does not forget.
const DUE_MAX: usize = 4096;

/// What to send, and where.
pub(crate) struct Load {
    /// `host:port`s; the connections take them in turn.
    pub(crate) targets: Vec<String>,
    pub(crate) topic: String,
    pub(crate) args: LoadArgs,
    pub(crate) run: Run,
    /// Each thread calls as a client of its own, in this one's name.
    pub(crate) caller: Caller,
}

/// What all threads count together.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) messages: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) first_error: Mutex<Option<String>>,
}

impl Counters {
    /// What the run came to; each body had `body_size` bytes.
    pub(crate) fn outcome(&self, body_size: u64, elapsed: Duration, latency: Histogram<u64>) -> Outcome {
        let messages = self.messages.load(Ordering::Relaxed);
        Outcome {
            messages,
            body_bytes: messages * body_size,
            elapsed,
            errors: self.errors.load(Ordering::Relaxed),
            first_error: self.first_error.lock().take(),
            latency,
        }
    }
}

/// One thread's share.
struct Share {
    load: Arc<Load>,
    number: usize,
    threads: usize,
    counters: Arc<Counters>,
    ready: Arc<Barrier>,
    stop: CancellationToken,
}

/// Runs the load until its time is over or `stop`, with a line on stderr each second.
pub(crate) async fn run(load: Load, stop: &CancellationToken) -> anyhow::Result<Outcome> {
    let connections = load.args.connections as usize;
    let threads = thread::available_parallelism().map_or(1, usize::from).min(connections);
    let load = Arc::new(load);
    let counters = Arc::new(Counters::default());
    let ready = Arc::new(Barrier::new(threads + 1));
    // Ends when this function does, however it does.
    let stop = stop.child_token();
    let _stopped = stop.clone().drop_guard();
    let mut results = Vec::with_capacity(threads);
    for number in 0..threads {
        let (done, result) = oneshot::channel();
        let share = Share {
            load: load.clone(),
            number,
            threads,
            counters: counters.clone(),
            ready: ready.clone(),
            stop: stop.clone(),
        };
        let body = move || {
            // Nobody waits for it any more when the command was ended.
            let _ = done.send(share.run());
        };
        thread::Builder::new().name(format!("load-{number}")).spawn(body).context("start a load thread")?;
        results.push(result);
    }
    ready.wait().await;
    let start = Instant::now();
    let mut latency = new_histogram();
    let threads = async {
        for result in results {
            latency.add(result.await.context("a load thread panicked")??)?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        result = threads => result?,
        () = progress(&counters, load.args.size.into()) => {}
    }
    Ok(counters.outcome(load.args.size.into(), start.elapsed(), latency))
}

/// A line on stderr each second. Never ends.
pub(crate) async fn progress(counters: &Counters, body_size: u64) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.tick().await;
    let mut before = 0;
    for second in 1u64.. {
        ticks.tick().await;
        let messages = counters.messages.load(Ordering::Relaxed);
        let errors = counters.errors.load(Ordering::Relaxed);
        print_progress(second, messages - before, (messages - before) * body_size, errors);
        before = messages;
    }
}

/// The line of one second, the same for all benches.
pub(crate) fn print_progress(second: u64, messages: u64, body_bytes: u64, errors: u64) {
    let rate = grouped(messages);
    eprintln!("{second:>4} s  {rate:>11} msg/s  {:>8.1} MB/s  {errors} errors", body_bytes as f64 / 1e6);
}

/// One connection of its own, not shared with others as a pool would.
pub(crate) async fn connect(target: &str) -> anyhow::Result<MessagingServiceClient<Channel>> {
    let channel = Endpoint::from_shared(format!("http://{target}"))
        .with_context(|| format!("address {target:?}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(1024 * 1024)
        .initial_connection_window_size(8 * 1024 * 1024)
        .connect()
        .await
        .with_context(|| format!("connect to {target}"))?;
    let limit = karman_remoting::server::MAX_DECODING_SIZE_BYTES;
    Ok(MessagingServiceClient::new(channel).max_decoding_message_size(limit))
}

/// What the tasks of one thread share.
struct Sender {
    template: Template,
    batch: usize,
    caller: Caller,
    sequence: AtomicU64,
    /// Never contended: all tasks are on one thread.
    latency: Mutex<Histogram<u64>>,
    counters: Arc<Counters>,
}

impl Share {
    fn run(self) -> anyhow::Result<Histogram<u64>> {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(self.send())
    }

    async fn send(self) -> anyhow::Result<Histogram<u64>> {
        let args = &self.load.args;
        let mine = (self.number..args.connections as usize).step_by(self.threads);
        let connecting =
            mine.clone().map(|index| connect(&self.load.targets[index % self.load.targets.len()]));
        let mut services = Vec::with_capacity(mine.len());
        let mut failed = None;
        for connection in connecting {
            match connection.await {
                Ok(service) => services.push(service),
                Err(error) => failed = Some(error),
            }
        }
        // All wait for all: also when there is nothing to begin with.
        self.ready.wait().await;
        if let Some(error) = failed {
            return Err(error);
        }
        let began = Instant::now();
        let until = began + Duration::from_secs(args.seconds);
        let sender = Arc::new(Sender {
            template: Template::new(&self.load.topic, args.size as usize, args.message_groups, self.load.run),
            batch: args.batch as usize,
            caller: self.load.caller.called(&format!("load-{}", self.number)),
            // Ranges that do not meet: 2^48 messages for each thread.
            sequence: AtomicU64::new((self.number as u64) << 48),
            latency: Mutex::new(new_histogram()),
            counters: self.counters.clone(),
        });
        let tasks = TaskTracker::new();
        if args.rate == 0 {
            for service in services {
                for _ in 0..args.inflight {
                    tasks.spawn(closed_loop(sender.clone(), service.clone(), until, self.stop.clone()));
                }
            }
        } else {
            self.open_loop(&sender, &services, began..until, &tasks).await?;
        }
        tasks.close();
        tasks.wait().await;
        Ok(std::mem::replace(&mut *sender.latency.lock(), new_histogram()))
    }

    /// Begins each request when it is due and one of the thread's requests in flight is free.
    async fn open_loop(
        &self,
        sender: &Arc<Sender>,
        services: &[MessagingServiceClient<Channel>],
        time: Range<Instant>,
        tasks: &TaskTracker,
    ) -> anyhow::Result<()> {
        let args = &self.load.args;
        let requests_per_second = f64::from(args.rate) / f64::from(args.batch);
        let interval = self.threads as f64 / requests_per_second;
        let offset = self.number as f64 / requests_per_second;
        let start = time.start + Duration::from_secs_f64(offset);
        let (due, mut requests) = mpsc::channel(DUE_MAX);
        thread::Builder::new()
            .name(format!("pace-{}", self.number))
            .spawn(move || pace(start, interval, time.end, &due))
            .context("start a pacer thread")?;
        let free = Arc::new(Semaphore::new(args.inflight as usize * services.len()));
        let mut turn = 0;
        loop {
            let scheduled = tokio::select! {
                () = self.stop.cancelled() => break,
                scheduled = requests.recv() => scheduled,
            };
            let Some(scheduled) = scheduled else { break };
            let permit = free.clone().acquire_owned().await.expect("the semaphore is never closed");
            let (sender, mut service) = (sender.clone(), services[turn % services.len()].clone());
            turn += 1;
            tasks.spawn(async move {
                sender.request(&mut service, scheduled).await;
                drop(permit);
            });
        }
        Ok(())
    }
}

/// Tells when requests are due until `until`, or until nobody listens. A thread of its own: a runtime's timers are good
/// to a millisecond only, which is more than a request takes.
fn pace(start: Instant, interval_seconds: f64, until: Instant, due: &mpsc::Sender<Instant>) {
    // Sleep to the microsecond; where that is not granted, latencies include 50 us of the kernel's laziness.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    for count in 0u64.. {
        let at = start + Duration::from_secs_f64(count as f64 * interval_seconds);
        if at >= until {
            return;
        }
        thread::sleep(at.saturating_duration_since(Instant::now()));
        if due.blocking_send(at).is_err() {
            return;
        }
    }
}

async fn closed_loop(
    sender: Arc<Sender>,
    mut service: MessagingServiceClient<Channel>,
    until: Instant,
    stop: CancellationToken,
) {
    loop {
        let now = Instant::now();
        if now >= until || stop.is_cancelled() {
            return;
        }
        sender.request(&mut service, now).await;
    }
}

impl Sender {
    async fn request(&self, service: &mut MessagingServiceClient<Channel>, scheduled: Instant) {
        let first = self.sequence.fetch_add(self.batch as u64, Ordering::Relaxed);
        let messages = self.template.messages(first, self.batch, scheduled);
        let request = self.caller.request(v2::SendMessageRequest { messages });
        let error = match tokio::time::timeout(CALL_TIMEOUT, service.send_message(request)).await {
            Ok(Ok(response)) => match refusal(response.get_ref()) {
                None => {
                    let micros = u64::try_from(scheduled.elapsed().as_micros()).unwrap_or(u64::MAX);
                    self.latency.lock().saturating_record(micros);
                    self.counters.messages.fetch_add(self.batch as u64, Ordering::Relaxed);
                    return;
                }
                Some(refusal) => refusal,
            },
            Ok(Err(status)) => format!("gRPC {:?}: {}", status.code(), status.message()),
            Err(_) => format!("no answer within {} s", CALL_TIMEOUT.as_secs()),
        };
        self.counters.errors.fetch_add(1, Ordering::Relaxed);
        self.counters.first_error.lock().get_or_insert(error);
        tokio::time::sleep(FAILURE_PAUSE).await;
    }
}

pub(super) fn refusal(response: &v2::SendMessageResponse) -> Option<String> {
    let status = response.status.as_ref()?;
    (status.code != v2::Code::Ok as i32)
        .then(|| format!("{} ({})", status.message, status.code().as_str_name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pacer_keeps_to_the_schedule_when_it_was_held_up() {
        let (due, mut requests) = mpsc::channel(1);
        let start = Instant::now();
        let pacer = thread::spawn(move || pace(start, 0.001, start + Duration::from_millis(20), &due));
        thread::sleep(Duration::from_millis(10));
        let mut scheduled = Vec::new();
        while let Some(at) = requests.blocking_recv() {
            scheduled.push(at);
        }
        pacer.join().unwrap();
        let expected: Vec<_> =
            (0..20).map(|count| start + Duration::from_secs_f64(f64::from(count) * 0.001)).collect();
        assert_eq!(scheduled, expected);
    }
}
