//! Prepared repositories for the benches: generated, really signed, and kept in a folder outside the repository
//! (`SKYFILL_BENCH_DATA`, or `skyfill-bench` in the system's folder for temporary files), because making them takes longer than
//! reading them does.

use std::path::PathBuf;

use crate::support::world::{Records, Shape, World};

/// Changes whenever the generator makes other bytes from the same seed.
const VERSION: u32 = 1;

/// A repository and who must have signed it.
pub struct Repository {
    pub did: String,
    pub key: String,
    pub records: usize,
    pub car: Vec<u8>,
}

/// So many accounts of so many records each.
pub fn repositories(accounts: usize, records: usize) -> Vec<Repository> {
    let shape = Shape { seed: 7, accounts, hosts: 1, records: Records::Fixed(records), odd: false };
    let world = World::generate(&shape);
    let folder = folder().join(format!("v{VERSION}-{records}"));
    std::fs::create_dir_all(&folder).unwrap();
    (0..accounts)
        .map(|index| {
            let path = folder.join(format!("{index}.car"));
            let car = std::fs::read(&path).unwrap_or_else(|_| {
                let car = world.account(index).car();
                let part = path.with_extension("part");
                std::fs::File::create(&part)
                    .and_then(|mut file| std::io::Write::write_all(&mut file, &car))
                    .and_then(|()| std::fs::rename(&part, &path))
                    .unwrap();
                car
            });
            Repository {
                did: world.did(index).to_owned(),
                key: world.key(index).did_key(),
                records: world.record_count(index),
                car,
            }
        })
        .collect()
}

fn folder() -> PathBuf {
    let chosen = std::env::var_os("SKYFILL_BENCH_DATA").map(PathBuf::from);
    chosen.unwrap_or_else(|| std::env::temp_dir().join("skyfill-bench"))
}
