//! Which partition of a topic a key belongs to: the hash of Kafka's own clients (murmur2, librdkafka's `murmur2_random`), so
//! that whoever writes by key agrees with us. Pure.
//!
//! All accounts of a host have its name as their key, so they lie in one partition, and one worker asks that host.

/// Kafka's seed.
const SEED: u32 = 0x9747_b28c;

/// Kafka's multiplier.
const MULTIPLIER: u32 = 0x5bd1_e995;

/// Murmur2, 32 bits, as Kafka's clients compute it.
#[must_use]
pub fn murmur2(key: &[u8]) -> u32 {
    let mix = |word: u32| {
        let word = word.wrapping_mul(MULTIPLIER);
        (word ^ (word >> 24)).wrapping_mul(MULTIPLIER)
    };
    // Kafka's keys are shorter than 2 GiB; what is longer would only be hashed differently.
    let length = u32::try_from(key.len()).unwrap_or(u32::MAX);
    let mut hash = SEED ^ length;
    let (words, rest) = key.as_chunks::<4>();
    for word in words {
        hash = hash.wrapping_mul(MULTIPLIER) ^ mix(u32::from_le_bytes(*word));
    }
    if !rest.is_empty() {
        for (place, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * place);
        }
        hash = hash.wrapping_mul(MULTIPLIER);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(MULTIPLIER);
    hash ^ (hash >> 15)
}

/// The partition of `key` among `partitions`, which is at least 1.
#[must_use]
pub fn of_key(key: &str, partitions: u32) -> u32 {
    (murmur2(key.as_bytes()) & 0x7fff_ffff) % partitions.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that Kafka's own clients are held to.
    #[test]
    fn it_is_the_hash_of_kafkas_clients() {
        let known: [(&str, i32); 6] = [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ];
        for (key, hash) in known {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        }
        assert_eq!(of_key("abc", 16), 479_470_107 % 16);
        assert_eq!(of_key("foobar", 1), 0);
        assert_eq!(of_key("foobar", 0), 0);
    }
}
