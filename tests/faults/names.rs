//! A run in this process, with a name server and certificate authorities of its own, because the binary asks the system's; and
//! what names alone can do wrong.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use skyfill::commands::backfill::{self, Backfill};
use skyfill::config::file::{self, Assignment, Mode};
use skyfill::config::targets::ListSource;
use skyfill::exit_code::ExitCode;
use skyfill::net::client::Surroundings;
use skyfill::net::dns::Names;
use skyfill::pipeline::Surrounding;

use crate::bench::{Bench, Line};
use crate::support::faults::{Fault, Place, Target, Then};

/// Says that no name exists, except of those that begin with `silent`, of which it says nothing, and with `pds`, which are
/// 127.0.0.1.
pub struct NameServer {
    names: Names,
    is_over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<usize>>,
}

impl NameServer {
    pub fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let names = Names::of_servers(&[socket.local_addr().unwrap()]).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            let (mut query, mut silent) = ([0; 1_500], 0);
            while !over.load(Ordering::Acquire) {
                let Ok((length, from)) = socket.recv_from(&mut query) else { continue };
                if query[13..length].starts_with(b"silent") {
                    silent += 1;
                    continue;
                }
                socket.send_to(&reply(&query[..length]), from).unwrap();
            }
            silent
        });
        Self { names, is_over, thread: Some(thread) }
    }

    /// Ends it; gives how often it kept silent.
    fn end(mut self) -> usize {
        self.is_over.store(true, Ordering::Release);
        self.thread.take().unwrap().join().unwrap()
    }
}

/// The query's own question, and that the name is loopback or does not exist.
fn reply(query: &[u8]) -> Vec<u8> {
    let mut end = 12;
    while query[end] != 0 {
        end += usize::from(query[end]) + 1;
    }
    let mut answer = query[..end + 5].to_vec();
    if !query[13..].starts_with(b"pds") {
        answer[2..12].copy_from_slice(&[0x81, 0x83, 0, 1, 0, 0, 0, 0, 0, 0]);
        return answer;
    }
    let wants_ipv4 = query[end + 2] == 1;
    answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(wants_ipv4), 0, 0, 0, 0]);
    if wants_ipv4 {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    answer
}

/// One backfill of every account of the world; gives how often the name server kept silent.
pub fn run_inside(bench: &Bench, roots: Vec<CertificateDer<'static>>, bound_seconds: u64) -> usize {
    let server = NameServer::start();
    let network = Some(Surroundings { names: server.names.clone(), roots });
    let surrounding = Surrounding { network, ..Surrounding::system() };
    let set = |(key, value): (&str, &str)| Assignment::flag("test", key, value);
    let (data, plc) = (bench.data().to_string_lossy().into_owned(), bench.network.plc.url());
    let fixed = [
        ("data_dir", data.as_str()),
        ("identity.plc_url", plc.as_str()),
        ("network.allow", "127.0.0.0/8"),
    ];
    let given = bench.settings.iter().map(|text| text.split_once('=').unwrap());
    let assignments: Vec<Assignment> = fixed.into_iter().chain(given).map(set).collect();
    let settings = file::load(None, &assignments, Mode::Backfill).unwrap().settings;
    let dids = bench.network.world().dids();
    let sources = vec![ListSource::Inline { name: "test".to_owned(), dids }];
    let order =
        Backfill { settings, sources, refilter: false, refresh: false, json: true, quiet: true };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut out = Vec::new();
    let code = runtime.block_on(async {
        let run = backfill::run(&order, &surrounding, std::future::pending(), &mut out);
        tokio::time::timeout(Duration::from_secs(bound_seconds), run)
            .await
            .expect("it ends in time")
    });
    runtime.shutdown_background();
    assert_eq!(code.unwrap(), ExitCode::SomeParked);
    server.end()
}

/// Accounts whose documents name hosts that no name server knows, or that none says anything about.
pub fn run(bench: &Bench, bound_seconds: u64) -> Vec<Line> {
    let cases =
        [("a name that does not exist", "gone"), ("a name server that is silent", "silent")];
    for (index, (_, name)) in cases.iter().enumerate() {
        let fault = Fault::Endpoint(format!("https://{name}.example.com"));
        let target = Target::Did(bench.did(index));
        bench.network.faults().script(Place::Directory, target, [fault], Then::Repeat);
    }
    let silences = run_inside(bench, Vec::new(), bound_seconds);
    assert!(silences > 0, "the silent name was never asked for");
    let ends = bench.ends();
    let line = |(index, (kind, _)): (usize, &(&str, &str))| {
        let expected = "host_unavailable, dns, 0 charged";
        Line::new(kind, "name", expected, ends[&bench.did(index)].clone(), bound_seconds)
    };
    let lines = cases.iter().enumerate().map(line).collect();
    bench.heal_and_finish(0);
    lines
}
