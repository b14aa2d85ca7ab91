//! The scheduler in virtual time: hundreds of thousands of accounts on hundreds of hosts, healthy and sick.
//!
//! ```text
//!  Plan <──Batch, Batched──> books (in memory, or the real rows)        hosts and directory: a delay and an answer
//! ```
//! Nothing waits in real time; a simulated day takes seconds.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap
)]

#[path = "../benches/plan/mod.rs"]
mod ahead;
#[path = "schedule/ahead_checked.rs"]
mod ahead_checked;
#[path = "schedule/books.rs"]
mod books;
#[path = "schedule/estimates.rs"]
mod estimates;
#[path = "schedule/fairness.rs"]
mod fairness;
#[path = "schedule/simulation.rs"]
mod simulation;
#[path = "schedule/territory.rs"]
mod territory;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use books::{Books, Memory, OnDisk};
use fastrand::Rng;
use simulation::{BEGIN_MS, Behaviour, Reply, Simulation, limits, most_within};
use skyfill::clock::Instant;
use skyfill::config::targets::Target;
use skyfill::domain::account::AccountId;
use skyfill::domain::did::Did;
use skyfill::domain::ledger::{Account, Event, LedgerPolicy, State};
use skyfill::domain::verdict::{Cause, Failure, HostSignal, LastError, RateWindow, Reason};
use skyfill::net::pace::PaceLimits;
use skyfill::stages::scheduler::hosts::Hosts;
use skyfill::store::error::StoreError;
use skyfill::store::ledger_work::{Batch, HostRow};
use skyfill::store::listing::Staged;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

/// The study's list, rounded up: so many accounts on so many hosts.
const ACCOUNTS: usize = 400_000;
const HOSTS: usize = 339;

/// Requests per second at a host, and at the directory.
const HOST_RATE: f64 = 9.0;
const DIRECTORY_RATE: f64 = 10.0;

fn policy() -> LedgerPolicy {
    LedgerPolicy::default()
}

/// Home hosts of `accounts` in a seeded order: host `k` has a share of `1 / (k + 1)`, so that the largest is host 0.
fn homes(accounts: usize, hosts: usize, seed: u64) -> Vec<usize> {
    let sum: f64 = (1..=hosts).map(|k| 1.0 / k as f64).sum();
    let mut homes = Vec::with_capacity(accounts);
    for host in (0..hosts).rev() {
        let share = accounts as f64 / (host as f64 + 1.0) / sum;
        let count = if host == 0 { accounts - homes.len() } else { (share as usize).max(1) };
        homes.extend(std::iter::repeat_n(host, count));
    }
    Rng::with_seed(seed).shuffle(&mut homes);
    homes
}

fn count_at(homes: &[usize], host: usize) -> usize {
    homes.iter().filter(|home| **home == host).count()
}

fn all_good() -> Behaviour {
    Box::new(|_, _, _| Reply::good())
}

fn warm(homes: &[usize], behaviour: Behaviour) -> Simulation<Memory> {
    let books = Memory::new(homes, policy(), Some(BEGIN_MS));
    Simulation::new(books, homes.to_vec(), limits(HOUR), behaviour)
}

/// Every host was asked at its pace, whatever the window.
fn assert_paced(asked: &[Vec<Duration>], open_max: &[usize]) {
    for (host, times) in asked.iter().enumerate() {
        for seconds in [1, 10, 60] {
            let most = most_within(times, seconds * SECOND);
            let bound = (HOST_RATE as usize) * seconds as usize;
            assert!(most <= bound, "host {host}: {most} requests in {seconds} s");
        }
    }
    assert!(open_max.iter().all(|open| *open <= 4), "{open_max:?}");
}

#[test]
fn four_hundred_thousand_accounts_take_as_long_as_the_largest_host_with_a_warm_cache() {
    let homes = homes(ACCOUNTS, HOSTS, 1);
    let ideal = count_at(&homes, 0) as f64 / HOST_RATE;
    let mut simulation = warm(&homes, all_good());
    let begun = std::time::Instant::now();
    simulation.run(24 * HOUR, |_| false);
    let took = simulation.now.as_secs_f64();
    println!("warm: {took:.0} s, ideal {ideal:.0} s, in {:.1} s", begun.elapsed().as_secs_f64());
    assert!(took <= ideal * 1.05, "{took} s instead of {ideal} s");
    assert!(simulation.directory_asked.is_empty());
    assert_eq!(simulation.plan.counts().0.done, ACCOUNTS as u64);
    assert_paced(&simulation.asked, &simulation.open_max);
}

#[test]
fn four_hundred_thousand_accounts_take_as_long_as_the_directory_with_a_cold_cache() {
    let homes = homes(ACCOUNTS, HOSTS, 2);
    let (directory, largest) =
        (ACCOUNTS as f64 / DIRECTORY_RATE, count_at(&homes, 0) as f64 / HOST_RATE);
    let books = Memory::new(&homes, policy(), None);
    let mut simulation = Simulation::new(books, homes, limits(HOUR), all_good());
    let begun = std::time::Instant::now();
    simulation.run(24 * HOUR, |_| false);
    let (took, ideal) = (simulation.now.as_secs_f64(), directory.max(largest));
    println!("cold: {took:.0} s, ideal {ideal:.0} s, in {:.1} s", begun.elapsed().as_secs_f64());
    assert!(took <= ideal * 1.05, "{took} s instead of {ideal} s");
    assert_eq!(simulation.directory_asked.len(), ACCOUNTS);
    assert!(most_within(&simulation.directory_asked, SECOND) <= DIRECTORY_RATE as usize);
    assert_paced(&simulation.asked, &simulation.open_max);
}

#[test]
fn with_a_cold_cache_and_a_fast_directory_the_largest_host_decides() {
    let homes = homes(60_000, HOSTS, 3);
    let ideal = count_at(&homes, 0) as f64 / HOST_RATE;
    let mut limits = limits(HOUR);
    limits.directory.requests_per_second = 200.0;
    let books = Memory::new(&homes, policy(), None);
    let mut simulation = Simulation::new(books, homes, limits, all_good());
    simulation.run(24 * HOUR, |_| false);
    let took = simulation.now.as_secs_f64();
    println!("cold, fast directory: {took:.0} s, ideal {ideal:.0} s");
    assert!(ideal > 60_000.0 / 200.0 && took <= ideal * 1.05, "{took} s instead of {ideal} s");
}

/// A way to be sick, and its name.
type Kind = (&'static str, fn() -> Reply);

#[test]
fn no_sick_host_slows_a_healthy_one() {
    const SICK: usize = 1;
    let homes = homes(20_000, 60, 4);
    let ends = |behaviour: Behaviour| {
        let mut simulation = warm(&homes, behaviour);
        let wanted: Vec<u64> = (0..60).map(|host| count_at(&homes, host) as u64).collect();
        let is_enough = |simulation: &Simulation<Memory>| {
            let done = simulation.done.iter().enumerate();
            done.into_iter().all(|(host, (_, count))| host == SICK || *count == wanted[host])
        };
        simulation.run(24 * HOUR, is_enough);
        assert_paced(&simulation.asked, &simulation.open_max);
        simulation
    };
    let healthy = ends(all_good());
    let kinds: [Kind; 6] = [
        ("always 500", || Reply::fault(Duration::from_millis(20))),
        ("no first byte", || Reply::fault(30 * SECOND)),
        ("429 without a wait", || Reply::refused(None)),
        ("429 with no wait at all", || Reply::refused(Some(Duration::ZERO))),
        ("drips for 30 minutes", || Reply::slow(1_800 * SECOND)),
        ("ten times slower", || Reply::slow(3 * SECOND)),
    ];
    for (name, kind) in kinds {
        let sick =
            ends(Box::new(move |host, _, _| if host == SICK { kind() } else { Reply::good() }));
        assert!(!sick.asked[SICK].is_empty(), "{name}: it was never asked");
        let mut worst: f64 = 1.0;
        for host in (0..60).filter(|host| *host != SICK) {
            let (before, after) = (healthy.done[host].0, sick.done[host].0);
            worst = worst.min(before.as_secs_f64() / after.as_secs_f64());
        }
        println!("{name}: the others keep at least {:.1}%", worst * 100.0);
        assert!(worst >= 0.95, "{name}: a healthy host kept {worst}");
    }
}

#[test]
fn a_host_that_refuses_is_left_alone_for_as_long_as_it_says() {
    let homes = homes(600, 3, 5);
    let wait = 40 * SECOND;
    let refuses = |now: Duration| now >= 5 * SECOND && now < 6 * SECOND;
    let behaviour: Behaviour = Box::new(move |host, now, _| {
        if host == 0 && refuses(now) { Reply::refused(Some(wait)) } else { Reply::good() }
    });
    let mut simulation = warm(&homes, behaviour);
    simulation.run(HOUR, |_| false);
    let first = simulation.asked[0].iter().find(|at| refuses(**at)).copied().unwrap();
    // The refusal is there 50 ms after the request.
    let told = first + Duration::from_millis(50);
    let during = simulation.asked[0].iter().filter(|at| **at > told && **at < told + wait).count();
    assert_eq!(during, 0, "requests while it waited");
    assert!(simulation.asked[0].iter().any(|at| *at >= told + wait), "it goes on afterwards");
    assert_eq!(simulation.plan.counts().0.done, 600);
    // Slower than before: 0.7 of the rate.
    let after: Vec<Duration> =
        simulation.asked[0].iter().filter(|at| **at >= told + wait).copied().collect();
    let (early, most) = (after[0] + 2 * SECOND, most_within(&after, SECOND));
    let in_two = after.iter().filter(|at| **at < early).count();
    assert!(in_two <= 14 && most <= 9, "{in_two} in the first 2 s, at most {most} in one");
}

#[test]
fn a_host_that_announces_what_is_left_never_has_to_refuse_and_is_used_to_the_full() {
    const LIMIT: u64 = 20;
    let window = 10 * SECOND;
    let (used, refused) = (Rc::new(RefCell::new((0, 0))), Rc::new(Cell::new(0)));
    let refusals = Rc::clone(&refused);
    let behaviour: Behaviour = Box::new(move |_, now, _| {
        let number = now.as_secs() / window.as_secs();
        let mut used = used.borrow_mut();
        *used = if used.0 == number { (number, used.1 + 1) } else { (number, 1) };
        let reset = window * u32::try_from(number + 1).unwrap() - now;
        if used.1 > LIMIT {
            refusals.set(refusals.get() + 1);
            return Reply::refused(Some(reset));
        }
        let told = RateWindow { remaining: Some(LIMIT - used.1), reset: Some(reset) };
        Reply { signal: HostSignal::Usable(told), ..Reply::good() }
    });
    let homes = vec![0; 600];
    let mut simulation = warm(&homes, behaviour);
    simulation.run(HOUR, |_| false);
    let (took, ideal) = (simulation.now.as_secs_f64(), 600.0 / 2.0);
    println!("announced: {took:.0} s, ideal {ideal:.0} s, {} refusals", refused.get());
    assert_eq!(refused.get(), 0);
    assert!(took <= ideal * 1.1, "{took} s instead of {ideal} s");
}

/// Ledger rows begin at 1: nobody is at 0.
fn on_disk(
    folder: &tempfile::TempDir,
    homes: &[usize],
    policy: LedgerPolicy,
) -> (OnDisk, Vec<usize>) {
    let books = OnDisk::new(folder.path(), homes.len(), policy, BEGIN_MS);
    (books, std::iter::once(0).chain(homes.iter().copied()).collect())
}

#[test]
fn the_real_rows_lead_to_the_same_schedule() {
    let (folder, homes) = (tempfile::tempdir().unwrap(), homes(1_500, 20, 6));
    let mut limits = limits(HOUR);
    limits.directory.requests_per_second = 20.0;
    let ideal = (1_500.0 / 20.0_f64).max(count_at(&homes, 0) as f64 / HOST_RATE);
    let in_memory = Memory::new(&homes, policy(), None);
    let mut expected = Simulation::new(in_memory, homes.clone(), limits, all_good());
    expected.run(HOUR, |_| false);
    let (books, homes) = on_disk(&folder, &homes, policy());
    let mut simulation = Simulation::new(books, homes, limits, all_good());
    simulation.run(HOUR, |_| false);
    let (took, same) = (simulation.now.as_secs_f64(), expected.now.as_secs_f64());
    println!("rows: {took:.1} s, in memory {same:.1} s, ideal {ideal:.1} s");
    assert!(took <= ideal * 1.05 && (took - same).abs() < 0.02 * same, "{took} {same} {ideal}");
    assert_eq!(simulation.plan.counts().0.done, 1_500);
    assert_paced(&simulation.asked, &simulation.open_max);
}

#[test]
fn identities_that_outlive_the_cache_are_resolved_again_and_nobody_is_forgotten() {
    let (folder, homes) = (tempfile::tempdir().unwrap(), homes(300, 3, 7));
    let young = LedgerPolicy { cache_ttl: 20 * SECOND, ..policy() };
    let (books, homes) = on_disk(&folder, &homes, young);
    let mut limits = limits(HOUR);
    limits.directory.requests_per_second = 200.0;
    // Resolved within 2 s, but the largest host needs 18 s and more: what it has left at the end is resolved twice.
    limits.host.requests_per_second = 4.0;
    let mut simulation = Simulation::new(books, homes.clone(), limits, all_good());
    simulation.run(HOUR, |_| false);
    assert_eq!(simulation.plan.counts().0.done, 300);
    assert!(
        simulation.directory_asked.len() > 310,
        "{} requests",
        simulation.directory_asked.len()
    );
    // The same for a process that finds everything resolved long ago: more at one host than one batch sends back.
    let folder = tempfile::tempdir().unwrap();
    let (mut books, homes) = on_disk(&folder, &[0; 600], policy());
    for id in 1..=600 {
        for event in [Event::LeasedToResolve, Event::Resolved(books::identity(0))] {
            books.rows.transaction(|rows| rows.apply(AccountId(id), event)).unwrap();
        }
    }
    let mut later = Simulation::new(books, homes, limits, all_good());
    later.now = 48 * HOUR;
    later.run(50 * HOUR, |_| false);
    assert_eq!(later.plan.counts().0.done, 600);
    assert_eq!(later.directory_asked.len(), 600);
}

#[test]
fn an_account_that_runs_alone_runs_even_if_it_is_all_there_is() {
    for others in [0, 5] {
        let folder = tempfile::tempdir().unwrap();
        let (mut books, homes) = on_disk(&folder, &vec![0; others + 1], policy());
        let suspect = AccountId(1);
        let mut lease = vec![Event::LeasedToResolve, Event::Resolved(books::identity(0))];
        for _ in 0..3 {
            let fetch = Event::LeasedToFetch { alone: false };
            lease.extend([fetch, Event::BodyBegun, Event::ProcessDied]);
        }
        for event in lease {
            books.rows.transaction(|rows| rows.apply(suspect, event)).unwrap();
        }
        assert!(books.state(suspect).runs_alone());
        let mut simulation = Simulation::new(books, homes, limits(HOUR), all_good());
        simulation.run(HOUR, |_| false);
        assert_eq!(simulation.plan.counts().0.done, others as u64 + 1);
    }
}

/// Runs `count` accounts of one host that behaves so, over the real rows, until all are decided.
fn one_host(
    count: usize,
    server: Reply,
    behaviour: Behaviour,
) -> (Simulation<OnDisk>, Vec<Account>) {
    let folder = tempfile::tempdir().unwrap();
    let policy = LedgerPolicy { host_patience: HOUR, ..policy() };
    let (books, homes) = on_disk(&folder, &vec![0; count], policy);
    let mut simulation = Simulation::new(books, homes, limits(HOUR), behaviour);
    simulation.server = server;
    simulation.run(48 * HOUR, |_| false);
    let accounts = (1..=count as i64).map(|id| simulation.books.state(AccountId(id))).collect();
    (simulation, accounts)
}

#[test]
fn a_dead_host_ends_all_its_accounts_the_last_one_too() {
    for count in [1, 2, 30] {
        let dead: Behaviour = Box::new(|_, _, _| Reply::fault(SECOND));
        let (simulation, accounts) = one_host(count, Reply::fault(SECOND), dead);
        for account in accounts {
            assert_eq!(account.state, State::Parked(Reason::HostUnavailable), "{count}");
            assert_eq!(account.last_error, Some(LastError::Http5xx));
            assert_eq!(account.attempts, 0, "nobody else showed that the host works");
        }
        // Three faults open the circuit: for 30 s, then twice as long each time up to 330 s, there is one request at a time.
        let asked = &simulation.asked[0];
        let quick = asked.iter().take_while(|at| **at < asked[0] + 25 * SECOND).count();
        assert!(quick <= 3 + 3, "{quick} requests before the circuit was open");
        let probes: Vec<f64> = asked[quick..].iter().map(Duration::as_secs_f64).collect();
        let gaps: Vec<f64> = probes.windows(2).map(|pair| pair[1] - pair[0]).collect();
        for (gap, least) in gaps.iter().zip([60.0, 120.0, 240.0, 330.0, 330.0]) {
            assert!((least..least + 10.0).contains(gap), "{gaps:?}");
        }
        let took = simulation.now.as_secs_f64();
        println!("{count} accounts of a dead host: {took:.0} s");
        assert!((3_600.0..3_600.0 + 400.0).contains(&took), "{took} s of patience");
    }
}

#[test]
fn a_host_that_only_refuses_ends_its_accounts_and_one_account_that_is_refused_ends_alone() {
    for count in [1, 12] {
        let refusing: Behaviour = Box::new(|_, _, _| Reply::refused(None));
        let (simulation, accounts) = one_host(count, Reply::refused(None), refusing);
        for account in accounts {
            assert_eq!(account.state, State::Parked(Reason::HostUnavailable), "{count}");
            assert_eq!(account.last_error, Some(LastError::RateLimited));
            assert_eq!(account.attempts, 0);
        }
        assert!(simulation.now < HOUR + 400 * SECOND, "{:?}", simulation.now);
    }
    // The others come in late, one a while, so that the host is seen well between the refusals.
    let singled_out: Behaviour = Box::new(|_, _, id| {
        if id == AccountId(1) { Reply::refused(Some(SECOND)) } else { Reply::slow(20 * SECOND) }
    });
    let (_, accounts) = one_host(900, Reply::good(), singled_out);
    let (refused, others) = accounts.split_first().unwrap();
    assert_eq!(refused.state, State::Parked(Reason::AttemptsExhausted));
    assert_eq!((refused.last_error, refused.attempts), (Some(LastError::RateLimited), 0));
    assert!(others.iter().all(|account| account.state == State::Done));
}

#[test]
fn a_host_is_asked_how_it_is_only_for_the_last_account_there() {
    // Two accounts fail for ever: each other's company, so nobody is asked until one of them is gone.
    let failing: Behaviour =
        Box::new(
            |_, _, id| {
                if id.0 <= 2 { Reply::fault(Duration::from_millis(50)) } else { Reply::good() }
            },
        );
    let (simulation, accounts) = one_host(6, Reply::good(), failing);
    assert_eq!(simulation.servers_asked, 0, "two were left to the end");
    assert!(accounts[2..].iter().all(|account| account.state == State::Done));
    assert!(accounts[..2].iter().all(|a| a.state == State::Parked(Reason::HostUnavailable)));
    let alone: Behaviour =
        Box::new(
            |_, _, id| {
                if id.0 == 1 { Reply::fault(Duration::from_millis(50)) } else { Reply::good() }
            },
        );
    let (simulation, accounts) = one_host(6, Reply::good(), alone);
    assert!(simulation.servers_asked >= 4, "{} times", simulation.servers_asked);
    assert_eq!(accounts[0].state, State::Parked(Reason::AttemptsExhausted), "its own fault");
    assert_eq!((accounts[0].attempts, accounts[0].last_error), (5, Some(LastError::Http5xx)));
    assert!(simulation.now < HOUR / 2, "{:?}", simulation.now);
}

#[test]
fn a_batch_counts_what_it_has_changed_itself_and_new_lists_count_it_once() {
    let folder = tempfile::tempdir().unwrap();
    let (mut books, _) = on_disk(&folder, &[0, 0, 0], policy());
    let gone = || {
        let failure = Failure::new(Cause::Terminal(Reason::DidNotFound), None, "gone");
        Event::Failed { failure, host_usable_ms: None }
    };
    let events =
        [1, 2].map(|id| [(AccountId(id), Event::LeasedToResolve), (AccountId(id), gone())]);
    let batch = Batch { events: events.concat(), ..Batch::default() };
    let counts = books.run(&batch, BEGIN_MS).counts;
    assert_eq!((counts.queued, counts.active, counts.parked), (1, 0, 2));
    // Events, new lists, events, as a reload under load brings them together.
    let again = |id| Batch { events: vec![(AccountId(id), Event::Retry)], ..Batch::default() };
    books.run(&again(1), BEGIN_MS);
    let wanted =
        [0, 1].map(|n| Ok::<_, StoreError>(Target::Did(Did::parse(&books::did(n)).unwrap())));
    let staged = Staged::read(folder.path(), wanted.into_iter(), &|_| {}).unwrap().unwrap();
    staged.know(&mut books.rows, &|_| {}).unwrap().swap(&mut books.rows, &|_| {}).unwrap();
    let counts = books.run(&again(2), BEGIN_MS).counts;
    assert_eq!((counts.queued, counts.parked, counts.total()), (2, 0, 2));
    assert_eq!(books.rows.counts().unwrap(), counts, "committed");
}

#[test]
fn the_next_account_is_found_at_once_among_ten_thousand_hosts() {
    const HOSTS: usize = 10_000;
    let begun = Instant::now();
    let pace = PaceLimits { requests_per_second: HOST_RATE, concurrency: 4, patience: HOUR };
    let mut hosts = Hosts::new(pace);
    for id in 0..HOSTS as i64 {
        let ready = 1 + (id as u64 * 7_919) % 1_000;
        let name = format!("h{id}.example");
        hosts.know(HostRow { id, name, ready, others: 0, silence_ms: 0 }, begun);
    }
    // A second's picks of a pipeline that is busier than any: every answer comes back 0.3 s later.
    let (mut now, mut picks, mut out) = (begun, 0_u32, std::collections::VecDeque::new());
    let clock = std::time::Instant::now();
    for _ in 0..200 {
        now += Duration::from_millis(5);
        while out.front().is_some_and(|(at, _)| *at <= now) {
            let (_, id) = out.pop_front().unwrap();
            hosts.returned(id, now);
        }
        for _ in 0..50 {
            let Some((id, _)) = hosts.pick(now) else { break };
            hosts.leased(id, 1, 1, false, now);
            out.push_back((now + Duration::from_millis(300), id));
            picks += 1;
        }
    }
    let each = clock.elapsed() / picks;
    println!("{picks} picks among {HOSTS} hosts, {each:?} each");
    assert!(picks == 10_000 && each < Duration::from_millis(1), "{picks} picks, {each:?} each");
}
