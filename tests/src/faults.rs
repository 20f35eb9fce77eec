//! The fault run: two broker sets of three and three namesrvs, each in a network namespace, each broker's store on a file system
//! of its own, under the mixed load, while one fault after the other is done to them and undone. In the end everything is read, the
//! logs of all brokers are compared, and the checker judges.
//!
//! Who calls: the program `fault_run` and `tests/faults.rs`. One thread owns the cluster and does the faults; the load has a
//! runtime of its own. Needs root; whatever happens, the drop of what is made here, or the next run, removes it.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use karman_checker::event::{self, Event};
use karman_checker::report::Report;

use crate::mixed_load::{self, Load, now_ms};

mod damage;
mod inject;
mod logs;
mod network;
mod plan;
mod relay;
mod servers;
mod summary;

pub use plan::Kind;
pub use summary::Summary;

use servers::Servers;

/// After a fault was undone, until all brokers of all sets count again.
const WHOLE_DEADLINE: Duration = Duration::from_secs(90);
/// JVMs among them, on two cores.
const BESIDE_DEADLINE: Duration = Duration::from_secs(120);
/// Between two looks at something.
const LOOK: Duration = Duration::from_millis(200);

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Options {
    /// For which messages are sent, evenly, and faults done.
    pub seconds: u64,
    /// Messages a second.
    pub rate: u64,
    /// From one fault to the next; it is longer where a fault lasts longer.
    pub every_seconds: u64,
    pub seed: u64,
    /// Of these kinds only; empty: all.
    pub kinds: Vec<Kind>,
}

impl Options {
    /// The command line that does the same.
    pub fn repeat(&self) -> String {
        let Self { seconds, rate, every_seconds, seed, kinds } = self;
        let mut line =
            format!("fault_run --seconds {seconds} --rate {rate} --every {every_seconds} --seed {seed}");
        if !kinds.is_empty() {
            line += " --kinds ";
            line += &kinds.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        }
        line
    }

    fn load(&self) -> mixed_load::Options {
        mixed_load::Options {
            messages: self.seconds * self.rate,
            seconds: self.seconds,
            seed: self.seed,
            // Six copies of everything lie on one disk.
            shares: [44, 20, 15, 10, 10, 1],
            large_bytes: (16 << 10, 64 << 10),
            delay_ms: (500, 30_000),
            ..mixed_load::Options::default()
        }
    }
}

/// What somebody is told who works with the cluster beside the load.
#[derive(Debug)]
pub struct Cluster<'a> {
    /// All namesrvs, as clients are told them.
    pub access_point: &'a str,
    /// A door to each broker set, and its name.
    pub owners: &'a [(String, String)],
    /// To be set by whoever works beside: faults may begin. Clients need not start in the middle of one.
    pub ready: &'a AtomicBool,
    /// All faults are over: now everything must go well.
    pub healed: &'a AtomicBool,
}

/// Does it all, and writes history and logs to `out`, a directory. `stop` ends it early, and in order. `beside` runs while faults are
/// done; it must end soon after they are over, and the servers wait for it.
pub fn run(
    options: &Options,
    out: &Path,
    stop: &Arc<AtomicBool>,
    beside: impl FnOnce(&Cluster<'_>) + Send,
) -> anyhow::Result<Summary> {
    eprintln!("{}", options.repeat());
    std::fs::create_dir_all(out)?;
    let is_empty = std::fs::read_dir(out)?.next().is_none();
    anyhow::ensure!(
        is_empty,
        "{} is not empty; the logs of two runs must not be mixed: name another",
        out.display()
    );
    let mut servers = Servers::start(out);
    mixed_load::set_up(&servers.doors(), servers::SETS.len());
    let file = out.join("history.jsonl");
    let (access_point, owners) = (servers.namesrvs(), servers.owners());
    let (ready, healed) = (AtomicBool::new(false), AtomicBool::new(false));
    let cluster = Cluster { access_point: &access_point, owners: &owners, ready: &ready, healed: &healed };
    let (load, faults, healed_ms, drained) = std::thread::scope(|scope| {
        // It ends also where this fails.
        let _healed = OnDrop(&healed);
        let beside = scope.spawn(|| beside(&cluster));
        crate::until("what works beside the load is ready", BESIDE_DEADLINE, || {
            (ready.load(Ordering::Relaxed) || beside.is_finished()).then_some(())
        });
        let mut load = Load::start(options.load(), servers.targets(), &file);
        let faults = inject_all(options, &mut servers, &load, stop);
        servers.heal();
        let healed_ms = now_ms();
        anyhow::ensure!(!stop.load(Ordering::Relaxed), "stopped by a signal; nothing is judged");
        wait_whole(&servers);
        healed.store(true, Ordering::Relaxed);
        let drained = load.drain();
        beside.join().map_err(|_| anyhow::anyhow!("what ran beside the load failed"))?;
        Ok((load, faults, healed_ms, drained))
    })?;
    let draining_ms = load.last_delivery_ms().saturating_sub(healed_ms);
    let (stored, delivered) = load.counts();
    let history = load.stop();
    servers.stop();
    logs::write(&servers, out, &history)?;
    history.end();
    let open = || File::open(&file).map(|file| BufReader::with_capacity(1 << 20, file));
    let judged = karman_checker::History::read(open()?)?;
    let mut report = Report::of(&judged);
    let mut summary = Summary::of(options, &judged);
    drop(judged);
    report.explain(3, open()?)?;
    summary.finish(report, (faults, stored, delivered), drained.then_some(draining_ms));
    summary.write(out)?;
    Ok(summary)
}

struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One after the other, until the time is over; how many.
fn inject_all(options: &Options, servers: &mut Servers, load: &Load, stop: &AtomicBool) -> u32 {
    let began = Instant::now();
    let end = Duration::from_secs(options.seconds);
    let every = Duration::from_secs(options.every_seconds);
    let mut plan = plan::Plan::new(options.seed, &options.kinds);
    let mut next = every.min(Duration::from_secs(10));
    for number in 1.. {
        while began.elapsed() < next {
            if stop.load(Ordering::Relaxed) || began.elapsed() + plan::SHORTEST >= end {
                return number - 1;
            }
            std::thread::sleep(LOOK);
        }
        let fault = plan.next();
        let (stored, delivered) = load.counts();
        let mut injection = inject::prepare(fault, servers, load);
        let (t, whom) = (now_ms(), injection.told());
        eprintln!(
            "{:>5} s  {stored} stored, {delivered} delivered; {} {whom}",
            began.elapsed().as_secs(),
            fault.kind
        );
        load.line(&Event::Inject(event::Inject {
            number,
            t,
            kind: fault.kind.to_string().into(),
            what: whom.into(),
            skew: injection.skew().map(|(broker, ms)| (broker.into(), ms)),
        }));
        injection.run();
        wait_whole(servers);
        load.line(&Event::Heal(event::Heal { number, t: now_ms() }));
        next = (next + every).max(began.elapsed() + plan::REST);
    }
    unreachable!("a run has an end")
}

/// A fault meets servers that are all well.
fn wait_whole(servers: &Servers) {
    crate::until("all brokers of both sets count", WHOLE_DEADLINE, || servers.is_whole().then_some(()));
}
