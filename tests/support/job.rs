//! A small but complete job for tests that break things below it: a network, its list, the command over all of it, and the
//! judge's verdict. A run that nothing disturbs takes less than a second.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::judge::{Verdict, judge};
use super::network::Network;
use super::oracle::Options;
use super::proc::{Finished, Skyfill};
use super::world::{Shape, WorldAccount};

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(100);

pub struct Job {
    pub network: Network,
    pub folder: tempfile::TempDir,
    binary: &'static str,
    more: Vec<String>,
    /// The accounts as they are, made once: every data directory is judged by them.
    accounts: Vec<WorldAccount>,
}

impl Job {
    /// `binary` is the test's `env!("CARGO_BIN_EXE_skyfill")`, `more` are arguments of every run.
    pub fn new(binary: &'static str, shape: &Shape, more: &[&str]) -> Self {
        let network = Network::generate(shape);
        network.warm();
        let folder = tempfile::tempdir().unwrap();
        let list = network.world().dids().join("\n");
        std::fs::write(folder.path().join("dids.txt"), list).unwrap();
        let more = more.iter().map(|text| (*text).to_owned()).collect();
        let accounts = network.expected().collect();
        Self { network, folder, binary, more, accounts }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn skyfill(&self) -> Skyfill {
        Skyfill::new(self.binary)
    }

    /// The command over `data`, the binary first.
    pub fn command(&self, data: &Path) -> Vec<String> {
        [vec![self.binary.to_owned()], self.arguments(data)].concat()
    }

    pub fn arguments(&self, data: &Path) -> Vec<String> {
        let list = self.path("dids.txt");
        backfill(data, ["--dids-file", list.to_str().unwrap()], &self.network, &self.more)
    }

    /// Runs it undisturbed.
    pub fn run(&self, data: &Path) -> Finished {
        self.skyfill().run(&self.arguments(data), PATIENCE)
    }

    /// What the queues hold, after `verify` has agreed.
    pub fn verdict(&self, data: &Path) -> Verdict {
        let text = data.to_str().unwrap();
        self.skyfill().run(&["verify", "--data-dir", text], PATIENCE).expect_code(0);
        judge(data, self.accounts.iter().cloned(), &Options::default())
    }
}

/// A number from the environment.
pub fn number_from(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Runs `work` over `items`, some at once.
pub fn in_parallel<T: Sync>(items: &[T], at_once: usize, work: impl Fn(&T) + Sync) {
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(item) =
                    items.get(next.fetch_add(1, std::sync::atomic::Ordering::AcqRel))
                {
                    work(item);
                }
            });
        }
    });
}

/// `skyfill backfill` of `accounts` (a flag and its value) over `data`: hosts and directory may be asked as fast as they answer,
/// and a disk may be as full as the test makes it.
pub fn backfill(
    data: &Path,
    accounts: [&str; 2],
    network: &Network,
    more: &[String],
) -> Vec<String> {
    let settings = [
        "fetch.host_requests_per_second=1000",
        "identity.requests_per_second=1000",
        "limits.disk_free=0B",
    ];
    let fixed = ["backfill", "--json", "--quiet", "--data-dir", data.to_str().unwrap()];
    let all =
        fixed.into_iter().chain(accounts).chain(settings.into_iter().flat_map(|it| ["--set", it]));
    all.map(str::to_owned).chain(network.flags()).chain(more.iter().cloned()).collect()
}

/// Whether system calls can be recorded and made to fail here; says so in one line if not.
pub fn has_strace() -> bool {
    let found = std::process::Command::new("strace").args(["-o", "/dev/null", "true"]).status();
    let is_there = found.is_ok_and(|status| status.success());
    if !is_there {
        println!("no strace here: system calls can neither be recorded nor made to fail");
    }
    is_there
}
