//! Where generated tests get their chance from: the same each time, so that a failure in one run is one in the next, and
//! other or more of it on demand. `QUORATE_SEED` asks for another seed, `QUORATE_CASES` for more cases.

use proptest::prelude::ProptestConfig;
use proptest::test_runner::RngSeed;

const SEED: u64 = 0x0c70_60e5;

pub fn config(cases: u32) -> ProptestConfig {
    let seed = from_env("QUORATE_SEED", SEED);
    // Shown when the test fails.
    println!("QUORATE_SEED={seed}");
    ProptestConfig {
        cases: from_env("QUORATE_CASES", cases),
        rng_seed: RngSeed::Fixed(seed),
        max_shrink_time: 60_000,
        // The seed is enough, and a file beside the sources would be in the way of those who build elsewhere.
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn from_env<T: std::str::FromStr>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}
