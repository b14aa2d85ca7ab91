//! Input window: which offsets of a partition are decided. Pure.
//!
//! ```text
//!  offset    0 .. base-1   base  ..  span_end-1                 span_end ..
//!            decided       decided in runs, the rest is not     nothing is known
//! ```
//! Invariants: `base` itself is never decided; runs lie beyond it, are disjoint and never touch. What lies between two offsets of
//! a partition and holds no message (marks of transactions, what was compacted) is decided by being noted as a gap.
//!
//! The window is what a worker commits beside its offset (`base`), as metadata that the broker keeps for the group: a text of a
//! few kilobytes at most, whoever reads it next knows what not to do again.
//!
//! ```text
//!  (empty)        nothing beyond base
//!  w1:r3,2,115,1  from base on 3 undecided, 2 decided, 115 undecided, 1 decided
//!  w1:mBASE64     a bit an offset from base on, the lowest of the first byte is base; the last byte is not zero
//! ```
//! The shorter of the two is written. Anything else is no window.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

/// Begin of a text of runs.
const RUNS: &str = "w1:r";

/// Begin of a text of bits.
const MAP: &str = "w1:m";

/// Decided offsets of a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InputWindow {
    base: i64,
    /// Decided runs beyond `base`: from, and one beyond their last.
    runs: BTreeMap<i64, i64>,
    /// Offsets in them.
    beyond: u64,
}

impl InputWindow {
    /// Every offset below `base` is decided, and nothing else.
    #[must_use]
    pub const fn new(base: i64) -> Self {
        Self { base, runs: BTreeMap::new(), beyond: 0 }
    }

    /// The first offset that is not decided.
    #[must_use]
    pub const fn base(&self) -> i64 {
        self.base
    }

    /// Whether `offset` is decided.
    #[must_use]
    pub fn is_decided(&self, offset: i64) -> bool {
        let run = self.runs.range(..=offset).next_back();
        offset < self.base || run.is_some_and(|(_, end)| offset < *end)
    }

    /// `offset` is decided.
    pub fn decide(&mut self, offset: i64) {
        self.note_gap(offset, offset.saturating_add(1));
    }

    /// Everything from `from` on and before `to` is decided.
    pub fn note_gap(&mut self, from: i64, to: i64) {
        let (mut from, mut to) = (from.max(self.base), to);
        if from >= to {
            return;
        }
        if let Some((start, end)) = self.runs.range(..=from).next_back()
            && *end >= from
        {
            (from, to) = (*start, to.max(*end));
        }
        // What begins inside, or where this ends, becomes one run with it.
        while let Some((start, end)) =
            self.runs.range(from..=to).next().map(|(start, end)| (*start, *end))
        {
            self.runs.remove(&start);
            self.beyond -= end.abs_diff(start);
            to = to.max(end);
        }
        if from == self.base {
            self.base = to;
        } else {
            self.runs.insert(from, to);
            self.beyond += to.abs_diff(from);
        }
    }

    /// One beyond the highest offset that is decided, or `base`.
    #[must_use]
    pub fn span_end(&self) -> i64 {
        self.runs.last_key_value().map_or(self.base, |(_, end)| *end)
    }

    /// How many offsets beyond `base` are decided.
    #[must_use]
    pub const fn decided_beyond(&self) -> u64 {
        self.beyond
    }

    /// As metadata of the offset `base`. A window that spans at most [`crate::limits::INPUT_WINDOW_OFFSETS_MAX`] offsets takes at
    /// most 2,736 bytes, below the 4,096 that brokers take unless told otherwise; a wider one takes more only if it has many runs.
    #[must_use]
    pub fn encode(&self) -> String {
        if self.runs.is_empty() {
            return String::new();
        }
        let runs = self.encode_runs();
        let map_bytes = MAP.len() as u64 + self.span_end().abs_diff(self.base).div_ceil(6);
        if runs.len() as u64 <= map_bytes { runs } else { self.encode_map() }
    }

    fn encode_runs(&self) -> String {
        let (mut text, mut at) = (RUNS.to_owned(), self.base);
        for (start, end) in &self.runs {
            let comma = if at == self.base { "" } else { "," };
            // A text takes whatever it is given.
            let _never = write!(text, "{comma}{},{}", start.abs_diff(at), end.abs_diff(*start));
            at = *end;
        }
        text
    }

    fn encode_map(&self) -> String {
        let mut bits = Vec::new();
        for (start, end) in &self.runs {
            for bit in start.abs_diff(self.base)..end.abs_diff(self.base) {
                let byte = usize::try_from(bit / 8).unwrap_or(usize::MAX);
                bits.resize(bits.len().max(byte + 1), 0_u8);
                bits[byte] |= 1 << (bit % 8);
            }
        }
        format!("{MAP}{}", STANDARD_NO_PAD.encode(bits))
    }

    /// The window that [`InputWindow::encode`] made `text` of; `None` for any other text.
    #[must_use]
    pub fn decode(base: i64, text: &str) -> Option<Self> {
        let mut window = Self::new(base);
        if let Some(map) = text.strip_prefix(MAP) {
            window.take_map(&STANDARD_NO_PAD.decode(map).ok()?)?;
        } else if let Some(runs) = text.strip_prefix(RUNS) {
            window.take_runs(runs)?;
        } else if !text.is_empty() {
            return None;
        }
        (window.base == base).then_some(window)
    }

    fn take_map(&mut self, bits: &[u8]) -> Option<()> {
        bits.last().filter(|byte| **byte != 0)?;
        let base = self.base;
        for (at, byte) in (0_i64..).step_by(8).zip(bits) {
            for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
                let offset = base.checked_add(at)?.checked_add(bit)?;
                self.note_gap(offset, offset.checked_add(1)?);
            }
        }
        Some(())
    }

    fn take_runs(&mut self, text: &str) -> Option<()> {
        let (mut at, mut is_decided) = (self.base, false);
        for number in text.split(',') {
            let is_plain = number.bytes().all(|byte| byte.is_ascii_digit());
            let length: i64 = number.parse().ok().filter(|length| is_plain && *length > 0)?;
            let end = at.checked_add(length)?;
            if is_decided {
                self.note_gap(at, end);
            }
            (at, is_decided) = (end, !is_decided);
        }
        // The last one is decided.
        (!is_decided).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, proptest};

    use super::*;
    use crate::limits::INPUT_WINDOW_OFFSETS_MAX;

    const BASE: i64 = 1_000;

    /// Bytes that every window of the greatest span must fit into.
    const ENCODED_BYTES_MAX: usize = 3_900;

    fn window(decided: &[i64]) -> InputWindow {
        let mut window = InputWindow::new(BASE);
        decided.iter().for_each(|offset| window.decide(BASE + offset));
        window
    }

    #[test]
    fn the_base_goes_up_when_what_it_waits_for_is_decided() {
        let mut window = window(&[2, 1, 5, 5, -3]);
        assert_eq!(
            (window.base(), window.span_end(), window.decided_beyond()),
            (BASE, BASE + 6, 3)
        );
        assert!(window.is_decided(BASE - 1) && window.is_decided(BASE + 2));
        assert!(!window.is_decided(BASE) && !window.is_decided(BASE + 3));
        window.decide(BASE);
        assert_eq!((window.base(), window.decided_beyond()), (BASE + 3, 1));
        window.note_gap(BASE + 3, BASE + 5);
        assert_eq!(window, InputWindow::new(BASE + 6));
        assert_eq!(window.span_end(), BASE + 6);
        window.note_gap(BASE + 9, BASE + 9);
        window.note_gap(BASE + 9, BASE + 7);
        assert_eq!(window, InputWindow::new(BASE + 6), "an empty gap is none");
    }

    #[test]
    fn few_runs_are_written_as_such_and_many_as_bits() {
        assert_eq!(InputWindow::new(BASE).encode(), "");
        assert_eq!(window(&[3, 4, 120]).encode(), "w1:r3,2,115,1");
        let every_second: Vec<i64> = (1..16).step_by(2).collect();
        assert_eq!(window(&every_second).encode(), "w1:mqqo");
        // One run, in each as short as it can be.
        assert_eq!(window(&(9..18).collect::<Vec<_>>()).encode(), "w1:r9,9");
        assert_eq!(window(&(1..7).collect::<Vec<_>>()).encode(), "w1:mfg");
        // A gap of any length is a run like any other.
        let mut wide = InputWindow::new(0);
        wide.note_gap(5, i64::MAX);
        assert_eq!(wide.encode(), format!("w1:r5,{}", i64::MAX - 5));
        assert_eq!(InputWindow::decode(0, &wide.encode()), Some(wide));
    }

    #[test]
    fn the_worst_window_fits_beside_an_offset() {
        let span = i64::from(INPUT_WINDOW_OFFSETS_MAX);
        for step in 1..40 {
            let decided: Vec<i64> = (1..span).step_by(step).chain([span - 1]).collect();
            let window = window(&decided);
            assert_eq!(window.span_end() - window.base(), span);
            let text = window.encode();
            assert!(text.len() <= 2_736 && text.len() <= ENCODED_BYTES_MAX, "{}", text.len());
            assert_eq!(InputWindow::decode(BASE, &text), Some(window));
        }
    }

    #[test]
    fn what_is_no_window_is_none() {
        let wrong = [
            "w1:",
            "w2:r3,2",
            "w1:r",
            "w1:r3",
            "w1:r3,0",
            "w1:r0,3",
            "w1:r3,2,",
            "w1:r3,2,1",
            "w1:r-3,2",
            "w1:r+3,2",
            "w1:r 3,2",
            "w1:r9223372036854775807,2",
            "w1:m",
            "w1:mAA",
            "w1:mAgA",
            "w1:mAQ",
            "w1:m!",
            "w1:mAg==",
            "W1:r3,2",
            "r3,2",
            "\u{fffd}",
        ];
        for text in wrong {
            assert_eq!(InputWindow::decode(BASE, text), None, "{text}");
        }
        assert_eq!(InputWindow::decode(BASE, "w1:mAg"), Some(window(&[1])));
        assert_eq!(InputWindow::decode(i64::MAX - 1, "w1:mAg"), None, "beyond the last offset");
    }

    /// What happens to a window: offsets decided and gaps noted, near its base.
    fn steps() -> impl Strategy<Value = Vec<(i64, i64)>> {
        let length = proptest::prop_oneof![8 => Just(1_i64), 1 => 0_i64..200];
        vec((-20_i64..i64::from(INPUT_WINDOW_OFFSETS_MAX) - 200, length), 0..400)
    }

    proptest! {
        #[test]
        fn a_window_is_the_set_of_what_was_decided(steps in steps(), narrow in 1_i64..5_000) {
            let (mut window, mut decided) = (InputWindow::new(BASE), BTreeSet::new());
            let mut base = BASE;
            for (at, length) in steps {
                let from = BASE + at % narrow;
                if length == 1 { window.decide(from) } else { window.note_gap(from, from + length) }
                decided.extend(from.max(base)..from + length);
                while decided.remove(&base) {
                    base += 1;
                }
                prop_assert_eq!(window.base(), base);
                prop_assert_eq!(window.decided_beyond(), decided.len() as u64);
                prop_assert_eq!(window.span_end(), decided.last().map_or(base, |last| last + 1));
            }
            for offset in BASE - 3..BASE + narrow + 300 {
                let is_decided = offset < base || decided.contains(&offset);
                prop_assert_eq!(window.is_decided(offset), is_decided);
            }
            let text = window.encode();
            prop_assert!(text.len() <= ENCODED_BYTES_MAX);
            prop_assert_eq!(InputWindow::decode(base, &text), Some(window));
        }

        #[test]
        fn no_text_is_taken_that_was_not_written_so(text in "w1:[rm][0-9A-Za-z+/,]{0,30}", base in any::<i64>()) {
            if let Some(window) = InputWindow::decode(base, &text) {
                prop_assert_eq!(window.base(), base);
                prop_assert_eq!(InputWindow::decode(base, &window.encode()), Some(window));
            }
        }
    }
}
