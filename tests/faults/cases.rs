//! The cases that need nothing but a script: what servers do, where, and how it must end.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::time::Duration;

use ipld_core::ipld::Ipld;
use serde_json::json;

use crate::bench::{Case, Victim};
use crate::support::faults::{At, Fault, Place, Then, Wait};
use crate::support::forge::{Block, CarOptions, Key, cid_of, encode, tid, varint, write_car};
use crate::support::pds::position;

/// The same fault at each request, or once.
fn scripted(
    kind: &str,
    place: &'static str,
    at: Place,
    then: Then,
    expected: &'static str,
    script: impl Fn(&Victim) -> Vec<Fault> + Send + Sync + 'static,
) -> Case {
    let kind = match then {
        Then::Heal => format!("{kind}, once"),
        Then::Repeat => format!("{kind}, always"),
    };
    let (requests, server, error) = (None, None, None);
    Case { kind, place, at, script: Box::new(script), then, expected, requests, server, error }
}

fn repo(kind: &str, place: &'static str, then: Then, expected: &'static str, fault: Fault) -> Case {
    scripted(kind, place, Place::Repo, then, expected, move |_| vec![fault.clone()])
}

/// Both: charged once and then done, and charged until nothing is left.
fn charged(kind: &str, place: &'static str, ends: &'static str, fault: &Fault) -> [Case; 2] {
    let error = ends.split(", ").nth(1).unwrap();
    let once = repo(kind, place, Then::Heal, "done, 1 charged", fault.clone()).meets(error);
    [once, repo(kind, place, Then::Repeat, ends, fault.clone())]
}

const HEADERS: &str = "before headers";
const BEGIN: &str = "after headers";
const MIDDLE: &str = "mid body";
const LAST: &str = "last block";
const WHOLE: &str = "whole body";

const NOT_CAR: &str = "attempts_exhausted, not_car, 5 charged";
const INCOMPLETE: &str = "attempts_exhausted, incomplete, 5 charged";
const TIMEOUT: &str = "attempts_exhausted, timeout, 5 charged";
const HTTP_4XX: &str = "attempts_exhausted, http_4xx, 5 charged";

/// What breaks on the way, at each place of a transfer.
fn transport() -> Vec<Case> {
    let places = [(At::Start, BEGIN), (At::Middle, MIDDLE), (At::LastBlock, LAST)];
    let mut cases = Vec::new();
    for (at, place) in places {
        let cut = if at == At::Start { NOT_CAR } else { INCOMPLETE };
        // A reset right behind the headers may take them with it: then it was one before them.
        if at != At::Start {
            cases.extend(charged("reset", place, INCOMPLETE, &Fault::Reset(at)));
        }
        cases.extend(charged("early end in good order", place, cut, &Fault::Cut(at)));
        cases.extend(charged(
            "early end without the last chunk",
            place,
            INCOMPLETE,
            &Fault::Drop(at),
        ));
        let with_length = Fault::DropWithLength(at);
        cases.extend(charged("content-length too large", place, INCOMPLETE, &with_length));
        cases.extend(charged("stall", place, TIMEOUT, &Fault::Stall(at)));
    }
    for (at, place) in
        [(At::MiddleBorder, "mid body, on a block border"), (At::LastByte, "last byte")]
    {
        cases.extend(charged("early end in good order", place, INCOMPLETE, &Fault::Cut(at)));
        cases.extend(charged("reset", place, INCOMPLETE, &Fault::Reset(at)));
    }
    for byte in [1, 10, 58, 59, 60, 97, 98, 99, 100, 150, 300, 700] {
        let kind = format!("cut at byte {byte}");
        cases.push(repo(&kind, MIDDLE, Then::Repeat, INCOMPLETE, Fault::Cut(At::Byte(byte))));
    }
    // A tenth of the blocks, each time up to a border; the engine's own tests try every one.
    for tenth in 1..10_usize {
        let cut = move |victim: &Victim| {
            let car = victim.account.car_with(&CarOptions::default());
            let near = position(&car, At::Byte((car.len() * tenth / 10) as u64));
            vec![car_answer(car[..border_behind(&car, near)].to_vec())]
        };
        let kind = format!("cut at the border behind {tenth}0%");
        cases.push(scripted(&kind, MIDDLE, Place::Repo, Then::Repeat, INCOMPLETE, cut));
    }
    cases.extend(charged("stall", "behind the last byte", TIMEOUT, &Fault::Stall(At::End)));
    let unended = charged(
        "early end without the last chunk",
        "behind the last byte",
        INCOMPLETE,
        &Fault::Drop(At::End),
    );
    cases.extend(unended);
    for (at, place) in [(At::Middle, MIDDLE), (At::LastBlock, LAST), (At::LastByte, "last byte")] {
        let short = Fault::ShortLength(at);
        cases.extend(charged("content-length too small", place, INCOMPLETE, &short));
    }
    let drip = |bytes, millis| Fault::Drip { bytes, every: Duration::from_millis(millis) };
    cases.push(repo(
        "stalls just under the limit",
        MIDDLE,
        Then::Repeat,
        "done, 0 charged",
        drip(16 << 10, 600),
    ));
    cases.push(repo(
        "a drip longer than the total time",
        WHOLE,
        Then::Repeat,
        TIMEOUT,
        drip(64, 200),
    ));
    let endless = "repo_too_large, -, 0 charged";
    cases.push(repo("endless body", WHOLE, Then::Repeat, endless, Fault::Endless));
    let slow = |millis| Fault::SlowHeaders(Duration::from_millis(millis));
    cases.push(repo("slow headers, in time", HEADERS, Then::Repeat, "done, 0 charged", slow(700)));
    cases.push(
        repo("slow headers, too late", HEADERS, Then::Heal, "done, 0 charged", slow(2_500))
            .meets("timeout"),
    );
    cases.push(
        repo("no answer", HEADERS, Then::Heal, "done, 0 charged", Fault::NoAnswer).meets("timeout"),
    );
    let closes = Fault::CloseBeforeHeaders;
    cases.push(repo("reset", HEADERS, Then::Heal, "done, 0 charged", closes).meets("connect"));
    // The first answer leaves its connection open, and the second request goes over it.
    cases.push(
        scripted(
            "a kept connection closed under the next request",
            HEADERS,
            Place::Repo,
            Then::Repeat,
            "done, 1 charged",
            |_| vec![Fault::status(404), Fault::CloseKept],
        )
        .meets("http_4xx"),
    );
    cases
}

/// Where the first block that ends behind `near` ends.
fn border_behind(car: &[u8], near: usize) -> usize {
    (near..car.len()).map(|at| border_near(car, at)).find(|border| *border > near).unwrap_or(near)
}

fn border_near(car: &[u8], at: usize) -> usize {
    // Borders are found from the start: a section's length says where it ends.
    let mut border = 0;
    while border < at && border < car.len() {
        let (mut length, mut shift) = (0, 0);
        loop {
            let byte = car[border];
            border += 1;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        border += length;
    }
    border
}

/// Any body under status 200 and the type of a CAR.
fn car_answer(body: Vec<u8>) -> Fault {
    let headers = vec![("content-type".to_owned(), "application/vnd.ipld.car".to_owned())];
    Fault::Status { code: 200, headers, body }
}

fn with_headers(code: u16, headers: &[(&str, &str)], body: &[u8]) -> Fault {
    let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    Fault::Status { code, headers, body: body.to_vec() }
}

/// Statuses and named errors.
fn answers() -> Vec<Case> {
    let mut cases = Vec::new();
    for code in [401, 403, 404, 410, 418, 451] {
        cases.extend(charged(&format!("status {code}"), HEADERS, HTTP_4XX, &Fault::status(code)));
    }
    for code in [204, 206, 302, 304] {
        cases.extend(charged(&format!("status {code}"), HEADERS, NOT_CAR, &Fault::status(code)));
    }
    for code in [500, 502, 503, 504] {
        let kind = format!("status {code}");
        cases.push(
            repo(&kind, HEADERS, Then::Heal, "done, 0 charged", Fault::status(code))
                .meets("http_5xx"),
        );
    }
    cases.push(
        scripted("500, 503, 404, 500", HEADERS, Place::Repo, Then::Heal, "done, 1 charged", |_| {
            [500, 503, 404, 500].map(Fault::status).to_vec()
        })
        .meets("http_5xx"),
    );
    cases.extend(charged(
        "status 400 with an unknown error",
        HEADERS,
        HTTP_4XX,
        &Fault::Error("Whatever"),
    ));
    cases.extend(charged("status 200 with HTML", HEADERS, NOT_CAR, &Fault::HtmlOk));
    cases.extend(charged("status 200 with nothing", HEADERS, NOT_CAR, &Fault::EmptyOk));
    let json = with_headers(200, &[("content-type", "application/json")], b"{}");
    cases.extend(charged("status 200 with JSON", HEADERS, NOT_CAR, &json));
    let html = b"<html>maintenance</html>".to_vec();
    cases.extend(charged("HTML under the type of a CAR", BEGIN, NOT_CAR, &car_answer(html)));
    for (name, reason) in [
        ("RepoNotFound", "repo_not_found, -, 0 charged"),
        ("RepoTakendown", "repo_taken_down, -, 0 charged"),
        ("RepoSuspended", "repo_suspended, -, 0 charged"),
        ("RepoDeactivated", "repo_deactivated, -, 0 charged"),
        ("AccountTakedown", "repo_taken_down, -, 0 charged"),
    ] {
        let mut case = repo(name, HEADERS, Then::Repeat, reason, Fault::Error(name));
        // Asked once; then the directory names the same host, and that is that.
        case.requests = Some(1);
        cases.push(case);
    }
    // What getRepo leaves open, getRepoStatus decides, if it says anything.
    let inactive = |word: &str| {
        let body = json!({"active": false, "status": word}).to_string();
        with_headers(200, &[("content-type", "application/json")], body.as_bytes())
    };
    let (unnamed, gone) = (Fault::status(400), Fault::Error("RepoNotFound"));
    for (kind, says, status, expected) in [
        (
            "RepoNotFound, deactivated by its status",
            &gone,
            inactive("deactivated"),
            "repo_deactivated, -, 0 charged",
        ),
        (
            "RepoNotFound, taken down by its status",
            &gone,
            inactive("takendown"),
            "repo_taken_down, -, 0 charged",
        ),
        (
            "RepoNotFound, suspended by its status",
            &gone,
            inactive("suspended"),
            "repo_suspended, -, 0 charged",
        ),
        (
            "RepoNotFound, deleted by its status",
            &gone,
            inactive("deleted"),
            "repo_not_found, -, 0 charged",
        ),
        (
            "RepoNotFound, no word on its status",
            &gone,
            Fault::status(500),
            "repo_not_found, -, 0 charged",
        ),
        ("RepoNotFound, HTML for its status", &gone, Fault::HtmlOk, "repo_not_found, -, 0 charged"),
        (
            "status 400 alone, not found by its status",
            &unnamed,
            gone.clone(),
            "repo_not_found, -, 0 charged",
        ),
        (
            "status 400 alone, taken down by its status",
            &unnamed,
            inactive("takendown"),
            "repo_taken_down, -, 0 charged",
        ),
        ("status 400 alone, 400 for its status", &unnamed, unnamed.clone(), HTTP_4XX),
    ] {
        let mut case = repo(kind, HEADERS, Then::Repeat, expected, says.clone());
        case.server = Some(status);
        cases.push(case);
    }
    for (error, message) in
        [("InvalidRequest", "Could not find repo for DID: x"), ("NotFound", "Repo not found")]
    {
        let body = json!({"error": error, "message": message}).to_string();
        let fault = with_headers(400, &[], body.as_bytes());
        let kind = format!("{error}: {message}");
        cases.push(repo(&kind, HEADERS, Then::Repeat, "repo_not_found, -, 0 charged", fault));
    }
    cases
}

/// 429 in every form that ends soon.
fn refusals() -> Vec<Case> {
    let waits = [
        ("seconds", Wait::Seconds(1)),
        ("a date", Wait::Date(1)),
        ("a reset", Wait::Reset(1)),
        ("no seconds", Wait::Seconds(0)),
        ("a date in the past", Wait::Date(-100)),
        ("a reset in the past", Wait::Reset(-100)),
        ("negative seconds", Wait::Text("-5".to_owned())),
    ];
    let case = |(name, wait): (&str, Wait)| {
        let kind = format!("429 with {name}");
        repo(&kind, HEADERS, Then::Heal, "done, 0 charged", Fault::RateLimited(wait))
            .meets("rate_limited")
    };
    let mut cases: Vec<Case> = waits.into_iter().map(case).collect();
    cases.push(
        scripted("429 seven times", HEADERS, Place::Repo, Then::Heal, "done, 0 charged", |_| {
            vec![Fault::RateLimited(Wait::Seconds(0)); 7]
        })
        .meets("rate_limited"),
    );
    let body = br#"{"error":"RateLimitExceeded"}"#;
    let fault = with_headers(503, &[("retry-after", "1")], body);
    cases.push(
        repo("503 that says RateLimitExceeded", HEADERS, Then::Heal, "done, 0 charged", fault)
            .meets("rate_limited"),
    );
    let nothing_left = |victim: &Victim| {
        let headers = [("ratelimit-remaining", "0"), ("ratelimit-reset", "1")];
        let mut fault = with_headers(200, &headers, &victim.account.car());
        if let Fault::Status { headers, .. } = &mut fault {
            let kind = ("content-type".to_owned(), "application/vnd.ipld.car".to_owned());
            headers.push(kind);
        }
        vec![fault]
    };
    cases.push(scripted(
        "nothing remaining, on success",
        HEADERS,
        Place::Repo,
        Then::Repeat,
        "done, 0 charged",
        nothing_left,
    ));
    cases
}

/// Redirects and encodings.
fn detours() -> Vec<Case> {
    let to = |code: u16, location: String| with_headers(code, &[("location", &location)], b"");
    let mut cases = Vec::new();
    for code in [301, 302, 303, 307, 308] {
        let kind = format!("redirect {code} to itself");
        let once = move |victim: &Victim| vec![to(code, victim.repo_url())];
        cases.push(scripted(&kind, HEADERS, Place::Repo, Then::Heal, "done, 0 charged", once));
    }
    let ring = move |victim: &Victim| vec![to(302, victim.repo_url())];
    let exhausted = "attempts_exhausted, -, 5 charged";
    cases.push(scripted("redirect in a ring", HEADERS, Place::Repo, Then::Repeat, exhausted, ring));
    for (name, location) in [
        ("a private address", "http://10.0.0.1/"),
        ("the metadata address", "http://169.254.169.254/latest"),
        ("another scheme", "ftp://127.0.0.1/"),
        ("user info", "http://me@127.0.0.1/"),
    ] {
        let kind = format!("redirect to {name}");
        let forbidden = "endpoint_forbidden, -, 0 charged";
        let fault = to(307, location.to_owned());
        cases.push(repo(&kind, HEADERS, Then::Repeat, forbidden, fault));
    }
    let elsewhere = move |victim: &Victim| {
        let url = victim.repo_url().replace(&victim.host, &victim.other_host);
        vec![to(302, url)]
    };
    let gone = "repo_not_found, -, 0 charged";
    cases.push(scripted(
        "redirect to a host without it",
        HEADERS,
        Place::Repo,
        Then::Heal,
        gone,
        elsewhere,
    ));
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(&vec![0; 32 << 20]).unwrap();
    let bomb = packed.finish().unwrap();
    let kind = [("content-type", "application/vnd.ipld.car"), ("content-encoding", "gzip")];
    cases.push(repo("gzip bomb", WHOLE, Then::Repeat, NOT_CAR, with_headers(200, &kind, &bomb)));
    let kind = [("content-type", "application/vnd.ipld.car"), ("content-encoding", "br")];
    cases.extend(charged(
        "an encoding not asked for",
        BEGIN,
        NOT_CAR,
        &with_headers(200, &kind, b"x"),
    ));
    let kind = [("content-type", "application/vnd.ipld.car"), ("content-encoding", "gzip, gzip")];
    cases.extend(charged("nested encodings", BEGIN, NOT_CAR, &with_headers(200, &kind, b"x")));
    let gzipped = |victim: &Victim| {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&victim.account.car()).unwrap();
        let kind = [("content-type", "application/vnd.ipld.car"), ("content-encoding", "gzip")];
        vec![with_headers(200, &kind, &packed.finish().unwrap())]
    };
    cases.push(scripted(
        "a good gzip body",
        WHOLE,
        Place::Repo,
        Then::Repeat,
        "done, 0 charged",
        gzipped,
    ));
    cases
}

/// What can be wrong with a CAR.
fn cars() -> Vec<Case> {
    let made = |kind: &str, expected, car: fn(&Victim) -> Vec<u8>| {
        let script = move |victim: &Victim| vec![car_answer(car(victim))];
        scripted(kind, WHOLE, Place::Repo, Then::Repeat, expected, script)
    };
    fn with(victim: &Victim, change: fn(&mut CarOptions)) -> Vec<u8> {
        let mut options = CarOptions::default();
        change(&mut options);
        victim.account.forged().car(&options)
    }
    fn header(roots: Vec<Ipld>, version: i128) -> Vec<u8> {
        let fields = [("roots", Ipld::List(roots)), ("version", Ipld::Integer(version))];
        let bytes = encode(&Ipld::Map(fields.map(|(n, v)| (n.to_owned(), v)).into()));
        let mut head = Vec::new();
        varint(bytes.len(), &mut head);
        head.extend(bytes);
        head
    }
    fn behind_header(victim: &Victim, head: Vec<u8>) -> Vec<u8> {
        let car = victim.account.forged().car(&CarOptions::default());
        [head, car[usize::from(car[0]) + 1..].to_vec()].concat()
    }
    let done = "done, 0 charged";
    let mut cases = vec![
        repo(
            "block bytes of another CID",
            WHOLE,
            Then::Repeat,
            "repo_invalid, hash, 0 charged",
            Fault::WrongHash,
        ),
        repo("missing node", WHOLE, Then::Repeat, INCOMPLETE, Fault::MissingNode),
        repo("missing record", WHOLE, Then::Repeat, INCOMPLETE, Fault::MissingRecord),
        made("unlinked blocks", done, |victim| with(victim, |o| o.unlinked = 9)),
        made("every block twice", done, |victim| with(victim, |o| o.duplicates = true)),
        made("two roots", done, |victim| with(victim, |o| o.second_root = true)),
        made("no roots", NOT_CAR, |victim| behind_header(victim, header(Vec::new(), 1))),
        made("version 2", NOT_CAR, |victim| {
            let root = Ipld::Link(cid_of(b"x"));
            behind_header(victim, header(vec![root], 2))
        }),
        made("a root that is not there", INCOMPLETE, |victim| {
            behind_header(victim, header(vec![Ipld::Link(cid_of(b"x"))], 1))
        }),
        made("a root that is no commit", "repo_invalid, tree, 0 charged", |victim| {
            let (data, _) = victim.account.forged().tree();
            behind_header(victim, header(vec![Ipld::Link(data)], 1))
        }),
        made("a section length without end", NOT_CAR, |victim| {
            let mut car = with(victim, |_| ());
            car.extend([0xff; 11]);
            car
        }),
        made("a section length of petabytes", INCOMPLETE, |victim| {
            let mut car = with(victim, |_| ());
            car.extend([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
            car.extend(cid_of(b"x").to_bytes());
            car
        }),
        made("a section without a CID", NOT_CAR, |victim| {
            let mut car = with(victim, |_| ());
            varint(0, &mut car);
            car
        }),
        made("a CID of a version that is none", "repo_invalid, hash, 0 charged", |victim| {
            let mut car = with(victim, |_| ());
            let mut cid = cid_of(b"x").to_bytes();
            cid[0] = 9;
            varint(cid.len() + 1, &mut car);
            car.extend(cid);
            car.push(b'x');
            car
        }),
        made("a block without bytes, unlinked", done, |victim| {
            let mut car = with(victim, |_| ());
            let cid = cid_of(b"").to_bytes();
            varint(cid.len(), &mut car);
            car.extend(cid);
            car
        }),
        made("a CID of another hash", "repo_invalid, hash, 0 charged", |victim| {
            let mut car = with(victim, |_| ());
            let mut cid = cid_of(b"x").to_bytes();
            cid[2] = 0x13;
            varint(cid.len(), &mut car);
            car.extend(cid);
            car
        }),
    ];
    // Invalid is believed the second time, with a fresh identity.
    cases[0].requests = Some(2);
    cases
}

/// What can be wrong with a repository in a good CAR.
fn repositories() -> Vec<Case> {
    let invalid = |kind: &str, error, fault| repo(kind, WHOLE, Then::Repeat, error, fault);
    let signature = "repo_invalid, signature, 0 charged";
    let mut cases = vec![
        invalid("bad signature", signature, Fault::BadSignature),
        invalid("high-S signature", signature, Fault::HighS),
        invalid("commit of another DID", "repo_invalid, did_mismatch, 0 charged", Fault::OtherDid),
        repo("bad signature", WHOLE, Then::Heal, "done, 0 charged", Fault::BadSignature)
            .meets("signature"),
        repo("wrong hash", WHOLE, Then::Heal, "done, 0 charged", Fault::WrongHash).meets("hash"),
    ];
    let other_key = |victim: &Victim| {
        let mut account = victim.account.forged();
        account.key = Key::from_seed(999);
        vec![car_answer(account.car(&CarOptions::default()))]
    };
    cases.push(scripted(
        "signed by another key",
        WHOLE,
        Place::Repo,
        Then::Repeat,
        signature,
        other_key,
    ));
    let tree = "repo_invalid, tree, 0 charged";
    for (kind, entries) in trees() {
        let script = move |victim: &Victim| vec![car_answer(with_root(victim, entries.clone()))];
        cases.push(scripted(kind, WHOLE, Place::Repo, Then::Repeat, tree, script));
    }
    let twice = |victim: &Victim| vec![car_answer(with_subtree_twice(victim))];
    cases.push(scripted("a subtree twice", WHOLE, Place::Repo, Then::Repeat, tree, twice));
    // No node can hold its own hash: a cycle is a block that lies about it.
    let cycle = |victim: &Victim| vec![car_answer(with_cycle(victim))];
    let hash = "repo_invalid, hash, 0 charged";
    cases.push(scripted(
        "a node that links to itself",
        WHOLE,
        Place::Repo,
        Then::Repeat,
        hash,
        cycle,
    ));
    cases
}

type Entries = Vec<(i128, String)>;

/// Root nodes that break a rule: prefix length and rest of each key.
fn trees() -> Vec<(&'static str, Entries)> {
    let keys = |depth: u32, count: usize| -> Vec<String> {
        let keys = (0..).map(|n| format!("app.bsky.feed.like/{}", tid(n)));
        let of_depth = |key: &String| crate::support::forge::depth(key.as_bytes()) == depth;
        keys.filter(of_depth).take(count).collect()
    };
    let shared = |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    let behind = |first: &String, second: &String| -> Entries {
        let length = shared(first, second);
        vec![(0, first.clone()), (length as i128, second[length..].to_owned())]
    };
    let (low, high) = (keys(0, 2), keys(1, 40));
    let later = high.iter().find(|key| **key > low[0]).unwrap();
    vec![
        ("keys out of order", behind(&low[1], &low[0])),
        ("a key twice", vec![(0, low[0].clone()), (low[0].len() as i128, String::new())]),
        ("wrong depth", behind(&low[0], later)),
        ("prefix out of range", vec![(0, low[0].clone()), (999, low[1].clone())]),
        ("prefix not the longest", vec![(0, low[0].clone()), (0, low[1].clone())]),
        ("a key without a slash", vec![(0, "no-slash".to_owned())]),
    ]
}

fn map<const N: usize>(fields: [(&str, Ipld); N]) -> Ipld {
    Ipld::Map(fields.map(|(name, value)| (name.to_owned(), value)).into())
}

fn block(bytes: Vec<u8>) -> Block {
    Block { cid: cid_of(&bytes), bytes, is_node: false }
}

/// A CAR whose commit, well signed, leads to the first of these blocks.
fn with_blocks(victim: &Victim, blocks: &[Block]) -> Vec<u8> {
    let account = victim.account.forged();
    let commit = block(account.commit(blocks[0].cid, &CarOptions::default()));
    let roots = [commit.cid];
    write_car(&roots, &[&[commit], blocks].concat())
}

/// A root whose left and right subtrees are one and the same.
fn with_subtree_twice(victim: &Victim) -> Vec<u8> {
    let keys = (0..).map(|n| format!("app.bsky.feed.like/{}", tid(n)));
    let key = |depth| {
        let is_of = move |key: &String| crate::support::forge::depth(key.as_bytes()) == depth;
        keys.clone().find(is_of).unwrap()
    };
    let record = block(encode(&Ipld::String("record".to_owned())));
    let node = |key: String, subtree: Option<&Block>| {
        let link = subtree.map_or(Ipld::Null, |block| Ipld::Link(block.cid));
        let entry = map([
            ("p", Ipld::Integer(0)),
            ("k", Ipld::Bytes(key.into_bytes())),
            ("v", Ipld::Link(record.cid)),
            ("t", link.clone()),
        ]);
        block(encode(&map([("l", link), ("e", Ipld::List(vec![entry]))])))
    };
    let leaf = node(key(0), None);
    let root = node(key(1), Some(&leaf));
    with_blocks(victim, &[root, leaf, record])
}

fn with_cycle(victim: &Victim) -> Vec<u8> {
    let claimed = cid_of(b"a node that is its own child");
    let bytes = encode(&map([("l", Ipld::Link(claimed)), ("e", Ipld::List(Vec::new()))]));
    with_blocks(victim, &[Block { cid: claimed, bytes, is_node: true }])
}

fn with_root(victim: &Victim, entries: Entries) -> Vec<u8> {
    let record = block(encode(&Ipld::String("record".to_owned())));
    let entry = |(prefix, rest): &(i128, String)| {
        map([
            ("p", Ipld::Integer(*prefix)),
            ("k", Ipld::Bytes(rest.as_bytes().to_vec())),
            ("v", Ipld::Link(record.cid)),
            ("t", Ipld::Null),
        ])
    };
    let entries = entries.iter().map(entry).collect();
    let node = block(encode(&map([("l", Ipld::Null), ("e", Ipld::List(entries))])));
    with_blocks(victim, &[node, record])
}

/// Everything that is over within seconds.
pub fn quick() -> Vec<Case> {
    [transport(), answers(), refusals(), detours(), cars(), repositories()]
        .into_iter()
        .flatten()
        .collect()
}

fn identity(kind: &str, expected: &'static str, fault: Fault) -> Case {
    let script = move |_: &Victim| vec![fault.clone()];
    scripted(kind, "directory", Place::Directory, Then::Repeat, expected, script)
}

fn document(kind: &str, expected: &'static str, change: fn(&Victim) -> serde_json::Value) -> Case {
    let script = move |victim: &Victim| {
        let text = change(victim).to_string();
        vec![with_headers(200, &[("content-type", "application/json")], text.as_bytes())]
    };
    scripted(kind, "directory", Place::Directory, Then::Repeat, expected, script)
}

/// A whole document with these services.
fn with_services(victim: &Victim, services: &[serde_json::Value]) -> serde_json::Value {
    let (did, key) = (&victim.account.did, victim.account.key.multikey());
    json!({
        "id": did, "alsoKnownAs": [],
        "verificationMethod": [{
            "id": format!("{did}#atproto"), "type": "Multikey", "controller": did, "publicKeyMultibase": key,
        }],
        "service": services,
    })
}

fn pds(endpoint: &str) -> serde_json::Value {
    json!({"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": endpoint})
}

/// What the directory says that ends an account, or does not.
pub fn identities() -> Vec<Case> {
    let unusable = "identity_invalid, -, 0 charged";
    let mut cases = vec![
        identity("not registered", "did_not_found, -, 0 charged", Fault::NotRegistered),
        identity("tombstone with 404", "did_tombstoned, -, 0 charged", Fault::Tombstoned),
        identity("tombstone with 410", "did_tombstoned, -, 0 charged", Fault::TombstonedGone),
        identity("no PDS", "no_pds, -, 0 charged", Fault::NoPds),
        identity("a PDS with an empty endpoint", "no_pds, -, 0 charged", Fault::EmptyPds),
        identity("no signing key", unusable, Fault::NoKey),
        identity(
            "JSON that is no document",
            "identity_invalid, did_mismatch, 0 charged",
            Fault::NotADocument,
        ),
        identity(
            "a document of another DID",
            "identity_invalid, did_mismatch, 0 charged",
            Fault::DocumentForOther,
        ),
        identity("a document of 100 MB", unusable, Fault::Oversized(100 << 20)),
        identity("an endpoint that is no URL", unusable, Fault::Endpoint("no url".to_owned())),
        document("two PDSes, the first one counts", "done, 0 charged", |victim| {
            with_services(victim, &[pds(&victim.host), pds("https://10.0.0.1")])
        }),
        document("another service before the PDS", "done, 0 charged", |victim| {
            let labeler = json!({"id": "#l", "type": "AtprotoLabeler", "serviceEndpoint": "https://10.0.0.1"});
            with_services(victim, &[labeler, pds(&victim.host)])
        }),
        document("an endpoint that is no text", unusable, |victim| {
            with_services(
                victim,
                &[json!({
                    "id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": ["x"],
                })],
            )
        }),
        document("a key of another curve", unusable, |victim| {
            let mut document = with_services(victim, &[pds(&victim.host)]);
            document["verificationMethod"][0]["publicKeyMultibase"] =
                json!("z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK");
            document
        }),
    ];
    for endpoint in [
        "http://10.0.0.1",
        "https://192.168.1.1",
        "https://169.254.169.254",
        "https://[::1]",
        "https://[::ffff:10.0.0.1]",
        "https://100.64.0.1",
        "https://0x0a000001",
        "https://0.0.0.0",
        "https://224.0.0.1",
        "https://[fc00::1]",
        "https://[fe80::1]",
        "https://[64:ff9b::a00:1]",
        "ftp://127.0.0.1",
        "https://me@pds.example.com",
        "https://pds.example.com/path",
    ] {
        let forbidden = "endpoint_forbidden, -, 0 charged";
        let fault = Fault::Endpoint(endpoint.to_owned());
        cases.push(identity(&format!("endpoint {endpoint}"), forbidden, fault));
    }
    cases
}

/// What makes the directory wait, two to a run: a third in a row would open its circuit.
pub fn directory_troubles() -> Vec<Vec<Case>> {
    let once = |kind: &str, error, fault: Fault| {
        let script = move |_: &Victim| vec![fault.clone()];
        scripted(kind, "directory", Place::Directory, Then::Heal, "done, 0 charged", script)
            .meets(error)
    };
    vec![
        vec![
            once("status 500", "http_5xx", Fault::status(500)),
            once("not JSON", "not_car", Fault::NotJson),
        ],
        vec![
            once("status 404 without its message", "http_4xx", Fault::status(404)),
            once("reset", "connect", Fault::CloseBeforeHeaders),
        ],
        vec![
            once("status 403", "http_4xx", Fault::status(403)),
            once("status 200 with HTML", "not_car", Fault::HtmlOk),
        ],
        vec![
            once("429 with seconds", "rate_limited", Fault::RateLimited(Wait::Seconds(1))),
            once("no answer", "timeout", Fault::NoAnswer),
        ],
    ]
}

/// What takes the circuit's 30 s, a refusal's minute or the rate's: one attempt each, patience of 10 s.
pub fn slow() -> Vec<Case> {
    let own =
        |error: &'static str, kind: &str, fault| repo(kind, HEADERS, Then::Repeat, error, fault);
    let both = |kind: &str, expected, fault: Fault| {
        let mut case = own(expected, kind, fault.clone());
        case.server = Some(fault);
        case.kind = format!("{} and describeServer too", case.kind);
        case
    };
    vec![
        own("attempts_exhausted, http_5xx, 1 charged", "status 500", Fault::status(500)),
        own("attempts_exhausted, http_5xx, 1 charged", "status 503", Fault::status(503)),
        own("attempts_exhausted, connect, 1 charged", "reset", Fault::CloseBeforeHeaders),
        own("attempts_exhausted, timeout, 1 charged", "no answer", Fault::NoAnswer),
        both("status 500", "host_unavailable, http_5xx, 0 charged", Fault::status(500)),
        both("reset", "host_unavailable, connect, 0 charged", Fault::CloseBeforeHeaders),
        own(
            "host_unavailable, rate_limited, 0 charged",
            "429 with seconds",
            Fault::RateLimited(Wait::Seconds(1)),
        ),
        repo(
            "429 with nothing",
            HEADERS,
            Then::Heal,
            "done, 0 charged",
            Fault::RateLimited(Wait::None),
        )
        .meets("rate_limited"),
        repo(
            "429 with garbage",
            HEADERS,
            Then::Heal,
            "done, 0 charged",
            Fault::RateLimited(Wait::Text("soon".to_owned())),
        )
        .meets("rate_limited"),
        scripted(
            "a host that speaks no TLS",
            "handshake",
            Place::Directory,
            Then::Repeat,
            "host_unavailable, tls, 0 charged",
            |victim| vec![Fault::Endpoint(victim.host.replace("http:", "https:"))],
        ),
        scripted(
            "a port that nobody listens on",
            "connect",
            Place::Directory,
            Then::Repeat,
            "host_unavailable, connect, 0 charged",
            |_| vec![Fault::Endpoint("http://127.0.0.1:1".to_owned())],
        ),
        repo(
            "a byte a second",
            WHOLE,
            Then::Repeat,
            "attempts_exhausted, too_slow, 1 charged",
            Fault::Drip { bytes: 1, every: Duration::from_secs(1) },
        ),
        repo(
            "a drip below the minimum rate",
            WHOLE,
            Then::Repeat,
            "attempts_exhausted, too_slow, 1 charged",
            Fault::Drip { bytes: 100, every: Duration::from_millis(300) },
        ),
    ]
}

/// An address whose queue of connections is full for as long as this process lives: the kernel drops what else knocks.
pub fn black_hole() -> SocketAddr {
    static FULL: OnceLock<(SocketAddr, Vec<TcpStream>)> = OnceLock::new();
    let fill = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
            socket.listen(1).unwrap().into_std().unwrap()
        });
        let address = listener.local_addr().unwrap();
        // Never accepted from, never closed.
        std::mem::forget(listener);
        let moment = Duration::from_millis(200);
        let knock = || TcpStream::connect_timeout(&address, moment).ok();
        let inside: Vec<TcpStream> = std::iter::from_fn(knock).take(16).collect();
        assert!(inside.len() < 16, "the queue never fills");
        (address, inside)
    };
    FULL.get_or_init(fill).0
}
