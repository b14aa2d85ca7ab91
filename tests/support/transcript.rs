//! Transcripts: what is typed and what is answered, written down once and played again.

use std::path::Path;

/// Numbers with a unit, a fraction or more than two digits, and addresses of the generated network, change, and rates do; words do not.
pub fn stable(text: &str) -> String {
    let is_stable = |word: &str| {
        let digits = word.chars().filter(char::is_ascii_digit).count();
        let is_name = word.contains("did:") || word.starts_with('/') || word.contains("skyfill");
        digits == 0
            || is_name
            || (digits <= 2 && word.chars().all(|c| c.is_ascii_digit() || ",;:)(".contains(c)))
    };
    let mut stable = String::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let is_rate = |at: usize| words.get(at + 1).is_some_and(|it| it.starts_with("records/s"));
        let shown = words.iter().enumerate();
        let shown =
            shown.map(|(at, word)| if is_stable(word) && !is_rate(at) { word } else { "…" });
        let words: Vec<&str> = shown.collect();
        stable += words.join(" ").trim_end();
        stable.push('\n');
    }
    stable
}

/// Compares `told` with the file `name` in tests, or writes it anew if `SKYFILL_WRITE_TRANSCRIPT` is set.
pub fn compare(name: &str, told: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name);
    if std::env::var_os("SKYFILL_WRITE_TRANSCRIPT").is_some() {
        std::fs::write(&path, told).unwrap();
        return;
    }
    let written = std::fs::read_to_string(&path).unwrap();
    for (now, before) in told.lines().zip(written.lines()) {
        assert_eq!(now, before, "{told}");
    }
    assert_eq!(told, written);
}
