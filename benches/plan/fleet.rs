//! A fleet of workers over one network: each host belongs to the partition of its name, each partition to one worker.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use skyfill::domain::partition::of_key;

use super::network::Network;
use super::worker::{Machine, Outcome, Worker};

/// Partitions of the topic of DIDs: four for each of 64 workers.
pub const PARTITIONS: u32 = 256;

/// The hosts of each of `workers`.
pub fn assigned(network: &Network, workers: usize) -> Vec<Vec<usize>> {
    let mut hosts = vec![Vec::new(); workers];
    for (number, host) in network.hosts.iter().enumerate() {
        hosts[of_key(&host.name, PARTITIONS) as usize % workers].push(number);
    }
    hosts
}

/// What each worker did; as many are simulated at once as this machine has processors.
pub fn run(network: &Network, workers: usize, machine: Machine) -> Vec<Outcome> {
    let (hosts, next) = (assigned(network, workers), AtomicUsize::new(0));
    let outcomes = Mutex::new(vec![Outcome::default(); workers]);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(workers) {
            scope.spawn(|| {
                while let Some(number) = Some(next.fetch_add(1, Ordering::AcqRel))
                    && let Some(hosts) = hosts.get(number)
                {
                    let outcome = Worker::new(network, hosts, machine).run();
                    outcomes.lock().unwrap()[number] = outcome;
                }
            });
        }
    });
    outcomes.into_inner().unwrap()
}

/// The one that was at it longest.
pub fn slowest(outcomes: &[Outcome]) -> &Outcome {
    let longest = outcomes.iter().max_by(|one, other| one.seconds.total_cmp(&other.seconds));
    longest.expect("there is a worker")
}
