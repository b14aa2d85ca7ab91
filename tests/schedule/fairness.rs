//! What hostile hosts can take from others: places, by dripping, and a victim's pace, by redirecting.

use skyfill::domain::account::AccountId;
use skyfill::stages::scheduler::estimate::Bound;

use crate::books::{Books, Memory};
use crate::simulation::{BEGIN_MS, Behaviour, Reply, Simulation, limits, most_within};
use crate::{Duration, HOST_RATE, HOUR, SECOND, all_good, policy, warm};

/// Hosts that are well: the first ones.
const HEALTHY: usize = 10;

/// Requests per second at each host.
const RATE: f64 = 3.0;

/// `each` accounts at every healthy host, a hostile PDS with 10,000, and a hundred hosts of one party with 100 each.
fn homes_with_hostile(each: usize) -> Vec<usize> {
    let healthy = (0..HEALTHY).flat_map(|host| std::iter::repeat_n(host, each));
    let hostile = std::iter::repeat_n(HEALTHY, 10_000);
    let party = (HEALTHY + 1..HEALTHY + 101).flat_map(|host| std::iter::repeat_n(host, 100));
    let mut homes: Vec<usize> = healthy.chain(hostile).chain(party).collect();
    crate::Rng::with_seed(11).shuffle(&mut homes);
    homes
}

/// Runs until the healthy hosts are done; gives when the last account of each was, and what is left.
fn ends(
    homes: &[usize],
    hostile: impl Fn() -> Reply + 'static,
) -> (Vec<Duration>, Simulation<Memory>) {
    let behaviour: Behaviour =
        Box::new(move |host, _, _| if host < HEALTHY { Reply::good() } else { hostile() });
    let mut limits = limits(HOUR);
    limits.host.requests_per_second = RATE;
    let books = Memory::new(homes, policy(), Some(BEGIN_MS));
    let mut simulation = Simulation::new(books, homes.to_vec(), limits, behaviour);
    let wanted = homes.iter().filter(|home| **home == 0).count() as u64;
    let is_enough = |simulation: &Simulation<Memory>| {
        simulation.done[..HEALTHY].iter().all(|(_, count)| *count == wanted)
    };
    simulation.run(24 * HOUR, is_enough);
    for times in &simulation.asked {
        assert!(most_within(times, SECOND) <= RATE as usize);
    }
    assert!(simulation.open_max.iter().all(|open| *open <= 4));
    (simulation.done[..HEALTHY].iter().map(|(at, _)| *at).collect(), simulation)
}

/// The least share of its throughput that a healthy host keeps beside hosts that do so.
fn kept(each: usize, hostile: impl Fn() -> Reply + 'static) -> (f64, Simulation<Memory>) {
    let homes = homes_with_hostile(each);
    let healthy: Vec<usize> = homes.iter().copied().filter(|home| *home < HEALTHY).collect();
    let (alone, _) = ends(&healthy, Reply::good);
    let (beside, simulation) = ends(&homes, hostile);
    let kept = |at: usize| alone[at].as_secs_f64() / beside[at].as_secs_f64();
    ((0..HEALTHY).map(kept).fold(1.0, f64::min), simulation)
}

#[test]
fn a_hundred_hosts_of_one_party_that_drip_leave_the_others_their_throughput() {
    // Half an hour each, just within what any transfer may take.
    let (worst, simulation) = kept(4_500, || Reply::slow(1_790 * SECOND));
    println!("dripping: the others keep {:.1}%, {} went back", worst * 100.0, simulation.dripped);
    assert!(simulation.dripped > 50, "only {} gave their places back", simulation.dripped);
    assert!(worst >= 0.95, "a healthy host kept {worst}");
    let homes = homes_with_hostile(4_500);
    let hostile = (0..homes.len()).filter(|at| homes[*at] >= HEALTHY);
    for at in hostile {
        let account = simulation.books.state(AccountId(at as i64));
        assert!(account.attempts == 0 && !account.state.is_decided(), "{account:?}");
    }
}

#[test]
fn hosts_that_give_only_errors_leave_the_others_their_throughput() {
    let kinds: [crate::Kind; 2] = [
        ("no first byte", || Reply::fault(30 * SECOND)),
        ("refusals", || Reply::refused(Some(Duration::ZERO))),
    ];
    for (name, kind) in kinds {
        let (worst, _) = kept(1_500, kind);
        println!("{name}: the others keep {:.1}%", worst * 100.0);
        assert!(worst >= 0.8, "{name}: a healthy host kept {worst}");
    }
}

#[test]
fn a_thousand_names_that_redirect_to_one_victim_keep_it_under_its_pace() {
    // The victim has accounts of its own, too.
    const VICTIM: usize = 0;
    let own = 500;
    let homes: Vec<usize> = (0..own).map(|_| VICTIM).chain(1..=1_000).collect();
    let behaviour: Behaviour =
        Box::new(
            |host, _, _| {
                if host == VICTIM { Reply::good() } else { Reply::elsewhere(VICTIM) }
            },
        );
    let mut simulation = warm(&homes, behaviour);
    simulation.run(HOUR, |_| false);
    let asked = &simulation.asked[VICTIM];
    assert_eq!(asked.len(), own + 1_000, "each account once");
    for seconds in [1, 10, 60] {
        let most = most_within(asked, seconds * SECOND);
        assert!(most <= HOST_RATE as usize * seconds as usize, "{most} in {seconds} s");
    }
    assert!(simulation.open_max[VICTIM] <= 4, "{} at once", simulation.open_max[VICTIM]);
    assert_eq!(simulation.plan.counts().0.done, own as u64 + 1_000);
    let took = simulation.now.as_secs_f64();
    println!("1,000 names, one victim: {took:.0} s, {:.0} s at its pace", 1_500.0 / HOST_RATE);
    assert!(took < 1.5 * 1_500.0 / HOST_RATE, "{took} s");
}

#[test]
fn a_refusal_after_a_redirect_makes_the_host_wait_that_refused_and_no_other() {
    // Host 1 redirects to host 0, which refuses whoever was led there; host 1's own other accounts are good.
    let homes: Vec<usize> = (0..600).map(|number| number % 2).collect();
    let behaviour: Behaviour = Box::new(|host, now, id: AccountId| match host {
        0 if now < 10 * SECOND => Reply::refused(Some(120 * SECOND)),
        1 if id.0 == 1 => Reply::elsewhere(0),
        _ => Reply::good(),
    });
    let mut simulation = warm(&homes, behaviour);
    simulation.run(HOUR, |_| false);
    let during = |host: usize| {
        let within = |at: &&Duration| **at > SECOND && **at < 110 * SECOND;
        simulation.asked[host].iter().filter(within).count()
    };
    assert_eq!(during(0), 0, "the victim was asked while it waited");
    assert!(during(1) >= 290, "{} of the one that redirects", during(1));
    assert_eq!(simulation.plan.counts().0.done, 600);
}

#[test]
fn what_binds_is_told_while_it_binds() {
    // A host that waits, then its pace, in one run.
    let homes = vec![0; 2_000];
    let books = Memory::new(&homes, policy(), Some(BEGIN_MS));
    let mut simulation = Simulation::new(books, homes, limits(HOUR), all_good());
    simulation.run(HOUR, |simulation| simulation.now > 30 * SECOND);
    assert_eq!(simulation.plan.estimate().bound, Bound::Host(1));
    assert_eq!(simulation.plan.slowest_host().as_deref(), Some("h0.example"));
    simulation.run(HOUR, |_| false);
}
