//! The nearest known key: what somebody meant who wrote one that does not exist.

/// The known key that is most like `written` (both as `section.key`), or `None` where nothing is like it.
///
/// The key's own name counts most, so that a key in the wrong section finds its right one; the section decides among
/// equals.
#[must_use]
pub fn nearest<'k>(written: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let written: String = written.chars().take(WRITTEN_MAX).collect();
    let scored = known.map(|key| (score(&written, key), key));
    let best = scored.reduce(|best, next| if next.0 > best.0 { next } else { best });
    best.filter(|(score, _)| *score >= LIKE).map(|(_, key)| key)
}

/// Likeness from which on a key is worth naming.
const LIKE: f64 = 0.5;

/// What the section adds: enough to decide, too little to outweigh a name.
const SECTION_SHARE: f64 = 0.2;

fn score(written: &str, known: &str) -> f64 {
    let written = written.to_lowercase().replace('-', "_");
    let (written_section, written_name) = written.rsplit_once('.').unwrap_or(("", &written));
    let (known_section, known_name) = known.rsplit_once('.').unwrap_or(("", known));
    let name = similarity(written_name, known_name).max(words_in_common(written_name, known_name));
    name + SECTION_SHARE * similarity(written_section, known_section)
}

/// 1 for equal texts, 0 for texts without anything in common.
fn similarity(left: &str, right: &str) -> f64 {
    let longest = left.chars().count().max(right.chars().count());
    if longest == 0 {
        return 1.0;
    }
    1.0 - ratio(edits(left, right), longest)
}

/// Share of words (between underscores) that have a like word in the other text; a little less than 1, so that equal
/// texts win.
fn words_in_common(left: &str, right: &str) -> f64 {
    let like =
        |word: &str, others: &str| others.split('_').any(|other| similarity(word, other) >= 0.75);
    let found = left.split('_').filter(|word| word.len() > 2 && like(word, right)).count();
    let words = left.split('_').count().max(right.split('_').count());
    0.9 * ratio(found, words)
}

fn ratio(part: usize, whole: usize) -> f64 {
    let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    number(part) / number(whole).max(1.0)
}

/// Insertions, deletions, replacements and swaps of neighbours that make one text of the other.
fn edits(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=right.len()).collect();
    for row in 1..=left.len() {
        let mut current = vec![row];
        for column in 1..=right.len() {
            let differs = usize::from(left[row - 1] != right[column - 1]);
            let mut least =
                (last[column] + 1).min(current[column - 1] + 1).min(last[column - 1] + differs);
            let is_swap = row > 1
                && column > 1
                && left[row - 1] == right[column - 2]
                && left[row - 2] == right[column - 1];
            if is_swap {
                least = least.min(before_last[column - 2] + 1);
            }
            current.push(least);
        }
        before_last = std::mem::replace(&mut last, current);
    }
    last[right.len()]
}

/// Characters of a written key that are compared: a key of a megabyte costs no more than a long one.
const WRITTEN_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_and_wrong_sections_find_their_key() {
        let known = [
            "data_dir",
            "window.start",
            "window.end",
            "identity.plc_url",
            "fetch.concurrency",
            "fetch.host_concurrency",
            "fetch.first_byte_timeout",
            "fetch.total_timeout",
            "limits.batch_size",
            "limits.memory",
            "log.level",
        ];
        for (written, meant) in [
            ("fetch.concurency", "fetch.concurrency"),
            ("fetch.total_timout", "fetch.total_timeout"),
            ("fetch.plc_url", "identity.plc_url"),
            ("window.strat", "window.start"),
            ("window.start_timestamp", "window.start"),
            ("data-dir", "data_dir"),
            ("batch_size", "limits.batch_size"),
            ("LOG.LEVEL", "log.level"),
            ("limits.memmory", "limits.memory"),
        ] {
            assert_eq!(nearest(written, known.into_iter()), Some(meant), "{written}");
        }
        assert_eq!(nearest("fetch.zzzzzz", known.into_iter()), None);
        assert_eq!(nearest(&"q".repeat(1 << 20), known.into_iter()), None);
    }
}
