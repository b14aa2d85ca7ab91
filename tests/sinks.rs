//! Sinks to files: what their manifests name is what the queues hold, each row once, wherever the process dies; nobody who reads
//! the manifests ever sees half an account or an unfinished file.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

#[path = "sinks/read.rs"]
mod read;
#[cfg(feature = "s3")]
#[path = "sinks/store.rs"]
mod store;
mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fastrand::Rng;
use read::{assert_same, held, unnamed};
use support::faults::{Fault, Place, Target, Then};
use support::job::{Job, PATIENCE, in_parallel, number_from};
use support::pds::Manners;
use support::proc::{Finished, Running};
use support::world::{Records, Shape};

/// Crash points that every sink to files passes.
const POINTS: [&str; 4] = [
    "SinkFileDraftedBeforePlaced",
    "SinkFilesPlacedBeforeManifest",
    "SinkManifestWrittenBeforeRename",
    "SinkCommittedBeforeSettle",
];

fn job(shape: &Shape) -> Job {
    Job::new(env!("CARGO_BIN_EXE_skyfill"), shape, &[])
}

/// A sink's settings as flags; its place is a folder beside the data directory.
fn sink(name: &str, keys: &[(&str, &str)]) -> Vec<String> {
    let set =
        |(key, value): &(&str, &str)| ["--set".to_owned(), format!("sink.{name}.{key}={value}")];
    keys.iter().flat_map(set).collect()
}

/// A sink of JSON lines at `place`.
fn json_lines(name: &str, place: &Path, more: &[(&str, &str)]) -> Vec<String> {
    let place = place.to_str().unwrap();
    [sink(name, &[("type", "jsonl"), ("path", place)]), sink(name, more)].concat()
}

/// One data directory and the places of its sinks.
struct Scene<'j> {
    job: &'j Job,
    data: PathBuf,
    places: Vec<PathBuf>,
    flags: Vec<String>,
}

impl<'j> Scene<'j> {
    /// Two sinks of JSON lines beside each other.
    fn new(job: &'j Job, name: &str, more: &[(&str, &str)]) -> Self {
        let place = |form: &str| job.path(&format!("{name}-{form}"));
        let (data, lines, plain) = (job.path(name), place("lines"), place("plain"));
        let compressed = json_lines("lines", &lines, more);
        let bare = json_lines("plain", &plain, &[more, &[("compression", "none")]].concat());
        let (places, flags) = (vec![lines, plain], [compressed, bare].concat());
        Self { job, data, places, flags }
    }

    /// One sink to Parquet.
    fn parquet(job: &'j Job, name: &str, more: &[(&str, &str)]) -> Self {
        let (data, place) = (job.path(name), job.path(&format!("{name}-parquet")));
        let first = [("type", "parquet"), ("path", place.to_str().unwrap())];
        let flags = sink("columns", &[&first, more].concat());
        Self { job, data, places: vec![place], flags }
    }

    /// The same with those of `other`, which has another data directory and gives that up.
    fn beside(self, other: Self) -> Self {
        let places = [self.places, other.places].concat();
        Self { places, flags: [self.flags, other.flags].concat(), ..self }
    }

    fn arguments(&self) -> Vec<String> {
        [self.job.arguments(&self.data), self.flags.clone()].concat()
    }

    fn start(&self) -> Running {
        self.job.skyfill().spawn(&self.arguments())
    }

    fn crash(&self, at: &str) -> Finished {
        self.job.skyfill().env("SKYFILL_CRASH_AT", at).run(&self.arguments(), PATIENCE)
    }

    /// What a reader sees now is sound, whatever the process was doing when it died.
    fn look(&self) {
        for place in &self.places {
            held(place);
        }
    }

    /// Runs it to its end: queues, sinks and oracle agree, and nothing is left over.
    fn finish(&self) {
        self.start().finish(PATIENCE).expect_code(0);
        let verdict = self.job.verdict(&self.data);
        assert!(verdict.is_clean(), "{verdict:#?}");
        for place in &self.places {
            let held = held(place);
            assert_same(&held, &self.data);
            assert_eq!(held.total() as u64, verdict.expected);
            assert_eq!(unnamed(place), Vec::<String>::new(), "{}", place.display());
        }
        let scratch = std::fs::read_dir(self.data.join("sink")).unwrap();
        let left = scratch.flat_map(|it| std::fs::read_dir(it.unwrap().path()).unwrap()).count();
        assert_eq!(left, 0, "something is left in the scratch folder");
    }
}

#[test]
fn several_sinks_beside_the_queues_hold_what_the_queues_hold() {
    let shape = Shape { seed: 91, accounts: 40, hosts: 3, records: Records::Fixed(200), odd: true };
    let job = job(&shape);
    let scene = Scene::new(&job, "whole", &[]);
    scene.finish();
    // A whole run is one commit: files are as large as they may be.
    let first = held(&scene.places[0]);
    assert_eq!(first.manifests, 2, "{first:?}");
    // The same command again has nothing to do, and writes nothing.
    scene.finish();
    assert_eq!(held(&scene.places[0]).manifests, 2);
}

/// Anonymous memory beside `limits.memory`, also with sinks.
const BASE_BYTES: u64 = 64 << 20;

#[test]
fn sinks_stay_within_the_base_of_memory_and_leave_room_in_a_small_journal() {
    let records = Records::Fixed(25_000);
    let job = job(&Shape { seed: 81, accounts: 4, hosts: 2, records, odd: false });
    let limits = ["limits.memory=64MiB", "limits.journal=32MiB"].map(str::to_owned);
    let limits: Vec<String> = limits.into_iter().flat_map(|it| ["--set".to_owned(), it]).collect();
    let run = |name: &str, flags: &[String]| {
        let data = job.path(name);
        let arguments = [job.arguments(&data), limits.clone(), flags.to_vec()].concat();
        // Everything that the sink keeps back by itself is more than the journal holds.
        let finished = job.skyfill().run(&arguments, PATIENCE).expect_code(0);
        let peak = finished.usage.anonymous_peak_bytes;
        assert!(peak <= (64 << 20) + BASE_BYTES, "{name}: {} MiB", peak >> 20);
        (peak >> 20, finished.usage.cpu_seconds())
    };
    let without = run("without", &[]);
    let lines = Scene::new(&job, "with-lines", &[]);
    let with_lines = run("with-lines", &lines.flags);
    assert_same(&held(&lines.places[0]), &lines.data);
    let mut with_parquet = (0, 0.0);
    if has_parquet() {
        let mut columns = Scene::parquet(&job, "with-parquet", &[("file_bytes", "16MiB")]);
        // Later wins: files large enough that writing them meets the work.
        columns.flags.extend(["--set", "limits.journal=1GiB"].map(str::to_owned));
        with_parquet = run("with-parquet", &columns.flags);
        assert_same(&held(&columns.places[0]), &columns.data);
    }
    println!(
        "100,000 records at limits.memory = 64MiB, anonymous peak (MiB) and CPU (s): queues {without:?}, with two sinks of JSON \
         lines {with_lines:?}, with Parquet {with_parquet:?}"
    );
}

/// Whether this build writes Parquet, and DuckDB is there to read it.
fn has_parquet() -> bool {
    cfg!(feature = "parquet") && read::python().is_some()
}

#[test]
fn parquet_by_type_and_day_is_what_the_queues_hold_as_duckdb_reads_it() {
    if !has_parquet() {
        return;
    }
    let shape = Shape { seed: 98, accounts: 12, hosts: 2, records: Records::Fixed(300), odd: true };
    let job = job(&shape);
    let scene = Scene::parquet(&job, "columns", &[]).beside(Scene::new(&job, "beside", &[]));
    scene.finish();
    let held = held(&scene.places[0]);
    assert!(held.rows.contains_key("rejected") && held.files > 100, "{}", held.files);
    // A reader that takes the whole tree, as most do, counts the same.
    let script = "import duckdb, sys; print(duckdb.sql(f\"SELECT type, count(*) FROM read_parquet('{sys.argv[1]}/type=*/day=*/*.parquet', \
                  hive_partitioning = true, union_by_name = true) GROUP BY type ORDER BY type\").fetchall())";
    let mut counted = std::process::Command::new(read::python().unwrap());
    let counted = counted.args(["-c", script]).arg(&scene.places[0]).output().unwrap();
    assert!(counted.status.success(), "{}", String::from_utf8_lossy(&counted.stderr));
    let counts: Vec<String> =
        held.rows.iter().map(|(label, rows)| format!("('{label}', {})", rows.len())).collect();
    let expected = format!("[{}]", counts.join(", "));
    assert_eq!(String::from_utf8_lossy(&counted.stdout).trim(), expected);
    // A file of somebody else's would be read with them.
    let day = std::fs::read_dir(scene.places[0].join("type=post")).unwrap().next().unwrap();
    let stranger = day.unwrap().path().join("other.parquet");
    std::fs::write(&stranger, "PAR1").unwrap();
    let refused = scene.start().finish(PATIENCE).expect_code(78);
    assert!(refused.stderr.contains(stranger.to_str().unwrap()), "{refused:#?}");
    assert!(stranger.exists(), "it was not ours to remove");
}

#[test]
fn kills_and_crashes_lose_nothing_and_double_nothing_in_parquet() {
    if !has_parquet() || cfg!(not(debug_assertions)) {
        return;
    }
    let shape = Shape { seed: 99, accounts: 4, hosts: 1, records: Records::Fixed(40), odd: false };
    let job = Job::new(env!("CARGO_BIN_EXE_skyfill"), &shape, &["--batch-size", "1"]);
    let slow = Fault::SlowHeaders(Duration::from_millis(900));
    job.network.faults().script(Place::Repo, Target::Any, [slow], Then::Repeat);
    let more = [("file_age", "1ms")];
    let cases: Vec<(&str, u64)> =
        POINTS.iter().flat_map(|point| [2, 4].map(|passage| (*point, passage))).collect();
    in_parallel(&cases, 4, |(point, passage)| {
        let scene = Scene::parquet(&job, &format!("{point}-{passage}"), &more);
        let at = format!("{point}:{passage}");
        let crashed = scene.crash(&at);
        assert_eq!(crashed.signal, Some(6), "{at} never fired: {crashed:#?}");
        scene.look();
        scene.finish();
    });
    let seed = number_from("SKYFILL_SEED", 7);
    let kills = std::sync::atomic::AtomicU64::new(0);
    let lanes: Vec<u64> = (0..6).collect();
    in_parallel(&lanes, 3, |lane| {
        let mut rng = Rng::with_seed(seed * 100 + lane);
        let scene = Scene::parquet(&job, &format!("killed-{lane}"), &more);
        for _ in 0..3 {
            let running = scene.start();
            if running.wait(Duration::from_secs(4).mul_f64(rng.f64())).is_some() {
                break;
            }
            kills.fetch_add(u64::from(running.kill()), std::sync::atomic::Ordering::AcqRel);
            running.wait(PATIENCE).expect("nothing survives SIGKILL");
            scene.look();
        }
        scene.finish();
    });
    let kills = kills.into_inner();
    assert!(kills >= 6, "only {kills} kills met a process that ran; SKYFILL_SEED={seed}");
    job.network.faults().assert_fired(&["slow_headers"]);
    println!("{} crashes at {} points and {kills} kills; seed {seed}", cases.len(), POINTS.len());
}

#[test]
fn small_files_are_closed_by_size_and_an_account_is_never_split_over_two_manifests() {
    let shape =
        Shape { seed: 92, accounts: 3, hosts: 2, records: Records::Fixed(12_000), odd: false };
    let job = job(&shape);
    let scene = Scene::new(&job, "small", &[("file_bytes", "64KiB")]);
    scene.finish();
    let held = held(&scene.places[0]);
    assert!(held.files > 3 * 7, "files were not closed in the middle of accounts: {}", held.files);
    assert_eq!(held.accounts.len(), 3);
}

#[test]
fn random_kills_lose_nothing_and_double_nothing_in_any_sink() {
    let seed = number_from("SKYFILL_SEED", 7);
    let wanted = number_from("SKYFILL_SINK_KILLS", 15);
    let shape = Shape {
        seed: 93,
        accounts: 60,
        hosts: 4,
        records: Records::Mixed { mean: 100 },
        odd: true,
    };
    let job = job(&shape);
    for host in &job.network.hosts {
        let bytes_per_second = Some(400_000);
        host.set_manners(Manners { chunk_bytes: 4 << 10, bytes_per_second, ..Manners::default() });
    }
    // Many small commits, so that kills meet every step of them.
    let more = [("file_bytes", "64KiB"), ("file_age", "50ms")];
    let begun = Instant::now();
    Scene::new(&job, "unharmed", &more).finish();
    let whole = begun.elapsed();
    let (mut rng, mut kills, mut directories) = (Rng::with_seed(seed), 0, 0);
    while kills < wanted {
        let scene = Scene::new(&job, &format!("killed-{directories}"), &more);
        directories += 1;
        assert!(directories <= wanted * 3, "it is faster than every kill");
        // More than three deaths would make accounts run alone, and then wait a minute.
        for _ in 0..3 {
            let running = scene.start();
            if running.wait(whole.mul_f64(0.8 * rng.f64())).is_some() {
                break;
            }
            kills += u64::from(running.kill());
            running.wait(PATIENCE).expect("nothing survives SIGKILL");
            scene.look();
        }
        scene.finish();
    }
    println!(
        "{kills} kills over {directories} data directories, a whole run takes {whole:.1?}; seed {seed}"
    );
}

#[test]
fn a_crash_at_every_point_of_a_sink_loses_nothing_and_doubles_nothing() {
    if cfg!(not(debug_assertions)) {
        println!("release builds have no crash points");
        return;
    }
    let shape = Shape { seed: 94, accounts: 4, hosts: 1, records: Records::Fixed(40), odd: false };
    let job = Job::new(env!("CARGO_BIN_EXE_skyfill"), &shape, &["--batch-size", "1"]);
    // Far enough apart for a commit each.
    let slow = Fault::SlowHeaders(Duration::from_millis(900));
    job.network.faults().script(Place::Repo, Target::Any, [slow], Then::Repeat);
    let cases: Vec<(&str, u64)> =
        POINTS.iter().flat_map(|point| [1, 2, 4, 6].map(|passage| (*point, passage))).collect();
    in_parallel(&cases, 8, |(point, passage)| {
        let scene = Scene::new(&job, &format!("{point}-{passage}"), &[("file_age", "1ms")]);
        let at = format!("{point}:{passage}");
        let crashed = scene.crash(&at);
        assert_eq!(crashed.signal, Some(6), "{at} never fired: {crashed:#?}");
        scene.look();
        // The recovery itself crashes, too.
        let again = scene.crash(&format!("{point}:1"));
        assert!(again.signal == Some(6) || again.code == Some(0), "{at}, again: {again:#?}");
        scene.look();
        scene.finish();
    });
    job.network.faults().assert_fired(&["slow_headers"]);
    println!("{} crashes at {} points", cases.len(), POINTS.len());
}

#[test]
fn a_sink_that_is_gone_from_the_configuration_is_missed_until_it_is_let_go() {
    let shape = Shape { seed: 95, accounts: 3, hosts: 1, records: Records::Fixed(20), odd: false };
    let job = job(&shape);
    let scene = Scene::new(&job, "missed", &[]);
    scene.finish();
    let data = scene.data.to_str().unwrap();
    let refused = job.run(&scene.data).expect_code(78);
    assert!(refused.stderr.contains("skyfill let-sink-go"), "{refused:#?}");
    let let_go = |name: &str, more: &[String]| {
        let arguments = ["let-sink-go", name, "--data-dir", data].map(str::to_owned);
        job.skyfill().run(&[arguments.as_slice(), more].concat(), PATIENCE)
    };
    assert!(let_go("lines", &scene.flags).expect_code(2).stderr.contains("still configured"));
    assert!(let_go("nobody", &[]).expect_code(2).stderr.contains("no sink nobody"));
    let_go("lines", &[]).expect_code(0);
    assert!(job.run(&scene.data).expect_code(78).stderr.contains("sink plain"));
    let_go("plain", &[]).expect_code(0);
    // What comes meanwhile passes it by: at its old place it is refused with the way out, which is taken.
    let again = ["--types", "post", "--refilter"].map(str::to_owned);
    let arguments = [job.arguments(&scene.data), again.to_vec()].concat();
    job.skyfill().run(&arguments, PATIENCE).expect_code(0);
    let types = again[..2].to_vec();
    let with = |place: &Path| {
        let sink = json_lines("lines", place, &[]);
        job.skyfill().run(&[job.arguments(&scene.data), types.clone(), sink].concat(), PATIENCE)
    };
    let refused = with(&scene.places[0]).expect_code(78).stderr;
    assert!(refused.contains("sink lines is at segment"), "{refused}");
    assert!(refused.contains("if it was let go, give it a place where it is not yet"), "{refused}");
    let elsewhere = job.path("elsewhere");
    with(&elsewhere).expect_code(0);
    assert_eq!(held(&elsewhere).total(), 0, "it begins with what comes from now on");
}

#[test]
fn a_daemon_closes_files_by_age_tells_of_its_sinks_and_commits_the_rest_when_it_stops() {
    let shape = Shape { seed: 90, accounts: 8, hosts: 2, records: Records::Fixed(60), odd: false };
    let job = job(&shape);
    let (data, young, old) = (job.path("daemon"), job.path("young"), job.path("old"));
    let sinks =
        [json_lines("young", &young, &[("file_age", "100ms")]), json_lines("old", &old, &[])];
    let sets = [
        format!("source.files={}", job.path("dids.txt").display()),
        format!("identity.plc_url={}", job.network.plc.url()),
        "network.allow=127.0.0.0/8".to_owned(),
        "fetch.host_requests_per_second=1000".to_owned(),
        "limits.disk_free=0B".to_owned(),
        "metrics.listen=".to_owned(),
    ];
    let sets: Vec<String> = sets.into_iter().flat_map(|it| ["--set".to_owned(), it]).collect();
    let fixed = ["run", "--data-dir", data.to_str().unwrap()].map(str::to_owned);
    let running = job.skyfill().spawn(&[fixed.to_vec(), sets, sinks.concat()].concat());
    let begun = Instant::now();
    // The young one has everything in files while the daemon stays up.
    while held(&young).accounts.len() < 8 {
        assert!(begun.elapsed() < PATIENCE, "{}", running.stderr());
        assert!(running.wait(Duration::from_millis(50)).is_none(), "{}", running.stderr());
    }
    assert_eq!(held(&old).files, 0, "the other one keeps them back for 10 minutes");
    let status = ["status", "--json", "--data-dir", data.to_str().unwrap()];
    // A manifest is there a moment before the sink says so.
    loop {
        let status = job.skyfill().run(&status, PATIENCE).expect_code(0).json();
        let sinks = status["sinks"].as_array().unwrap();
        let names: Vec<&str> = sinks.iter().map(|it| it["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["old", "young"]);
        if sinks[1]["segment"].as_u64() > sinks[0]["segment"].as_u64() {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{status}");
    }
    running.signal(support::proc::Signal::TERM);
    running.finish(PATIENCE).expect_code(0);
    for place in [&young, &old] {
        assert_same(&held(place), &data);
        assert_eq!(unnamed(place), Vec::<String>::new());
    }
}

#[test]
fn places_that_are_somebody_elses_are_refused_by_name() {
    let shape = Shape { seed: 96, accounts: 3, hosts: 1, records: Records::Fixed(20), odd: false };
    let job = job(&shape);
    let scene = Scene::new(&job, "mine", &[]);
    scene.finish();
    let refused = |name: &str, flags: Vec<String>, code: i32, text: &str| {
        let arguments = [job.arguments(&job.path(name)), flags].concat();
        let refused = job.skyfill().run(&arguments, PATIENCE).expect_code(code);
        assert!(refused.stderr.contains(text), "{refused:#?}");
    };
    let lines = &scene.places[0];
    let shown = lines.to_str().unwrap();
    refused("other", json_lines("lines", lines, &[]), 78, "belongs to another data directory");
    let plain = json_lines("plain", &scene.places[1], &[("compression", "none")]);
    let bare = [json_lines("lines", lines, &[("compression", "none")]), plain].concat();
    refused("mine", bare, 78, &format!("{shown} holds .jsonl.zst files"));
    let file = job.path("file");
    std::fs::write(&file, "").unwrap();
    refused("third", json_lines("lines", &file, &[]), 77, "is not a directory");
    let open = job.path("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    refused("fourth", json_lines("lines", &open, &[]), 77, "everybody may write to it");
    // Nobody has touched what the first one wrote.
    assert_same(&held(lines), &scene.data);
}

#[test]
fn check_looks_at_the_sinks_and_a_damaged_manifest_ends_the_run_by_name() {
    let shape = Shape { seed: 97, accounts: 2, hosts: 1, records: Records::Fixed(10), odd: false };
    let job = job(&shape);
    let scene = Scene::new(&job, "checked", &[]);
    let check = |flags: &[String]| {
        let list = format!("source.files={}", job.path("dids.txt").display());
        let data = scene.data.to_str().unwrap();
        let fixed = ["check", "--data-dir", data, "--set", &list, "--set", "metrics.listen="];
        let fixed = fixed.into_iter().map(str::to_owned);
        let fixed =
            fixed.chain(["--set".to_owned(), "identity.plc_url=http://127.0.0.1:1".to_owned()]);
        job.skyfill().run(&fixed.chain(flags.iter().cloned()).collect::<Vec<_>>(), PATIENCE)
    };
    check(&scene.flags).expect_code(0);
    assert!(scene.places.iter().all(|place| !place.exists()), "check leaves nothing behind");
    let file = job.path("file");
    std::fs::write(&file, "").unwrap();
    let refused = check(&json_lines("lines", &file, &[])).expect_code(77);
    assert!(refused.stdout.contains("sink.lines: "), "{refused:#?}");
    let below = check(&json_lines("lines", &file.join("below"), &[])).expect_code(77);
    assert!(below.stdout.contains("is not a directory"), "{below:#?}");
    scene.finish();
    let newest = read::manifests(&scene.places[0]).pop().unwrap();
    std::fs::write(&newest, "{").unwrap();
    let damaged = scene.start().finish(PATIENCE).expect_code(78);
    assert!(damaged.stderr.contains(newest.to_str().unwrap()), "{damaged:#?}");
}

#[cfg(feature = "s3")]
mod objects {
    use super::store::{Gate, Store, credentials};
    use super::*;

    /// Sinks of one data directory in one store, behind a gate.
    struct Away<'j> {
        job: &'j Job,
        store: &'j Store,
        name: String,
        data: PathBuf,
        flags: Vec<String>,
        prefixes: Vec<String>,
    }

    impl<'j> Away<'j> {
        fn new(
            job: &'j Job,
            store: &'j Store,
            gate: &Gate,
            name: &str,
            more: &[(&str, &str)],
        ) -> Self {
            let endpoint = format!("http://{}", gate.address);
            let file = credentials(job.folder.path());
            let (mut flags, mut prefixes) = (Vec::new(), Vec::new());
            let forms: &[&str] = if has_parquet() { &["jsonl", "parquet"] } else { &["jsonl"] };
            for form in forms {
                let prefix = format!("{name}/{form}");
                let url = format!("s3://bucket/{prefix}");
                let first = [
                    ("type", *form),
                    ("url", &url),
                    ("endpoint", &endpoint),
                    ("credentials", file.to_str().unwrap()),
                ];
                flags.extend(sink(form, &[&first, more].concat()));
                prefixes.push(prefix);
            }
            let (name, data) = (name.to_owned(), job.path(name));
            Self { job, store, name, data, flags, prefixes }
        }

        fn arguments(&self) -> Vec<String> {
            [self.job.arguments(&self.data), self.flags.clone()].concat()
        }

        fn start(&self) -> Running {
            self.job.skyfill().spawn(&self.arguments())
        }

        /// Copies what is there, and reads it; gives that and how many objects were sent in parts.
        fn look(&self) -> Vec<(read::Held, PathBuf, usize)> {
            let read = |prefix: &String| {
                let folder = self.job.path(&format!("fetched-{}", prefix.replace('/', "-")));
                let _new = std::fs::remove_dir_all(&folder);
                std::fs::create_dir(&folder).unwrap();
                let parts = self.store.fetch(prefix, &folder);
                (held(&folder), folder, parts)
            };
            self.prefixes.iter().map(read).collect()
        }

        fn finish(&self) -> Vec<(read::Held, PathBuf, usize)> {
            self.start().finish(PATIENCE).expect_code(0);
            self.judge()
        }

        fn judge(&self) -> Vec<(read::Held, PathBuf, usize)> {
            let verdict = self.job.verdict(&self.data);
            assert!(verdict.is_clean(), "{}: {verdict:#?}", self.name);
            let seen = self.look();
            for (held, folder, _) in &seen {
                assert_same(held, &self.data);
                assert_eq!(unnamed(folder), Vec::<String>::new(), "{}", self.name);
            }
            seen
        }
    }

    #[test]
    fn object_stores_hold_what_the_queues_hold_also_what_was_sent_in_parts() {
        let Some(store) = Store::start(&[]) else { return };
        let records = Records::Fixed(30_000);
        let job = job(&Shape { seed: 71, accounts: 3, hosts: 2, records, odd: false });
        let gate = Gate::before(store.address);
        let more = [("compression", "none")];
        let seen = Away::new(&job, &store, &gate, "whole", &more).finish();
        assert!(seen[0].2 > 0, "nothing was sent in parts");
        assert_eq!((seen[0].0.manifests, seen[0].0.accounts.len()), (2, 3));
    }

    #[test]
    fn kills_and_crashes_lose_nothing_and_double_nothing_in_an_object_store() {
        let Some(store) = Store::start(&[]) else { return };
        if cfg!(not(debug_assertions)) {
            return;
        }
        let shape =
            Shape { seed: 72, accounts: 4, hosts: 1, records: Records::Fixed(30), odd: false };
        let job = Job::new(env!("CARGO_BIN_EXE_skyfill"), &shape, &["--batch-size", "1"]);
        let slow = Fault::SlowHeaders(Duration::from_millis(900));
        job.network.faults().script(Place::Repo, Target::Any, [slow], Then::Repeat);
        let gate = Gate::before(store.address);
        let (more, points) = ([("file_age", "1ms")], [POINTS[0], POINTS[1], POINTS[3]]);
        for point in points {
            let away = Away::new(&job, &store, &gate, point, &more);
            let at = format!("{point}:2");
            let crashed = job.skyfill().env("SKYFILL_CRASH_AT", &at);
            let crashed = crashed.run(&away.arguments(), PATIENCE);
            assert_eq!(crashed.signal, Some(6), "{at} never fired: {crashed:#?}");
            away.look();
            away.finish();
        }
        let seed = number_from("SKYFILL_SEED", 7);
        let (mut rng, mut kills) = (Rng::with_seed(seed), 0);
        for lane in 0..3 {
            let away = Away::new(&job, &store, &gate, &format!("killed-{lane}"), &more);
            for _ in 0..3 {
                let running = away.start();
                if running.wait(Duration::from_secs(5).mul_f64(rng.f64())).is_some() {
                    break;
                }
                kills += u64::from(running.kill());
                running.wait(PATIENCE).expect("nothing survives SIGKILL");
                away.look();
            }
            away.finish();
        }
        assert!(kills >= 4, "only {kills} kills met a process that ran; SKYFILL_SEED={seed}");
        job.network.faults().assert_fired(&["slow_headers"]);
        println!("{} crashes and {kills} kills; seed {seed}", points.len());
    }

    #[test]
    fn a_store_that_is_away_holds_up_no_queue_and_has_everything_when_it_is_back() {
        let Some(store) = Store::start(&[]) else { return };
        let job = job(&Shape {
            seed: 73,
            accounts: 6,
            hosts: 2,
            records: Records::Fixed(4_000),
            odd: false,
        });
        let gate = Gate::before(store.address);
        gate.set_open(false);
        let away = Away::new(&job, &store, &gate, "away", &[("compression", "none")]);
        let lines = json_lines("lines", &job.path("lines"), &[]);
        let arguments = [away.arguments(), lines].concat();
        let running = job.skyfill().spawn(&arguments);
        assert!(
            running.wait_for("a sink waits, the others go on", PATIENCE),
            "{}",
            running.stderr()
        );
        // The queues and the other sink have everything while it is away: the run waits for nobody else.
        let begun = Instant::now();
        while read::manifests(&job.path("lines")).len() < 2 {
            assert!(begun.elapsed() < PATIENCE, "{}", running.stderr());
            assert!(running.wait(Duration::from_millis(20)).is_none(), "{}", running.stderr());
        }
        let verdict = support::judge::judge(
            &away.data,
            job.network.expected(),
            &support::oracle::Options::default(),
        );
        verdict.assert_clean();
        assert_same(&held(&job.path("lines")), &away.data);
        assert!(gate.dropped() > 0, "it never asked");
        // It comes back, and breaks again in the middle of an upload.
        gate.set_open(true);
        gate.shut_after(300_000);
        while !gate.is_shut() {
            assert!(begun.elapsed() < PATIENCE, "{}", running.stderr());
            assert!(running.wait(Duration::from_millis(5)).is_none(), "it ended before the break");
        }
        away.look();
        gate.set_open(true);
        let finished = running.finish(PATIENCE).expect_code(0);
        assert!(finished.stderr.contains("a sink goes on"), "{finished:#?}");
        away.judge();
    }

    #[test]
    fn no_rights_no_bucket_and_no_credentials_are_said_by_name() {
        let Some(store) = Store::start(&[]) else { return };
        // The first request of this one makes its bucket; from then on it wants to know who asks.
        let strict = Store::start(&[("INITIAL_NO_AUTH_ACTION_COUNT", "1")]).unwrap();
        let job = job(&Shape {
            seed: 74,
            accounts: 2,
            hosts: 1,
            records: Records::Fixed(10),
            odd: false,
        });
        let gates = [&store, &strict].map(|store| Gate::before(store.address));
        let list = format!("source.files={}", job.path("dids.txt").display());
        let check = |flags: &[String], more: &[&str]| {
            let data = job.path("checked").display().to_string();
            let fixed = ["check", "--data-dir", &data, "--set", &list, "--set", "metrics.listen="];
            let plc = ["--set", "identity.plc_url=http://127.0.0.1:1"];
            let all = fixed.into_iter().chain(plc).chain(more.iter().copied()).map(str::to_owned);
            let all: Vec<String> = all.chain(flags.iter().cloned()).collect();
            job.skyfill().run(&all, PATIENCE)
        };
        let refused = |name: &str, flags: &[String], code: i32, text: &str| {
            let run = [job.arguments(&job.path(name)), flags.to_vec()].concat();
            let run = job.skyfill().run(&run, PATIENCE).expect_code(code);
            assert!(run.stderr.contains(text), "{run:#?}");
            let check = check(flags, &[]).expect_code(code);
            assert!(check.stdout.contains(text), "{check:#?}");
        };
        let denied = Away::new(&job, &strict, &gates[1], "denied", &[]);
        refused("denied", &denied.flags, 77, "the credentials do not allow it");
        let good = Away::new(&job, &store, &gates[0], "good", &[]);
        let other = |flags: &[String], from: &str, to: &str| -> Vec<String> {
            flags.iter().map(|flag| flag.replace(from, to)).collect()
        };
        let none = other(&good.flags, "s3://bucket/", "s3://none/");
        refused("none", &none, 78, "there is no such bucket");
        let file = job.path("empty");
        std::fs::write(&file, "[default]\n").unwrap();
        let from = job.path("credentials");
        let unknown = other(&good.flags, from.to_str().unwrap(), file.to_str().unwrap());
        refused("unknown", &unknown, 78, "aws_access_key_id");
        check(&good.flags, &[]).expect_code(0);
        gates[0].set_open(false);
        let away = check(&good.flags, &[]).expect_code(0);
        assert!(away.stdout.contains("warning: sink."), "{away:#?}");
        check(&good.flags, &["--deny-warnings"]).expect_code(78);
        assert!(gates[0].dropped() > 0);
    }
}
