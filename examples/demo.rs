//! A whole backfill in one command: a generated network on loopback (one directory, three hosts, 50 really signed accounts with
//! about 100,000 records), and the ordinary pipeline against it over HTTP. Run it with `cargo run --release --example demo`.
#![allow(clippy::expect_used, clippy::print_stdout)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::stdout;
use std::path::Path;
use std::process::ExitCode;

use skyfill::commands::backfill::{self, Backfill};
use skyfill::config::file::{self, Assignment, Mode};
use skyfill::config::targets::ListSource;
use skyfill::ops::logging;
use skyfill::pipeline::Surrounding;
use support::Network;

/// Beside the program that was built, so that nothing is left outside the checkout.
const DATA_DIR: &str = "target/demo-data";

fn main() -> ExitCode {
    let network = support::demo_network();
    // What the demo measures is skyfill, not the making of its network.
    network.warm();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join(DATA_DIR);
    if data.exists() {
        std::fs::remove_dir_all(&data).expect("the last demo's data can be removed");
    }
    println!(
        "demo: {} generated accounts with {} records on three hosts; directory at {}",
        network.world().len(),
        network.world().records_total(),
        network.plc.url()
    );
    let settings = settings(&network, &data);
    let log = logging::init(&settings.log);
    let sources =
        vec![ListSource::Inline { name: "demo".to_owned(), dids: network.world().dids() }];
    let order =
        Backfill { settings, sources, refilter: false, refresh: false, json: false, quiet: false };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be started");
    let never = std::future::pending();
    let ran = runtime.block_on(backfill::run(&order, &Surrounding::system(), never, &mut stdout()));
    log.flush();
    match ran {
        Ok(_) => {
            explain(&data);
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The defaults, with leave to reach loopback, and a pace that real hosts would not be asked at.
fn settings(network: &Network, data: &Path) -> skyfill::config::settings::Settings {
    let set = |key: &str, value: &str| Assignment::flag("demo", key, value);
    let assignments = [
        set("data_dir", &data.to_string_lossy()),
        set("identity.plc_url", &network.plc.url()),
        set("identity.requests_per_second", "50"),
        set("fetch.host_requests_per_second", "20"),
        set("network.allow", "127.0.0.0/8"),
        set("log.level", "warn"),
        set("limits.disk_free", "64MiB"),
    ];
    file::load(None, &assignments, Mode::Backfill).expect("the demo's settings are good").settings
}

fn explain(data: &Path) {
    let data = data.display();
    println!(
        "
One account had been deactivated and one tombstoned: they are parked, by name. Look into the queues:

  cargo run --release -- status --data-dir {data}
  cargo run --release -- verify --data-dir {data}
  sqlite3 {data}/queue/output_backfill_sync_post.db \\
    \"SELECT json_extract(value, '$.synctimestamp'), json_extract(value, '$.text') FROM queue, json_each(payload) LIMIT 5\"
"
    );
}
