//! One run as a child process, measured from outside and by its own word.
//!
//! ```text
//!  wall time     from before it is started until the kernel says that it has ended
//!  CPU           user and system of all its threads, from /proc/PID/stat of the dead child, 10 ms steps
//!  peak memory   VmHWM, the kernel's own high-water mark of resident memory: read every 20 ms, and by the child when its
//!                work is over; the larger one
//! ```

use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

/// Clock ticks a second in `/proc/PID/stat`: fixed at 100 for user space on Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Between two looks at the child's memory.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Bytes of what a child prints that are kept: its result is a line, its log is told from the end.
const PRINTED_BYTES_MAX: usize = 64 << 10;

/// What a child took.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Its exit code, or 128 and the signal that ended it.
    pub code: i32,
    /// The end of its standard output.
    pub stdout: String,
    /// The end of its log.
    pub stderr: String,
    /// Wall time, seconds.
    pub seconds: f64,
    /// CPU in user mode, seconds.
    pub user_seconds: f64,
    /// CPU in the kernel, seconds.
    pub system_seconds: f64,
    /// Highest VmHWM that was seen, bytes.
    pub peak_bytes: u64,
}

/// Runs `command` to its end; asked to stop, it passes that on and waits all the same.
///
/// # Errors
/// The system's, if the child cannot be started or waited for.
pub async fn measure(
    command: &mut Command,
    clock: &Clock,
    stop: &CancellationToken,
) -> io::Result<Measured> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let begun = clock.now();
    let mut child = command.spawn()?;
    let pid = Pid::from_child(&child);
    let (stdout, stderr) = (read_end(child.stdout.take()), read_end(child.stderr.take()));
    let at = clock.clone();
    let mut ending = tokio::task::spawn_blocking(move || {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        // It stays a zombie: only a dead child's CPU is all of its CPU.
        while matches!(waitid(WaitId::Pid(pid), options), Err(rustix::io::Errno::INTR)) {}
        at.now()
    });
    let (mut peak_bytes, mut has_stopped) = (0, false);
    let ended = loop {
        tokio::select! {
            ended = &mut ending => break ended.map_err(io::Error::other)?,
            () = tokio::time::sleep(LOOK_EVERY) => {
                peak_bytes = peak_bytes.max(peak_memory_bytes(&pid.to_string()).unwrap_or(0));
            }
            () = stop.cancelled(), if !has_stopped => {
                has_stopped = true;
                let _gone = kill_process(pid, Signal::TERM);
            }
        }
    };
    let (user_seconds, system_seconds) = cpu_seconds(pid).unwrap_or_default();
    let code = reap(&mut child)?;
    Ok(Measured {
        code,
        stdout: stdout.await.unwrap_or_default(),
        stderr: stderr.await.unwrap_or_default(),
        seconds: ended.duration_since(begun).as_secs_f64(),
        user_seconds,
        system_seconds,
        peak_bytes,
    })
}

fn reap(child: &mut Child) -> io::Result<i32> {
    let status = child.wait()?;
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

/// Reads to the end, and keeps the last of it.
fn read_end(from: Option<impl Read + Send + 'static>) -> tokio::task::JoinHandle<String> {
    tokio::task::spawn_blocking(move || {
        let (mut kept, mut piece) = (Vec::new(), [0; 4_096]);
        let Some(mut from) = from else { return String::new() };
        while let Ok(count) = from.read(&mut piece)
            && count > 0
        {
            kept.extend_from_slice(&piece[..count]);
            let excess = kept.len().saturating_sub(PRINTED_BYTES_MAX);
            kept.drain(..excess);
        }
        String::from_utf8_lossy(&kept).into_owned()
    })
}

/// Highest resident memory so far of process `pid` (`self` for this one), bytes.
#[must_use]
pub fn peak_memory_bytes(pid: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kibibytes << 10)
}

/// User and system time of all threads, those that have ended too.
fn cpu_seconds(pid: Pid) -> Option<(f64, f64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, so count from its end: state is field 3, user time 14, system time 15.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user / TICKS_PER_SECOND, system / TICKS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_is_measured_to_its_end_and_its_failure_is_kept() {
        let mut command = Command::new("sh");
        let script =
            "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo out; echo broken >&2; exit 7";
        command.args(["-c", script]);
        let stop = CancellationToken::new();
        let measured = measure(&mut command, &Clock::system(), &stop).await.unwrap();
        assert_eq!((measured.code, measured.stdout.as_str()), (7, "out\n"));
        assert_eq!(measured.stderr, "broken\n");
        let cpu = measured.user_seconds + measured.system_seconds;
        assert!(cpu > 0.0 && measured.seconds > 0.0 && measured.peak_bytes > 0, "{measured:?}");
        stop.cancel();
        let mut command = Command::new("sleep");
        let stopped = measure(command.arg("1000"), &Clock::system(), &stop).await.unwrap();
        assert_eq!(stopped.code, 128 + 15);
        let nowhere = measure(&mut Command::new("/nowhere"), &Clock::system(), &stop).await;
        assert!(nowhere.is_err());
        assert!(peak_memory_bytes("self").unwrap() > 1 << 20);
    }
}
