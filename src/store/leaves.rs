//! Leaves: what a revision of an account put into the queues, as sorted fingerprints, so that a later one can be told from it.
//!
//! ```text
//!  part   n, n labels        the queues of configured types that entries name, each with its length
//!         entries            mark: 0 to 5 the six kinds, 6 rejected, 7 and above the labels in order
//!                            bytes shared with the key before, bytes that follow, these bytes, 8 bytes of the CID's digest
//! ```
//! Numbers are LEB128. A part stands alone: its first key is whole. An account has as many parts as it needs, in key order; a leaf
//! takes about 20 bytes. The set that counts is that of the leaves with a row in a queue: exported, or rejected.
//!
//! ```text
//!  then          now           rows
//!  -             exported      its row                        -             rejected      its row in `rejected`
//!  exported      the same      none                           rejected      the same      none
//!  exported      other bytes   its row                        rejected      exported      its row
//!  exported      rejected      both: a row in `rejected`, and one in `deleted`, because what was exported is no more
//!  exported      gone or left out: one in `deleted`           rejected      gone or left out: none, nothing was exported
//! ```
//! A row in `deleted` therefore means: this URI was exported, and the newest revision exports nothing under it. Both streams are in
//! key order and merged as they come: a comparison holds one part of the older one, whatever the repository's size.

use crate::domain::filter::Kind;

/// Label of the items that carry leaves through the journal; it is no queue.
pub const LEAVES_LABEL: &str = "leaves";

/// Label of the queue that names what is gone.
pub const DELETED_LABEL: &str = "deleted";

/// What a journal's items may be for: each of `queues`, then deletions, then leaves.
#[must_use]
pub fn journal_labels(queues: &[String]) -> Vec<String> {
    let more = [DELETED_LABEL, LEAVES_LABEL].map(str::to_owned);
    queues.iter().cloned().chain(more).collect()
}

/// Bytes of a CID's digest that stand for a record: two versions of one record agree in them by chance once in 1.8 * 10^19.
pub const DIGEST_BYTES: usize = 8;

/// Bytes of a part: some thousand leaves. What a comparison holds in memory, and what SQLite moves at once.
pub const PART_BYTES: usize = 128 << 10;

/// Mark of a rejected leaf.
const REJECTED: u8 = 6;

/// Mark of the first configured type.
const CUSTOM: u8 = 7;

/// Writes leaves into parts.
#[derive(Debug)]
pub struct LeafWriter {
    /// By queue.
    marks: Vec<u8>,
    /// What a part begins with.
    head: Vec<u8>,
    last_key: Vec<u8>,
}

/// Where the rows of a leaf went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row<'p> {
    /// Into the queue of this label.
    Exported(&'p str),
    /// Into the rejected queue.
    Rejected,
}

/// A part that is no part: the bytes are others than were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its leaves are unreadable")]
pub struct Unreadable;

impl LeafWriter {
    /// For rows of `queues`, of which the one at `rejected` is for rejected records.
    #[must_use]
    pub fn new(queues: &[String], rejected: usize) -> Self {
        let (mut marks, mut head, mut custom) = (Vec::new(), Vec::new(), 0);
        for (queue, label) in queues.iter().enumerate() {
            let kind = Kind::ALL.iter().zip(0..).find(|(kind, _)| kind.label() == label);
            marks.push(match kind {
                Some((_, mark)) => mark,
                None if queue == rejected => REJECTED,
                None => {
                    number(label.len(), &mut head);
                    head.extend_from_slice(label.as_bytes());
                    custom += 1;
                    // More types than a byte counts are told apart by their labels only up to there.
                    CUSTOM.saturating_add(custom - 1)
                }
            });
        }
        let mut begin = Vec::new();
        number(usize::from(custom), &mut begin);
        begin.append(&mut head);
        Self { marks, head: begin, last_key: Vec::new() }
    }

    /// Appends a leaf whose row goes to `queue`; `begins` says that it is the first of its part.
    pub fn write(
        &mut self,
        begins: bool,
        (key, queue): (&str, usize),
        digest: &[u8],
        out: &mut Vec<u8>,
    ) {
        if begins {
            out.extend_from_slice(&self.head);
            self.last_key.clear();
        }
        let key = key.as_bytes();
        let shared = self.last_key.iter().zip(key).take_while(|(a, b)| a == b).count();
        out.push(self.mark(queue));
        number(shared, out);
        number(key.len() - shared, out);
        out.extend_from_slice(&key[shared..]);
        out.extend_from_slice(digest.get(..DIGEST_BYTES).unwrap_or(&[0; DIGEST_BYTES]));
        self.last_key.truncate(shared);
        self.last_key.extend_from_slice(&key[shared..]);
    }

    fn mark(&self, queue: usize) -> u8 {
        self.marks.get(queue).copied().unwrap_or(REJECTED)
    }
}

fn number(mut value: usize, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// A part while it is read.
#[derive(Debug, Default)]
struct PartReader {
    bytes: Vec<u8>,
    at: usize,
    labels: Vec<String>,
    key: Vec<u8>,
    mark: u8,
    digest: [u8; DIGEST_BYTES],
}

impl PartReader {
    fn open(&mut self, bytes: Vec<u8>) -> Result<(), Unreadable> {
        (self.bytes, self.at) = (bytes, 0);
        self.labels.clear();
        for _ in 0..self.number()? {
            let length = self.number()?;
            let label = self.take(length)?.to_vec();
            self.labels.push(String::from_utf8(label).map_err(|_| Unreadable)?);
        }
        Ok(())
    }

    /// Reads the next leaf; `false` at the end.
    fn advance(&mut self, is_first: bool) -> Result<bool, Unreadable> {
        if self.at == self.bytes.len() {
            return Ok(false);
        }
        let mark = self.take(1)?[0];
        let (shared, more) = (self.number()?, self.number()?);
        if shared > self.key.len() || (is_first && shared > 0) {
            return Err(Unreadable);
        }
        self.key.truncate(shared);
        let suffix = self.at..self.at.checked_add(more).ok_or(Unreadable)?;
        let bytes = self.bytes.get(suffix.clone()).ok_or(Unreadable)?;
        self.key.extend_from_slice(bytes);
        self.at = suffix.end;
        let digest = self.take(DIGEST_BYTES)?;
        self.digest = digest.try_into().map_err(|_| Unreadable)?;
        self.mark = mark;
        Ok(true)
    }

    fn row(&self) -> Result<Row<'_>, Unreadable> {
        match self.mark {
            REJECTED => Ok(Row::Rejected),
            mark @ ..REJECTED => Ok(Row::Exported(Kind::ALL[usize::from(mark)].label())),
            mark => {
                let label = self.labels.get(usize::from(mark - CUSTOM)).ok_or(Unreadable)?;
                Ok(Row::Exported(label))
            }
        }
    }

    fn take(&mut self, bytes: usize) -> Result<&[u8], Unreadable> {
        let end = self.at.checked_add(bytes).ok_or(Unreadable)?;
        let taken = self.bytes.get(self.at..end).ok_or(Unreadable)?;
        self.at = end;
        Ok(taken)
    }

    fn number(&mut self) -> Result<usize, Unreadable> {
        let (mut value, mut shift) = (0_usize, 0);
        loop {
            let byte = self.take(1)?[0];
            value |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return Ok(value);
            }
            if shift > 28 {
                return Err(Unreadable);
            }
        }
    }
}

/// The parts of the older revision, one after the other.
pub trait Parts {
    /// Why there is none.
    type Error: From<Unreadable>;

    /// The next one, `None` behind the last.
    ///
    /// # Errors
    /// Whatever keeps it from being read.
    fn next_part(&mut self) -> Result<Option<Vec<u8>>, Self::Error>;
}

/// A leaf that was exported and is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone<'p> {
    /// `<collection>/<rkey>`.
    pub key: &'p str,
    /// Label of the queue that has its row.
    pub label: &'p str,
}

/// Compares the leaves of a newer revision, in key order, with the older one's.
pub struct Comparison<P> {
    parts: P,
    reader: PartReader,
    /// The older leaf in the reader is still to be compared.
    is_held: bool,
    is_ended: bool,
}

impl<P: Parts> Comparison<P> {
    /// Against the older revision's `parts`.
    pub fn new(parts: P) -> Self {
        Self { parts, reader: PartReader::default(), is_held: false, is_ended: false }
    }

    /// Whether the leaf of `key`, whose row goes where `row` says, is new or another than before, so that its row must be
    /// written. Tells `gone` of what was exported up to there and is no more.
    ///
    /// # Errors
    /// Those of the parts and of `gone`.
    pub fn differs<E: From<P::Error>>(
        &mut self,
        key: &str,
        row: Row<'_>,
        digest: &[u8],
        mut gone: impl FnMut(Gone<'_>) -> Result<(), E>,
    ) -> Result<bool, E> {
        while self.hold()? {
            match self.reader.key.as_slice().cmp(key.as_bytes()) {
                std::cmp::Ordering::Greater => return Ok(true),
                std::cmp::Ordering::Less => self.tell(&mut gone)?,
                std::cmp::Ordering::Equal => {
                    let is_same = digest.get(..DIGEST_BYTES) == Some(&self.reader.digest);
                    let then = self.reader.row().map_err(P::Error::from)?;
                    let is_unchanged = is_same && then == row;
                    if !is_unchanged && row == Row::Rejected {
                        self.tell(&mut gone)?;
                    }
                    self.is_held = false;
                    return Ok(!is_unchanged);
                }
            }
        }
        Ok(true)
    }

    /// The newer revision has ended: tells `gone` of the rest.
    ///
    /// # Errors
    /// Those of the parts and of `gone`.
    pub fn finish<E: From<P::Error>>(
        &mut self,
        mut gone: impl FnMut(Gone<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while self.hold()? {
            self.tell(&mut gone)?;
        }
        Ok(())
    }

    fn tell<E: From<P::Error>>(
        &mut self,
        gone: &mut impl FnMut(Gone<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.is_held = false;
        if let Row::Exported(label) = self.reader.row().map_err(P::Error::from)? {
            let key = std::str::from_utf8(&self.reader.key);
            let key = key.map_err(|_| P::Error::from(Unreadable))?;
            gone(Gone { key, label })?;
        }
        Ok(())
    }

    /// Makes the next older leaf the one in hand; `false` if there is none.
    fn hold(&mut self) -> Result<bool, P::Error> {
        let mut is_first = false;
        while !self.is_held && !self.is_ended {
            let has_one = !self.reader.bytes.is_empty() && self.reader.advance(is_first)?;
            if has_one {
                self.is_held = true;
                break;
            }
            match self.parts.next_part()? {
                Some(part) => {
                    self.reader.open(part)?;
                    is_first = true;
                }
                None => self.is_ended = true,
            }
        }
        Ok(self.is_held)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet, VecDeque};

    use super::*;
    use crate::seed::Chance;

    const LABELS: [&str; 9] = [
        "post",
        "reply",
        "repost",
        "like",
        "follow",
        "block",
        "app.example.thing",
        "app.other._",
        "rejected",
    ];

    /// Key to queue and version.
    type Tree = BTreeMap<String, (usize, u64)>;

    impl Parts for VecDeque<Vec<u8>> {
        type Error = Unreadable;

        fn next_part(&mut self) -> Result<Option<Vec<u8>>, Unreadable> {
            Ok(self.pop_front())
        }
    }

    fn labels() -> Vec<String> {
        LABELS.map(str::to_owned).to_vec()
    }

    fn digest(version: u64) -> [u8; 32] {
        let mut digest = [7; 32];
        digest[..8].copy_from_slice(&version.to_be_bytes());
        digest
    }

    fn row(queue: usize) -> Row<'static> {
        if queue == 8 { Row::Rejected } else { Row::Exported(LABELS[queue]) }
    }

    /// The tree in parts of at most so many leaves.
    fn written(tree: &Tree, leaves_a_part: usize) -> VecDeque<Vec<u8>> {
        let mut writer = LeafWriter::new(&labels(), 8);
        let (mut parts, mut count) = (VecDeque::new(), 0);
        for (key, (queue, version)) in tree {
            let begins = count % leaves_a_part == 0;
            if begins {
                parts.push_back(Vec::new());
            }
            let part = parts.back_mut().unwrap();
            writer.write(begins, (key, *queue), &digest(*version), part);
            count += 1;
        }
        parts
    }

    /// Keys with rows to write, and what is gone with its label.
    type Told = (Vec<String>, Vec<(String, String)>);

    fn compared(parts: VecDeque<Vec<u8>>, now: &Tree) -> Result<Told, Unreadable> {
        let (mut new, mut gone) = (Vec::new(), Vec::new());
        let mut comparison = Comparison::new(parts);
        let mut tell = |it: Gone<'_>| -> Result<(), Unreadable> {
            gone.push((it.key.to_owned(), it.label.to_owned()));
            Ok(())
        };
        for (key, (queue, version)) in now {
            if comparison.differs(key, row(*queue), &digest(*version), &mut tell)? {
                new.push(key.clone());
            }
        }
        comparison.finish(&mut tell)?;
        Ok((new, gone))
    }

    /// The same by whole sets.
    fn expected(then: &Tree, now: &Tree) -> Told {
        let exported = |tree: &Tree| -> BTreeSet<String> {
            tree.iter().filter(|(_, (queue, _))| *queue != 8).map(|(key, _)| key.clone()).collect()
        };
        let new = now.iter().filter(|(key, leaf)| then.get(*key) != Some(leaf));
        let gone = &exported(then) - &exported(now);
        let label = |key: &String| LABELS[then[key].0].to_owned();
        (
            new.map(|(key, _)| key.clone()).collect(),
            gone.iter().map(|key| (key.clone(), label(key))).collect(),
        )
    }

    fn random_key(chance: &Chance) -> String {
        let collections =
            ["app.bsky.feed.like", "app.bsky.feed.post", "app.example.thing", "x.y.z"];
        let collection = collections[(chance.bits() % 4) as usize];
        match chance.bits() % 40 {
            0 => format!("{collection}/{}", "long".repeat((chance.bits() % 120) as usize + 1)),
            _ => format!("{collection}/{:x}", chance.bits() % 400),
        }
    }

    #[test]
    fn deletions_and_leaves_come_behind_the_queues() {
        let queues = ["post", "rejected"].map(str::to_owned);
        assert_eq!(journal_labels(&queues), ["post", "rejected", DELETED_LABEL, LEAVES_LABEL]);
    }

    #[test]
    fn a_number_has_at_most_five_bytes() {
        let number =
            |bytes: &[u8]| PartReader { bytes: bytes.to_vec(), ..PartReader::default() }.number();
        assert_eq!(number(&[0x7f]), Ok(127));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0x0f]), Ok(0xffff_ffff));
        assert_eq!(number(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x01]), Err(Unreadable));
        assert_eq!(number(&[0x80]), Err(Unreadable), "cut");
    }

    #[test]
    fn a_leaf_shares_no_more_with_the_one_before_than_that_has_and_the_first_of_a_part_nothing() {
        // No labels of its own; then mark, bytes shared, bytes more, and those.
        let leaf = |shared, more: &[u8]| {
            let head = [0, shared, u8::try_from(more.len()).unwrap()];
            [&head[..], more, &[7; DIGEST_BYTES]].concat()
        };
        let told = |parts: &[Vec<Vec<u8>>]| {
            let part = |leaves: &Vec<Vec<u8>>| [vec![0], leaves.concat()].concat();
            compared(parts.iter().map(part).collect(), &Tree::new()).map(|(_, gone)| gone)
        };
        let gone = |keys: &[&str]| {
            Ok(keys.iter().map(|key| ((*key).to_owned(), "post".to_owned())).collect::<Vec<_>>())
        };
        let first = leaf(0, b"a/b");
        assert_eq!(told(&[vec![first.clone(), leaf(2, b"c")]]), gone(&["a/b", "a/c"]));
        assert_eq!(told(&[vec![first.clone(), leaf(3, b"c")]]), gone(&["a/b", "a/bc"]));
        assert_eq!(told(&[vec![first.clone(), leaf(4, b"c")]]), Err(Unreadable));
        assert_eq!(told(&[vec![first.clone()], vec![leaf(0, b"a/c")]]), gone(&["a/b", "a/c"]));
        assert_eq!(told(&[vec![first], vec![leaf(2, b"c")]]), Err(Unreadable));
    }

    #[test]
    fn random_edits_agree_with_whole_sets() {
        let mut seen = [0_usize; 3];
        for seed in 0..300 {
            let chance = Chance::seeded(seed);
            let some = |most: u64| chance.bits() % most;
            let mut then = Tree::new();
            for _ in 0..some(300) {
                then.insert(random_key(&chance), (some(9) as usize, some(3)));
            }
            let mut now = then.clone();
            for _ in 0..some(120) {
                let key = if some(2) == 0 {
                    random_key(&chance)
                } else {
                    let at = some(now.len().max(1) as u64) as usize;
                    now.keys().nth(at).cloned().unwrap_or_default()
                };
                match some(3) {
                    0 => drop(now.remove(&key)),
                    _ if key.is_empty() => {}
                    _ => drop(now.insert(key, (some(9) as usize, some(3)))),
                }
            }
            let wanted = expected(&then, &now);
            for leaves_a_part in [1, 3, 1_000] {
                let told = compared(written(&then, leaves_a_part), &now).unwrap();
                assert_eq!(told, wanted, "seed {seed}, {leaves_a_part} leaves a part");
            }
            seen[0] += wanted.0.len();
            seen[1] += wanted.1.len();
            seen[2] += now.len() - wanted.0.len();
        }
        assert!(seen.iter().all(|count| *count > 1_000), "{seen:?}");
    }

    #[test]
    fn a_usual_leaf_takes_about_twenty_bytes() {
        let chance = Chance::seeded(3);
        let mut tree = Tree::new();
        let digits: Vec<char> = "234567abcdefghijklmnopqrstuvwxyz".chars().collect();
        let mut time = 1_700_000_000_000_000_u64;
        for _ in 0..10_000 {
            time += chance.bits() % 600_000_000;
            let number = time << 10 | 5;
            let tid: String =
                (0..13).rev().map(|at| digits[(number >> (5 * at)) as usize & 31]).collect();
            tree.insert(format!("app.bsky.feed.like/{tid}"), (3, chance.bits()));
        }
        let bytes: usize = written(&tree, 5_000).iter().map(Vec::len).sum();
        assert!(bytes < tree.len() * 21, "{} bytes a leaf", bytes as f64 / tree.len() as f64);
    }

    #[test]
    fn bytes_that_are_no_part_are_an_error_or_other_leaves_and_never_a_panic() {
        let mut tree = Tree::new();
        for number in 0..20 {
            tree.insert(format!("app.bsky.feed.post/{number:03}"), (number % 9, 1));
        }
        let part = written(&tree, 100).pop_front().unwrap();
        let mut refused = 0;
        for at in 0..part.len() {
            for bit in 0..8 {
                let mut broken = part.clone();
                broken[at] ^= 1 << bit;
                refused += usize::from(compared(VecDeque::from([broken]), &tree).is_err());
            }
            refused +=
                usize::from(compared(VecDeque::from([part[..at].to_vec()]), &Tree::new()).is_err());
        }
        assert!(refused > part.len() / 2, "{refused} of {}", part.len() * 9);
    }
}
