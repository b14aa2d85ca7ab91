//! A study from its first list to what is taken back: whom to backfill, the pass itself, coming back for what is new, who has withdrawn,
//! forgetting them, and where the data comes from. What is typed and what is answered is `tests/study.md`; this plays it again.
//!
//! After a wanted change of an answer: `SKYFILL_WRITE_TRANSCRIPT=1 cargo test --test study` writes the file anew.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

mod support;

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use support::Network;
use support::network::Standing;
use support::transcript::{compare, stable};
use support::world::{Records, Shape};

const HEAD: &str = "# A study, from its first list to what is taken back\n\nWritten and played again by `tests/study.rs` on a generated network; `…` stands for what differs from run to run.\n";

struct Study {
    folder: tempfile::TempDir,
    network: Network,
    told: String,
}

impl Study {
    fn says(&mut self, text: &str) {
        writeln!(self.told, "\n{text}\n").unwrap();
    }

    fn writes(&mut self, name: &str, shown: &str, hidden: &str) {
        let text = format!("{shown}{hidden}");
        std::fs::write(self.folder.path().join(name), text).unwrap();
        write!(self.told, "`{name}`:\n\n```text\n{}\n```\n\n", shown.trim_end()).unwrap();
    }

    /// Types `command` in the study's folder and notes the answer; the exit code must be `code`.
    fn types(&mut self, command: &str, code: i32) -> String {
        let bin = Path::new(env!("CARGO_BIN_EXE_skyfill")).parent().unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).env("PATH", path).current_dir(self.folder.path());
        let output = shell.output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{command}: {stdout}{stderr}");
        let here = format!("{}/", self.folder.path().display());
        let logs = stderr
            .lines()
            .filter(|line| !is_log(line))
            .fold(String::new(), |all, line| all + line + "\n");
        let answer = stable(&format!("{stdout}{logs}").replace(&here, ""));
        write!(self.told, "```console\n$ {command}\n{answer}```\n").unwrap();
        stdout
    }
}

/// Log lines begin with their time.
fn is_log(line: &str) -> bool {
    line.starts_with("20")
}

/// What an earlier collection saw: likes, a reply and a repost, one row that is broken and one that likes nothing on the network.
fn history(network: &Network) -> String {
    let did = |index: usize| network.world().did(index).to_owned();
    let post = |index: usize| format!("at://{}/app.bsky.feed.post/3kabcdefghij2", did(index));
    let day = "2024-10-05-12:00:00";
    let mut rows = Vec::new();
    for index in 0..7 {
        let subject = serde_json::json!({"cid": "c", "uri": post(index)});
        rows.push(
            serde_json::json!({"record_type": "like", "subject": subject, "synctimestamp": day}),
        );
    }
    let reply = serde_json::json!({"parent": {"uri": post(7)}, "root": {"uri": post(0)}});
    rows.push(serde_json::json!({"record_type": "reply", "reply": reply, "synctimestamp": day}));
    let subject = serde_json::json!({"uri": "https://example.com/1"});
    rows.push(
        serde_json::json!({"record_type": "repost", "subject": subject, "synctimestamp": day}),
    );
    let mut text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    text += "{\"record_type\": \"like\", \n";
    text
}

#[test]
fn the_study_goes_as_written() {
    let shape = Shape { seed: 73, accounts: 8, hosts: 2, records: Records::Fixed(40), odd: false };
    let network = Network::generate(&shape);
    let folder = tempfile::tempdir().unwrap();
    let mut study = Study { folder, network, told: HEAD.to_owned() };
    play(&mut study);
    compare("study.md", &study.told);
}

fn play(study: &mut Study) {
    study.says("## Whom\n\nAn earlier collection has likes, replies and reposts. Their authors are the study's accounts.");
    let text = history(&study.network);
    std::fs::write(study.folder.path().join("history.jsonl"), text).unwrap();
    let network = format!(
        "[identity]\nplc_url = \"{}\"\nrequests_per_second = 1000\n[network]\nallow = [\"127.0.0.0/8\"]\n\
         [fetch]\nhost_requests_per_second = 1000\n[limits]\ndisk_free = \"0B\"\n",
        study.network.flags()[1]
    );
    study.writes(
        "study.toml",
        "data_dir = \"study-data\"\n[window]\nstart = \"2024-09-27-00:00:00\"\nend = \"2024-12-02-00:00:00\"\n",
        &network,
    );
    study.types("skyfill determine --config study.toml --from history.jsonl --out accounts.txt", 0);

    study.says("## The first pass");
    study.types("skyfill backfill --config study.toml --quiet --dids-file accounts.txt", 0);
    study.types("skyfill users --config study.toml", 0);

    study.says("## Weeks later: what is new, changed or gone\n\nOf eight accounts, three have written, changed or deleted something since.");
    for index in [1, 4, 6] {
        study.network.advance(index);
    }
    study.types(
        "skyfill backfill --config study.toml --quiet --dids-file accounts.txt --refresh",
        0,
    );
    study.says("The same authors again add nobody:");
    study.types(
        "skyfill determine --config study.toml --from history.jsonl --append-to accounts.txt",
        0,
    );

    study.says("## Who has withdrawn");
    study.network.set_standing(2, Standing::Deleted);
    study.network.set_standing(5, Standing::Deactivated);
    study.types("skyfill recheck --config study.toml --out withdrawn.jsonl", 0);
    study.types("sed 's/.*\"did\":\"\\([^\"]*\\)\".*/\\1/' withdrawn.jsonl > withdrawn.txt; wc -l < withdrawn.txt", 0);
    study.says("Their rows are taken back, and they are never fetched again:");
    study.types("skyfill forget --config study.toml --file withdrawn.txt", 0);
    study.types("skyfill backfill --config study.toml --quiet --dids-file accounts.txt", 0);
    study.types("skyfill verify --config study.toml", 0);

    study.says("## Where the data comes from");
    study.types(
        "skyfill provenance --config study.toml --out provenance.jsonl; wc -l < provenance.jsonl",
        0,
    );
    study.types("skyfill runs --config study.toml", 0);
}
