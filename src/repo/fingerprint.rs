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
    let key = *KEY.get_or_init(|| RandomState::new().hash_one("skyfill") | 1);
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
