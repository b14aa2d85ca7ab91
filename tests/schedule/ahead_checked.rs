//! The simulation past this machine, at a size at which its answers can be had in another way.

use std::time::Duration;

use crate::ahead::fleet::{assigned, run, slowest};
use crate::ahead::network::{LARGE_HOSTS, Network};
use crate::ahead::worker::{Bound, Machine, Outcome, Worker};
use crate::books::Memory;
use crate::simulation::{BEGIN_MS, Simulation, limits};
use crate::{HOST_RATE, HOUR, all_good, policy};

const ACCOUNTS: u64 = 15_000;

/// Everything but the hosts costs next to nothing.
fn fast() -> Machine {
    Machine {
        host_requests_per_second: HOST_RATE,
        directory_requests_per_second: 10.0,
        batch_size: 4_096,
        transfers: 1_024,
        first_byte: Duration::from_millis(250),
        stream: 1e9,
        link: 1e12,
        cores: 64.0,
        account_seconds: 1e-6,
        record_seconds: 1e-9,
        car_bytes_per_record: 406.0,
        disk_records: 1e12,
    }
}

fn network(with_repository: f64) -> Network {
    Network::new(ACCOUNTS, 60, 20, with_repository)
}

fn sum(outcomes: &[Outcome], of: impl Fn(&Outcome) -> u64) -> u64 {
    outcomes.iter().map(of).sum()
}

fn assert_whole(network: &Network, outcomes: &[Outcome]) {
    let decided = sum(outcomes, |it| it.done + it.parked);
    assert_eq!(decided, network.accounts(), "each account ends once");
    assert_eq!(sum(outcomes, |it| it.asked), network.accounts(), "and is asked for once");
    assert_eq!(sum(outcomes, |it| it.too_early), 0, "no host above its pace");
    // Between lease and seal, at the directory, and what has ended since the last batch.
    let held = outcomes.iter().map(|it| it.held).max().unwrap();
    assert!((1..=4_096 + 64).contains(&held), "{held} accounts in memory");
}

fn near(found: f64, wanted: f64, share: f64) {
    assert!((found / wanted - 1.0).abs() <= share, "{found} instead of {wanted}");
}

#[test]
fn published_sizes_are_what_was_published() {
    let network = Network::new(45_000_000, 5_772, LARGE_HOSTS, 1.0);
    assert_eq!((network.accounts(), network.hosts.len()), (45_000_000, 5_772));
    let large: u64 = network.hosts[..88].iter().map(|host| host.accounts).sum();
    near(large as f64, 0.985 * 45e6, 1e-6);
    let (first, last) = (network.hosts[0].accounts as f64, network.hosts[87].accounts as f64);
    near(first / last, 3.0, 0.01);
    let mut draws = crate::ahead::network::draws(0);
    let sizes: Vec<u64> = (0..400_000).filter_map(|_| network.draw(&mut draws)).collect();
    assert_eq!(sizes.len(), 400_000);
    near(sizes.iter().sum::<u64>() as f64 / sizes.len() as f64, 1_180.0, 0.1);
    let tiny = sizes.iter().filter(|records| **records <= 20).count() as f64;
    assert!((0.45..0.6).contains(&(tiny / sizes.len() as f64)), "{tiny} tiny ones");
    assert!(sizes.iter().all(|records| (1..=2_500_000).contains(records)));
    let few = Network::new(10_000, 10, 4, 19.0 / 45.0);
    let found = (0..100_000).filter(|_| few.draw(&mut draws).is_some()).count();
    near(found as f64, 100_000.0 * 19.0 / 45.0, 0.02);
}

#[test]
fn counts_instead_of_accounts_lead_to_the_same_schedule() {
    let network = network(1.0);
    let homes = network.hosts.iter().enumerate();
    let homes: Vec<usize> = homes
        .flat_map(|(host, it)| std::iter::repeat_n(host, usize::try_from(it.accounts).unwrap()))
        .collect();
    let books = Memory::new(&homes, policy(), Some(BEGIN_MS));
    let mut accounts = Simulation::new(books, homes, limits(HOUR), all_good());
    accounts.run(24 * HOUR, |_| false);
    let all: Vec<usize> = (0..network.hosts.len()).collect();
    let counts = Worker::new(&network, &all, Machine { batch_size: 256, transfers: 256, ..fast() });
    let outcome = counts.run();
    near(outcome.seconds, accounts.now.as_secs_f64(), 0.01);
    assert_whole(&network, &[outcome]);
}

#[test]
fn the_largest_host_decides_however_many_workers_there_are() {
    let network = network(1.0);
    let ideal = network.hosts[0].accounts as f64 / HOST_RATE;
    for workers in [1, 3, 8] {
        let outcomes = run(&network, workers, fast());
        let slowest = slowest(&outcomes);
        assert_whole(&network, &outcomes);
        near(slowest.seconds, ideal, 0.02);
        near(slowest.last_host.1, HOST_RATE, 0.05);
        assert_eq!(slowest.bound().0, Bound::Host, "{:?}", slowest.shares);
        assert!(sum(&outcomes, |it| it.records) > ACCOUNTS * 500);
    }
    let hosts = assigned(&network, 8);
    let mut all: Vec<usize> = hosts.iter().flatten().copied().collect();
    all.sort_unstable();
    assert_eq!(all, (0..60).collect::<Vec<_>>(), "each host has one worker");
    assert!(hosts.iter().filter(|hosts| !hosts.is_empty()).count() >= 7, "{hosts:?}");
}

#[test]
fn what_is_too_slow_for_the_hosts_is_named_and_more_workers_help() {
    let network = network(1.0);
    let records = sum(&run(&network, 1, fast()), |it| it.records) as f64;
    let bytes = records * 406.0;
    let twice = 2.0 * network.hosts[0].accounts as f64 / HOST_RATE;
    let seconds = twice * 2.0 / records;
    let slow: [(Bound, Machine, f64); 3] = [
        (Bound::Processors, Machine { record_seconds: seconds, cores: 2.0, ..fast() }, twice),
        (Bound::Link, Machine { link: bytes / twice, ..fast() }, twice),
        (Bound::Disk, Machine { disk_records: records / twice, ..fast() }, twice),
    ];
    for (bound, machine, wanted) in slow {
        let one = run(&network, 1, machine);
        assert_whole(&network, &one);
        assert_eq!(one[0].bound().0, bound, "{:?}", one[0].shares);
        near(one[0].seconds, wanted, 0.1);
        let four = run(&network, 4, machine);
        assert_whole(&network, &four);
        assert_eq!(sum(&four, |it| it.records), one[0].records, "the same accounts");
        assert!(slowest(&four).seconds < 0.75 * one[0].seconds, "{bound:?}");
    }
}

#[test]
fn an_account_without_a_repository_costs_a_request_to_the_directory() {
    let network = network(0.5);
    let outcomes = run(&network, 1, fast());
    assert_whole(&network, &outcomes);
    let one = &outcomes[0];
    assert!(one.parked.abs_diff(ACCOUNTS / 2) < ACCOUNTS / 50, "{}", one.parked);
    assert_eq!(one.directory_asked, one.parked);
    near(one.seconds, one.parked as f64 / 10.0, 0.05);
    assert_eq!(one.bound().0, Bound::Directory);
}
