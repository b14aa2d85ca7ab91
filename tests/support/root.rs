//! A root of its own: a mount namespace with an overlay of `/`, in which a package is installed and the daemon runs as its unit
//! says. Nothing in it touches the machine; it is gone with the last process in it. It needs root and overlayfs.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::proc::{Running, Skyfill};

/// Makes the root below `$1` and keeps the namespace until its input ends; `$2` is shared with the machine.
const MAKE: &str = r#"
mount -t tmpfs -o mode=0755 tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
mount -t proc proc "$1/root/proc"
mount --bind /dev "$1/root/dev"
mkdir -p "$1/root/shared"
mount --bind "$2" "$1/root/shared"
echo made
cat >/dev/null
"#;

/// See the header. Ends when it is dropped.
pub struct Root {
    holder: Child,
    at: tempfile::TempDir,
    shared: tempfile::TempDir,
    /// What the service manager would be told.
    pub notify: Receiver<String>,
}

/// Assignments of a unit file by key, in order.
pub type Unit = BTreeMap<String, Vec<String>>;

/// Reads a unit file.
pub fn unit(text: &str) -> Unit {
    let mut found = Unit::new();
    for line in text.lines().filter(|line| !line.starts_with(['#', '['])) {
        if let Some((key, value)) = line.split_once('=') {
            found.entry(key.to_owned()).or_default().push(value.to_owned());
        }
    }
    found
}

impl Root {
    /// `None`, and one line that says why, where it cannot be made.
    pub fn make(what: &str) -> Option<Self> {
        let (at, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        open_to_all(shared.path());
        let (paths, script) = ([at.path(), shared.path()], format!("set -e{MAKE}"));
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"])
            .args(paths)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line != "made\n" {
            let output = holder.wait_with_output().unwrap();
            let why = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            println!("no root of its own on this machine ({why}): {what} is left out");
            return None;
        }
        let socket = UnixDatagram::bind(shared.path().join("notify")).unwrap();
        open_to_all(&shared.path().join("notify"));
        socket.set_read_timeout(Some(Duration::from_secs(300))).unwrap();
        let (told, notify) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 8 << 10];
            while let Ok(length) = socket.recv(&mut buffer) {
                let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if told.send(message).is_err() {
                    return;
                }
            }
        });
        Some(Self { holder, at, shared, notify })
    }

    /// The machine's folder that is `/shared` in it.
    pub fn shared(&self) -> &Path {
        self.shared.path()
    }

    /// The root as the namespace sees it.
    pub fn top(&self) -> PathBuf {
        self.at.path().join("root")
    }

    /// Where the machine finds `path` of the root.
    pub fn path(&self, path: &str) -> PathBuf {
        let inside = format!("/proc/{}/root{}{path}", self.holder.id(), self.top().display());
        PathBuf::from(inside)
    }

    /// Copies a folder of the root to where the machine's programs may read it; SQLite does not take a path through `/proc`.
    pub fn copied(&self, folder: &str) -> PathBuf {
        let copy = self.shared().join("copied");
        let output = Command::new("cp").arg("-a").arg(self.path(folder)).arg(&copy).output();
        assert!(output.as_ref().unwrap().status.success(), "{output:?}");
        copy
    }

    fn enter(&self) -> Vec<String> {
        vec![format!("--mount=/proc/{}/ns/mnt", self.holder.id())]
    }

    /// Runs a shell script in the namespace, outside the root, with `$1` the root.
    pub fn script(&self, script: &str) {
        let output = Command::new("nsenter")
            .args(self.enter())
            .args(["sh", "-ec", script, "sh"])
            .arg(self.top())
            .output()
            .unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
    }

    /// Runs a shell script in the root, as root.
    pub fn shell(&self, script: &str) -> Output {
        let inside = ["chroot".to_owned(), self.top().display().to_string()];
        let words = ["sh", "-c", script].map(str::to_owned);
        let mut command = Command::new("nsenter");
        command.args(self.enter()).args(inside).args(words).env("NOTIFY_SOCKET", "/shared/notify");
        command.env("DEBIAN_FRONTEND", "noninteractive").output().unwrap()
    }

    /// The same; gives its output and fails if it did.
    pub fn must(&self, script: &str) -> String {
        let output = self.shell(script);
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr)
    }

    /// Makes the folders that `unit` asks the service manager for.
    pub fn make_folders(&self, unit: &Unit) {
        let owner = format!("-o {} -g {}", unit["User"][0], unit["Group"][0]);
        for (key, base) in [("StateDirectory", "/var/lib"), ("RuntimeDirectory", "/run")] {
            let mode = &unit[&format!("{key}Mode")][0];
            self.must(&format!("install -d {owner} -m {mode} {base}/{}", unit[key][0]));
        }
    }

    /// Starts `words` in the root as `unit` would: its user, without capabilities or new privileges, its mask and its limit of
    /// files.
    pub fn start(&self, unit: &Unit, words: &[&str]) -> Running {
        let (user, group) = (&unit["User"][0], &unit["Group"][0]);
        let mut all = self.enter();
        all.extend(["chroot".to_owned(), self.top().display().to_string()]);
        all.extend(["prlimit".to_owned(), format!("--nofile={}", unit["LimitNOFILE"][0])]);
        all.extend(
            ["setpriv", "--reuid", user, "--regid", group, "--init-groups"].map(str::to_owned),
        );
        all.extend(["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"].map(str::to_owned));
        let masked = format!("umask {}; exec \"$@\"", unit["UMask"][0]);
        all.extend(["sh", "-c", &masked, "sh"].map(str::to_owned));
        all.extend(words.iter().map(|word| (*word).to_owned()));
        Skyfill::new("nsenter").env("NOTIFY_SOCKET", "/shared/notify").spawn(&all)
    }

    /// Waits for a message to the service manager that holds `text`.
    pub fn told(&self, text: &str) -> String {
        loop {
            let message = self.notify.recv_timeout(Duration::from_secs(60));
            let message = message.unwrap_or_else(|_| panic!("nobody was told {text}"));
            if message.contains(text) {
                return message;
            }
        }
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // The end of its input ends it.
        if let Some(mut input) = self.holder.stdin.take() {
            let _closed = input.flush();
        }
        let _ended = self.holder.wait();
    }
}

fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
}
