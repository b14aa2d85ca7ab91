//! A network by its published sizes: hosts, accounts and repositories, as numbers. Nothing is held for an account; what one is
//! like follows from its host and its number there, so that every way to share the work meets the same accounts.

use fastrand::Rng;

/// Hosts of Bluesky itself, and their share of all accounts (PROTOCOL section 1).
pub const LARGE_HOSTS: usize = 88;
const LARGE_SHARE: f64 = 0.985;

/// Records of a repository: half have at most this many (PROTOCOL: half are tiny).
const TINY_RECORDS: u64 = 20;

/// Spread of the other half, a lognormal one (assumed), whose mean makes 1,180 over all, and the largest known.
const SIGMA: f64 = 2.0;
const MEAN_RECORDS: f64 = 1_180.0;
const RECORDS_MAX: u64 = 2_500_000;

/// One host.
pub struct Host {
    pub name: String,
    pub accounts: u64,
}

/// All hosts, the large ones first.
pub struct Network {
    pub hosts: Vec<Host>,
    /// Share of accounts that have a repository.
    pub with_repository: f64,
}

impl Network {
    /// `accounts` on `hosts`, `large` of which hold 98.5%. Among these the largest has 1.5 times the mean and the smallest
    /// half of it (assumed: only their sum is published); of the others host `k` has a share of `1 / (k + 1)` (assumed).
    pub fn new(accounts: u64, hosts: usize, large: usize, with_repository: f64) -> Self {
        let at_large = (accounts as f64 * LARGE_SHARE).round() as u64;
        let step = |k: usize| 1.5 - k as f64 / (large.max(2) - 1) as f64;
        let large_weights: Vec<f64> = (0..large).map(step).collect();
        let small_weights: Vec<f64> = (0..hosts - large).map(|k| 1.0 / (k + 1) as f64).collect();
        let mut all = Vec::with_capacity(hosts);
        for (k, accounts) in shared(at_large, &large_weights).into_iter().enumerate() {
            all.push(Host { name: format!("h{k}.us-east.host.bsky.network"), accounts });
        }
        for (k, accounts) in shared(accounts - at_large, &small_weights).into_iter().enumerate() {
            all.push(Host { name: format!("pds{k}.example"), accounts });
        }
        Self { hosts: all, with_repository }
    }

    pub fn accounts(&self) -> u64 {
        self.hosts.iter().map(|host| host.accounts).sum()
    }

    /// Records of the next account that `draws` of its host stand at; `None` if it has no repository.
    pub fn draw(&self, draws: &mut Rng) -> Option<u64> {
        (draws.f64() < self.with_repository).then(|| records(draws))
    }
}

/// What the accounts of host `host` are drawn from.
pub fn draws(host: usize) -> Rng {
    Rng::with_seed(0x5eed ^ (host as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn records(draws: &mut Rng) -> u64 {
    if draws.bool() {
        return draws.u64(1..=TINY_RECORDS);
    }
    let mean = 2.0 * MEAN_RECORDS - (1 + TINY_RECORDS) as f64 / 2.0;
    let mu = mean.ln() - SIGMA * SIGMA / 2.0;
    // Box and Muller.
    let (radius, angle) = (1.0 - draws.f64(), draws.f64());
    let normal = (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos();
    ((mu + SIGMA * normal).exp().round() as u64).clamp(1, RECORDS_MAX)
}

/// `total` cut by `weights`: one each, then by weight, and the first takes what rounding leaves.
fn shared(total: u64, weights: &[f64]) -> Vec<u64> {
    let sum: f64 = weights.iter().sum();
    let rest = total.checked_sub(weights.len() as u64).expect("an account for each host") as f64;
    let share = |weight: &f64| 1 + (rest * weight / sum) as u64;
    let mut shares: Vec<u64> = weights.iter().map(share).collect();
    let others: u64 = shares.iter().skip(1).sum();
    shares[0] = total - others;
    shares
}
