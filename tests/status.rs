//! `skyfill status` over a ledger of a million done accounts: under a second, whatever the ledger holds.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

use std::time::{Duration, Instant};

use serde_json::Value;
use skyfill::clock::Clock;
use skyfill::commands::status;
use skyfill::domain::ledger::LedgerPolicy;
use skyfill::seed::Chance;
use skyfill::store::ledger_rows::Rows;

const ACCOUNTS: u64 = 1_000_000;

/// Done accounts with the same revision each, and what a scheduler would have left: 20 ready, 5 being fetched.
const FILL: &str = r#"
    INSERT INTO hosts (name) VALUES ('a.example'), ('b.example');
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000)
    INSERT INTO accounts (did, listed, web, state, alone, due_ms, host, edition, rev, filter, rules, revision, done_at_ms)
    SELECT printf('did:plc:%024d', i), 1, 0, 5, 0, 0, 1 + i % 2, 1, '3k', 'f', NULL,
        '{"did":"did:plc:x","edition":0,"rev":"3k","commit_cid":"b","repo_bytes":1000,"leaves":12,'
        || '"exported":{"like":7,"post":3},"skipped":{"type":1},"rejected":{"schema":1},"filter":"f"}', 1
    FROM n;
    INSERT INTO accounts (did, listed, web, state, alone, due_ms, host, edition)
    SELECT printf('did:plc:r%023d', id), 1, 0, CASE WHEN id % 5 = 0 THEN 3 ELSE 2 END, 0, 0, 2, 0
    FROM accounts WHERE id <= 25;
    INSERT INTO totals VALUES (5, '', 1000000), (2, '', 20), (3, '', 5);
    DROP TABLE sums;"#;

#[test]
fn a_million_done_accounts_are_told_within_a_second() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let open = || {
        let clock = Clock::fixed(1_727_395_200_000);
        Rows::open(&path, LedgerPolicy::default(), clock, Chance::seeded(1)).unwrap()
    };
    drop(open());
    let filler = rusqlite::Connection::open(&path).unwrap();
    filler.execute_batch(&format!("PRAGMA synchronous=OFF; BEGIN; {FILL} COMMIT;")).unwrap();
    drop(filler);
    // A ledger of before the sums were kept is added up once.
    let begun = Instant::now();
    drop(open());
    let once = begun.elapsed();
    let begun = Instant::now();
    let mut out = Vec::new();
    status::run(folder.path(), None, true, &mut out).unwrap();
    let took = begun.elapsed();
    println!("status of {ACCOUNTS} done accounts: {took:?}; added up once: {once:?}");
    let told: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(told["accounts"]["done"], ACCOUNTS);
    assert_eq!(told["records"]["like"], 7 * ACCOUNTS);
    assert_eq!(told["records"]["post"], 3 * ACCOUNTS);
    assert_eq!(told["hosts"][0]["host"], "b.example");
    assert_eq!((&told["hosts"][0]["queued"], &told["hosts"][0]["active"]), (&20.into(), &5.into()));
    assert!(took < Duration::from_secs(1), "{took:?}");
}
