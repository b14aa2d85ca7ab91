//! From one record to the authors of its subjects, wherever the record lay.
//!
//! ```text
//!  record ──> kind wanted? ──> its date in the range? ──> subject (like, repost) or parent and root (reply) ──> author
//! ```
//! takes   records as JSON, or as the columns of a table; `subject`, `reply` and what is in them as JSON text or as objects
//! gives   counts by author and kind: a record counts once for each account that it is about
//! counts  what is bad under a named cause, and names the first of them; nothing of it ends the work
//!
//! The date is that of `synctimestamp`; a record without one has that of its `partition_date`, then that of its folder.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::commands::determine::flags::{SubjectKind, Wanted, is_date};
use crate::domain::did::{Did, DidError, cleaned};
use crate::store::author_counts::AuthorCounts;
use crate::store::error::StoreError;

/// Bad ones that are named; the rest is counted.
pub const NAMED_MAX: usize = 20;

/// Records between two reports of progress.
const TOLD_EVERY: u64 = 10_000_000;

/// Why something does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A queue's item, or a line, that is no JSON.
    NotJson,
    /// Longer than is read at once.
    TooLarge,
    /// Not an object.
    NotARecord,
    /// Neither `record_type` nor `py_type` nor the file's name says what it is.
    NoKind,
    /// No date to go by.
    NoDate,
    /// No subject, or one without a uri.
    NoSubject,
    /// The subject's uri does not begin with `at://` and an authority.
    NotAtUri,
    /// The subject's uri names a handle, which may be another account's today.
    Handle,
    /// The subject's uri names a DID that skyfill cannot resolve.
    BadDid,
}

impl Cause {
    /// The word in the summary.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotJson => "not_json",
            Self::TooLarge => "too_large",
            Self::NotARecord => "not_a_record",
            Self::NoKind => "no_kind",
            Self::NoDate => "no_date",
            Self::NoSubject => "no_subject",
            Self::NotAtUri => "not_at_uri",
            Self::Handle => "handle",
            Self::BadDid => "bad_did",
        }
    }
}

/// What is known of a record by where it lies.
#[derive(Clone, Copy, Debug)]
pub struct Place<'p> {
    /// The file, as it was named.
    pub file: &'p Path,
    /// What its name says of the kind.
    pub kind: Option<SubjectKind>,
    /// What its folder says of the date.
    pub date: Option<&'p str>,
    /// Id of the item, number of the line or of the row.
    pub row: i64,
    /// Which record of the item, from 1.
    pub record: Option<usize>,
}

/// Something bad.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Where.
    pub file: String,
    /// Item, line or row.
    pub row: i64,
    /// Which record of it.
    pub record: Option<usize>,
    /// Why.
    pub cause: Cause,
    /// What stands there, cleaned.
    pub detail: String,
}

/// What was read.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Records.
    pub rows: u64,
    /// Records of kinds that do not count here.
    pub other_kinds: u64,
    /// Records outside the dates.
    pub outside_dates: u64,
    /// Subjects whose author is known: one of a like or repost, two of a reply.
    pub subjects: u64,
    /// What is bad, by cause.
    pub bad: BTreeMap<Cause, u64>,
    /// The first of it.
    pub named: Vec<Named>,
}

/// A value in a record.
#[derive(Clone, Debug)]
pub enum Part<'r> {
    /// Null, or not there.
    Nothing,
    /// As JSON.
    Json(&'r str),
    /// A text: JSON in it, or a uri.
    Text(Cow<'r, str>),
    /// `parent` and `root`.
    Pair(Box<[Part<'r>; 2]>),
}

/// What matters of a record.
#[derive(Clone, Debug)]
pub struct Row<'r> {
    /// `record_type`.
    pub record_type: Option<Cow<'r, str>>,
    /// `py_type`.
    pub py_type: Option<Cow<'r, str>>,
    /// `synctimestamp`.
    pub synctimestamp: Option<Cow<'r, str>>,
    /// `partition_date`.
    pub partition_date: Option<Cow<'r, str>>,
    /// `subject`.
    pub subject: Part<'r>,
    /// `reply`.
    pub reply: Part<'r>,
}

/// Takes records in.
#[derive(Debug)]
pub struct Intake {
    wanted: Wanted,
    /// Who is named.
    pub authors: AuthorCounts,
    /// What was read.
    pub figures: Figures,
    /// The day that was found to exist last: records of one day lie together.
    known_day: String,
}

impl Intake {
    /// Nothing yet.
    #[must_use]
    pub fn new(wanted: Wanted, authors: AuthorCounts) -> Self {
        Self { wanted, authors, figures: Figures::default(), known_day: String::new() }
    }

    /// Takes JSON: a list of records, each numbered, or one record.
    ///
    /// # Errors
    /// [`StoreError`] of the counts' file.
    pub fn json(&mut self, text: &[u8], place: Place<'_>) -> Result<(), StoreError> {
        if text.trim_ascii_start().starts_with(b"[") {
            return match serde_json::from_slice::<Vec<&RawValue>>(text) {
                Ok(records) => records.iter().enumerate().try_for_each(|(index, record)| {
                    self.record(record.get(), Place { record: Some(index + 1), ..place })
                }),
                Err(error) => {
                    self.bad(Cause::NotJson, &error.to_string(), place);
                    Ok(())
                }
            };
        }
        match serde_json::from_slice::<&RawValue>(text) {
            Ok(record) => self.record(record.get(), place),
            Err(error) => {
                self.bad(Cause::NotJson, &error.to_string(), place);
                Ok(())
            }
        }
    }

    fn record(&mut self, text: &str, place: Place<'_>) -> Result<(), StoreError> {
        #[derive(Deserialize)]
        struct Written<'r> {
            #[serde(borrow)]
            record_type: Option<&'r RawValue>,
            #[serde(borrow)]
            py_type: Option<&'r RawValue>,
            #[serde(borrow)]
            synctimestamp: Option<&'r RawValue>,
            #[serde(borrow)]
            partition_date: Option<&'r RawValue>,
            #[serde(borrow)]
            subject: Option<&'r RawValue>,
            #[serde(borrow)]
            reply: Option<&'r RawValue>,
        }
        // A list has as many elements as fields: only an object is a record.
        let read = text.starts_with('{').then(|| serde_json::from_str::<Written<'_>>(text));
        let Some(Ok(written)) = read else {
            self.figures.rows += 1;
            self.bad(Cause::NotARecord, text, place);
            return Ok(());
        };
        let row = Row {
            record_type: word(written.record_type),
            py_type: word(written.py_type),
            synctimestamp: written.synctimestamp.map(date_text),
            partition_date: written.partition_date.map(date_text),
            subject: part(written.subject),
            reply: part(written.reply),
        };
        self.row(&row, place)
    }

    /// Takes a record.
    ///
    /// # Errors
    /// [`StoreError`] of the counts' file.
    pub fn row(&mut self, row: &Row<'_>, place: Place<'_>) -> Result<(), StoreError> {
        self.figures.rows += 1;
        if self.figures.rows.is_multiple_of(TOLD_EVERY) {
            let (rows, spills) = (self.figures.rows, self.authors.spills());
            tracing::info!(rows, spills, "reading records");
        }
        let kind = match row.kind(place.kind) {
            Ok(Some(kind)) if self.wanted.kinds[kind.index()] => kind,
            Ok(_) => {
                self.figures.other_kinds += 1;
                return Ok(());
            }
            Err(cause) => {
                self.bad(cause, row.record_type.as_deref().unwrap_or_default(), place);
                return Ok(());
            }
        };
        let written = row.synctimestamp.as_deref().or(row.partition_date.as_deref());
        let written = written.or(place.date).unwrap_or_default();
        let Some(date) = date_of(written, &self.known_day) else {
            self.bad(Cause::NoDate, written, place);
            return Ok(());
        };
        if date != self.known_day {
            date.clone_into(&mut self.known_day);
        }
        if date < self.wanted.start_date.as_str() || date > self.wanted.end_date.as_str() {
            self.figures.outside_dates += 1;
            return Ok(());
        }
        match kind {
            SubjectKind::Like | SubjectKind::Repost => {
                if let Some(author) = self.author(uri(&row.subject), place) {
                    self.authors.add(&author, kind.index())?;
                }
            }
            SubjectKind::Reply => self.reply(&row.reply, place)?,
        }
        Ok(())
    }

    /// Parent and root; an account that wrote both is counted once.
    fn reply(&mut self, reply: &Part<'_>, place: Place<'_>) -> Result<(), StoreError> {
        let Some([parent, root]) = reply_uris(reply) else {
            self.bad(Cause::NoSubject, "neither parent nor root", place);
            return Ok(());
        };
        let parent = self.author(parent.map(Cow::Owned), place);
        let root = self.author(root.map(Cow::Owned), place);
        let root = root.filter(|root| Some(root) != parent.as_ref());
        for author in [parent, root].into_iter().flatten() {
            self.authors.add(&author, SubjectKind::Reply.index())?;
        }
        Ok(())
    }

    fn author(&mut self, uri: Option<Cow<'_, str>>, place: Place<'_>) -> Option<Did> {
        let Some(uri) = uri else {
            self.bad(Cause::NoSubject, "", place);
            return None;
        };
        match author_of(&uri) {
            Ok(did) => {
                self.figures.subjects += 1;
                Some(did)
            }
            Err(cause) => {
                self.bad(cause, &uri, place);
                None
            }
        }
    }

    /// Counts something bad, and names it if it is among the first.
    pub fn bad(&mut self, cause: Cause, detail: &str, place: Place<'_>) {
        *self.figures.bad.entry(cause).or_default() += 1;
        if self.figures.named.len() < NAMED_MAX {
            let file = cleaned(&place.file.to_string_lossy());
            let (row, record, detail) = (place.row, place.record, cleaned(detail));
            self.figures.named.push(Named { file, row, record, cause, detail });
        }
    }
}

impl Row<'_> {
    /// Its kind; `None` for one without subject.
    fn kind(&self, by_name: Option<SubjectKind>) -> Result<Option<SubjectKind>, Cause> {
        let is_reply = match &self.reply {
            Part::Nothing | Part::Json("\"\"") => false,
            Part::Text(text) => !text.trim().is_empty(),
            Part::Pair(pair) => pair.iter().any(|part| !matches!(part, Part::Nothing)),
            Part::Json(_) => true,
        };
        let word = self.record_type.as_deref().or(self.py_type.as_deref());
        match word.filter(|word| !word.is_empty()) {
            Some("like" | "app.bsky.feed.like") => Ok(Some(SubjectKind::Like)),
            Some("repost" | "app.bsky.feed.repost") => Ok(Some(SubjectKind::Repost)),
            Some("reply") => Ok(Some(SubjectKind::Reply)),
            // A reply is a post that has one.
            Some("post" | "app.bsky.feed.post") if is_reply => Ok(Some(SubjectKind::Reply)),
            Some(_) => Ok(None),
            None => by_name.map(Some).ok_or(Cause::NoKind),
        }
    }
}

/// The day of a time, if it begins with one that exists; `known` does.
fn date_of<'t>(text: &'t str, known: &str) -> Option<&'t str> {
    let (date, rest) = text.split_at_checked(10)?;
    let goes_on = rest.is_empty() || rest.starts_with(['-', 'T', 't', ' ']);
    (goes_on && (date == known || is_date(date))).then_some(date)
}

/// A JSON text's content; `None` for another value.
fn json_text(json: &str) -> Option<Cow<'_, str>> {
    match serde_json::from_str::<&str>(json) {
        Ok(plain) => Some(Cow::Borrowed(plain)),
        // With escapes it is another text than the one that stands there.
        Err(_) => serde_json::from_str::<String>(json).ok().map(Cow::Owned),
    }
}

/// The uri of a subject: an object with one, JSON text of such, or itself.
fn uri<'r>(subject: &'r Part<'_>) -> Option<Cow<'r, str>> {
    match subject {
        Part::Nothing | Part::Pair(_) => None,
        Part::Json(json) if json.starts_with('{') => uri_in(json),
        Part::Json(json) => json_text(json).and_then(|text| uri_of_text(text)),
        Part::Text(text) => uri_of_text(Cow::Borrowed(text)),
    }
}

fn uri_of_text(text: Cow<'_, str>) -> Option<Cow<'_, str>> {
    if text.trim_start().starts_with('{') {
        return uri_in(&text).map(|uri| Cow::Owned(uri.into_owned()));
    }
    (!text.is_empty()).then_some(text)
}

fn uri_in(json: &str) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Reference<'r> {
        #[serde(borrow)]
        uri: Option<&'r RawValue>,
    }
    let reference: Reference<'_> = serde_json::from_str(json).ok()?;
    json_text(reference.uri?.get())
}

/// The uris of a reply's parent and root, each perhaps nothing; `None` for what is no reply.
fn reply_uris(reply: &Part<'_>) -> Option<[Option<String>; 2]> {
    let owned = |part: &Part<'_>| uri(part).map(Cow::into_owned);
    match reply {
        Part::Nothing => None,
        Part::Pair(pair) => Some([owned(&pair[0]), owned(&pair[1])]),
        Part::Json(json) if json.starts_with('{') => pair_in(json),
        Part::Json(json) => pair_in(&json_text(json)?),
        Part::Text(text) => pair_in(text),
    }
}

fn pair_in(json: &str) -> Option<[Option<String>; 2]> {
    #[derive(Deserialize)]
    struct Pair<'r> {
        #[serde(borrow)]
        parent: Option<&'r RawValue>,
        #[serde(borrow)]
        root: Option<&'r RawValue>,
    }
    let json = json.trim_start();
    let pair: Pair<'_> = serde_json::from_str(json).ok().filter(|_| json.starts_with('{'))?;
    Some([pair.parent, pair.root].map(|raw| uri(&part(raw)).map(Cow::into_owned)))
}

fn word(raw: Option<&RawValue>) -> Option<Cow<'_, str>> {
    raw.and_then(|raw| json_text(raw.get()))
}

/// What is not a text is no date either.
fn date_text(raw: &RawValue) -> Cow<'_, str> {
    json_text(raw.get()).unwrap_or_default()
}

fn part(raw: Option<&RawValue>) -> Part<'_> {
    raw.map_or(Part::Nothing, |raw| Part::Json(raw.get()))
}

/// Whose a record is, by its uri.
fn author_of(uri: &str) -> Result<Did, Cause> {
    let rest = uri.strip_prefix("at://").ok_or(Cause::NotAtUri)?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if !authority.starts_with("did:") {
        return Err(if authority.contains('.') { Cause::Handle } else { Cause::NotAtUri });
    }
    Did::parse(authority).map_err(|_: DidError| Cause::BadDid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DID: &str = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";
    type Taken = (u64, Vec<(String, [u64; 3])>, Vec<Cause>);

    const OTHER: &str = "did:web:example.com";

    fn intake() -> Intake {
        let (start_date, end_date) = ("2024-09-29".to_owned(), "2024-12-01".to_owned());
        let wanted = Wanted { kinds: [true, true, true], start_date, end_date };
        Intake::new(wanted, AuthorCounts::new(Path::new("never-written"), 1 << 20))
    }

    fn place() -> Place<'static> {
        Place { file: Path::new("f"), kind: None, date: None, row: 7, record: None }
    }

    /// What one record comes to: subjects, authors with counts, and causes.
    fn taken(json: &str, place: Place<'_>) -> Taken {
        let mut intake = intake();
        intake.json(json.as_bytes(), place).unwrap();
        let Intake { authors, figures, .. } = intake;
        let (mut authors, mut found) = (authors.finish().unwrap(), Vec::new());
        while let Some(author) = authors.next_author().unwrap() {
            found.push(author);
        }
        assert_eq!(figures.bad.values().sum::<u64>(), figures.named.len() as u64);
        (figures.subjects, found, figures.named.iter().map(|named| named.cause).collect())
    }

    fn like(subject: &str) -> String {
        format!(
            r#"{{"record_type":"like","synctimestamp":"2024-10-05-12:34:56","subject":{subject}}}"#
        )
    }

    fn one(counts: [u64; 3]) -> Vec<(String, [u64; 3])> {
        vec![(DID.to_owned(), counts)]
    }

    #[test]
    fn subjects_are_read_in_every_form_that_they_are_written_in() {
        let uri = format!("at://{DID}/app.bsky.feed.post/3k");
        let object = format!(r#"{{"cid": "b", "uri": "{uri}", "py_type": "x"}}"#);
        let text = serde_json::to_string(&object).unwrap();
        for subject in [object, text, format!("\"{uri}\""), format!("\"at://{DID}\"")] {
            assert_eq!(
                taken(&like(&subject), place()),
                (1, one([1, 0, 0]), Vec::new()),
                "{subject}"
            );
        }
        let list = format!("[{},\n{}]", like(&format!("\"{uri}\"")), like("null"));
        assert_eq!(taken(&list, place()), (1, one([1, 0, 0]), vec![Cause::NoSubject]));
    }

    #[test]
    fn a_reply_is_about_parent_and_root_and_one_author_counts_once() {
        let object = |did: &str| format!(r#"{{"cid":"b","uri":"at://{did}/x/y"}}"#);
        let reply = |kind: &str, reply: &str| {
            format!(r#"{{"record_type":"{kind}","synctimestamp":"2024-10-05","reply":{reply}}}"#)
        };
        let both = format!(r#"{{"parent":{},"root":{}}}"#, object(DID), object(OTHER));
        let same = format!(r#"{{"parent":{0},"root":{0}}}"#, object(DID));
        let nested = serde_json::json!({"parent": object(DID), "root": object(DID)}).to_string();
        let half = format!(r#"{{"parent":{},"root":null}}"#, object(DID));
        let pair = vec![(DID.to_owned(), [0, 0, 1]), (OTHER.to_owned(), [0, 0, 1])];
        assert_eq!(taken(&reply("reply", &both), place()), (2, pair.clone(), vec![]));
        let text = serde_json::to_string(&both).unwrap();
        assert_eq!(taken(&reply("reply", &text), place()), (2, pair.clone(), vec![]));
        // A post that has one is a reply; one that has none is of another kind.
        assert_eq!(taken(&reply("post", &both), place()), (2, pair, vec![]));
        assert_eq!(taken(&reply("post", "null"), place()), (0, vec![], vec![]));
        assert_eq!(taken(&reply("reply", &same), place()), (2, one([0, 0, 1]), vec![]));
        assert_eq!(taken(&reply("reply", &nested), place()), (2, one([0, 0, 1]), vec![]));
        let no_root = (1, one([0, 0, 1]), vec![Cause::NoSubject]);
        assert_eq!(taken(&reply("reply", &half), place()), no_root);
        for junk in ["null", "[]", "7", "\"\"", "\"[]\"", "\"{\""] {
            assert_eq!(
                taken(&reply("reply", junk), place()),
                (0, vec![], vec![Cause::NoSubject]),
                "{junk}"
            );
        }
    }

    #[test]
    fn what_is_bad_has_a_cause() {
        for (subject, cause) in [
            ("null", Cause::NoSubject),
            ("{}", Cause::NoSubject),
            ("\"\"", Cause::NoSubject),
            ("[\"at://x\"]", Cause::NoSubject),
            ("{\"uri\": 5}", Cause::NoSubject),
            ("\"{broken\"", Cause::NoSubject),
            ("\"https://bsky.app/profile/x\"", Cause::NotAtUri),
            ("\"at://\"", Cause::NotAtUri),
            ("\"at://nobody/x/y\"", Cause::NotAtUri),
            ("\"at://alice.bsky.social/app.bsky.feed.post/3k\"", Cause::Handle),
            ("\"at://did:plc:short/x/y\"", Cause::BadDid),
            ("\"at://did:key:zQ3/x/y\"", Cause::BadDid),
        ] {
            assert_eq!(taken(&like(subject), place()), (0, vec![], vec![cause]), "{subject}");
        }
        for (json, cause) in [
            ("{\"a\":", Cause::NotJson),
            ("[1, 2", Cause::NotJson),
            ("", Cause::NotJson),
            ("5", Cause::NotARecord),
            ("[[1,2,3,4,5,6]]", Cause::NotARecord),
            ("{\"subject\":null}", Cause::NoKind),
            (r#"{"record_type":"like","subject":"at://x"}"#, Cause::NoDate),
            (r#"{"record_type":"like","synctimestamp":"2024-13-01-00:00:00"}"#, Cause::NoDate),
            (r#"{"record_type":"like","synctimestamp":20241001}"#, Cause::NoDate),
            (r#"{"record_type":"like","synctimestamp":"2024-10-011"}"#, Cause::NoDate),
        ] {
            assert_eq!(taken(json, place()), (0, vec![], vec![cause]), "{json}");
        }
    }

    #[test]
    fn whatever_bytes_come_they_end_as_something_counted() {
        let whole = format!(
            r#"[{},{{"record_type":"reply","synctimestamp":"2024-10-05-12:34:56","reply":"{{\"parent\": {{\"uri\": \"at://{DID}/x/y\"}}}}"}}]"#,
            like(&format!("{{\"uri\":\"at://{DID}/x/y\"}}"))
        );
        let mut rng = fastrand::Rng::with_seed(9);
        let (mut intake, mut given) = (intake(), 0);
        for _ in 0..20_000 {
            let mut bytes = whole.clone().into_bytes();
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..bytes.len());
                match rng.u32(..3) {
                    0 => bytes[at] = *rng.choice(b"az:/.0{}[]\"\\\xff").unwrap(),
                    1 if bytes.len() > 1 => drop(bytes.remove(at)),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            let before = (intake.figures.rows, intake.figures.bad.values().sum::<u64>());
            intake.json(&bytes, place()).unwrap();
            let after = (intake.figures.rows, intake.figures.bad.values().sum::<u64>());
            assert!(after > before, "{}", String::from_utf8_lossy(&bytes));
            given += 1;
        }
        let figures = &intake.figures;
        assert_eq!(given, 20_000);
        assert!(figures.bad.len() > 6 && figures.subjects > 1_000, "{figures:?}");
        assert_eq!(figures.named.len(), NAMED_MAX);
    }

    #[test]
    fn kind_and_date_come_from_the_record_first() {
        let bare = format!(r#"{{"subject":"at://{DID}/x/y"}}"#);
        let named = Place { kind: Some(SubjectKind::Repost), date: Some("2024-10-01"), ..place() };
        assert_eq!(taken(&bare, named), (1, one([0, 1, 0]), vec![]));
        let typed = format!(
            r#"{{"py_type":"app.bsky.feed.like","partition_date":"2024-10-01","subject":"at://{DID}/x/y"}}"#
        );
        assert_eq!(taken(&typed, named).1, one([1, 0, 0]));
        let outside = format!(
            r#"{{"record_type":"like","synctimestamp":"2025-01-01-00:00:00","partition_date":"2024-10-01","subject":"at://{DID}/x/y"}}"#
        );
        assert_eq!(taken(&outside, named), (0, vec![], vec![]));
        for (date, counts) in
            [("2024-09-28", 0), ("2024-09-29", 1), ("2024-12-01-23:59:59", 1), ("2024-12-02", 0)]
        {
            let json = like(&format!("\"at://{DID}/x/y\"")).replace("2024-10-05-12:34:56", date);
            assert_eq!(taken(&json, place()).0, counts, "{date}");
        }
    }
}
