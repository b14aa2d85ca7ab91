//! The newcomer's hour: install the package, write three lines, check, run, break the list, reload, look in, kill -9, start again,
//! retry, stop. What is typed and what is answered is `tests/newcomer.md`; this plays it again and compares.
//!
//! Figures that change from run to run (times, pids, ports, rates) are written as `…`. After a wanted change of an answer:
//! `SKYFILL_WRITE_TRANSCRIPT=1 cargo test --test newcomer` writes the file anew. Without cargo-deb, dpkg or root, one line says so.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

mod support;

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use support::network::{Network, Standing};
use support::package;
use support::proc::{Running, Signal};
use support::root::{Root, Unit, unit};
use support::transcript::{self, stable};
use support::world::{Records, Shape};

const PATIENCE: Duration = Duration::from_secs(60);
const CONFIG: &str = "/etc/skyfill/skyfill.toml";
const LIST: &str = "/etc/skyfill/dids.txt";

/// What the generated network needs beside the three lines; it stands for the real one and is not shown.
fn stand_in(network: &Network) -> String {
    format!(
        "identity.plc_url={} identity.requests_per_second=1000 network.allow=127.0.0.0/8 \
         fetch.host_requests_per_second=1000 limits.disk_free=0B metrics.listen=127.0.0.1:0",
        network.flags()[1]
    )
}

struct Hour {
    root: Root,
    unit: Unit,
    network: Network,
    /// The transcript so far.
    told: String,
}

impl Hour {
    fn says(&mut self, text: &str) {
        writeln!(self.told, "\n{text}\n").unwrap();
    }

    /// Types `command` as root and notes what is answered, its stable parts only; the exit code must be `code`.
    fn types(&mut self, command: &str, code: i32) {
        let sets = stand_in(&self.network);
        let real = match command.strip_prefix("skyfill ") {
            Some(words) => {
                let flags: String = sets
                    .split(' ')
                    .filter(|_| words.starts_with("check"))
                    .fold(String::new(), |all, set| all + " --set " + set);
                format!(
                    "setpriv --reuid skyfill --regid skyfill --init-groups skyfill {words}{flags}"
                )
            }
            None => command.to_owned(),
        };
        let output = self.root.shell(&real);
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.status.code(), Some(code), "{real}: {said}");
        let ends = if code == 0 { String::new() } else { format!("(exit code {code})\n") };
        self.answers(command, &format!("{}{ends}", stable(&said)));
    }

    /// Notes a command and its answer.
    fn answers(&mut self, command: &str, answer: &str) {
        write!(self.told, "```console\n# {command}\n{answer}```\n").unwrap();
    }

    /// Asks for the metrics where `daemon` says that it serves them.
    fn asks_for_metrics(&mut self, daemon: &Running) {
        let line = "serving metrics listen=";
        assert!(daemon.wait_for(line, PATIENCE));
        let stderr = daemon.stderr();
        let address = stderr.split_once(line).unwrap().1.split_whitespace().next().unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let mut lines: Vec<&str> =
            text.lines().filter(|line| line.starts_with("skyfill_accounts{")).collect();
        lines.sort_unstable();
        let lines = lines.join("\n") + "\n";
        self.answers(
            "curl -s http://127.0.0.1:9464/metrics | grep ^skyfill_accounts | sort",
            &lines,
        );
    }

    fn starts(&mut self) -> Running {
        let line = self.unit["ExecStart"][0].clone();
        let sets = stand_in(&self.network);
        let mut words: Vec<&str> = line.split(' ').collect();
        words.extend(sets.split(' ').flat_map(|set| ["--set", set]));
        let daemon = self.root.start(&self.unit, &words);
        self.notes("systemctl start skyfill");
        daemon
    }

    /// Notes what the service manager does in the newcomer's name.
    fn notes(&mut self, command: &str) {
        writeln!(self.told, "```console\n# {command}\n```").unwrap();
    }

    fn until(&self, done: u64) {
        let begun = Instant::now();
        loop {
            let status = self.root.must("skyfill status --json --data-dir /var/lib/skyfill");
            let status: serde_json::Value = status.trim().parse().unwrap();
            if status["accounts"]["done"] == done && status["phase"] == "idle" {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{status}");
        }
    }

    fn writes(&mut self, path: &str, text: &str) {
        std::fs::write(self.root.path(path), text).unwrap();
        write!(self.told, "`{path}`:\n\n```text\n{}\n```\n", text.trim_end()).unwrap();
    }
}

#[test]
fn the_newcomers_hour_goes_as_written() {
    let folder = tempfile::tempdir().unwrap();
    let Some(root) = Root::make("the newcomer's hour") else { return };
    let Some(package) = package::pack(env!("CARGO_BIN_EXE_skyfill"), folder.path()) else { return };
    std::fs::copy(&package, root.path("/root/skyfill.deb")).unwrap();
    let shape = Shape { seed: 91, accounts: 6, hosts: 2, records: Records::Fixed(40), odd: false };
    let network = Network::generate(&shape);
    network.set_standing(5, Standing::Deactivated);
    let mut hour = Hour { root, unit: Unit::new(), network, told: HEAD.to_owned() };
    play(&mut hour);
    transcript::compare("newcomer.md", &hour.told);
}

const HEAD: &str = "# The first hour with skyfill\n\nWritten and played again by `tests/newcomer.rs` on a generated network; `…` stands for what differs from run to run.\n";

fn play(hour: &mut Hour) {
    let dids = hour.network.world().dids();
    hour.says("## Install\n\nThe package makes a user and puts an example configuration in place. It neither enables nor starts anything.");
    let installed = hour.root.shell("dpkg --force-depends -i /root/skyfill.deb");
    assert!(installed.status.success(), "{installed:?}");
    hour.notes("apt install ./skyfill.deb");
    let shipped =
        std::fs::read_to_string(hour.root.path("/usr/lib/systemd/system/skyfill.service"));
    hour.unit = unit(&shipped.unwrap());
    hour.root.make_folders(&hour.unit);

    hour.says("## Three lines and a list");
    hour.writes(
        CONFIG,
        &format!("data_dir = \"/var/lib/skyfill\"\n[source]\nfiles = [\"{LIST}\"]\n"),
    );
    hour.writes(LIST, &(dids.join("\n") + "\n"));
    hour.says("Is that right?");
    hour.types("skyfill check --config /etc/skyfill/skyfill.toml", 0);

    hour.says("## Run");
    let daemon = hour.starts();
    hour.root.told("READY=1");
    hour.until(5);
    hour.says("A little later:");
    hour.types("skyfill status --config /etc/skyfill/skyfill.toml", 0);
    hour.asks_for_metrics(&daemon);
    hour.says("One is parked. Why?");
    hour.types(&format!("skyfill status --config /etc/skyfill/skyfill.toml {}", dids[5]), 0);

    hour.says("## A slip\n\nThe list is emptied by mistake, and reloaded. Check says what is wrong; a daemon that is told to reload all the same keeps what it has.");
    hour.writes(LIST, "# oops\n");
    hour.types("skyfill check --config /etc/skyfill/skyfill.toml", 78);
    daemon.signal(Signal::HUP);
    let told = hour.root.told("reload refused");
    hour.notes("systemctl reload skyfill");
    let status = told.lines().find_map(|line| line.strip_prefix("STATUS=")).unwrap().to_owned();
    write!(hour.told, "\n`systemctl status` then shows:\n\n```text\n{}\n```\n", status).unwrap();
    hour.until(5);
    hour.says("Put right again:");
    hour.writes(LIST, &(dids.join("\n") + "\n"));
    daemon.signal(Signal::HUP);
    hour.root.told("reloaded: 6 accounts listed");
    hour.notes("systemctl reload skyfill");

    hour.says("## Pull the plug\n\nNothing is lost and nothing is there twice, however it dies.");
    daemon.kill_and_wait();
    hour.notes("systemctl kill --signal=KILL skyfill");
    let daemon = hour.starts();
    hour.root.told("READY=1");
    hour.until(5);
    hour.says("The parked account is back at its host, and gets another try:");
    hour.network.set_standing(5, Standing::Active);
    hour.types("skyfill retry --config /etc/skyfill/skyfill.toml --reason repo_deactivated", 0);
    hour.until(6);
    hour.types("skyfill status --config /etc/skyfill/skyfill.toml", 0);

    hour.says("## Stop");
    daemon.signal(Signal::TERM);
    daemon.finish(PATIENCE).expect_code(0);
    hour.notes("systemctl stop skyfill");
    hour.says("Do the queues hold what the ledger says?");
    hour.types("skyfill verify --config /etc/skyfill/skyfill.toml", 0);
}
