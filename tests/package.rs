//! The Debian package: what is in it, and its whole life in a root of its own: installed, started by hand exactly as its unit
//! says, upgraded with an edited configuration, purged with data left behind.
//!
//! Packs whatever binary this test was built with. Without cargo-deb (`tests/run` installs it), dpkg or root, one line says what is
//! left out.
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
use std::process::{Command, Output};
use std::time::Duration;

use support::judge::judge;
use support::network::Network;
use support::oracle::Options;
use support::proc::Signal;
use support::root::{Root, unit};
use support::world::{Records, Shape};

const PATIENCE: Duration = Duration::from_secs(60);

/// Packs the binary of this build.
fn package(folder: &Path) -> Option<PathBuf> {
    support::package::pack(env!("CARGO_BIN_EXE_skyfill"), folder)
}

fn dpkg_deb(arguments: &[&str], package: &Path) -> String {
    let output = Command::new("dpkg-deb").args(arguments).arg(package).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn it_holds_what_a_debian_system_expects_where_it_expects_it() {
    let folder = tempfile::tempdir().unwrap();
    let Some(package) = package(folder.path()) else { return };
    let listed = dpkg_deb(&["--contents"], &package);
    let files: Vec<(&str, &str)> = listed
        .lines()
        .filter(|line| line.starts_with('-'))
        .map(|line| (&line[..10], line.rsplit(' ').next().unwrap()))
        .collect();
    for (mode, path) in [
        ("-rwxr-xr-x", "./usr/bin/skyfill"),
        ("-rw-r--r--", "./usr/lib/systemd/system/skyfill.service"),
        ("-rw-r--r--", "./usr/lib/sysusers.d/skyfill.conf"),
        ("-rw-r--r--", "./etc/skyfill/skyfill.toml"),
        ("-rw-r--r--", "./etc/skyfill/dids.txt"),
        ("-rw-r--r--", "./usr/share/man/man1/skyfill.1.gz"),
        ("-rw-r--r--", "./usr/share/bash-completion/completions/skyfill"),
        ("-rw-r--r--", "./usr/share/zsh/vendor-completions/_skyfill"),
        ("-rw-r--r--", "./usr/share/fish/vendor_completions.d/skyfill.fish"),
        ("-rw-r--r--", "./usr/share/doc/skyfill/README.md"),
        ("-rw-r--r--", "./usr/share/doc/skyfill/CHANGELOG.md"),
        ("-rw-r--r--", "./usr/share/doc/skyfill/alerts.yml"),
        ("-rw-r--r--", "./usr/share/doc/skyfill/dashboard.json"),
        ("-rw-r--r--", "./usr/share/doc/skyfill/egress.conf"),
    ] {
        assert!(files.contains(&(mode, path)), "{mode} {path} in {listed}");
    }
    assert!(!listed.contains("/var/lib/skyfill"), "the unit makes it, with its modes: {listed}");
    let control = |name: &str| {
        let output = Command::new("dpkg-deb").arg("-I").arg(&package).arg(name).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(
        control("conffiles").lines().collect::<Vec<_>>(),
        ["/etc/skyfill/skyfill.toml", "/etc/skyfill/dids.txt"]
    );
    let scripts = ["postinst", "prerm", "postrm"].map(control).concat();
    assert!(scripts.contains("systemd-sysusers skyfill.conf"), "{scripts}");
    for word in ["enable ", "systemctl start", "systemctl restart", "rm -r"] {
        assert!(!scripts.contains(word), "{word} in {scripts}");
    }
}

/// The configuration of a newcomer, three lines, and what makes the generated network stand in for the real one.
fn configuration(network: &Network) -> String {
    format!(
        "data_dir = \"/var/lib/skyfill\"\n[source]\nfiles = [\"/etc/skyfill/dids.txt\"]\n\
         [identity]\nplc_url = \"{}\"\nrequests_per_second = 1000\n[network]\nallow = [\"127.0.0.0/8\"]\n\
         [fetch]\nhost_requests_per_second = 1000\n[limits]\ndisk_free = \"0B\"\n[metrics]\nlisten = \"\"\n",
        network.flags()[1]
    )
}

/// Installs `package`, whatever this machine's own packages are.
fn install(root: &Root, package: &Path) -> Output {
    let name = package.file_name().unwrap().to_str().unwrap();
    std::fs::copy(package, root.shared().join(name)).unwrap();
    // Its dependency may be there without dpkg's knowledge, in a root that is a copy of some container.
    root.shell(&format!("dpkg --force-depends --force-confold -i /shared/{name}"))
}

/// The same package with a higher version and a changed default, as an upgrade brings it.
fn upgraded(package: &Path, folder: &Path) -> PathBuf {
    let (tree, next) = (folder.join("tree"), folder.join("next.deb"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    dpkg_deb_into(package, &tree);
    let control = tree.join("DEBIAN/control");
    let changed = std::fs::read_to_string(&control).unwrap().replace("0.1.0-1", "0.1.0-2");
    std::fs::write(&control, changed).unwrap();
    let shipped = tree.join("etc/skyfill/skyfill.toml");
    let changed =
        std::fs::read_to_string(&shipped).unwrap() + "\n# a new default of a new version\n";
    std::fs::write(&shipped, changed).unwrap();
    let built = Command::new("dpkg-deb")
        .args(["--root-owner-group", "-Znone", "--build", &text(&tree), &text(&next)])
        .output()
        .unwrap();
    assert!(built.status.success(), "{built:?}");
    next
}

fn dpkg_deb_into(package: &Path, tree: &Path) {
    let raw = Command::new("dpkg-deb").arg("-R").arg(package).arg(tree).output().unwrap();
    assert!(raw.status.success(), "{raw:?}");
}

#[test]
fn installed_it_runs_as_its_unit_says_and_leaves_nothing_but_data() {
    let folder = tempfile::tempdir().unwrap();
    let Some(root) = Root::make("the package's life") else { return };
    let Some(package) = package(folder.path()) else { return };
    let installed = install(&root, &package);
    assert!(installed.status.success(), "{installed:?}");
    // Neither enabled nor started, and as shipped it says what to do first.
    root.must("! ls /etc/systemd/system/*/skyfill.service 2>/dev/null && ! pgrep -u skyfill");
    let user = root.must("id -un skyfill && getent passwd skyfill");
    assert!(user.contains("nologin"), "{user}");
    let unit = unit(
        &std::fs::read_to_string(root.path("/usr/lib/systemd/system/skyfill.service")).unwrap(),
    );
    root.make_folders(&unit);
    let words = |key: &str, nth: usize| -> Vec<String> {
        unit[key][nth].split(' ').map(str::to_owned).collect()
    };
    let start = |key: &str| {
        let words = words(key, 0);
        root.start(&unit, &words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let shipped = start("ExecStartPre").finish(PATIENCE);
    assert!(shipped.code == Some(0) || shipped.stderr.contains("dids.txt"), "{shipped:?}");

    let shape = Shape { seed: 71, accounts: 8, hosts: 2, records: Records::Fixed(40), odd: false };
    let network = Network::generate(&shape);
    std::fs::write(root.path("/etc/skyfill/skyfill.toml"), configuration(&network)).unwrap();
    std::fs::write(root.path("/etc/skyfill/dids.txt"), network.world().dids().join("\n")).unwrap();
    start("ExecStartPre").finish(PATIENCE).expect_code(0);
    let daemon = start("ExecStart");
    root.told("READY=1");
    let status = "setpriv --reuid skyfill --regid skyfill --init-groups skyfill status --json --config /etc/skyfill/skyfill.toml";
    let begun = std::time::Instant::now();
    loop {
        let status: serde_json::Value = root.must(status).trim().parse().unwrap();
        if status["accounts"]["done"] == 8 {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{status}: {}", daemon.stderr());
    }
    let modes =
        root.must("cd /var/lib/skyfill && stat -c '%a %U:%G %n' . queue queue/*_post.db state.db");
    assert_eq!(
        modes.lines().collect::<Vec<_>>(),
        [
            "2750 skyfill:skyfill .",
            "2770 skyfill:skyfill queue",
            "660 skyfill:skyfill queue/output_backfill_sync_post.db",
            "600 skyfill:skyfill state.db"
        ]
    );

    // An upgrade beside the running daemon keeps what was edited.
    let next = install(&root, &upgraded(&package, folder.path()));
    assert!(next.status.success(), "{next:?}");
    let kept = std::fs::read_to_string(root.path("/etc/skyfill/skyfill.toml")).unwrap();
    assert_eq!(kept, configuration(&network));
    assert!(root.must("cat /etc/skyfill/skyfill.toml.dpkg-dist").contains("a new default"));
    assert!(root.must("dpkg-query -W -f '${Version}' skyfill").starts_with("0.1.0-2"));
    // ExecReload's second command, by hand.
    daemon.signal(Signal::HUP);
    root.told("reloaded: 8 accounts listed");
    daemon.signal(Signal::TERM);
    daemon.finish(PATIENCE).expect_code(0);
    let data = root.copied("/var/lib/skyfill");
    judge(&data, network.expected(), &Options::default()).assert_clean();

    purges(&root);
}

/// A removal keeps configuration and data, a purge only data, and says where they are.
fn purges(root: &Root) {
    root.must("dpkg -r skyfill");
    root.must("test -s /etc/skyfill/dids.txt && test -s /var/lib/skyfill/state.db && ! test -e /usr/bin/skyfill");
    let said = root.must("dpkg --purge skyfill");
    assert!(said.contains("/var/lib/skyfill is not empty and stays"), "{said}");
    root.must("test -s /var/lib/skyfill/state.db && ! test -e /etc/skyfill");
    root.must(
        "! test -e /usr/lib/systemd/system/skyfill.service && ! test -e /usr/share/doc/skyfill",
    );
    // Empty, it goes too.
    root.must("rm -r /var/lib/skyfill && mkdir /var/lib/skyfill");
    root.must("dpkg --force-depends -i /shared/next.deb && dpkg --purge skyfill");
    root.must("! test -e /var/lib/skyfill && ! test -e /etc/skyfill");
}
