//! `karman top`: what a cluster does at the moment. Two samples a second apart make the rates.
//!
//! [`sample`] asks, [`view`] is what a sample looks like, [`screen`] is the terminal. On the main thread; a thread reads keys.

mod sample;
mod screen;
mod view;

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::cli::Incomplete;
use crate::node::Node;
use crate::output::{self, Format};
use crate::signals::stop_on_signals;
use sample::{Rates, Sample};
use screen::{Key, Screen};

pub(crate) const AFTER_HELP: &str = "\
q ends it, s sorts by something else. IN and OUT are messages in a second: stored for producers, and handed to consumers, each
delivery counted. LAG of a slave: bytes of the log that it does not have. READY: stored and never delivered. A broker
or a call that does not answer is named in the last line; the rest goes on.

With -o json: one object with cluster, at_ms, seconds, brokers, topics, groups and errors.

Example:
  karman top
  karman top --once --sort in
  karman -o json top --every 5s";

#[derive(Args, Debug)]
pub(crate) struct TopArgs {
    /// One sample, and the end: for scripts, as any -o but table
    #[arg(long)]
    once: bool,
    /// What comes first
    #[arg(long, value_enum, default_value_t = SortWord::Ready)]
    sort: SortWord,
    /// How long is counted for a rate, and shown until the next: 200ms to 1h
    #[arg(long, value_name = "DURATION", value_parser = interval, default_value = "1s")]
    every: Duration,
}

fn interval(text: &str) -> Result<Duration, String> {
    let every = crate::time::parse_duration(text)?;
    let allowed = Duration::from_millis(200)..=Duration::from_secs(3600);
    if allowed.contains(&every) { Ok(every) } else { Err("200ms to 1h are possible".to_owned()) }
}

/// What comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SortWord {
    /// What waits, or of a topic what is stored
    Ready,
    /// Messages stored in a second
    In,
    /// Messages handed out in a second
    Out,
    /// The name
    Name,
}

impl SortWord {
    fn next(self) -> Self {
        match self {
            Self::Ready => Self::In,
            Self::In => Self::Out,
            Self::Out => Self::Name,
            Self::Name => Self::Ready,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::In => "in",
            Self::Out => "out",
            Self::Name => "name",
        }
    }
}

pub(crate) async fn run(args: TopArgs, node: &Node, format: Format) -> anyhow::Result<()> {
    if args.once || format != Format::Table {
        return once(&args, node, format).await;
    }
    if !io::stdout().is_terminal() {
        let how = "karman top draws on a terminal; give --once or -o json for a file or a script";
        return Err(Incomplete(how.to_owned()).into());
    }
    live(args, node).await
}

/// One sample; a call that fails is an error, since nobody waits for the next.
async fn once(args: &TopArgs, node: &Node, format: Format) -> anyhow::Result<()> {
    let first = sample::take(node).await?;
    tokio::time::sleep(args.every).await;
    let second = sample::take(node).await?;
    let rates = Rates::between(&first, &second, args.sort);
    if output::programs(format, &rates, Rates::names)? {
        return Ok(());
    }
    view::tables(&rates).iter().try_for_each(|table| Ok(output::line(table)?))
}

/// Draws until it is told to stop. What fails is shown, and asked for again.
async fn live(args: TopArgs, node: &Node) -> anyhow::Result<()> {
    let first = sample::take(node).await?;
    let stop = stop_on_signals();
    let mut screen = Screen::open()?;
    let (mut sort, mut samples) = (args.sort, [first.clone(), first]);
    let mut ticks = tokio::time::interval(args.every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        let [before, last] = &samples;
        screen.draw(&view::page(&Rates::between(before, last, sort), sort, screen.size()))?;
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            key = screen.key() => match key {
                Key::Quit => return Ok(()),
                Key::Sort => sort = sort.next(),
            },
            next = next(&mut ticks, node) => match next {
                Ok(next) => samples = [samples[1].clone(), next],
                Err(error) => samples[1].errors = vec![format!("{error:#}")],
            },
        }
    }
}

async fn next(ticks: &mut tokio::time::Interval, node: &Node) -> anyhow::Result<Sample> {
    ticks.tick().await;
    sample::take(node).await
}
