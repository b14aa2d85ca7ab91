//! The systemd files: what the unit restricts, that the commands in it exist, and systemd's own score of it.
//!
//! With `systemd-analyze` on the machine the unit is parsed and scored by systemd itself; without it one line says so, and the
//! directives are checked here all the same.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Exposure in tenths that systemd 252 must not find exceeded: the unit scores 1.1.
const THRESHOLD: &str = "--threshold=12";

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name)
}

/// Every assignment of a unit file by key, in order.
fn directives(name: &str) -> BTreeMap<String, Vec<String>> {
    let text = std::fs::read_to_string(file(name)).unwrap();
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        let is_other = line.is_empty() || line.starts_with('#') || line.starts_with('[');
        if is_other {
            continue;
        }
        let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{name}: {line}"));
        found.entry(key.to_owned()).or_default().push(value.to_owned());
    }
    found
}

fn skyfill(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_skyfill")).args(arguments).output().unwrap()
}

fn analyze(arguments: &[&str]) -> Option<Output> {
    match Command::new("systemd-analyze").args(arguments).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!(
                "systemd-analyze is missing: install systemd to have the unit parsed and scored"
            );
            None
        }
        Err(error) => panic!("systemd-analyze: {error}"),
    }
}

#[test]
fn the_unit_restricts_what_a_network_client_does_not_need() {
    let unit = directives("skyfill.service");
    let is = |key: &str, value: &str| {
        assert_eq!(unit.get(key).map(Vec::as_slice), Some(&[value.to_owned()][..]), "{key}");
    };
    is("Type", "notify");
    is("User", "skyfill");
    is("WatchdogSec", "60");
    is("Restart", "on-failure");
    is("RestartPreventExitStatus", "2 78");
    is("StateDirectoryMode", "2750");
    is("UMask", "0007");
    is("CapabilityBoundingSet", "");
    is("AmbientCapabilities", "");
    is("ProtectSystem", "strict");
    is("ProcSubset", "pid");
    is("ProtectProc", "invisible");
    is("DevicePolicy", "closed");
    is("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX");
    is("SystemCallArchitectures", "native");
    for key in [
        "NoNewPrivileges",
        "ProtectHome",
        "PrivateTmp",
        "PrivateDevices",
        "RemoveIPC",
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectControlGroups",
        "ProtectClock",
        "ProtectHostname",
        "LockPersonality",
        "MemoryDenyWriteExecute",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "RestrictNamespaces",
        "PrivateUsers",
        "PrivateMounts",
    ] {
        is(key, "yes");
    }
    assert_eq!(unit["SystemCallFilter"], ["@system-service", "~@privileged @resources"]);
    let drain_seconds = 30;
    assert!(unit["TimeoutStopSec"][0].parse::<u64>().unwrap() > drain_seconds);
}

#[test]
fn the_commands_in_the_unit_exist_with_their_flags() {
    let unit = directives("skyfill.service");
    let commands =
        ["ExecStartPre", "ExecStart", "ExecReload"].map(|key| unit[key].clone()).concat();
    assert_eq!(commands.len(), 4);
    let ours: Vec<&String> =
        commands.iter().filter(|line| line.starts_with("/usr/bin/skyfill ")).collect();
    assert_eq!(ours.len(), 3);
    for line in ours {
        let words: Vec<&str> = line.split(' ').skip(1).collect();
        let help = skyfill(&[words[0], "--help"]);
        let help = String::from_utf8(help.stdout).unwrap();
        for flag in words.iter().filter(|word| word.starts_with("--")) {
            assert!(help.contains(flag), "{line}: {flag} in {help}");
        }
        // A configuration that is not there is refused as such, so everything before it was understood.
        let mut words = words.clone();
        *words.last_mut().unwrap() = "/nonexistent/skyfill.toml";
        let refused = skyfill(&words);
        assert_eq!(refused.status.code(), Some(78), "{line}: {refused:?}");
    }
    assert!(commands.contains(&"/bin/kill -HUP $MAINPID".to_owned()));
}

#[test]
fn the_shipped_configuration_fits_the_unit() {
    let unit = directives("skyfill.service");
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/skyfill.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let state = format!("data_dir = \"/var/lib/{}\"", unit["StateDirectory"][0]);
    assert!(text.contains(&state), "{state}");
    let checked = skyfill(&["check", "--no-environment", "--config", config.to_str().unwrap()]);
    assert!(checked.status.success(), "{checked:?}");
}

#[test]
fn the_user_has_no_shell_and_the_drop_in_denies_private_networks() {
    let users = std::fs::read_to_string(file("skyfill.sysusers")).unwrap();
    let line = users.lines().find(|line| line.starts_with("u ")).unwrap();
    assert!(line.starts_with("u skyfill - ") && !line.contains("/bin/"), "{line}");
    let denied = directives("egress.conf")["IPAddressDeny"].join(" ");
    for network in
        ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "link-local"]
    {
        assert!(denied.split(' ').any(|word| word == network), "{network}");
    }
    assert!(!denied.contains("127."), "a local resolver and the metrics endpoint stay reachable");
}

#[test]
fn systemd_parses_the_unit_and_finds_it_tight() {
    let unit = file("skyfill.service");
    let unit = unit.to_str().unwrap();
    let Some(scored) = analyze(&["security", "--offline=true", THRESHOLD, unit]) else { return };
    let report = String::from_utf8_lossy(&scored.stdout).into_owned();
    assert!(scored.status.success(), "{report}{}", String::from_utf8_lossy(&scored.stderr));
    println!("{}", report.lines().last().unwrap_or_default());
    // It must be able to fail: a unit without its restrictions does.
    let folder = tempfile::tempdir().unwrap();
    let open = folder.path().join("skyfill.service");
    let text = std::fs::read_to_string(unit).unwrap();
    std::fs::write(&open, text.replace("SystemCallFilter", "#").replace("Protect", "#")).unwrap();
    let scored =
        analyze(&["security", "--offline=true", THRESHOLD, open.to_str().unwrap()]).unwrap();
    assert!(!scored.status.success());
    // The unit with this machine's binary and some man page: then nothing is left to complain of.
    let verified = folder.path().join("verified").join("skyfill.service");
    std::fs::create_dir(verified.parent().unwrap()).unwrap();
    let text = text
        .replace("/usr/bin/skyfill", env!("CARGO_BIN_EXE_skyfill"))
        .replace("Documentation=man:skyfill(1)\n", "");
    std::fs::write(&verified, text).unwrap();
    let output = analyze(&["verify", "--man=no", verified.to_str().unwrap()]).unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    let about_us: Vec<&str> =
        complaints.lines().filter(|line| line.contains("skyfill.service")).collect();
    assert!(about_us.is_empty(), "{about_us:#?}");
}
