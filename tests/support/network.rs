//! The running network: one directory and some hosts on loopback, serving one world, and what happens to its accounts.
//!
//! Everything that can change while it runs is here: an account's standing, its host, its revision. The world itself never
//! changes, so that the oracle always knows what is right: [`Network::expected`].

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;

use super::faults::Faults;
use super::oracle::{Counts, Options, visit};
use super::pds::Pds;
use super::plc::Plc;
use super::world::{Records, Shape, World, WorldAccount};

/// Bytes of CARs that are kept ready; a repository above a quarter of it is made for every request.
const CACHE_BYTES_MAX: usize = 256 << 20;

/// How an account stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    #[default]
    Active,
    Deactivated,
    TakenDown,
    Suspended,
    /// Its host does not know it any more; the directory still does.
    Deleted,
    /// The directory says that it is gone.
    Tombstoned,
    /// The directory never heard of it.
    Unregistered,
}

/// What is true of an account at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    pub standing: Standing,
    /// Index of its host.
    pub host: usize,
    pub revision: u64,
    /// How often its signing key was replaced.
    pub rotations: u64,
}

/// What the servers share.
pub struct Net {
    pub world: World,
    pub faults: Faults,
    changes: Mutex<HashMap<usize, Now>>,
    endpoints: OnceLock<Vec<String>>,
    cars: Mutex<Cars>,
}

/// Account, revision, rotations.
type CarKey = (usize, u64, u64);

/// Repositories made before, the oldest first to go.
#[derive(Default)]
struct Cars {
    made: HashMap<CarKey, Bytes>,
    order: VecDeque<CarKey>,
    bytes: usize,
}

impl Net {
    fn new(world: World) -> Self {
        Self {
            world,
            faults: Faults::default(),
            changes: Mutex::default(),
            endpoints: OnceLock::new(),
            cars: Mutex::default(),
        }
    }

    pub fn now(&self, index: usize) -> Now {
        let born = || Now {
            standing: Standing::Active,
            host: self.world.host(index),
            revision: 0,
            rotations: 0,
        };
        self.changes.lock().unwrap().get(&index).copied().unwrap_or_else(born)
    }

    fn change(&self, index: usize, change: impl FnOnce(&mut Now)) {
        let mut now = self.now(index);
        change(&mut now);
        self.changes.lock().unwrap().insert(index, now);
    }

    /// The endpoint of a host as documents name it.
    pub fn endpoint(&self, host: usize) -> &str {
        &self.endpoints.get().expect("the network has started")[host]
    }

    /// The account as it is.
    pub fn account(&self, index: usize, now: Now) -> WorldAccount {
        let key = self.world.key_after(index, now.rotations);
        WorldAccount { key, ..self.world.account_at(index, now.revision) }
    }

    /// The account's CAR as it is, made now or before. Takes as long as that takes.
    pub fn car(&self, index: usize, now: Now) -> Bytes {
        let key = (index, now.revision, now.rotations);
        if let Some(car) = self.cars.lock().unwrap().made.get(&key) {
            return car.clone();
        }
        let car = Bytes::from(self.account(index, now).car());
        if car.len() <= CACHE_BYTES_MAX / 4 {
            self.cars.lock().unwrap().keep(key, car.clone());
        }
        car
    }
}

impl Cars {
    fn keep(&mut self, key: CarKey, car: Bytes) {
        if self.made.contains_key(&key) {
            return;
        }
        self.bytes += car.len();
        self.made.insert(key, car);
        self.order.push_back(key);
        while self.bytes > CACHE_BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else { break };
            self.bytes -= self.made.remove(&oldest).map_or(0, |car| car.len());
        }
    }
}

/// See the header. Stops when it is dropped.
pub struct Network {
    pub plc: Plc,
    pub hosts: Vec<Pds>,
    net: Arc<Net>,
}

impl Network {
    /// Starts the servers of `world`; they listen when this returns.
    pub fn start(world: World) -> Self {
        let net = Arc::new(Net::new(world));
        let count = net.world.shape().hosts;
        let hosts: Vec<Pds> = (0..count).map(|host| Pds::start(host, Arc::clone(&net))).collect();
        let endpoints = hosts.iter().map(Pds::url).collect();
        net.endpoints.set(endpoints).expect("the endpoints are set once");
        Self { plc: Plc::start(Arc::clone(&net)), hosts, net }
    }

    pub fn generate(shape: &Shape) -> Self {
        Self::start(World::generate(shape))
    }

    pub fn world(&self) -> &World {
        &self.net.world
    }

    pub fn faults(&self) -> &Faults {
        &self.net.faults
    }

    /// Flags with which skyfill finds this network and may reach it.
    pub fn flags(&self) -> Vec<String> {
        ["--plc-url", &self.plc.url(), "--allow-network", "127.0.0.0/8"].map(str::to_owned).to_vec()
    }

    pub fn now(&self, index: usize) -> Now {
        self.net.now(index)
    }

    /// The host that serves the account now.
    pub fn host_of(&self, index: usize) -> &Pds {
        &self.hosts[self.net.now(index).host]
    }

    pub fn set_standing(&self, index: usize, standing: Standing) {
        self.net.change(index, |now| now.standing = standing);
    }

    /// The account moves: its documents name the new host, the old one says `RepoDeactivated`.
    pub fn move_account(&self, index: usize, host: usize) {
        self.net.change(index, |now| now.host = host);
    }

    /// The account's owner goes on writing: see the header of [`super::world`]. Gives the new revision's number.
    pub fn advance(&self, index: usize) -> u64 {
        self.net.change(index, |now| now.revision += 1);
        self.net.now(index).revision
    }

    /// The account's host serves another revision, perhaps an older one.
    pub fn set_revision(&self, index: usize, revision: u64) {
        self.net.change(index, |now| now.revision = revision);
    }

    /// The account gets a new signing key, in its document and in what its host serves from now on.
    pub fn rotate_key(&self, index: usize) {
        self.net.change(index, |now| now.rotations += 1);
    }

    /// Makes every CAR that will be kept, so that a measurement does not measure the forge.
    pub fn warm(&self) {
        for index in 0..self.world().len() {
            self.net.car(index, self.net.now(index));
        }
    }

    /// Bytes of the account's CAR as it is served now.
    pub fn car_bytes(&self, index: usize) -> u64 {
        self.net.car(index, self.net.now(index)).len() as u64
    }

    /// Indexes of the accounts that a run must finish as `done`, faults aside.
    pub fn active(&self) -> Vec<usize> {
        let is_active = |index: &usize| self.net.now(*index).standing == Standing::Active;
        (0..self.world().len()).filter(is_active).collect()
    }

    /// The accounts of [`Network::active`] as they are now, one after the other.
    pub fn expected(&self) -> impl Iterator<Item = WorldAccount> + '_ {
        self.active().into_iter().map(|i| self.world().account_at(i, self.net.now(i).revision))
    }

    /// What a run over all active accounts must count.
    pub fn expected_counts(&self, options: &Options) -> Counts {
        let mut counts = Counts::default();
        for account in self.expected() {
            counts.add(&visit(&account, options, |_, _| {}));
        }
        counts
    }

    /// Requests for `did`'s repository, on all hosts.
    pub fn repo_requests(&self, did: &str) -> usize {
        self.hosts.iter().map(|host| host.log().count(super::pds::GET_REPO, did)).sum()
    }

    /// Transfers at this moment, on all hosts.
    pub fn open_transfers(&self) -> usize {
        self.hosts.iter().map(|host| host.log().open()).sum()
    }
}

/// The demo's network: one directory, three hosts, 50 accounts with about 100,000 records; one account is tombstoned and one
/// deactivated.
pub fn demo_network() -> Network {
    let shape = Shape {
        seed: 20_241_005,
        accounts: 50,
        hosts: 3,
        records: Records::Mixed { mean: 2_050 },
        odd: true,
    };
    let network = Network::generate(&shape);
    // Two of middling size, so that about 100,000 records are left.
    let mut by_size: Vec<usize> = (0..shape.accounts).collect();
    by_size.sort_by_key(|index| network.world().record_count(*index));
    network.set_standing(by_size[shape.accounts / 2], Standing::Tombstoned);
    network.set_standing(by_size[shape.accounts / 2 + 1], Standing::Deactivated);
    network
}
