//! Tests of the tests' own ground: the generated world, the oracle against the golden data, the servers, the judge.
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

use support::oracle::{Options, expect};
use support::world::{Records, Shape, World};

#[test]
fn speed() {
    let shape = Shape { accounts: 20, records: Records::Fixed(2000), ..Shape::default() };
    let world = World::generate(&shape);
    let t = std::time::Instant::now();
    let accounts: Vec<_> = (0..20).map(|i| world.account(i)).collect();
    println!("generate {:?}", t.elapsed());
    let t = std::time::Instant::now();
    let cars: usize = accounts.iter().map(|a| a.car().len()).sum();
    println!("car {:?} {} bytes/record {}", t.elapsed(), cars, cars as f64 / 40000.0);
    let t = std::time::Instant::now();
    let rows: usize = accounts.iter().map(|a| expect(a, &Options::default()).rows.len()).sum();
    println!("oracle {:?} {rows}", t.elapsed());
}
