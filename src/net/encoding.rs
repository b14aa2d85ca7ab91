//! Compressed bodies: unpacking gzip as it streams, and deciding per host whether to ask for it.
//!
//! Unpacking gives at most 64 KiB at a time, so that a bomb costs no memory; a body that grows more than 1,000 times beyond
//! its first MiB is given up. What a decoder does not know (nested, other encodings) is refused.
//!
//! `fetch.compression = "auto"`: a host may be faster or four times slower when it compresses (PROTOCOL section 3), so each
//! way is tried and the better one kept, by decoded bytes per second of host time. Plain wins a near tie: unpacking costs us.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use flate2::{Decompress, FlushDecompress, Status};

/// Bytes unpacked at a time.
const PIECE_BYTES: usize = 64 << 10;

/// Bytes that may come out before the ratio is looked at: the first of a body says nothing.
const RATIO_FREE_BYTES: u64 = 1 << 20;

/// Most bytes out for a byte in. Repositories reach about 3, gzip itself 1,032.
const RATIO_MAX: u64 = 1_000;

/// Window of gzip, as a power of two: the format's largest.
const WINDOW_BITS: u8 = 15;

/// How a body is packed, by its `Content-Encoding`.
#[derive(Debug)]
pub enum Unpacker {
    /// Not at all.
    Plain,
    /// As gzip.
    Gzip(Box<Gunzip>),
    /// In a way that was not agreed on.
    Unknown(String),
}

impl Unpacker {
    /// The unpacker for the values of `Content-Encoding`, in order.
    pub fn new<'a>(values: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut layers = Vec::new();
        for value in values {
            for word in value.split(|byte| *byte == b',') {
                let word = String::from_utf8_lossy(word).trim().to_ascii_lowercase();
                if !word.is_empty() && word != "identity" {
                    layers.push(word);
                }
            }
        }
        match layers.as_slice() {
            [] => Self::Plain,
            [word] if word == "gzip" || word == "x-gzip" => Self::Gzip(Box::default()),
            _ => Self::Unknown(layers.join(", ")),
        }
    }
}

/// Unpacks gzip, piece by piece.
#[derive(Debug)]
pub struct Gunzip {
    inflate: Decompress,
    /// What came and is not unpacked yet.
    input: Bytes,
    /// Inside a member, so that an end here is a truncation.
    is_open: bool,
    bytes_in: u64,
    bytes_out: u64,
}

/// Why a body cannot be unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnpackError {
    /// Not gzip, or damaged.
    #[error("damaged gzip")]
    Damaged,
    /// Grows too much.
    #[error("gzip that grows more than 1,000 times")]
    Bomb,
    /// Ends inside a member.
    #[error("gzip without its end")]
    Truncated,
}

impl Default for Gunzip {
    fn default() -> Self {
        let inflate = Decompress::new_gzip(WINDOW_BITS);
        Self { inflate, input: Bytes::new(), is_open: false, bytes_in: 0, bytes_out: 0 }
    }
}

impl Gunzip {
    /// Takes what came; everything before must have been pulled.
    pub fn push(&mut self, bytes: Bytes) {
        debug_assert!(self.input.is_empty(), "the last bytes were not pulled to their end");
        self.input = bytes;
    }

    /// The next piece, or nothing if more has to come first.
    ///
    /// # Errors
    /// [`UnpackError::Damaged`], [`UnpackError::Bomb`].
    pub fn pull(&mut self) -> Result<Option<Bytes>, UnpackError> {
        while !self.input.is_empty() || self.is_open {
            if !self.is_open {
                // The body's first member or a further one.
                self.inflate = Decompress::new_gzip(WINDOW_BITS);
                self.is_open = true;
            }
            let (in_before, out_before) = (self.inflate.total_in(), self.inflate.total_out());
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            let status =
                self.inflate.decompress_vec(&self.input, &mut piece, FlushDecompress::None);
            let consumed = self.inflate.total_in() - in_before;
            let produced = self.inflate.total_out() - out_before;
            let _unpacked = self.input.split_to(usize::try_from(consumed).unwrap_or(usize::MAX));
            self.bytes_in += consumed;
            self.bytes_out += produced;
            self.is_open = match status {
                Ok(Status::StreamEnd) => false,
                Ok(_) => true,
                Err(_) => return Err(UnpackError::Damaged),
            };
            if self.bytes_out > RATIO_FREE_BYTES && self.bytes_out / RATIO_MAX > self.bytes_in {
                return Err(UnpackError::Bomb);
            }
            if !piece.is_empty() {
                // A small piece must not hold a large buffer while it waits in a queue.
                let is_small = piece.len() < PIECE_BYTES / 2;
                let bytes =
                    if is_small { Bytes::copy_from_slice(&piece) } else { Bytes::from(piece) };
                return Ok(Some(bytes));
            }
            if self.is_open && self.input.is_empty() {
                return Ok(None);
            }
            if self.is_open && consumed == 0 {
                return Err(UnpackError::Damaged);
            }
        }
        Ok(None)
    }

    /// Says whether the body may end here.
    ///
    /// # Errors
    /// [`UnpackError::Truncated`].
    pub fn finish(&self) -> Result<(), UnpackError> {
        if self.is_open { Err(UnpackError::Truncated) } else { Ok(()) }
    }
}

/// Hosts remembered; there are about 5,000, and the busy ones are few.
const HOSTS_MAX: usize = 4_096;

/// Bodies below this say more about latency than about compression.
const MEASURED_BYTES_MIN: u64 = 256 << 10;

/// How much faster gzip has to be.
const GZIP_ADVANTAGE: f64 = 1.25;

/// Measured transfers between two looks at the worse way.
const LOOK_AGAIN_TRANSFERS: u32 = 64;

/// Weight of the newest measurement.
const NEWEST_WEIGHT: f64 = 0.3;

/// What was measured at one host, decoded bytes per second.
#[derive(Debug, Default)]
struct Measured {
    plain: Option<f64>,
    gzip: Option<f64>,
    since_look: u32,
    used_at: u64,
}

/// Which hosts are asked for gzip.
#[derive(Debug, Default)]
pub struct Choices {
    hosts: HashMap<String, Measured>,
    uses: u64,
}

impl Choices {
    /// Whether to ask `host` for gzip this time.
    #[must_use]
    pub fn asks_gzip(&self, host: &str) -> bool {
        let Some(measured) = self.hosts.get(host) else { return false };
        match (measured.plain, measured.gzip) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(plain), Some(gzip)) => {
                let is_better = gzip > plain * GZIP_ADVANTAGE;
                is_better != (measured.since_look >= LOOK_AGAIN_TRANSFERS)
            }
        }
    }

    /// Notes a transfer of `bytes` decoded bytes in `host_time`.
    pub fn measured(&mut self, host: &str, asked_gzip: bool, bytes: u64, host_time: Duration) {
        if bytes < MEASURED_BYTES_MIN {
            return;
        }
        if self.hosts.len() >= HOSTS_MAX && !self.hosts.contains_key(host) {
            let oldest = self.hosts.iter().min_by_key(|(_, measured)| measured.used_at);
            if let Some(oldest) = oldest.map(|(host, _)| host.clone()) {
                self.hosts.remove(&oldest);
            }
        }
        self.uses += 1;
        let measured = self.hosts.entry(host.to_owned()).or_default();
        measured.used_at = self.uses;
        #[allow(clippy::cast_precision_loss, reason = "a rate")]
        let rate = bytes as f64 / host_time.as_secs_f64().max(0.001);
        let is_second_way = asked_gzip != measured.is_gzip_better();
        let way = if asked_gzip { &mut measured.gzip } else { &mut measured.plain };
        *way = Some(way.map_or(rate, |old| old + (rate - old) * NEWEST_WEIGHT));
        measured.since_look = if is_second_way { 0 } else { measured.since_look.saturating_add(1) };
    }
}

impl Measured {
    fn is_gzip_better(&self) -> bool {
        matches!((self.plain, self.gzip), (Some(plain), Some(gzip)) if gzip > plain * GZIP_ADVANTAGE)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn noise(bytes: usize) -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(1);
        // Letters only, so that it packs a little.
        std::iter::repeat_with(|| rng.alphanumeric() as u8).take(bytes).collect()
    }

    fn unpack(packed: &[u8], step: usize) -> Result<Vec<u8>, UnpackError> {
        let (mut gunzip, mut out) = (Gunzip::default(), Vec::new());
        for chunk in packed.chunks(step) {
            gunzip.push(Bytes::copy_from_slice(chunk));
            while let Some(piece) = gunzip.pull()? {
                assert!(piece.len() <= PIECE_BYTES);
                out.extend_from_slice(&piece);
            }
        }
        gunzip.finish()?;
        Ok(out)
    }

    #[test]
    fn it_unpacks_however_it_is_cut_and_however_many_members_there_are() {
        let plain = noise(300_000);
        for step in [1, 7, 4_096, 1 << 20] {
            assert_eq!(unpack(&gzip(&plain), step).unwrap(), plain);
        }
        let two = [gzip(b"one "), gzip(b"two"), gzip(b"")].concat();
        for step in [1, 5, 1_000] {
            assert_eq!(unpack(&two, step).unwrap(), b"one two");
        }
        assert_eq!(unpack(b"", 1).unwrap(), b"");
    }

    #[test]
    fn a_cut_anywhere_is_a_truncation_and_a_flip_is_damage() {
        let packed = gzip(&noise(2_000));
        for length in 1..packed.len() {
            assert_eq!(unpack(&packed[..length], 64), Err(UnpackError::Truncated), "{length}");
        }
        for at in [0, 1, 2, packed.len() / 2, packed.len() - 8, packed.len() - 1] {
            let mut flipped = packed.clone();
            flipped[at] ^= 0x55;
            assert!(unpack(&flipped, 64).is_err(), "flip at {at}");
        }
        let trailing = [packed, b"junk".to_vec()].concat();
        assert_eq!(unpack(&trailing, 1 << 20), Err(UnpackError::Damaged));
    }

    #[test]
    fn a_bomb_ends_after_its_first_mebibyte() {
        let bomb = gzip(&vec![0; 64 << 20]);
        let mut gunzip = Gunzip::default();
        gunzip.push(Bytes::from(bomb));
        let mut out = 0;
        let error = loop {
            match gunzip.pull() {
                Ok(Some(piece)) => out += piece.len(),
                Ok(None) => panic!("no bomb, {out} bytes"),
                Err(error) => break error,
            }
        };
        assert_eq!(error, UnpackError::Bomb);
        assert!((1 << 20..2 << 20).contains(&out), "{out}");
        // A small body may be as dense as it likes.
        assert_eq!(unpack(&gzip(&vec![0; 900_000]), 4_096).unwrap().len(), 900_000);
    }

    #[test]
    fn only_gzip_alone_is_understood() {
        let kind = |values: &[&str]| match Unpacker::new(values.iter().map(|v| v.as_bytes())) {
            Unpacker::Plain => "plain".to_owned(),
            Unpacker::Gzip(_) => "gzip".to_owned(),
            Unpacker::Unknown(words) => words,
        };
        assert_eq!(kind(&[]), "plain");
        assert_eq!(kind(&["", "identity"]), "plain");
        assert_eq!(kind(&["GZIP"]), "gzip");
        assert_eq!(kind(&["x-gzip, identity"]), "gzip");
        assert_eq!(kind(&["gzip, gzip"]), "gzip, gzip");
        assert_eq!(kind(&["gzip", "gzip"]), "gzip, gzip");
        assert_eq!(kind(&["br"]), "br");
        assert_eq!(kind(&["zstd"]), "zstd");
    }

    #[test]
    fn each_way_is_tried_the_better_is_kept_and_looked_at_again() {
        let (mut choices, mib) = (Choices::default(), 1 << 20);
        let transfer = |choices: &mut Choices, gzip_ms, plain_ms| {
            let asks = choices.asks_gzip("h");
            let took = Duration::from_millis(if asks { gzip_ms } else { plain_ms });
            choices.measured("h", asks, mib, took);
            asks
        };
        // gzip is twice as fast.
        assert!(!transfer(&mut choices, 100, 200));
        let asked: Vec<bool> = (0..200).map(|_| transfer(&mut choices, 100, 200)).collect();
        let plain_looks = asked.iter().filter(|asks| !**asks).count();
        assert!(asked[0] && (2..=4).contains(&plain_looks), "{plain_looks} looks");
        // It becomes four times slower: the choice follows, after a few transfers.
        let asked: Vec<bool> = (0..400).map(|_| transfer(&mut choices, 800, 200)).collect();
        assert!(!asked[20..].iter().all(|asks| *asks));
        let gzip_looks = asked[100..].iter().filter(|asks| **asks).count();
        assert!((1..=6).contains(&gzip_looks), "{gzip_looks} looks");
    }

    #[test]
    fn small_bodies_decide_nothing_and_hosts_are_bounded() {
        let mut choices = Choices::default();
        choices.measured("h", false, 1_000, Duration::from_secs(1));
        assert!(!choices.asks_gzip("h") && choices.hosts.is_empty());
        for number in 0..10_000 {
            let host = format!("h{number}");
            choices.measured(&host, false, 1 << 20, Duration::from_secs(1));
            choices.measured("busy", false, 1 << 20, Duration::from_secs(1));
        }
        assert!(choices.hosts.len() <= HOSTS_MAX && choices.asks_gzip("busy"));
    }
}
