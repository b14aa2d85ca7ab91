//! Past this machine: 45 million accounts on 5,772 hosts, in virtual time, by 1, 4, 16 and 64 workers. The table of the README.
//!
//! `cargo bench --bench plan -- huge`: everything; without it 2 million accounts, or as many thousand as are asked for. Nothing is sent anywhere; what is
//! assumed is printed with the table. `tests/schedule` holds the same code to what can be computed by hand.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::disallowed_methods
)]

#[path = "plan/mod.rs"]
mod ahead;

use std::time::{Duration, Instant};

use ahead::fleet::{run, slowest};
use ahead::network::{LARGE_HOSTS, Network};
use ahead::worker::{Bound, Machine, Outcome};
use skyfill::clock::Clock;
use skyfill::config::targets::Target;
use skyfill::domain::account::AccountId;
use skyfill::domain::did::Did;
use skyfill::domain::identity::Identity;
use skyfill::domain::ledger::{Event, LedgerPolicy};
use skyfill::seed::Chance;
use skyfill::store::error::StoreError;
use skyfill::store::ledger_rows::Rows;
use skyfill::store::listing::Staged;

const ACCOUNTS: u64 = 45_000_000;
const HOSTS: usize = 5_772;

/// Bytes that a done account's row has beside what is measured here: revision, CID, counts and filter as JSON, as in a run.
const DONE_BYTES: f64 = 500.0;

/// Bytes of a row as JSON (SPEED.md), before the broker's compression.
const ROW_BYTES: f64 = 617.0;

/// Bytes of a message of `skyfill.dids` and of one of `skyfill.accounts`: names, keys, counts and the broker's own head (assumed).
const DID_BYTES: f64 = 300.0;
const ACCOUNT_BYTES: f64 = 600.0;

/// The benches' machine (benches/README.md) on 1 Gbit/s, with room for as many transfers as large hosts give.
fn machine() -> Machine {
    Machine {
        host_requests_per_second: 9.0,
        directory_requests_per_second: 10.0,
        batch_size: 4_096,
        transfers: 1_024,
        first_byte: Duration::from_millis(150),
        stream: 4e6,
        link: 125e6,
        cores: 2.0,
        account_seconds: 500e-6,
        record_seconds: 3.6e-6,
        car_bytes_per_record: 406.0,
        disk_records: 300_000.0,
    }
}

fn main() {
    let thousands = std::env::args().find_map(|argument| argument.parse::<u64>().ok());
    let is_huge = std::env::args().any(|argument| argument == "huge");
    let few = thousands.unwrap_or(2_000) * 1_000;
    let accounts = if is_huge { ACCOUNTS } else { few };
    let bytes = ledger_bytes();
    println!(
        "A ledger row measured over 20,000 accounts: {bytes:.0} bytes and {DONE_BYTES} for what a done one tells.\n"
    );
    for (name, with_repository) in
        [("every account has a repository", 1.0), ("19 of 45 have one", 19.0 / 45.0)]
    {
        let network = Network::new(accounts, HOSTS, LARGE_HOSTS, with_repository);
        println!(
            "{name}: {accounts} accounts on {HOSTS} hosts, the largest {}\n",
            network.hosts[0].accounts
        );
        println!(
            "| workers | hours | half of them are done after | requests/s, all · at the host that takes longest | \
             ledger, largest worker's · all | broker | bound by, and share of the slowest worker's time |"
        );
        println!("|---|---|---|---|---|---|---|");
        for workers in [1, 4, 16, 64] {
            let begun = Instant::now();
            let outcomes = run(&network, workers, machine());
            row(&network, workers, &outcomes, bytes + DONE_BYTES);
            eprintln!("{workers} workers simulated in {:.0} s", begun.elapsed().as_secs_f64());
        }
        println!();
    }
}

fn row(network: &Network, workers: usize, outcomes: &[Outcome], ledger: f64) {
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>() as f64;
    let (accounts, records) = (sum(|it| it.done + it.parked), sum(|it| it.records));
    assert_eq!(accounts, network.accounts() as f64, "each account ends once");
    assert!(sum(|it| it.too_early) == 0.0, "a host was asked above its pace");
    let slowest = slowest(outcomes);
    let mut ends: Vec<f64> = outcomes.iter().map(|it| it.seconds / 3_600.0).collect();
    ends.sort_by(f64::total_cmp);
    let most = outcomes.iter().map(|it| it.done + it.parked).max().unwrap_or(0) as f64;
    let broker = records * ROW_BYTES + accounts * (DID_BYTES + ACCOUNT_BYTES);
    let shares = slowest.shares.iter().filter(|(_, share)| *share >= 0.005);
    let shares: Vec<String> =
        shares.map(|(bound, share)| format!("{} {:.0}%", word(*bound), share * 100.0)).collect();
    println!(
        "| {workers} | {:.1} | {:.1} h | {:.0} · {:.1} | {:.1} GB · {:.0} GB | {:.1} TB | **{}** ({}) |",
        slowest.seconds / 3_600.0,
        ends[ends.len() / 2],
        sum(|it| it.asked) / slowest.seconds,
        slowest.last_host.1,
        most * ledger / 1e9,
        accounts * ledger / 1e9,
        broker / 1e12,
        word(slowest.bound().0),
        shares.join(", ")
    );
}

const fn word(bound: Bound) -> &'static str {
    match bound {
        Bound::Host => "a host's pace",
        Bound::Directory => "the directory's pace",
        Bound::Link => "the link",
        Bound::Processors => "processors",
        Bound::Disk => "journal and queues",
    }
}

/// Bytes of `state.db` an account, resolved and exported, over the real rows.
fn ledger_bytes() -> f64 {
    const COUNT: i64 = 20_000;
    let (folder, policy) = (tempfile::tempdir().unwrap(), LedgerPolicy::default());
    let path = folder.path().join("state.db");
    let clock = Clock::fixed(ahead::books::BEGIN_MS);
    let (mut rows, _) = Rows::open(&path, policy, clock, Chance::seeded(6)).unwrap();
    let alphabet = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut rng = fastrand::Rng::with_seed(1);
    let dids: Vec<String> = (0..COUNT)
        .map(|_| (0..24).map(|_| char::from(alphabet[rng.usize(0..32)])).collect::<String>())
        .map(|id| format!("did:plc:{id}"))
        .collect();
    let targets = dids.iter().map(|did| Ok::<_, StoreError>(Target::Did(Did::parse(did).unwrap())));
    let staged = Staged::read(folder.path(), targets, &|_| {}).unwrap().unwrap();
    staged.know(&mut rows, &|_| {}).unwrap().swap(&mut rows, &|_| {}).unwrap();
    rows.transaction(|rows| {
        for id in 1..=COUNT {
            let host = format!("h{}.us-east.host.bsky.network", id % 88);
            let key = "zQ3shunBKsXixLxKtC5qeSG9E4J5RkGN57im31pcTzbNQnm5w".to_owned();
            let handle = Some(format!("somebody-{id}.bsky.social"));
            let endpoint = format!("https://{host}");
            let identity = Identity { endpoint, host, key, earlier_keys: Vec::new(), handle };
            for event in [
                Event::LeasedToResolve,
                Event::Resolved(identity),
                Event::LeasedToFetch { alone: false },
                Event::Exported,
            ] {
                rows.apply(AccountId(id), event)?;
            }
        }
        Ok(())
    })
    .unwrap();
    drop(rows);
    let size = |name: &str| std::fs::metadata(folder.path().join(name)).map_or(0, |it| it.len());
    (size("state.db") + size("state.db-wal")) as f64 / COUNT as f64
}
