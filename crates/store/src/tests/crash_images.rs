//! Power cuts: one run is recorded, and the files are put together as a device could hold them at any point of it. Each
//! such image must open, hold what was promised by then, and take more.
//!
//! `KARMAN_CRASH_IMAGES=10000` checks more of them, `KARMAN_CRASH_SEED=<n>` repeats a run (its threads may interleave
//! anew), `KARMAN_CRASH_IMAGE=<n>` checks that one image of it. A bad image is kept; its path is printed.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::device::{Device, Luck};
use super::fault_disk::{Call, Event, FaultDisk};
use super::mixed_run::{Cut, MixedRun};
use super::support::*;

const IMAGES: u64 = 1_000;

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}; it must be a number")))
}

fn seed() -> u64 {
    let seed = number_from("KARMAN_CRASH_SEED")
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64);
    println!("KARMAN_CRASH_SEED={seed} repeats this run");
    seed
}

/// Killed again and again, closed once: recovery and what follows it are parts of the recording.
fn recorded_run(seed: u64, told: impl Fn(&FaultDisk)) -> MixedRun {
    let mut run = MixedRun::new(FaultDisk::recording(Duration::from_micros(200)), seed);
    for generation in 0..7 {
        told(&run.disk);
        if generation != 3 {
            // Often in front of a flush or where a name is changed: what the next process finds is not durable then.
            let names = [Call::Rename, Call::SyncDirectory][run.random.below(2) as usize];
            let (call, number) = match run.random.below(3) {
                0 => (None, run.random.below(250)),
                1 => (Some(Call::Sync), run.random.below(50)),
                _ => (Some(names), run.random.below(16)),
            };
            run.disk.kill_at(call, number, run.random.below(10_000) as usize);
        }
        if let Ok(store) = run.open() {
            run.append(&store, 75);
            if generation == 3 {
                store.close().unwrap();
            }
        }
        run.disk.heal();
    }
    told(&run.disk);
    let store = run.open().unwrap();
    run.append(&store, 75);
    run
}

/// A point of the recording and the number that an image of it is drawn from.
type Image = (usize, u64);

/// At any point; a quarter of them soon after a start, when what was recovered is served and nothing else was flushed.
fn draw_images(run: &MixedRun, seed: u64, count: u64, events: usize) -> Vec<Image> {
    let mut random = Random::quiet(seed);
    let starts = run.starts();
    let draw = |number: u64| {
        let point = match number % 4 {
            0 => starts[random.below(starts.len() as u64) as usize] + random.below(8) as usize,
            _ => random.below(events as u64 + 1) as usize,
        };
        (point.min(events), number)
    };
    let mut images: Vec<_> = (0..count).map(draw).collect();
    images.sort_unstable();
    images
}

fn write_image(device: &Device, run: &MixedRun, seed: u64, (_, number): Image, to: &Path) {
    let mut random = Random::quiet(seed ^ (number << 20));
    let luck = Luck::draw(&mut random);
    device.write_image(run.directory.path(), to, luck, &mut random).unwrap();
}

/// The bad ones, and what is wrong with them.
fn check_images(run: &MixedRun, events: &[Event], seed: u64, images: &[Image]) -> Vec<(Image, String)> {
    let check_half = |half: usize| {
        let mut device = Device::default();
        let mut bad = Vec::new();
        for image in images.iter().copied().skip(half).step_by(2) {
            let (point, number) = image;
            device.advance(events, point);
            let scratch = scratch_in_memory();
            write_image(&device, run, seed, image, scratch.path());
            let checked = run.check_copy(scratch.path(), Cut::Power(point), number % 8 == 0);
            bad.extend(checked.err().map(|wrong| (image, wrong)));
        }
        bad
    };
    thread::scope(|scope| {
        let other_half = scope.spawn(|| check_half(1));
        [check_half(0), other_half.join().unwrap()].concat()
    })
}

/// Puts an image together once more, as it was before it was opened.
fn keep(run: &MixedRun, events: &[Event], seed: u64, image: Image) -> PathBuf {
    let mut device = Device::default();
    device.advance(events, image.0);
    let kept = scratch().keep();
    write_image(&device, run, seed, image, &kept);
    kept
}

#[test]
fn after_a_power_cut_everything_promised_is_there_and_the_rest_is_a_prefix() {
    let (seed, count) = (seed(), number_from("KARMAN_CRASH_IMAGES").unwrap_or(IMAGES));
    let started = Instant::now();
    let run = recorded_run(seed, |_| {});
    let events = run.disk.events();
    println!("{} events recorded in {:?}", events.len(), started.elapsed());
    let mut images = draw_images(&run, seed, count, events.len());
    if let Some(chosen) = number_from("KARMAN_CRASH_IMAGE") {
        images.retain(|(_, number)| *number == chosen);
    }
    let bad = check_images(&run, &events, seed, &images);
    println!("{} images in {:?}", images.len(), started.elapsed());
    for ((point, number), wrong) in &bad {
        println!("image {number}, behind event {point}: {wrong}");
    }
    if let Some((image, _)) = bad.first() {
        panic!(
            "{} bad images; the first is kept in {}",
            bad.len(),
            keep(&run, &events, seed, *image).display()
        );
    }
}

/// If the check missed these it would miss a store that does not flush.
#[test]
fn a_disk_that_says_flushed_and_does_nothing_is_found_out() {
    let lies = [(Call::Sync, ".log"), (Call::SyncDirectory, "commitlog"), (Call::SyncDirectory, "")];
    for (call, end) in lies {
        let seed = seed();
        let run = recorded_run(seed, |disk| disk.lie_about(call, end));
        let events = run.disk.events();
        let bad = check_images(&run, &events, seed, &draw_images(&run, seed, 200, events.len()));
        println!("{call:?} of {end:?} does nothing: {} of 200 images are bad", bad.len());
        assert!(bad.len() >= 10, "{bad:?}");
    }
}
