//! The sandbox of the unit, without systemd: the real binary does its whole job under the unit's system-call filter and its view
//! of the file system, and what the unit forbids is refused there.
//!
//! ```text
//!  in force here    SystemCallFilter, RestrictAddressFamilies, MemoryDenyWriteExecute, RestrictNamespaces, RestrictSUIDSGID,
//!                   RestrictRealtime, LockPersonality (as BPF programs) · NoNewPrivileges, no capabilities · ProtectSystem, ProtectHome,
//!                   PrivateTmp, PrivateDevices, ProtectProc, ProcSubset (as mounts) · LimitNOFILE, UMask, User, StateDirectoryMode
//!  only in systemd  PrivateUsers, DevicePolicy and the other limits of the control group, RemoveIPC
//! ```
//! The filter's groups are expanded by `systemd-analyze` from the unit's own words. This test file is its own helper: started again
//! with `SANDBOX_EXEC` in the environment it puts the filters in force and becomes that program. Without root, overlayfs or
//! systemd-analyze, one line says what is left out.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

mod support;

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use seccompiler::{BpfMap, TargetArch, apply_filter, compile_from_json};
use serde_json::{Value, json};
use support::judge::judge;
use support::network::Network;
use support::oracle::Options;
use support::proc::{Finished, Running, Signal, Skyfill};
use support::root::{Root, Unit, unit};
use support::world::{Records, Shape};

const PATIENCE: Duration = Duration::from_secs(90);
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// A user without any rights.
const NOBODY: u32 = 65_534;

/// Where the helper and its filters lie in the root.
const HELPER: &str = "/usr/bin/sandbox-helper";
const FILTERS: &str = "/usr/lib/sandbox-filters.json";

fn the_unit() -> Unit {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/skyfill.service");
    unit(&std::fs::read_to_string(path).unwrap())
}

/// System calls of one of systemd's groups, groups within it expanded; `None` without systemd-analyze.
fn group(name: &str) -> Option<BTreeSet<String>> {
    let output = Command::new("systemd-analyze").args(["syscall-filter", name]).output().ok()?;
    assert!(output.status.success(), "{name}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut calls = BTreeSet::new();
    for line in text.lines().filter(|line| line.starts_with(' ')) {
        match line.trim() {
            comment if comment.starts_with('#') => {}
            nested if nested.starts_with('@') => calls.extend(group(nested)?),
            call => drop(calls.insert(call.to_owned())),
        }
    }
    Some(calls)
}

/// What the unit's `SystemCallFilter` lets through.
fn allowed(unit: &Unit) -> Option<BTreeSet<String>> {
    let mut allowed = BTreeSet::new();
    for line in &unit["SystemCallFilter"] {
        let (names, is_denied) =
            line.strip_prefix('~').map_or((line.as_str(), false), |n| (n, true));
        for name in names.split(' ') {
            let Some(calls) = group(name) else {
                println!("systemd-analyze is missing: the sandbox is left out");
                return None;
            };
            if is_denied {
                allowed.retain(|call| !calls.contains(call));
            } else {
                allowed.extend(calls);
            }
        }
    }
    assert!(allowed.len() > 200 && allowed.contains("read") && !allowed.contains("chroot"));
    Some(allowed)
}

fn compiled(filters: &Value) -> Result<BpfMap, String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    compile_from_json(filters.to_string().as_bytes(), arch).map_err(|error| error.to_string())
}

/// A filter that lets everything through but `rules`, which end with `errno`.
fn denies(errno: u32, rules: &[Value]) -> Value {
    json!({ "mismatch_action": "allow", "match_action": { "errno": errno }, "filter": rules })
}

fn rule(call: &str, conditions: &[(u8, Value, u64)]) -> Value {
    let conditions: Vec<Value> = conditions
        .iter()
        .map(|(index, op, val)| json!({ "index": index, "type": "dword", "op": op, "val": val }))
        .collect();
    if conditions.is_empty() {
        return json!({ "syscall": call });
    }
    json!({ "syscall": call, "args": conditions })
}

/// Bits that must not all be set in an argument.
fn bits(call: &str, index: u8, mask: u64) -> Value {
    rule(call, &[(index, json!({ "masked_eq": mask }), mask)])
}

/// The unit's restrictions of system calls as filters; the strictest answer of all of them counts.
fn filters(unit: &Unit, allowed: &BTreeSet<String>) -> Value {
    // Names of other machines are not known on this one.
    let is_known =
        |call: &str| compiled(&json!({ "one": denies(EPERM, &[rule(call, &[])]) })).is_ok();
    let known: Vec<Value> =
        allowed.iter().filter(|call| is_known(call)).map(|call| rule(call, &[])).collect();
    assert!(known.len() > 150, "{}", known.len());
    let mut filters = json!({
        "system_call_filter":
            { "mismatch_action": { "errno": EPERM }, "match_action": "allow", "filter": known },
    });
    let families: Vec<(u8, Value, u64)> = unit["RestrictAddressFamilies"][0]
        .split(' ')
        .map(|family| match family {
            "AF_UNIX" => 1,
            "AF_INET" => 2,
            "AF_INET6" => 10,
            other => panic!("{other}"),
        })
        .map(|family| (0, json!("ne"), family))
        .collect();
    let (set_uid, set_gid, exec, write_exec) = (0o4000, 0o2000, 4, 6);
    let modes = [("fchmod", 1), ("fchmodat", 2), ("mkdirat", 2), ("openat", 3), ("mknodat", 2)];
    let special: Vec<Value> = modes
        .into_iter()
        .chain([("chmod", 1), ("mkdir", 1), ("open", 2), ("creat", 1)])
        .filter(|(call, _)| is_known(call))
        .flat_map(|(call, index)| [bits(call, index, set_uid), bits(call, index, set_gid)])
        .collect();
    let namespaces =
        [0x2_0000, 0x2_000_000, 0x4_000_000, 0x8_000_000, 0x10_000_000, 0x20_000_000, 0x40_000_000];
    let mut spaces: Vec<Value> = namespaces.iter().map(|flag| bits("clone", 0, *flag)).collect();
    spaces.extend([rule("unshare", &[]), rule("setns", &[])]);
    let realtime: Vec<Value> = [1, 2, 6]
        .iter()
        .map(|policy| rule("sched_setscheduler", &[(1, json!("eq"), *policy)]))
        .collect();
    filters["address_families"] = denies(EPERM, &[rule("socket", &families)]);
    filters["write_execute"] = denies(
        EPERM,
        &[bits("mmap", 2, write_exec), bits("mprotect", 2, exec), bits("pkey_mprotect", 2, exec)],
    );
    filters["set_ids"] = denies(EPERM, &special);
    filters["namespaces"] = denies(EPERM, &spaces);
    // Its flags lie in memory, where a filter cannot look: systemd answers as an old kernel does, and libc falls back to `clone`.
    filters["new_calls"] = denies(ENOSYS, &[rule("clone3", &[]), rule("openat2", &[])]);
    filters["realtime"] = denies(EPERM, &realtime);
    filters["personality"] = denies(EPERM, &[rule("personality", &[(0, json!("ne"), 0)])]);
    filters
}

/// The helper: see the header. As a test it has nothing to do.
#[test]
fn helper() {
    let Ok(words) = std::env::var("SANDBOX_EXEC") else { return };
    let words: Vec<String> = serde_json::from_str(&words).unwrap();
    let filters: Value = std::fs::read_to_string(FILTERS).unwrap().parse().unwrap();
    // The filter of calls comes last: it forbids what installs filters.
    let mut programs: Vec<_> = compiled(&filters).unwrap().into_iter().collect();
    programs.sort_by_key(|(name, _)| name == "system_call_filter");
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env_remove("SANDBOX_EXEC");
    for (_, program) in &programs {
        apply_filter(program).unwrap();
    }
    panic!("{words:?}: {}", command.exec());
}

/// A root whose file system looks as the unit wants it, with the binary and the helper in it.
struct Sandbox {
    root: Root,
    unit: Unit,
}

impl Sandbox {
    fn make(what: &str) -> Option<Self> {
        let unit = the_unit();
        let allowed = allowed(&unit)?;
        let root = Root::make(what)?;
        let copies = [(env!("CARGO_BIN_EXE_skyfill").to_owned(), "/usr/bin/skyfill")];
        let own = std::env::current_exe().unwrap().display().to_string();
        for (from, to) in copies.into_iter().chain([(own, HELPER)]) {
            std::fs::copy(from, root.path(to)).unwrap();
        }
        std::fs::write(root.path(FILTERS), filters(&unit, &allowed).to_string()).unwrap();
        let users = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/skyfill.sysusers");
        std::fs::copy(users, root.path("/usr/lib/sysusers.d/skyfill.conf")).unwrap();
        root.must(
            "systemd-sysusers skyfill.conf && mkdir -p /etc/skyfill /var/lib/skyfill /run/skyfill",
        );
        root.script(
            r#"
            mount -t proc -o hidepid=invisible,subset=pid proc "$1/proc"
            for folder in tmp var/tmp; do mount -t tmpfs -o mode=1777,nosuid tmpfs "$1/$folder"; done
            for folder in home root run/user; do
              mkdir -p "$1/$folder"; mount -t tmpfs -o mode=000,ro tmpfs "$1/$folder"
            done
            mount -t tmpfs -o mode=755,nosuid,noexec tmpfs "$1/dev"
            for device in null:3 zero:5 full:7 random:8 urandom:9; do
              mknod -m 666 "$1/dev/${device%:*}" c 1 "${device#*:}"
            done
            mkdir "$1/dev/shm"; mount -t tmpfs -o mode=1777 tmpfs "$1/dev/shm"
            for folder in var/lib/skyfill run/skyfill; do mount -t tmpfs tmpfs "$1/$folder"; done
            mount -o remount,ro "$1"
            mount -o remount,bind,ro "$1/shared"
            "#,
        );
        let owner = format!("{}:{}", unit["User"][0], unit["Group"][0]);
        for (key, folder) in
            [("StateDirectoryMode", "/var/lib/skyfill"), ("RuntimeDirectoryMode", "/run/skyfill")]
        {
            root.must(&format!("chown {owner} {folder} && chmod {} {folder}", unit[key][0]));
        }
        Some(Self { root, unit })
    }

    /// Starts `words` in it, with the filters in force unless `is_free`.
    fn start(&self, words: &[&str], is_free: bool) -> Running {
        if is_free {
            return self.root.start(&self.unit, words);
        }
        let exec = format!("SANDBOX_EXEC={}", json!(words));
        let helper = ["env", &exec, HELPER, "--exact", "helper", "--nocapture", "--test-threads=1"];
        self.root.start(&self.unit, &helper)
    }

    fn run(&self, words: &[&str], is_free: bool) -> Finished {
        self.start(words, is_free).finish(PATIENCE)
    }
}

fn network(seed: u64) -> Network {
    let shape = Shape { seed, accounts: 10, hosts: 3, records: Records::Fixed(60), odd: false };
    Network::generate(&shape)
}

/// Settings with which skyfill finds `network`, as `--set` wants them.
fn settings(network: &Network) -> Vec<String> {
    let plc = format!("identity.plc_url={}", network.flags()[1]);
    [
        "network.allow=127.0.0.0/8",
        "identity.requests_per_second=1000",
        "limits.disk_free=0B",
        "metrics.listen=127.0.0.1:0",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([plc])
    .collect()
}

#[test]
fn the_whole_job_is_done_in_the_sandbox() {
    let Some(sandbox) = Sandbox::make("the job in the sandbox") else { return };
    let network = network(81);
    let dids = network.world().dids();
    let list = |dids: &[String]| {
        std::fs::write(sandbox.root.shared().join("dids.txt"), dids.join("\n")).unwrap();
    };
    let sets: Vec<String> =
        settings(&network).into_iter().flat_map(|set| ["--set".to_owned(), set]).collect();
    let call = |command: &[&str]| -> Vec<String> {
        command.iter().map(|word| (*word).to_owned()).chain(sets.clone()).collect()
    };
    let words = |call: &[String]| call.iter().map(|word| (*word).clone()).collect::<Vec<_>>();
    let run = |call: Vec<String>| {
        let words = words(&call);
        sandbox.run(&words.iter().map(String::as_str).collect::<Vec<_>>(), false)
    };
    // One shot first.
    list(&dids[..4]);
    let backfill = call(&[
        "/usr/bin/skyfill",
        "backfill",
        "--dids-file",
        "/shared/dids.txt",
        "--data-dir",
        "/var/lib/skyfill",
    ]);
    run(backfill).expect_code(0);
    // Then the daemon over the same data: check, run, reload, stop.
    list(&dids[..7]);
    let files = ["--set", "source.files=/shared/dids.txt", "--data-dir", "/var/lib/skyfill"];
    let daemon_words = |command: &str| {
        let mut all = call(&["/usr/bin/skyfill", command]);
        all.extend(files.map(str::to_owned));
        all
    };
    run(daemon_words("check")).expect_code(0);
    let words = daemon_words("run");
    let daemon = sandbox.start(&words.iter().map(String::as_str).collect::<Vec<_>>(), false);
    // The list is not changed while it is read.
    sandbox.root.told("working: 7 accounts listed");
    let pid_status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    for line in
        ["Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"]
    {
        assert!(pid_status.contains(line), "{line} in {pid_status}");
    }
    list(&dids);
    daemon.signal(Signal::HUP);
    sandbox.root.told("reloaded: 10 accounts listed");
    let begun = Instant::now();
    loop {
        let status = sandbox
            .run(&["/usr/bin/skyfill", "status", "--json", "--data-dir", "/var/lib/skyfill"], true);
        if status.expect_code(0).json()["accounts"]["done"] == 10 {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{}", daemon.stderr());
    }
    daemon.signal(Signal::TERM);
    let ended = daemon.finish(PATIENCE).expect_code(0);
    assert!(ended.stderr.contains("serving metrics listen=127.0.0.1:"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("not permitted"), "{}", ended.stderr);
    let data = sandbox.root.copied("/var/lib/skyfill");
    judge(&data, network.expected(), &Options::default()).assert_clean();
}

#[test]
fn what_the_unit_forbids_is_refused_there() {
    let Some(sandbox) = Sandbox::make("the sandbox's refusals") else { return };
    let perl = |code: &str| vec!["perl".to_owned(), "-e".to_owned(), code.to_owned()];
    let shell = |code: &str| vec!["sh".to_owned(), "-c".to_owned(), code.to_owned()];
    let mut forbidden = vec![
        ("another personality", shell("setarch --addr-no-randomize true")),
        ("@resources", shell("taskset -c 0 true")),
        ("a netlink socket", perl("socket(my $s, 16, 3, 0) or die $!")),
        (
            "the set-group bit",
            shell("touch /var/lib/skyfill/file && chmod g+s /var/lib/skyfill/file"),
        ),
    ];
    if cfg!(target_arch = "x86_64") {
        forbidden.push((
            "memory to write and execute",
            perl("syscall(9, 0, 4096, 7, 34, -1, 0) == -1 and die $!"),
        ));
        forbidden.push((
            "memory made executable",
            perl("$a = syscall(9, 0, 4096, 3, 34, -1, 0); syscall(10, $a, 4096, 5) == 0 or die $!"),
        ));
    }
    for (what, words) in &forbidden {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let free = sandbox.run(&words, true);
        assert_eq!(free.code, Some(0), "{what} is possible without the filter: {free:?}");
        let held = sandbox.run(&words, false);
        assert!(held.code != Some(0) && held.stderr.contains("not permitted"), "{what}: {held:?}");
    }
    // What the mounts forbid, they forbid to everybody in there.
    for (what, code, answer) in [
        ("the system", "touch /usr/bin/file", "Read-only file system"),
        ("the configuration", "touch /etc/skyfill/file", "Read-only file system"),
        ("homes", "ls /home", "Permission denied"),
        ("other processes", "ls -d /proc/1", "No such file"),
        ("the kernel's settings", "cat /proc/sys/kernel/hostname", "No such file"),
        ("disks", "ls /dev/vda /dev/sda", "No such file"),
    ] {
        let held = sandbox.run(&["sh", "-c", code], true);
        assert!(held.code != Some(0) && held.stderr.contains(answer), "{what}: {held:?}");
    }
    let may = sandbox
        .run(&["sh", "-c", "touch /var/lib/skyfill/a /run/skyfill/a /tmp/a && ulimit -n"], false);
    assert!(may.code == Some(0) && may.stdout.contains("16384"), "{may:?}");
}

/// Names of the calls in `strace -c`'s table.
fn recorded(table: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(table).unwrap();
    let rows = text.lines().skip_while(|line| !line.starts_with("------")).skip(1);
    let rows = rows.take_while(|line| !line.starts_with("------"));
    rows.filter_map(|line| line.split_whitespace().last()).map(str::to_owned).collect()
}

#[test]
fn what_it_calls_under_load_is_within_the_filter() {
    let Some(allowed) = allowed(&the_unit()) else { return };
    if Command::new("strace").arg("-V").output().is_err() {
        println!("strace is missing: the record of system calls is left out");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let network = network(82);
    std::fs::write(path("dids.txt"), network.world().dids().join("\n")).unwrap();
    let sets: Vec<String> = settings(&network)
        .into_iter()
        .chain([format!("source.files={}", path("dids.txt"))])
        // Small, so that spools go to their files too.
        .chain(["limits.spool_memory=4KiB".to_owned()])
        .flat_map(|set| ["--set".to_owned(), set])
        .collect();
    let table = path("calls");
    let binary = env!("CARGO_BIN_EXE_skyfill");
    let mut words: Vec<String> =
        ["-f", "-c", "-o", &table, binary, "run", "--data-dir", &path("data")]
            .map(str::to_owned)
            .to_vec();
    words.extend(sets);
    // Not as root: what only root's SQLite does (giving files to their folder's owner) is not the daemon's.
    let traced = if rustix::process::geteuid().is_root() {
        for at in [folder.path(), Path::new(&path("dids.txt"))] {
            std::os::unix::fs::chown(at, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let nobody = NOBODY.to_string();
        let user = ["--reuid", &nobody, "--regid", &nobody, "--clear-groups", "strace"];
        words.splice(0..0, user.map(str::to_owned));
        Skyfill::new("setpriv").spawn(&words)
    } else {
        Skyfill::new("strace").spawn(&words)
    };
    // Root that asks for the status while the ledger is first opened can make its shared memory before the daemon does.
    assert!(traced.wait_for("ready, loading the lists", PATIENCE), "{}", traced.stderr());
    let skyfill = Skyfill::new(binary);
    let (data, begun) = (path("data"), Instant::now());
    let status = || {
        let seen = skyfill.run(&["status", "--json", "--data-dir", &data], PATIENCE);
        (seen.code == Some(0)).then(|| seen.json())
    };
    let pid = loop {
        let seen = status().filter(|status| status["accounts"]["done"] == 10);
        if let Some(pid) = seen.and_then(|status| status["pid"].as_i64()) {
            break rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        }
        assert!(begun.elapsed() < PATIENCE && traced.is_running(), "{}", traced.stderr());
    };
    rustix::process::kill_process(pid, Signal::HUP).unwrap();
    assert!(traced.wait_for("reloaded", PATIENCE), "{}", traced.stderr());
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    traced.finish(PATIENCE).expect_code(0);
    let recorded = recorded(Path::new(&table));
    assert!(recorded.len() > 30 && recorded.contains("pwrite64"), "{recorded:?}");
    let outside: Vec<&String> = recorded.difference(&allowed).collect();
    println!("{} calls recorded, all within {} allowed", recorded.len(), allowed.len());
    assert!(outside.is_empty(), "outside the filter: {outside:?}");
}
