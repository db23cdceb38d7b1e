//! Runs every target, or one, over and over, on random changes of what each begins with, until the cheap ones have had as
//! many executions as asked for. Without libFuzzer: no coverage, but millions a second.
//!
//! ```text
//! RUSTFLAGS='--cfg fuzzing' cargo run --release --manifest-path fuzz/Cargo.toml --bin soak -- 1000000000 [SEED [NAME]]
//! ```
//!
//! What a whole queue's input costs is counted in processor time of all threads, because elapsed time means little
//! on a busy machine. The most expensive input is left in `longest-NAME`; `soak NAME FILE` runs a file's bytes alone.

#[cfg(fuzzing)]
mod soak {
    use std::collections::BTreeMap;
    use std::panic::catch_unwind;
    use std::time::{Duration, Instant};

    use chronfs::queue::fuzzing::{Random, Target, mutate};

    /// Processor time of this process so far.
    fn work() -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
    }

    /// Ends the program where the target panics.
    fn execute(name: &str, target: Target, bytes: &[u8]) {
        if catch_unwind(|| target(bytes)).is_err() {
            eprintln!("{name}: {bytes:?}");
            std::process::exit(1);
        }
    }

    /// One file's bytes.
    pub fn again(name: &str, file: &str) {
        let bytes = std::fs::read(file).expect("a file");
        let (started, before) = (Instant::now(), work());
        let (_, target, ..) = chronfs_fuzz::all().into_iter().find(|(known, ..)| *known == name).expect("a target");
        execute(name, target, &bytes);
        println!("{name}: {:?} of work in {:?}", work() - before, started.elapsed());
    }

    pub fn run(wanted: u64, seed: u64, only: Option<&str>) {
        let mut random = Random(seed | 1 << 40);
        let mut targets = chronfs_fuzz::all();
        targets.retain(|(name, ..)| only.is_none_or(|only| only == *name));
        assert!(!targets.is_empty(), "no such target");
        let mut counts = BTreeMap::<_, u64>::new();
        let (started, mut said, mut longest) = (Instant::now(), Instant::now(), (Duration::ZERO, ""));
        let mut bytes = Vec::new();
        while counts.values().sum::<u64>() < wanted {
            for &(name, target, ref seed, worth) in &targets {
                let rounds = 100_000 / worth;
                for _ in 0..rounds {
                    mutate(&mut random, seed, &mut bytes);
                    let before = (worth >= 1000).then(work);
                    execute(name, target, &bytes);
                    let cost = before.map_or(Duration::ZERO, |before| work() - before);
                    if cost > longest.0 {
                        longest = (cost, name);
                        let _ = std::fs::write(format!("longest-{name}"), &bytes);
                    }
                }
                *counts.entry(name).or_default() += rounds;
            }
            let total: u64 = counts.values().sum();
            if said.elapsed() > Duration::from_secs(60) || total >= wanted {
                said = Instant::now();
                let (cost, name) = longest;
                println!(
                    "{total} executions in {:?}; longest {cost:?} of work ({name}); {counts:?}",
                    started.elapsed()
                );
            }
        }
    }
}

#[cfg(fuzzing)]
fn main() {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let number = |index: usize| words.get(index).and_then(|text| text.replace('_', "").parse::<u64>().ok());
    match &words[..] {
        [name, file] if number(0).is_none() => soak::again(name, file),
        _ => soak::run(number(0).unwrap_or(10_000_000), number(1).unwrap_or(0x5EED), words.get(2).map(String::as_str)),
    }
}

#[cfg(not(fuzzing))]
fn main() {
    eprintln!("soak: build it with RUSTFLAGS='--cfg fuzzing'");
    std::process::exit(2);
}
