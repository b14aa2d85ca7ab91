//! What people write: records of every kind with texts of many scripts, and, when asked for, the odd ones that the network
//! holds: malformed, mistyped, undecodable, oddly encoded. Each draft says what it is *meant* to become; the oracle derives the
//! same from the rules, and the tests of this support hold the two against each other.

use fastrand::Rng;

use super::time::{Meaning, odd, ordinary};
use super::value::{Link, Style, Text, Value, cid_text, list, map, text, unsorted};

/// What a draft is meant to become, if its type is exported and the window drops nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// A row in the queue of this label.
    Exported(&'static str),
    Skipped,
    /// A rejected row for this reason.
    Rejected(&'static str),
}

/// A record before it has an account.
#[derive(Clone, Debug)]
pub struct Draft {
    pub collection: &'static str,
    /// `None` if no decoder may accept the bytes.
    pub value: Option<Value>,
    pub bytes: Vec<u8>,
    /// Its block has the raw codec, which no record may have.
    pub is_raw: bool,
    /// Of its `createdAt`.
    pub time: Meaning,
    pub intent: Intent,
}

const POST: &str = "app.bsky.feed.post";
const LIKE: &str = "app.bsky.feed.like";
const REPOST: &str = "app.bsky.feed.repost";
const FOLLOW: &str = "app.bsky.graph.follow";
const BLOCK: &str = "app.bsky.graph.block";

type Fields = Vec<(Text, Value)>;

/// A record that every reader understands.
pub fn ordinary_draft(rng: &mut Rng) -> Draft {
    match rng.u32(..100) {
        0..53 => edge(rng, LIKE, "like"),
        53..65 => edge(rng, REPOST, "repost"),
        65..76 => edge(rng, FOLLOW, "follow"),
        76..77 => edge(rng, BLOCK, "block"),
        77..87 => {
            let fields = post_fields(rng);
            dated(rng, POST, fields, Intent::Exported("post"))
        }
        87..98 => {
            let mut fields = post_fields(rng);
            let (parent, root) = (reference(rng), reference(rng));
            fields.push(("reply".into(), map([("parent", parent), ("root", root)])));
            dated(rng, POST, fields, Intent::Exported("reply"))
        }
        _ => foreign(rng),
    }
}

/// One of the odd records; every kind of them appears.
pub fn odd_draft(rng: &mut Rng) -> Draft {
    match rng.u32(..10) {
        0..2 => odd_time(rng),
        2..4 => odd_schema(rng),
        4 => undecodable(rng),
        5 => odd_type(rng),
        6..8 => odd_fields(rng),
        _ => odd_form(rng),
    }
}

/// A post above the size limit of records.
pub fn too_large_draft(rng: &mut Rng) -> Draft {
    let long = words(rng, 40).repeat(1_000_400 / 40);
    let long = &long[..floor_boundary(&long, 1_000_000 + rng.usize(1..300))];
    let fields = vec![("text".into(), text(long.to_owned()))];
    dated(rng, POST, fields, Intent::Rejected("too_large"))
}

fn floor_boundary(text: &str, mut at: usize) -> usize {
    at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn finished(
    collection: &'static str,
    value: Value,
    style: Style,
    time: Meaning,
    intent: Intent,
) -> Draft {
    let bytes = value.to_cbor(style);
    Draft { collection, value: Some(value), bytes, is_raw: false, time, intent }
}

/// A record of `collection`, whose `$type` is the same, with an ordinary time.
fn dated(rng: &mut Rng, collection: &'static str, fields: Fields, intent: Intent) -> Draft {
    let time = ordinary(rng);
    timed(collection, fields, time, Style::Strict, intent)
}

fn timed(
    collection: &'static str,
    mut fields: Fields,
    (written, time): (Text, Meaning),
    style: Style,
    intent: Intent,
) -> Draft {
    fields.push(("$type".into(), text(collection)));
    fields.push(("createdAt".into(), Value::Text(written)));
    finished(collection, Value::Map(fields).sorted(), style, time, intent)
}

fn edge(rng: &mut Rng, collection: &'static str, label: &'static str) -> Draft {
    let subject = if matches!(collection, LIKE | REPOST) { reference(rng) } else { text(did(rng)) };
    let mut fields = vec![("subject".into(), subject)];
    if rng.u32(..10) == 0 && matches!(collection, LIKE | REPOST) {
        // The repost that led to this like: a field that came later and that rows do not have.
        fields.push(("via".into(), reference(rng)));
    }
    dated(rng, collection, fields, Intent::Exported(label))
}

fn foreign(rng: &mut Rng) -> Draft {
    let (collection, fields): (&'static str, Fields) = match rng.u32(..6) {
        0 => (
            "app.bsky.feed.threadgate",
            vec![("post".into(), text(uri(rng))), ("allow".into(), list([]))],
        ),
        1 => (
            "app.bsky.graph.listitem",
            vec![("subject".into(), text(did(rng))), ("list".into(), text(uri(rng)))],
        ),
        2 => ("app.bsky.graph.list", vec![("name".into(), text(words(rng, 3)))]),
        3 => (
            "com.example.note",
            vec![
                ("body".into(), text(words(rng, 12))),
                ("n".into(), Value::Int(rng.i64(..).into())),
                ("seen".into(), Value::Bool(rng.bool())),
                ("bytes".into(), Value::Bytes(vec![rng.u8(..); rng.usize(..5)])),
                ("ref".into(), Value::Link(link(rng, 0x55))),
            ],
        ),
        4 => (
            "com.example.note.deep",
            vec![("list".into(), list([Value::Null, list([]), map([("x", Value::Float(0.25))])]))],
        ),
        _ => ("app.bsky.feed.postgate", vec![("post".into(), text(uri(rng)))]),
    };
    dated(rng, collection, fields, Intent::Skipped)
}

fn post_fields(rng: &mut Rng) -> Fields {
    let count = rng.usize(2..30);
    let mut fields = vec![("text".into(), text(words(rng, count)))];
    let mut put = |name: &'static str, value: Value| fields.push((name.into(), value));
    match rng.u32(..20) {
        0..14 => put("langs", list([text(LANGS[rng.usize(..LANGS.len())])])),
        14..16 => put("langs", list([text("en"), text(LANGS[rng.usize(..LANGS.len())])])),
        _ => {}
    }
    match rng.u32(..10) {
        0 => put("embed", external(rng)),
        1 => put("embed", images(rng)),
        2 => {
            let record = reference(rng);
            put("embed", map([("$type", text("app.bsky.embed.record")), ("record", record)]));
        }
        3 if rng.bool() => {
            let record =
                map([("$type", text("app.bsky.embed.record")), ("record", reference(rng))]);
            let kind = text("app.bsky.embed.recordWithMedia");
            put("embed", map([("$type", kind), ("media", images(rng)), ("record", record)]));
        }
        _ => {}
    }
    if rng.u32(..5) == 0 {
        put("facets", list([facet(rng)]));
    }
    if rng.u32(..40) == 0 {
        put("tags", list([text("skyfill"), text("日本")]));
    }
    if rng.u32(..60) == 0 {
        put("labels", self_labels());
    }
    fields
}

fn self_labels() -> Value {
    let label = |name| map([("val", text(name))]);
    map([
        ("$type", text("com.atproto.label.defs#selfLabels")),
        ("values", list([label("porn"), label("!no-unauthenticated")])),
    ])
}

fn facet(rng: &mut Rng) -> Value {
    let start = rng.u32(..40);
    let feature = match rng.u32(..3) {
        0 => map([("$type", text("app.bsky.richtext.facet#mention")), ("did", text(did(rng)))]),
        1 => map([("$type", text("app.bsky.richtext.facet#tag")), ("tag", text("café"))]),
        _ => map([
            ("$type", text("app.bsky.richtext.facet#link")),
            ("uri", text(format!("https://example.com/{}?q=1&r=\"2\"", rng.u32(..)))),
        ]),
    };
    let index = map([
        ("byteEnd", Value::Int((start + rng.u32(1..30)).into())),
        ("byteStart", Value::Int(start.into())),
    ]);
    map([("index", index), ("features", list([feature]))])
}

fn blob(rng: &mut Rng) -> Value {
    map([
        ("$type", text("blob")),
        ("ref", Value::Link(link(rng, 0x55))),
        ("mimeType", text("image/jpeg")),
        ("size", Value::Int(rng.u32(1_000..1_000_000).into())),
    ])
}

fn images(rng: &mut Rng) -> Value {
    let images: Vec<Value> = (0..rng.usize(1..3))
        .map(|_| {
            let ratio = map([("width", Value::Int(1_200)), ("height", Value::Int(800))]);
            map([("alt", text(words(rng, 4))), ("image", blob(rng)), ("aspectRatio", ratio)])
        })
        .collect();
    map([("$type", text("app.bsky.embed.images")), ("images", list(images))])
}

fn external(rng: &mut Rng) -> Value {
    let mut card = vec![
        ("uri".into(), text(format!("https://example.org/a/{}", rng.u64(..)))),
        ("title".into(), text(words(rng, 5))),
        ("description".into(), text(words(rng, 8))),
    ];
    if rng.bool() {
        card.push(("thumb".into(), blob(rng)));
    }
    let card = Value::Map(card).sorted();
    map([("$type", text("app.bsky.embed.external")), ("external", card)])
}

/// Times that are odd, unreadable, missing or no text.
fn odd_time(rng: &mut Rng) -> Draft {
    let subject = vec![("subject".into(), reference(rng))];
    let rejected = Intent::Rejected("created_at");
    match rng.u32(..6) {
        0..3 => timed(LIKE, subject, odd(rng, true), Style::Strict, Intent::Exported("like")),
        3 => timed(LIKE, subject, odd(rng, false), Style::Strict, rejected),
        4 => {
            let fields = vec![("$type".into(), text(POST)), ("text".into(), text(words(rng, 3)))];
            let value = Value::Map(fields).sorted();
            finished(POST, value, Style::Strict, Meaning::Unreadable, rejected)
        }
        _ => {
            let odd =
                [Value::Null, Value::Int(1_728_131_696), list([text("2024-10-05T12:34:56Z")])];
            let value = map([
                ("$type", text(FOLLOW)),
                ("subject", text(did(rng))),
                ("createdAt", odd[rng.usize(..odd.len())].clone()),
            ]);
            finished(FOLLOW, value, Style::Strict, Meaning::Unreadable, rejected)
        }
    }
}

/// Required fields that are missing or of another type, and records that are no maps.
fn odd_schema(rng: &mut Rng) -> Draft {
    let with = |name: &'static str, value: Value| (Text::from(name), value);
    let said = with("text", text(words(rng, 4)));
    let (collection, fields) = match rng.u32(..12) {
        0 => (POST, vec![with("embed", external(rng))]),
        1 => (POST, vec![with("text", Value::Bytes(b"text".to_vec()))]),
        2 => (LIKE, vec![with("subject", text(did(rng)))]),
        3 => (LIKE, vec![]),
        4 => (FOLLOW, vec![with("subject", reference(rng))]),
        5 => (BLOCK, vec![with("subject", Value::Null)]),
        6 => (POST, vec![said, with("reply", Value::Null)]),
        7 => (POST, vec![said, with("reply", map([("parent", reference(rng))]))]),
        8 => (POST, vec![said, with("langs", list([Value::Int(1), text("en")]))]),
        9 => (POST, vec![said, with("tags", Value::Int(3))]),
        10 => {
            let subject = map([
                ("cid", text(cid_text(&link(rng, 0x71)))),
                ("uri", text(uri(rng))),
                ("$type", Value::Int(5)),
            ]);
            (REPOST, vec![with("subject", subject)])
        }
        _ => {
            let values = [list([text("$type")]), text("$type"), Value::Int(5), Value::Float(1.5)];
            let value = values[rng.usize(..values.len())].clone();
            let intent = Intent::Rejected("schema");
            return finished(POST, value, Style::Strict, Meaning::Unreadable, intent);
        }
    };
    dated(rng, collection, fields, Intent::Rejected("schema"))
}

/// Bytes that are no record under any reading.
fn undecodable(rng: &mut Rng) -> Draft {
    let Draft { mut bytes, .. } = edge(rng, LIKE, "like");
    let mut is_raw = false;
    match rng.u32(..16) {
        0 => bytes.push(0),
        1 => bytes.truncate(bytes.len() - rng.usize(1..20)),
        2 => bytes = [&b"\xbf\x61a"[..], &[0x01, 0xff]].concat(),
        3 => bytes = b"\xa2\x61a\x01\x61a\x02".to_vec(),
        4 => bytes = vec![0xa1, 0x01, 0x02],
        5 => bytes = b"\xa1\x61a\xc0\x611".to_vec(),
        6 => bytes = b"\xa1\x61a\xf7".to_vec(),
        7 => bytes = b"\xa1\x61a\xfb\x7f\xf8\0\0\0\0\0\0".to_vec(),
        8 => bytes = b"\xa1\x61a\xf9\x7c\x00".to_vec(),
        9 => bytes = b"\xa1\x61a\x62\xff\xfe".to_vec(),
        10 => bytes = b"\xa1\x61a\x63\xed\xa0\x80".to_vec(),
        11 => bytes = [vec![0x81; 200], vec![0x00]].concat(),
        12 => bytes = b"\xa1\x61a\x1c".to_vec(),
        13 => bytes = b"\xa1\x61a\x7b\x7f\xff\xff\xff\xff\xff\xff\xff".to_vec(),
        14 => bytes = Vec::new(),
        _ => is_raw = true,
    }
    let collection = if rng.bool() { LIKE } else { "com.example.note" };
    let (time, intent) = (Meaning::Unreadable, Intent::Rejected("cbor"));
    Draft { collection, value: None, bytes, is_raw, time, intent }
}

/// `$type`s that are missing, nearly right, or those of another collection.
fn odd_type(rng: &mut Rng) -> Draft {
    if rng.bool() {
        let Draft { value, bytes, time, .. } = edge(rng, LIKE, "like");
        let intent = Intent::Exported("like");
        return Draft { collection: POST, value, bytes, is_raw: false, time, intent };
    }
    let types = [
        Value::Null,
        Value::Int(5),
        text("app.bsky.feed.Post"),
        text("app.bsky.feed.post#main"),
        text("app.bsky.feed.posts"),
        list([text(POST)]),
        text(""),
    ];
    let (written, time) = ordinary(rng);
    let mut fields =
        vec![("text".into(), text(words(rng, 3))), ("createdAt".into(), Value::Text(written))];
    if let Some(kind) = types.get(rng.usize(..=types.len())) {
        fields.push(("$type".into(), kind.clone()));
    }
    finished(POST, Value::Map(fields).sorted(), Style::Strict, time, Intent::Skipped)
}

/// Optional fields of every type, and texts of every character.
fn odd_fields(rng: &mut Rng) -> Draft {
    let deep = (0..20).fold(Value::Int(1), |inner, _| map([("n", inner)]));
    let wild = "\u{0}\u{1}\u{8}\t\n\u{b}\u{c}\r\u{1f}\u{7f}\u{80} \"'\\/` \u{2028}\u{2029}\u{feff}\u{fffe}\u{10ffff} 👩‍👩‍👧‍👦🦋 <b>&amp;</b> \\u0000 e\u{301}";
    let numbers = map([
        ("a", Value::Int(9_007_199_254_740_993)),
        ("b", Value::Int(-9_223_372_036_854_775_808)),
        ("c", Value::Int(18_446_744_073_709_551_615)),
        ("d", Value::Float(1e16)),
        ("e", Value::Float(-0.0)),
        ("f", Value::Float(1.5e-7)),
        ("g", Value::Float(123_456_789.25)),
        ("h", Value::Float(5e-324)),
        ("i", Value::Float(0.0001)),
    ]);
    let choices: [(&'static str, Value); 30] = [
        ("embed", Value::Null),
        ("embed", text("")),
        ("embed", list([])),
        ("embed", list([Value::Int(1)])),
        ("embed", Value::Int(5)),
        ("embed", Value::Float(0.0)),
        ("embed", Value::Bool(true)),
        ("embed", Value::Bool(false)),
        ("embed", Value::Bytes(vec![1, 2, 3, 250])),
        ("embed", Value::Bytes(vec![])),
        ("embed", Value::Link(link(rng, 0x71))),
        ("embed", deep),
        ("embed", numbers),
        ("embed", map([("$type", text(wild)), ("é🦋", Value::Bool(false))])),
        ("entities", list([map([("type", text("link")), ("value", text(wild))])])),
        ("entities", map([])),
        ("facets", text("f\"")),
        ("facets", map([("index", Value::Float(1e300))])),
        ("labels", text("nsfw")),
        ("labels", Value::Int(7)),
        ("langs", text("en")),
        ("langs", text("")),
        ("langs", list([text("")])),
        ("langs", list([text("a,b"), text("c"), text("\"é\n")])),
        ("langs", map([("a", Value::Int(1)), ("bb", Value::Int(2))])),
        ("langs", Value::Null),
        ("tags", list([text("x"), text(wild)])),
        ("tags", Value::Int(0)),
        ("text", text("")),
        ("text", text(wild)),
    ];
    let (name, value) = choices[rng.usize(..choices.len())].clone();
    let mut fields = vec![(name.into(), value)];
    if name != "text" {
        fields.push(("text".into(), text(words(rng, 5))));
    }
    fields.push(("bridgyOriginalText".into(), text("<p>x</p>")));
    dated(rng, POST, fields, Intent::Exported("post"))
}

/// Records that mean something ordinary, oddly written: wide heads, narrow floats, keys in another order, extra fields.
fn odd_form(rng: &mut Rng) -> Draft {
    let (written, time) = ordinary(rng);
    let written = Value::Text(written);
    match rng.u32(..5) {
        0 => {
            let mut fields = post_fields(rng);
            fields.push(("entities".into(), list([Value::Float(1.5), Value::Float(0.25)])));
            fields.push(("$type".into(), text(POST)));
            fields.push(("createdAt".into(), written));
            let value = Value::Map(fields).sorted();
            finished(POST, value, Style::Wide, time, Intent::Exported("post"))
        }
        1 => {
            let inner =
                unsorted([("zz", Value::Int(1)), ("a", Value::Int(-1)), ("m", Value::Null)]);
            let value = unsorted([
                ("text", text(words(rng, 6))),
                ("createdAt", written),
                ("embed", inner),
                ("$type", text(POST)),
            ]);
            finished(POST, value, Style::Strict, time, Intent::Exported("post"))
        }
        2 => {
            let subject = map([
                ("cid", Value::Link(link(rng, 0x71))),
                ("uri", text("at://did:web:example.com/é/\"x\"")),
                ("$type", text("com.example.ref\n")),
                ("extra", list([Value::Null])),
            ]);
            let value = map([("$type", text(LIKE)), ("createdAt", written), ("subject", subject)]);
            finished(LIKE, value, Style::Strict, time, Intent::Exported("like"))
        }
        3 => {
            let reply = map([
                ("parent", reference(rng)),
                ("root", reference(rng)),
                ("$type", text("com.example.reply")),
                ("x", Value::Int(1)),
            ]);
            let value = map([
                ("$type", text(POST)),
                ("createdAt", written),
                ("text", text("")),
                ("reply", reply),
            ]);
            finished(POST, value, Style::Wide, time, Intent::Exported("reply"))
        }
        _ => {
            let value = map([
                ("$type", text(FOLLOW)),
                ("createdAt", written),
                ("subject", text("hello é \u{7f}")),
                ("py_type", text("qqq")),
                ("record_type", text("zzz")),
                ("did", Value::Int(1)),
            ]);
            finished(FOLLOW, value, Style::Strict, time, Intent::Exported("follow"))
        }
    }
}

/// A reference to somebody's post.
fn reference(rng: &mut Rng) -> Value {
    map([("cid", text(cid_text(&link(rng, 0x71)))), ("uri", text(uri(rng)))])
}

fn uri(rng: &mut Rng) -> String {
    format!("at://{}/app.bsky.feed.post/3l{}", did(rng), base32(rng, 11))
}

fn did(rng: &mut Rng) -> String {
    format!("did:plc:{}", base32(rng, 24))
}

/// A CID of `codec` over nothing in particular.
fn link(rng: &mut Rng, codec: u8) -> Link {
    let mut link = [0; 36];
    link[..4].copy_from_slice(&[1, codec, 0x12, 0x20]);
    for part in link[4..].chunks_mut(8) {
        part.copy_from_slice(&rng.u64(..).to_le_bytes());
    }
    link
}

fn base32(rng: &mut Rng, length: usize) -> String {
    let alphabet = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut out = Vec::with_capacity(length);
    while out.len() < length {
        let mut bits = rng.u64(..);
        for _ in 0..12.min(length - out.len()) {
            out.push(alphabet[(bits & 31) as usize]);
            bits >>= 5;
        }
    }
    String::from_utf8(out).expect("base32 is ASCII")
}

const LANGS: [&str; 8] = ["en", "ja", "pt", "de", "pt-BR", "ko", "ar", "zh-Hans"];

/// Words of one script at a time, as people write.
const SCRIPTS: [&[&str]; 9] = [
    &["the", "sky", "is", "blue", "again", "and", "nobody", "minds", "really", "today", "hello"],
    &["why", "not", "read", "it", "twice", "\"quoted\"", "back\\slash", "line\nbreak", "tab\there"],
    &["o", "céu", "está", "azul", "não", "é", "você", "às", "vezes", "coração"],
    &["небо", "сегодня", "синее", "и", "никто", "не", "спит", "ёж"],
    &["空は", "青い", "今日も", "元気です", "日本語", "ありがとう", "。"],
    &["하늘은", "파랗다", "오늘도", "안녕하세요"],
    &["مرحبا", "بالعالم", "السماء", "زرقاء", "שלום"],
    &["नमस्ते", "दुनिया", "สวัสดี", "ชาวโลก", "Ελλάδα"],
    &[
        "🦋",
        "👩‍👩‍👧‍👦",
        "🇧🇷",
        "❤️",
        "𝒮𝓀𝓎",
        "lol",
        "😂😂",
        "https://example.com/x?y=1&z=2",
        "@someone.test",
    ],
];

fn words(rng: &mut Rng, count: usize) -> String {
    let script = if rng.bool() { SCRIPTS[rng.usize(..2)] } else { SCRIPTS[rng.usize(..9)] };
    let mut out = String::with_capacity(count * 8);
    for at in 0..count {
        if at > 0 {
            out.push(' ');
        }
        out.push_str(script[rng.usize(..script.len())]);
    }
    out
}
