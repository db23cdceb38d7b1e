//! Runs every target over and over, on random changes of what each begins with, until the cheap ones have had as many
//! executions as asked for. Without libFuzzer: no coverage, but millions a second.
//!
//! ```text
//! RUSTFLAGS='--cfg fuzzing' cargo run --release --manifest-path fuzz/Cargo.toml --bin soak -- 1000000000 [SEED]
//! ```

#[cfg(fuzzing)]
fn main() {
    use chronfs::queue::fuzzing::{Random, mutate};
    use std::collections::BTreeMap;
    use std::panic::catch_unwind;
    use std::time::{Duration, Instant};

    let number = |index: usize| std::env::args().nth(index).and_then(|text| text.replace('_', "").parse::<u64>().ok());
    let wanted = number(1).unwrap_or(10_000_000);
    let mut random = Random(number(2).unwrap_or(0x5EED) | 1 << 40);
    let targets = chronfs_fuzz::all();
    let mut counts = BTreeMap::<_, u64>::new();
    let (started, mut said, mut longest) = (Instant::now(), Instant::now(), (Duration::ZERO, ""));
    let mut bytes = Vec::new();
    while counts.values().sum::<u64>() < wanted {
        for (name, target, seed, worth) in &targets {
            let rounds = 100_000 / worth;
            for _ in 0..rounds {
                mutate(&mut random, seed, &mut bytes);
                let before = (*worth > 1000).then(Instant::now);
                if catch_unwind(|| target(&bytes)).is_err() {
                    eprintln!("{name}: {bytes:?}");
                    std::process::exit(1);
                }
                let took = before.map_or(Duration::ZERO, |before| before.elapsed());
                if took > longest.0 {
                    longest = (took, name);
                }
            }
            *counts.entry(*name).or_default() += rounds;
        }
        if said.elapsed() > Duration::from_secs(60) || counts.values().sum::<u64>() >= wanted {
            said = Instant::now();
            let total: u64 = counts.values().sum();
            println!("{total} executions in {:?}; longest {:?} ({}); {counts:?}", started.elapsed(), longest.0, longest.1);
        }
    }
}

#[cfg(not(fuzzing))]
fn main() {
    eprintln!("soak: build it with RUSTFLAGS='--cfg fuzzing'");
    std::process::exit(2);
}
