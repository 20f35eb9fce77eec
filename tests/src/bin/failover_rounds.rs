//! `failover_rounds`: how long sends to a broker set of three are not answered OK when its master is killed, stopped in order, or
//! drained. Starts three namesrvs and the set; the binaries are those beside it, or in `KARMAN_BIN_DIR`.

use clap::Parser;
use karman_tests::failover::{interrupted, start, wait_in_sync};

/// Takes the master of a broker set away again and again, and tells how long sends were not answered
#[derive(Debug, Parser)]
struct Arguments {
    /// How often each is done
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
}

fn main() {
    let Arguments { rounds } = Arguments::parse();
    let (mut cluster, raw) = start();
    println!("| master | rounds | median | p99 | longest | one message sent again, at most |");
    println!("|---|---:|---:|---:|---:|---:|");
    for how in ["killed", "stopped", "drained"] {
        let (mut times, mut repeated) = (Vec::new(), 0);
        for round in 0..rounds {
            let master = wait_in_sync(&cluster, 3);
            let (name, id) = (format!("{how} {round}"), (master + 1).to_string());
            let drain = ["cluster", "drain", "broker-a", &id];
            let (longest, again) = match how {
                "killed" => interrupted(&raw, &name, || cluster.members[master].kill()),
                "stopped" => interrupted(&raw, &name, || cluster.members[master].stop()),
                _ => interrupted(&raw, &name, || drop(cluster.karman(&drain))),
            };
            match how {
                "drained" => drop(cluster.karman(&[&drain[..], &["--undo"]].concat())),
                _ => cluster.members[master].start(),
            }
            times.push(longest.as_millis());
            repeated = repeated.max(again);
            eprintln!("{name}: {} ms", longest.as_millis());
        }
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() * percent).div_ceil(100) - 1];
        println!("| {how} | {rounds} | {} ms | {} ms | {} ms | {repeated} |", at(50), at(99), at(100));
    }
}
