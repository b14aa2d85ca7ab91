//! Faults of the machine below the real binary (TORTURE.md, E): little space again and again, limits on file sizes, descriptors and
//! memory, SQLite files that are held, cut or gone, a log that nobody reads. What is said, how it ends, and that afterwards nothing is lost,
//! doubled or torn. Full and read-only disks are also in tests/bad_input.rs, single failing calls in tests/disk_errors.rs.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use support::faults::{Fault, Place, Target, Then};
use support::job::{Job, PATIENCE, number_from};
use support::judge::queue_path;
use support::proc::{Running, Skyfill};
use support::world::{Records, Shape};

fn job(seed: u64, accounts: usize, records: usize, more: &[&str]) -> Job {
    let shape = Shape { seed, accounts, hosts: 2, records: Records::Fixed(records), odd: false };
    Job::new(env!("CARGO_BIN_EXE_skyfill"), &shape, more)
}

fn slow(job: &Job, millis: u64) {
    let slow = Fault::SlowHeaders(Duration::from_millis(millis));
    job.network.faults().script(Place::Repo, Target::Any, [slow], Then::Repeat);
}

/// Under limits that `prlimit` sets.
fn limited(job: &Job, limits: &[&str], data: &Path) -> Running {
    let limits = limits.iter().map(|it| (*it).to_owned());
    Skyfill::new("prlimit").spawn(&limits.chain(job.command(data)).collect::<Vec<_>>())
}

fn wait_until(running: &Running, what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what} never came: {}", running.stderr());
        let ended = running.wait(Duration::from_millis(10));
        assert!(ended.is_none() || is_so(), "{what} never came: {ended:#?}");
    }
}

/// `$1` size, `$2` mount point, `$3` orders, then the command; it runs `first` and every time that `again` asks for it.
const ON_A_SMALL_DISK: &str = r#"
size=$1 disk=$2 orders=$3; shift 3
mount -t tmpfs -o size=$size,mode=750 skyfill "$disk" || exit 99
[ ! -e "$orders/full" ] || cat /dev/zero > "$disk/filler" 2>/dev/null
( while [ ! -e "$orders/stop" ]; do
    if [ -e "$orders/fill" ]; then cat /dev/zero > "$disk/filler" 2>/dev/null; rm "$orders/fill"; fi
    if [ -e "$orders/free" ]; then rm -f "$disk/filler" "$orders/free"; fi
    sleep 0.02
  done ) &
"$@"
code=$?
touch "$orders/stop"; wait
cp -a "$disk/data" "$orders/data"
exit $code
"#;

struct SmallDisk {
    orders: PathBuf,
    running: Running,
}

impl SmallDisk {
    /// `None` where the system gives no namespaces.
    fn start(job: &Job, size: &str, is_full: bool) -> Option<Self> {
        let (disk, orders) = (job.path("disk"), job.path("orders"));
        std::fs::create_dir_all(&disk).unwrap();
        std::fs::create_dir_all(&orders).unwrap();
        if is_full {
            std::fs::write(orders.join("full"), "").unwrap();
        }
        let probe = std::process::Command::new("unshare").args(["-Urm", "true"]).status();
        if !probe.is_ok_and(|status| status.success()) {
            println!("no user and mount namespaces here: a disk of its own cannot be had");
            return None;
        }
        let mut command: Vec<String> =
            ["-Urm", "sh", "-c", ON_A_SMALL_DISK, "sh", size].map(str::to_owned).to_vec();
        command.extend([&disk, &orders].map(|path| path.to_str().unwrap().to_owned()));
        command.extend(job.command(&disk.join("data")));
        Some(Self { orders, running: Skyfill::new("unshare").spawn(&command) })
    }

    fn order(&self, what: &str) {
        std::fs::write(self.orders.join(what), "").unwrap();
        wait_until(&self.running, what, || !self.orders.join(what).exists());
    }

    fn says(&self, what: &str, times: usize) {
        wait_until(&self.running, what, || self.running.stderr().matches(what).count() >= times);
    }

    fn finish(self, job: &Job) {
        let finished = self.running.finish(PATIENCE);
        assert_eq!(finished.code, Some(0), "{finished:#?}");
        job.verdict(&self.orders.join("data")).assert_clean();
    }
}

#[test]
fn a_disk_that_is_filled_and_freed_again_and_again_costs_only_time() {
    let cycles = if number_from("SKYFILL_LONG", 0) > 0 { 20 } else { 3 };
    let job = job(81, 10 * cycles, 30, &["--batch-size", "2"]);
    slow(&job, 250);
    let Some(disk) = SmallDisk::start(&job, "128m", false) else { return };
    disk.says("accounts listed", 1);
    for cycle in 1..=cycles {
        disk.order("fill");
        disk.says("the disk is full, everything waits", cycle);
        disk.order("free");
        disk.says("there is space again, going on", cycle);
    }
    let told = disk.running.stderr();
    assert!(
        told.lines().filter(|it| it.contains("is full")).all(|it| it.contains("bytes are free"))
    );
    disk.finish(&job);
    println!("{cycles} times full and free again: 0 lost, 0 doubled, 0 torn");
}

#[test]
fn a_disk_that_is_full_at_the_very_start_is_waited_for() {
    let job = job(82, 4, 20, &[]);
    let Some(disk) = SmallDisk::start(&job, "64m", true) else { return };
    disk.says("the disk is full, everything waits", 1);
    assert!(disk.running.wait(Duration::from_millis(1_500)).is_none());
    assert_eq!(job.network.plc.requests(), 0, "nobody was asked before there was space");
    disk.order("free");
    disk.says("there is space again, going on", 1);
    disk.finish(&job);
}

#[test]
fn a_run_does_not_wait_for_space_that_its_own_logs_hold() {
    // Rows of about 45 MB. Seven WALs of 8 to 24 MB, segments and files do not fit beside each other.
    let job = job(83, 12, 7_000, &["--set", "fetch.first_byte_timeout=2m", "--batch-size", "2"]);
    let size = std::env::var("SKYFILL_SIZE").unwrap_or("128m".to_owned());
    let Some(disk) = SmallDisk::start(&job, &size, false) else { return };
    let Some(_) = disk.running.wait(Duration::from_secs(60)) else {
        panic!("it waits for ever: {}", disk.running.stderr());
    };
    disk.finish(&job);
}

#[test]
fn a_limit_on_file_sizes_is_a_full_disk_and_not_the_end() {
    let job = job(84, 6, 400, &["--batch-size", "1"]);
    let data = job.path("data");
    // A page of 64 KiB more than new queue files have.
    let running = limited(&job, &["--fsize=524288:unlimited"], &data);
    wait_until(&running, "the limit", || running.stderr().contains("the disk is full"));
    assert!(running.wait(Duration::from_millis(1_200)).is_none(), "{}", running.stderr());
    let pid = running.pid().to_string();
    let lifted =
        std::process::Command::new("prlimit").args(["--pid", &pid, "--fsize=unlimited"]).status();
    assert!(lifted.unwrap().success());
    let finished = running.finish(PATIENCE);
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    job.verdict(&data).assert_clean();
}

/// Its open descriptors.
fn descriptors(running: &Running) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", running.pid())).map_or(0, Iterator::count)
}

#[test]
fn few_descriptors_are_lived_with() {
    let job = job(85, 60, 20, &["--set", "fetch.host_concurrency=64", "--set", "retry.base=100ms"]);
    slow(&job, 200);
    let data = job.path("data");
    let finished = limited(&job, &["--nofile=64"], &data).finish(PATIENCE);
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    assert!(
        finished.stderr.contains("RLIMIT_NOFILE has room for fewer transfers"),
        "{finished:#?}"
    );
    job.verdict(&data).assert_clean();
    println!(
        "64 descriptors: exit code 0 after {:.1} s, 0 lost, 0 doubled, 0 torn",
        finished.seconds
    );
}

#[test]
fn descriptors_that_are_taken_away_are_waited_for() {
    // Repositories that want a file each.
    let job = job(
        90,
        30,
        60,
        &[
            "--set",
            "fetch.host_concurrency=64",
            "--set",
            "limits.spool_memory=0B",
            "--batch-size",
            "6",
        ],
    );
    slow(&job, 300);
    let data = job.path("data");
    let running = limited(&job, &["--nofile=1024"], &data);
    wait_until(&running, "work", || job.network.hosts.iter().any(|host| !host.log().is_empty()));
    // Nothing can be opened that is not open already.
    let limit = |files: usize| {
        let pid = running.pid().to_string();
        let nofile = format!("--nofile={files}:1024");
        let set = std::process::Command::new("prlimit").args(["--pid", &pid, &nofile]).status();
        assert!(set.unwrap().success());
    };
    limit(16);
    wait_until(&running, "the lack", || running.stderr().contains("no descriptor is left"));
    let before = running.usage().cpu_seconds();
    assert!(running.wait(Duration::from_secs(3)).is_none(), "{}", running.stderr());
    let used = running.usage().cpu_seconds() - before;
    assert!(used < 1.5, "{used} CPU-seconds in 3 s of waiting");
    let held = descriptors(&running);
    limit(1024);
    let finished = running.finish(PATIENCE);
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    let summary = finished.json();
    assert_eq!(summary["accounts"]["parked"], 0, "nobody is blamed: {summary}");
    job.verdict(&data).assert_clean();
    println!(
        "none of {held} descriptors given for 3 s: {used:.2} CPU-seconds, 0 lost, 0 doubled, 0 torn"
    );
}

#[test]
fn memory_that_cannot_be_had_ends_nothing_within_the_budget() {
    // Address space, not memory, is what RLIMIT_AS counts: threads' stacks and arenas are most of it.
    let job = job(86, 20, 2_000, &["--set", "limits.memory=64MiB"]);
    let data = job.path("data");
    let finished = limited(&job, &["--as=2147483648"], &data).finish(PATIENCE);
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    assert!(finished.usage.anonymous_peak_bytes < 128 << 20, "{:?}", finished.usage);
    job.verdict(&data).assert_clean();
}

#[test]
fn a_queue_that_somebody_holds_is_waited_for_without_spinning() {
    let long = number_from("SKYFILL_LONG", 0) > 0;
    for held in if long { &[100, 5_000, 60_000][..] } else { &[100, 5_000] } {
        let job = job(87, 6, 30, &["--batch-size", "2"]);
        slow(&job, 300);
        let data = job.path("data");
        let running = job.skyfill().spawn(&job.arguments(&data));
        let path = queue_path(&data, "post");
        wait_until(&running, "a queue", || {
            path.exists()
                && rusqlite::Connection::open(&path)
                    .is_ok_and(|it| it.prepare("SELECT * FROM queue").is_ok())
        });
        let holder = rusqlite::Connection::open(&path).unwrap();
        holder.busy_timeout(Duration::from_secs(10)).unwrap();
        holder.execute_batch("BEGIN IMMEDIATE").unwrap();
        let before = running.usage().cpu_seconds();
        let ended = running.wait(Duration::from_millis(*held));
        assert!(
            ended.is_none() || *held < 1_000,
            "it ended although it could not write: {ended:#?}"
        );
        let used = running.usage().cpu_seconds() - before;
        holder.execute_batch("ROLLBACK").unwrap();
        let finished = running.finish(PATIENCE);
        assert_eq!(finished.code, Some(0), "{finished:#?}");
        assert!(*held < 60_000 || finished.stderr.contains("holds the queue's write lock"));
        // A debug build's ordinary work is in it too.
        assert!(used < 2.5, "{used} CPU-seconds in {held} ms");
        job.verdict(&data).assert_clean();
    }
}

/// A data directory as a kill leaves it: with WALs that hold the newest rows.
fn killed(job: &Job, data: &Path) {
    let crash = job.skyfill().env("SKYFILL_CRASH_AT", "SegmentAppliedBeforeSettle:2");
    let crashed = crash.run(&job.arguments(data), PATIENCE);
    assert_eq!(crashed.signal, Some(6), "{crashed:#?}");
}

#[test]
fn a_wal_that_is_cut_or_gone_is_never_a_loss_of_what_was_settled_and_a_corrupt_file_is_named() {
    if cfg!(not(debug_assertions)) {
        return;
    }
    let job = job(88, 6, 30, &["--batch-size", "1"]);
    slow(&job, 200);
    let wal = |data: &Path, label: &str| {
        let mut path = queue_path(data, label).into_os_string();
        path.push("-wal");
        PathBuf::from(path)
    };
    // Nothing was settled yet, so the segments are still there and bring what a WAL has lost.
    for how in ["cut", "gone"] {
        let data = job.path(how);
        killed(&job, &data);
        let path = wal(&data, "like");
        let length = std::fs::metadata(&path).unwrap().len();
        assert!(length > 0);
        match how {
            "cut" => std::fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(length / 2)
                .unwrap(),
            _ => std::fs::remove_file(&path).unwrap(),
        }
        let finished = job.run(&data);
        assert_eq!(finished.code, Some(0), "{how}: {finished:#?}");
        job.verdict(&data).assert_clean();
    }
    let data = job.path("corrupt");
    assert_eq!(job.run(&data).code, Some(0));
    let path = queue_path(&data, "like");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[..16].copy_from_slice(b"not a database!!");
    std::fs::write(&path, &bytes).unwrap();
    let refused = job.run(&data);
    assert_eq!(refused.code, Some(74), "{refused:#?}");
    assert!(refused.stderr.contains("output_backfill_sync_like.db"), "{refused:#?}");
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "it was left as it was");
}

#[test]
fn a_log_that_nobody_reads_any_more_stops_nothing() {
    let job = job(89, 8, 30, &["--batch-size", "1"]);
    slow(&job, 150);
    let data = job.path("data");
    let command = job.command(&data);
    // Its stderr is a pipe whose reader ends after the first line, its stdout likewise.
    let script = r#"set -o pipefail; "$@" 2> >(head -n 1 >/dev/null) | head -c 1 >/dev/null; exit ${PIPESTATUS[0]}"#;
    let mut arguments = ["-c", script, "bash"].map(str::to_owned).to_vec();
    arguments.extend(command);
    let finished = Skyfill::new("bash").run(&arguments, PATIENCE);
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    job.verdict(&data).assert_clean();
}

/// `$1` image, `$2` mount point, `$3` orders, then the command: runs it on an ext4 of its own, which turns read-only under it when
/// `break` is ordered; checks that file system, and runs the command again.
const ON_A_DISK_THAT_BREAKS: &str = r#"
image=$1 disk=$2 orders=$3; shift 3
truncate -s 96M "$image" && mkfs.ext4 -q -F "$image" || exit 98
mount -o loop,errors=remount-ro "$image" "$disk" || exit 99
device=$(basename "$(findmnt -no SOURCE "$disk")")
( while [ ! -e "$orders/break" ] && [ ! -e "$orders/stop" ]; do sleep 0.02; done
  [ -e "$orders/stop" ] || { echo broken > "/sys/fs/ext4/$device/trigger_fs_error"; rm "$orders/break"; } ) &
"$@"
code=$?
findmnt -no OPTIONS "$disk" > "$orders/options"
touch "$orders/stop"; wait
umount "$disk" && fsck.ext4 -fy "$image" >/dev/null 2>&1
mount -o loop "$image" "$disk" || exit 97
"$@" >/dev/null; echo $? > "$orders/again"
cp -a "$disk/data" "$orders/data"
umount "$disk"
exit $code
"#;

#[test]
fn a_disk_that_turns_read_only_under_it_ends_it_by_name_and_the_next_run_goes_on() {
    let has_loops =
        Path::new("/dev/loop-control").exists() && Path::new("/sbin/mkfs.ext4").exists();
    if !rustix::process::geteuid().is_root() || !has_loops {
        println!("neither root nor loop devices here: a disk that turns read-only cannot be had");
        return;
    }
    let job = job(91, 40, 60, &["--batch-size", "2"]);
    slow(&job, 300);
    let (disk, orders) = (job.path("disk"), job.path("orders"));
    std::fs::create_dir_all(&disk).unwrap();
    std::fs::create_dir_all(&orders).unwrap();
    let mut command: Vec<String> =
        ["-m", "sh", "-c", ON_A_DISK_THAT_BREAKS, "sh"].map(str::to_owned).to_vec();
    let image = job.path("image");
    command.extend([&image, &disk, &orders].map(|path| path.to_str().unwrap().to_owned()));
    command.extend(job.command(&disk.join("data")));
    let running = Skyfill::new("unshare").spawn(&command);
    wait_until(&running, "work", || job.network.hosts.iter().any(|host| host.log().len() > 2));
    std::fs::write(orders.join("break"), "").unwrap();
    let finished = running.finish(PATIENCE);
    assert_eq!(finished.code, Some(74), "{finished:#?}");
    let options = std::fs::read_to_string(orders.join("options")).unwrap();
    assert!(options.split([',', '\n']).any(|it| it == "ro" || it == "emergency_ro"), "{options}");
    assert!(finished.stderr.contains(disk.join("data").to_str().unwrap()), "{finished:#?}");
    assert_eq!(std::fs::read_to_string(orders.join("again")).unwrap().trim(), "0");
    job.verdict(&orders.join("data")).assert_clean();
    println!("read-only under a run: exit code 74, the next run 0, 0 lost, 0 doubled, 0 torn");
}

#[test]
fn what_may_not_be_read_or_written_is_named_with_its_path() {
    if !rustix::process::geteuid().is_root() {
        println!("not root here: tests/config.rs tries what may not be read");
        return;
    }
    let job = job(92, 4, 10, &[]);
    let mode = |path: &Path, mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(path, mode).unwrap();
    };
    mode(job.folder.path(), 0o755);
    let (home, config) = (job.path("home"), job.path("skyfill.toml"));
    std::fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(65_534), Some(65_534)).unwrap();
    std::fs::write(&config, "").unwrap();
    let data = home.join("data");
    // Root may do everything, so somebody else does it.
    let nobody = |more: &[&str]| {
        let who = ["--reuid=65534", "--regid=65534", "--clear-groups"].map(str::to_owned);
        let more = more.iter().map(|it| (*it).to_owned());
        let command: Vec<String> = who.into_iter().chain(job.command(&data)).chain(more).collect();
        Skyfill::new("setpriv").run(&command, PATIENCE)
    };
    let finished = nobody(&["--config", config.to_str().unwrap()]);
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    let list = job.path("dids.txt");
    let mut tried = 0;
    for path in [
        &config,
        &list,
        &data.join("state.db"),
        &data.join("journal"),
        &data.join("lock"),
        &queue_path(&data, "like"),
        &data,
    ] {
        let before = std::fs::metadata(path).unwrap();
        mode(path, 0o000);
        let refused = nobody(&["--config", config.to_str().unwrap()]);
        mode(path, std::os::unix::fs::PermissionsExt::mode(&before.permissions()));
        assert!(matches!(refused.code, Some(77 | 78)), "{path:?}: {refused:#?}");
        assert!(refused.stderr.contains(path.to_str().unwrap()), "{path:?}: {refused:#?}");
        tried += 1;
    }
    assert_eq!(nobody(&[]).code, Some(0));
    job.verdict(&data).assert_clean();
    println!("{tried} paths without permission: exit code 77 or 78 with the path, nothing lost");
}

/// A library that shows a process another clock, from Debian's package; `tests/run` gets it.
fn faketime() -> Option<PathBuf> {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/faketime/usr/lib");
    let folders = [unpacked, "/usr/lib".into()];
    let machines = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten();
    let found = machines
        .flatten()
        .map(|machine| machine.path().join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.exists());
    if found.is_none() {
        println!("no libfaketime here: a real run under a jumping clock is left out");
    }
    found
}

#[test]
fn a_clock_that_jumps_or_stands_still_makes_no_storm_and_no_endless_wait() {
    const ACCOUNTS: usize = 24;
    let Some(library) = faketime() else { return };
    for (name, jumps) in [
        ("-1 h", &["-1h"][..]),
        ("+1 d", &["+1d"]),
        ("+10 y", &["+10y"]),
        ("stuck", &["2026-01-01 00:00:00"]),
        ("there and back", &["+10y", "-1h", "+1d", "+0"]),
    ] {
        // Every account fails once and waits for its retry, which the ledger keeps in wall time.
        let job = job(93, ACCOUNTS, 20, &["--set", "retry.base=2s", "--batch-size", "8"]);
        let faults = job.network.faults();
        for did in job.network.world().dids() {
            faults.script(Place::Repo, Target::Did(did), [Fault::status(404)], Then::Heal);
        }
        let (data, clock) = (job.path("data"), job.path("clock"));
        let show = |time: &str| {
            // The library may read at any moment.
            let next = clock.with_extension("next");
            std::fs::write(&next, format!("{time}\n")).unwrap();
            std::fs::rename(next, &clock).unwrap();
        };
        show("+0");
        let skyfill = job
            .skyfill()
            .env("LD_PRELOAD", library.to_str().unwrap())
            .env("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap())
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let running = skyfill.spawn(&job.arguments(&data));
        let asked = || job.network.hosts.iter().map(|host| host.log().len()).sum::<usize>();
        for (index, jump) in jumps.iter().enumerate() {
            wait_until(&running, "work", || asked() > 4 * (index + 1));
            show(jump);
        }
        let finished = running.finish(PATIENCE);
        assert_eq!(finished.code, Some(0), "{name}: {finished:#?}");
        assert_eq!(finished.json()["accounts"]["parked"], 0, "{name}");
        // Once for the fault, what that leaves open, and once for the repository.
        let requests = asked();
        assert!((2 * ACCOUNTS..=4 * ACCOUNTS).contains(&requests), "{name}: {requests} requests");
        assert!(finished.usage.cpu_seconds() < 20.0, "{name}: {:?}", finished.usage);
        job.verdict(&data).assert_clean();
        println!(
            "clock {name}: {requests} requests for {ACCOUNTS} accounts that fail once, {:.1} s, 0 lost, 0 doubled",
            finished.seconds
        );
    }
}

#[test]
fn waits_that_were_written_under_a_clock_far_ahead_end_with_the_next_start() {
    let Some(library) = faketime() else { return };
    let job = job(94, 6, 20, &[]);
    let missing = [Fault::status(404)];
    job.network.faults().script(Place::Repo, Target::Any, missing, Then::Repeat);
    let data = job.path("data");
    let ahead = job
        .skyfill()
        .env("LD_PRELOAD", library.to_str().unwrap())
        .env("FAKETIME", "+10y")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let waiting = [
        job.arguments(&data),
        ["--set", "retry.base=1h", "--set", "retry.max=1h"].map(str::to_owned).to_vec(),
    ]
    .concat();
    let running = ahead.spawn(&waiting);
    let state = data.join("state.db");
    wait_until(&running, "six waits", || {
        rusqlite::Connection::open(&state).is_ok_and(|ledger| {
            let select = "SELECT count(*) FROM accounts WHERE state = 4 AND due_ms > 1e3 * (unixepoch() + 9 * 365 * 86400)";
            ledger.query_row(select, [], |row| row.get::<_, i64>(0)).is_ok_and(|count| count == 6)
        })
    });
    running.kill_and_wait();
    job.network.faults().heal();
    assert_eq!(job.run(&data).code, Some(0));
    job.verdict(&data).assert_clean();
}
