//! Keys and values: the same for every server, from fixed seeds.

use bytes::Bytes;

/// Good enough to spread keys; repeatable everywhere. (SplitMix64.)
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.draw() % end.max(1)
    }
}

fn mix(seed: u64) -> u64 {
    let mut z = seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Visits every number below `end` once, in scattered order. A keyspace written in key order would flatter stores that
/// keep rows in writing order.
pub fn scattered(at: u64, end: u64) -> u64 {
    const STEP: u64 = 2_654_435_761; // prime and larger than any `end` here, hence coprime to it
    debug_assert!(at < end && end < STEP);
    ((u128::from(at) * u128::from(STEP)) % u128::from(end)) as u64
}

/// A key of 16 to 64 bytes, its length a function of its number.
pub fn key(number: u64) -> Bytes {
    let length = 16 + (mix(number) % 49) as usize;
    let mut key = format!("/key/{number:011}").into_bytes();
    key.resize(length, b'.');
    key.into()
}

/// Keys per listed prefix.
pub const LIST_KEYS: u64 = 500;

/// The prefix of list `list`.
pub fn list_prefix(list: u64) -> String {
    format!("/list/{list:05}/")
}

/// Key `number` of all listed keys; [`LIST_KEYS`] in a row share a prefix.
pub fn list_key(number: u64) -> Bytes {
    let name = mix(number ^ 0x115);
    format!(
        "{}{:05}-{name:016x}",
        list_prefix(number / LIST_KEYS),
        number % LIST_KEYS
    )
    .into()
}

/// A key of 64 bytes shaped like an object of Kubernetes.
pub fn memory_key(number: u64) -> Bytes {
    format!(
        "/registry/pods/namespace-{:05}/{:016x}{number:017x}",
        number % 997,
        mix(number)
    )
    .into()
}

/// The end of the range of everything that begins with `prefix`.
pub fn prefix_end(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    let last = end.last_mut().expect("a prefix is never empty");
    debug_assert!(*last < 0xff);
    *last += 1;
    end.into()
}

/// Bytes to cut values from; they don't compress, and each cut shares the block.
#[derive(Clone)]
pub struct Values(Bytes);

impl Values {
    pub fn new() -> Self {
        let mut random = Random::new(7);
        Self(
            (0..128 * 1024)
                .flat_map(|_| random.draw().to_le_bytes())
                .collect::<Vec<u8>>()
                .into(),
        )
    }

    pub fn cut(&self, random: &mut Random, bytes: usize) -> Bytes {
        let at = random.below((self.0.len() - bytes) as u64) as usize;
        self.0.slice(at..at + bytes)
    }
}

impl Default for Values {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn scattering_visits_each_number_once() {
        for end in [1, 2, 10, 499, 20_000] {
            let seen: HashSet<_> = (0..end).map(|at| scattered(at, end)).collect();
            assert_eq!(seen.len() as u64, end);
        }
        assert_ne!(scattered(1, 20_000), scattered(0, 20_000) + 1);
    }

    #[test]
    fn keys_have_the_promised_lengths() {
        let lengths: HashSet<_> = (0..1000).map(|number| key(number).len()).collect();
        assert!(lengths.iter().all(|length| (16..=64).contains(length)));
        assert!(lengths.len() > 40);
        assert!(
            [0, 1, 999_999, 100_000_000]
                .map(memory_key)
                .iter()
                .all(|key| key.len() == 64)
        );
    }

    #[test]
    fn a_prefix_holds_its_keys_and_no_other() {
        let (start, end) = (Bytes::from(list_prefix(3)), prefix_end(&list_prefix(3)));
        let inside = |number| (start.clone()..end.clone()).contains(&list_key(number));
        assert!(inside(1500) && inside(1999));
        assert!(!inside(1499) && !inside(2000));
    }
}
