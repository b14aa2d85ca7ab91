//! Fingerprints of digests, for the block index.
//!
//! 32 bits, mixed with a key of this process: digests can be ground, and nobody shall choose where his blocks lie. A
//! fingerprint chooses a slot and is compared there; equal ones are told apart by the full digest.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;

/// Fingerprint of a SHA-256.
#[inline]
#[must_use]
pub fn of(digest: &[u8; 32]) -> u32 {
    static KEY: OnceLock<u64> = OnceLock::new();
    mixed(digest, *KEY.get_or_init(|| RandomState::new().hash_one("skyfill")))
}

/// The fingerprint under a key, any number.
#[inline]
fn mixed(digest: &[u8; 32], key: u64) -> u32 {
    // A product with an odd number loses nothing.
    let key = key | 1;
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| digest[at + i]));
    let product = u128::from(word(0) ^ key) * u128::from(word(8) | 1);
    let mixed = (low(product) ^ low(product >> 64)).wrapping_mul(key);
    // The upper half of a product depends on every bit of its factors.
    u32::try_from(mixed >> 32).unwrap_or(u32::MAX)
}

/// What the index keeps of a block: its fingerprint above, and below it the offset of its section plus one, so that zero is an
/// empty slot. `None` where 32 bits do not reach.
#[inline]
#[must_use]
pub fn slot_value(fingerprint: u32, offset: u64) -> Option<u64> {
    let below = u32::try_from(offset + 1).ok()?;
    Some(u64::from(fingerprint) << 32 | u64::from(below))
}

#[allow(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
const fn low(product: u128) -> u64 {
    product as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLES: u32 = 256;

    /// Random and not.
    const KEYS: [u64; 6] = [0, 1, 2, 1 << 63, 0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03];

    fn with_words(first: u64, second: u64) -> [u8; 32] {
        let mut digest = [7; 32];
        digest[..8].copy_from_slice(&first.to_le_bytes());
        digest[8..16].copy_from_slice(&second.to_le_bytes());
        digest
    }

    #[test]
    fn every_bit_of_both_words_changes_about_half_of_the_fingerprint() {
        let mut random = fastrand::Rng::with_seed(1);
        // The lowest bit of the second word is set in any case.
        for (key, bit) in KEYS.iter().flat_map(|key| (0..128).map(move |bit| (*key, bit))) {
            if bit == 64 {
                continue;
            }
            let mut changed = 0;
            for _ in 0..SAMPLES {
                let words = [random.u64(..), random.u64(..)];
                let other = u128::from(words[0]) | u128::from(words[1]) << 64;
                let other = other ^ 1 << bit;
                let other = mixed(&with_words(low(other), low(other >> 64)), key);
                changed += (mixed(&with_words(words[0], words[1]), key) ^ other).count_ones();
            }
            let of_32 = f64::from(changed) / f64::from(SAMPLES);
            assert!((14.0..18.0).contains(&of_32), "key {key:x}, bit {bit}: {of_32}");
        }
    }

    #[test]
    fn no_word_and_no_key_makes_all_fingerprints_the_same() {
        for second in [0, 1, 2] {
            let all = (0..1_000).map(|first| of(&with_words(first, second)));
            let different: std::collections::HashSet<u32> = all.collect();
            assert!(different.len() > 500, "{second}: {}", different.len());
        }
        let mut random = fastrand::Rng::with_seed(1);
        for key in KEYS {
            let all = (0..1_000).map(|_| mixed(&with_words(random.u64(..), random.u64(..)), key));
            let different: std::collections::HashSet<u32> = all.collect();
            assert!(different.len() > 990, "{key:x}: {}", different.len());
        }
    }

    #[test]
    fn a_slot_holds_both_as_far_as_32_bits_reach() {
        assert_eq!(slot_value(0, 0), Some(1));
        assert_eq!(slot_value(0x8000_0001, 5), Some(0x8000_0001_0000_0006));
        let last = u64::from(u32::MAX) - 1;
        assert_eq!(slot_value(3, last), Some(0x3_ffff_ffff));
        assert_eq!(slot_value(3, last + 1), None);
    }
}
