//! The real binary as a child process: started, watched, signalled, killed and measured. Nothing here sleeps: every wait ends
//! with the event it waits for, or after the patience that was given.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitId, WaitIdOptions, kill_process, waitid};

pub use rustix::process::Signal;

/// Clock ticks a second in `/proc/PID/stat`: fixed at 100 for user space on Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Between two looks at the child's memory.
const SAMPLE_EVERY: Duration = Duration::from_millis(10);

/// How the binary is called. The test passes `env!("CARGO_BIN_EXE_skyfill")`; this module is also used where that is not set.
#[derive(Clone, Debug)]
pub struct Skyfill {
    binary: PathBuf,
    environment: Vec<(String, String)>,
}

/// What a finished process has used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    pub user_seconds: f64,
    pub system_seconds: f64,
    /// Peak of resident memory, as the kernel keeps it; what came in the last 10 ms may be missing.
    pub rss_peak_bytes: u64,
    /// Peak of anonymous resident memory, from a sample every 10 ms.
    pub anonymous_peak_bytes: u64,
}

impl Usage {
    pub fn cpu_seconds(&self) -> f64 {
        self.user_seconds + self.system_seconds
    }
}

/// A process that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub seconds: f64,
    pub usage: Usage,
}

impl Finished {
    /// Fails with the output unless it ended with `code`.
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// The JSON object on stdout.
    pub fn json(&self) -> serde_json::Value {
        self.stdout.trim().parse().unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

impl Skyfill {
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self { binary: binary.into(), environment: Vec::new() }
    }

    /// The same with one more environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn spawn<A: AsRef<str>>(&self, arguments: &[A]) -> Running {
        self.spawn_with_input(arguments, b"")
    }

    /// Starts it with `input` on its standard input.
    pub fn spawn_with_input<A: AsRef<str>>(&self, arguments: &[A], input: &[u8]) -> Running {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments.iter().map(AsRef::as_ref))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child =
            command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.binary.display()));
        let mut stdin = child.stdin.take().expect("stdin is piped");
        let input = input.to_vec();
        // A child that does not read its input must not stop the test.
        std::thread::spawn(move || stdin.write_all(&input));
        Running::watch(child)
    }

    /// Runs it to its end; kills it and fails if that takes longer than `patience`.
    pub fn run<A: AsRef<str>>(&self, arguments: &[A], patience: Duration) -> Finished {
        self.spawn(arguments).finish(patience)
    }
}

/// A process that was started, and perhaps has ended. Killed when dropped.
pub struct Running {
    pid: Pid,
    begun: Instant,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// Streams that have ended.
    ended: usize,
    /// Exit code and signal; from then on the process id may belong to somebody else.
    exit: Option<(Option<i32>, Option<i32>)>,
    exited_at: Option<Instant>,
    usage: Usage,
}

impl Running {
    fn watch(mut child: Child) -> Self {
        let pid = Pid::from_child(&child);
        let shared = Arc::new(Shared::default());
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        let copies = [Arc::clone(&shared), Arc::clone(&shared), Arc::clone(&shared)];
        let [for_stdout, for_stderr, for_samples] = copies;
        let waiting = Arc::clone(&shared);
        let threads = vec![
            std::thread::spawn(move || for_stdout.copy(stdout, |state| &mut state.stdout)),
            std::thread::spawn(move || for_stderr.copy(stderr, |state| &mut state.stderr)),
            std::thread::spawn(move || for_samples.sample(pid)),
            std::thread::spawn(move || waiting.reap(pid, child)),
        ];
        Self { pid, begun: Instant::now(), shared, threads }
    }

    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Sends a signal; says whether the process was still there.
    pub fn signal(&self, signal: Signal) -> bool {
        // Under the lock, so that the process cannot be reaped in between.
        let state = self.shared.lock();
        state.exit.is_none() && kill_process(self.pid, signal).is_ok()
    }

    /// SIGKILL; says whether the process was still there.
    pub fn kill(&self) -> bool {
        self.signal(Signal::KILL)
    }

    pub fn is_running(&self) -> bool {
        self.shared.lock().exit.is_none()
    }

    /// What it has written to stdout so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.shared.lock().stdout).into_owned()
    }

    /// What it has written to stderr so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.shared.lock().stderr).into_owned()
    }

    /// What it has used so far.
    pub fn usage(&self) -> Usage {
        let state = self.shared.lock();
        let (user_seconds, system_seconds) = match state.exit {
            None => cpu_seconds(self.pid).unwrap_or_default(),
            Some(_) => (state.usage.user_seconds, state.usage.system_seconds),
        };
        Usage { user_seconds, system_seconds, ..state.usage }
    }

    /// Waits until `text` stands in stdout or stderr; `false` if it ended or `patience` did before that.
    pub fn wait_for(&self, text: &str, patience: Duration) -> bool {
        let has = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(text);
        let is_decided = |state: &State| {
            has(&state.stdout) || has(&state.stderr) || (state.exit.is_some() && state.ended == 2)
        };
        let state = self.shared.wait(patience, is_decided);
        has(&state.stdout) || has(&state.stderr)
    }

    /// Waits for its end; `None` if it runs on after `patience`.
    pub fn wait(&self, patience: Duration) -> Option<Finished> {
        let state = self.shared.wait(patience, |state| state.exit.is_some() && state.ended == 2);
        let (code, signal) = state.exit.filter(|_| state.ended == 2)?;
        let lived = state.exited_at.map(|at| at.duration_since(self.begun));
        Some(Finished {
            code,
            signal,
            stdout: String::from_utf8_lossy(&state.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&state.stderr).into_owned(),
            seconds: lived.unwrap_or_default().as_secs_f64(),
            usage: state.usage,
        })
    }

    /// Waits for its end; kills it and fails if it runs on after `patience`.
    pub fn finish(self, patience: Duration) -> Finished {
        if let Some(finished) = self.wait(patience) {
            return finished;
        }
        self.kill();
        let finished = self.wait(Duration::from_secs(10));
        panic!("it was still running after {patience:?}: {finished:#?}");
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill_and_wait(self) -> Finished {
        self.kill();
        self.wait(Duration::from_secs(30)).expect("nothing survives SIGKILL")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread fails with the lock in hand")
    }

    /// The state once it satisfies `is_enough`, or after `patience`.
    fn wait(
        &self,
        patience: Duration,
        is_enough: impl Fn(&State) -> bool,
    ) -> MutexGuard<'_, State> {
        let until = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || is_enough(&state) {
                return state;
            }
            state = self.changed.wait_timeout(state, left).expect("as above").0;
        }
    }

    fn copy(&self, mut from: impl Read, to: impl Fn(&mut State) -> &mut Vec<u8>) {
        let mut buffer = [0; 16 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            to(&mut self.lock()).extend_from_slice(&buffer[..length]);
            self.changed.notify_all();
        }
        self.lock().ended += 1;
        self.changed.notify_all();
    }

    fn sample(&self, pid: Pid) {
        let mut state = self.lock();
        while state.exit.is_none() {
            let (peak, anonymous) = memory_bytes(pid);
            state.usage.rss_peak_bytes = state.usage.rss_peak_bytes.max(peak);
            state.usage.anonymous_peak_bytes = state.usage.anonymous_peak_bytes.max(anonymous);
            let until = Instant::now() + SAMPLE_EVERY;
            loop {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() || state.exit.is_some() {
                    break;
                }
                state = self.changed.wait_timeout(state, left).expect("as above").0;
            }
        }
    }

    /// Waits for the end without reaping, reads what only a dead child still has to say, then reaps.
    fn reap(&self, pid: Pid, mut child: Child) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while matches!(waitid(WaitId::Pid(pid), options), Err(rustix::io::Errno::INTR)) {}
        let exited_at = Instant::now();
        let (user_seconds, system_seconds) = cpu_seconds(pid).unwrap_or_default();
        let mut state = self.lock();
        let status = child.wait().expect("a dead child can be reaped");
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        state.usage = Usage { user_seconds, system_seconds, ..state.usage };
        state.exited_at = Some(exited_at);
        state.exit = Some((status.code(), signal));
        self.changed.notify_all();
    }
}

/// User and system time of all threads.
fn cpu_seconds(pid: Pid) -> Option<(f64, f64)> {
    let stat = std::fs::read_to_string(proc_path(pid, "stat")).ok()?;
    // The name in parentheses may hold anything, so count from its end: state is field 3, user time 14, system time 15.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user / TICKS_PER_SECOND, system / TICKS_PER_SECOND))
}

/// Peak of resident memory, and anonymous resident memory now; zeros for a process that is gone.
fn memory_bytes(pid: Pid) -> (u64, u64) {
    let status = std::fs::read_to_string(proc_path(pid, "status")).unwrap_or_default();
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1_024
    };
    (value("VmHWM:"), value("RssAnon:"))
}

fn proc_path(pid: Pid, file: &str) -> PathBuf {
    Path::new("/proc").join(pid.as_raw_nonzero().get().to_string()).join(file)
}
