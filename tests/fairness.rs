//! The real binary on loopback: hosts that redirect to a victim, a daemon that says when it will be done, hosts that drip.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::disallowed_methods
)]

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::faults::{Fault, Place, Target, Then};
use support::network::Network;
use support::pds::{GET_REPO, Manners};
use support::proc::{Running, Signal, Skyfill};
use support::server::{Server, answer, with_header};
use support::world::{Records, Shape};

const PATIENCE: Duration = Duration::from_secs(120);

fn skyfill() -> Skyfill {
    Skyfill::new(env!("CARGO_BIN_EXE_skyfill"))
}

/// Small repositories, each account at the host that `home` says.
fn network(accounts: usize, hosts: usize, home: impl Fn(usize) -> usize) -> Network {
    let records = Records::Mixed { mean: 5 };
    let network = Network::generate(&Shape { accounts, hosts, records, ..Shape::default() });
    (0..accounts).for_each(|index| network.move_account(index, home(index)));
    network.warm();
    network
}

/// Starts `skyfill backfill` over the whole world.
fn start(network: &Network, data: &Path, sets: &[&str]) -> Running {
    let dids = network.world().dids().join(",");
    let mut arguments = vec!["backfill", "--json", "--quiet", "--dids", &dids];
    arguments.extend(["--data-dir", data.to_str().unwrap()]);
    for set in ["identity.requests_per_second=1000", "limits.disk_free=0B"].iter().chain(sets) {
        arguments.extend(["--set", set]);
    }
    let flags = network.flags();
    arguments.extend(flags.iter().map(String::as_str));
    skyfill().spawn(&arguments)
}

fn status(data: &Path, did: Option<&str>) -> Value {
    let mut arguments = vec!["status", "--json", "--data-dir", data.to_str().unwrap()];
    arguments.extend(did);
    skyfill().run(&arguments, PATIENCE).expect_code(0).json()
}

#[test]
fn names_that_redirect_to_a_host_keep_it_under_its_pace() {
    const RATE: usize = 10;
    let (network, folder) = (network(60, 1, |_| 0), tempfile::tempdir().unwrap());
    let victim = network.hosts[0].url();
    let redirecting: Vec<Server> = (0..5)
        .map(|_| {
            let victim = victim.clone();
            Server::start("redirects", move |request, _| {
                let place = format!("{victim}{}", request.uri());
                let moved = with_header(answer(302, "text/plain", ""), "location", &place);
                async move { Ok(moved) }
            })
        })
        .collect();
    // Two thirds of the accounts lie behind another name.
    for (index, did) in network.world().dids().iter().enumerate().filter(|(at, _)| at % 3 > 0) {
        let endpoint = Fault::Endpoint(redirecting[index % redirecting.len()].url());
        let target = Target::Did(did.clone());
        network.faults().script(Place::Directory, target, [endpoint], Then::Repeat);
    }
    let rate = format!("fetch.host_requests_per_second={RATE}");
    let data = folder.path().join("data");
    let finished = start(&network, &data, &[&rate]).finish(PATIENCE).expect_code(0);
    assert_eq!(finished.json()["accounts"]["done"], 60);
    let log = network.hosts[0].log();
    let most = log.most_within(GET_REPO, Duration::from_secs(1));
    println!("{} requests in {:.1} s, at most {most} in a second", log.len(), finished.seconds);
    assert!(log.len() >= 60, "{}", log.len());
    // Requests arrive some milliseconds apart from when they were sent.
    assert!(most <= RATE + 1, "{most} in a second");
    assert!(log.open_max() <= 4, "{} at once", log.open_max());
}

#[test]
fn a_daemon_says_within_a_quarter_when_it_will_be_done() {
    // A host at its pace of 10/s, one that takes a second for each, one that is small.
    let home = |index: usize| match index {
        0..220 => 0,
        220..260 => 1,
        _ => 2,
    };
    let (network, folder) = (network(270, 3, home), tempfile::tempdir().unwrap());
    let bytes = network.car_bytes(230);
    let slow = Manners { bytes_per_second: Some(bytes), chunk_bytes: 512, ..Manners::default() };
    network.hosts[1].set_manners(slow);
    let (data, list) = (folder.path().join("data"), folder.path().join("dids.txt"));
    std::fs::write(&list, network.world().dids().join("\n")).unwrap();
    let text = format!(
        "data_dir = \"{}\"\nsource.files = [\"{}\"]\nidentity.plc_url = \"{}\"\nidentity.requests_per_second = 200\n\
         network.allow = [\"127.0.0.0/8\"]\nfetch.host_requests_per_second = 10\nlimits.disk_free = \"0B\"\nmetrics.listen = \"\"\n",
        data.display(),
        list.display(),
        network.plc.url()
    );
    let config = folder.path().join("skyfill.toml");
    std::fs::write(&config, text).unwrap();
    let daemon = skyfill().spawn(&["run", "--config", config.to_str().unwrap()]);
    let mut told: Vec<(Instant, f64, Value)> = Vec::new();
    let begun = Instant::now();
    let ended = loop {
        assert!(begun.elapsed() < PATIENCE, "{}", daemon.stderr());
        // The next request at the largest host is what is waited for.
        let known = network.hosts[0].log().len();
        network.hosts[0].log().wait(Duration::from_millis(300), |entries| entries.len() > known);
        if !data.join("control.sock").exists() {
            continue;
        }
        let value = status(&data, None);
        let decided = value["accounts"]["done"].as_u64().unwrap();
        if decided == 270 {
            break Instant::now();
        }
        let share = [0.05, 0.2, 0.5].get(told.len()).copied().unwrap_or(f64::MAX);
        let remaining = value["eta_seconds"].as_f64();
        if let Some(remaining) = remaining.filter(|_| decided as f64 >= share * 270.0) {
            told.push((Instant::now(), remaining, value["eta_bound_by"].clone()));
        }
    };
    assert_eq!(told.len(), 3);
    for (at, said, bound) in told {
        let left = ended.duration_since(at).as_secs_f64();
        println!("said {said:.0} s by {bound}, took {left:.1} s");
        // Whole seconds are told, and the end is seen some tenths late.
        assert!((said - left).abs() <= 0.25 * left + 1.0, "said {said}, took {left}");
    }
    daemon.signal(Signal::TERM);
    daemon.finish(PATIENCE).expect_code(0);
}

#[test]
fn hosts_that_drip_give_their_places_back_and_are_charged_nothing() {
    // Five hosts of one party could hold 20 places, and there are 12.
    const HEALTHY: usize = 60;
    let home = |index: usize| if index < HEALTHY { 0 } else { 1 + index % 5 };
    let (network, folder) = (network(HEALTHY + 40, 6, home), tempfile::tempdir().unwrap());
    for host in 1..6 {
        let drip = Fault::Drip { bytes: 4, every: Duration::from_secs(1) };
        network.faults().script(Place::Repo, Target::Host(host), [drip], Then::Repeat);
    }
    let data = folder.path().join("data");
    let sets = [
        "limits.batch_size=12",
        "fetch.min_bytes_per_second=1B",
        "fetch.host_requests_per_second=6",
    ];
    let running = start(&network, &data, &sets);
    let is_done = |entries: &[support::server::Entry]| {
        entries.iter().filter(|entry| !entry.is_open && entry.bytes_sent() > 0).count() >= HEALTHY
    };
    assert!(
        network.hosts[0].log().wait(PATIENCE, is_done),
        "{} were asked for",
        network.hosts[0].log().len()
    );
    running.signal(Signal::TERM);
    running.finish(PATIENCE).expect_code(130);
    network.faults().assert_fired(&["drip"]);
    let mut later = 0;
    for did in &network.world().dids()[HEALTHY..] {
        let value = status(&data, Some(did));
        assert_eq!(value["attempts"], 0, "{value}");
        later += usize::from(value["state"] == "retrying");
    }
    println!("{later} gave their places back and come again later");
    assert!(later >= 12 - 12 / 4 - 4, "only {later}");
}
