//! Progress: how far, how fast, and when it will be done. One block on a terminal, a line a minute otherwise.
//!
//! The rates are those of the last two minutes; the remaining time is the scheduler's estimate, which knows every host.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use tokio::sync::watch;

use crate::clock::{Clock, Instant};
use crate::stages::scheduler::Progress;
use crate::store::ledger_lists::Counts;

/// Time over which the pace is measured.
const PACE_WINDOW: Duration = Duration::from_secs(120);

/// How often a sample is taken, and the block on a terminal is drawn.
const SAMPLE: Duration = Duration::from_millis(500);

/// How often a line is written where there is no terminal.
const LINE: Duration = Duration::from_secs(60);

/// Less time than this is no base for an estimate.
const BASE: Duration = Duration::from_secs(2);

/// Measures rates from what was decided when.
#[derive(Debug, Default)]
pub struct Meter {
    samples: VecDeque<(Instant, u64, u64)>,
}

impl Meter {
    /// At `now`, so many accounts and records were decided in this run.
    pub fn sample(&mut self, now: Instant, decided: u64, records: u64) {
        self.samples.push_back((now, decided, records));
        let is_old = |first: &(Instant, u64, u64)| now.duration_since(first.0) > PACE_WINDOW;
        while self.samples.len() > 2 && self.samples.front().is_some_and(is_old) {
            self.samples.pop_front();
        }
    }

    /// Accounts and records per second over the window; zero without a base.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "rates for people")]
    pub fn rates(&self) -> (f64, f64) {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else {
            return (0.0, 0.0);
        };
        let seconds = last.0.duration_since(first.0).as_secs_f64();
        if seconds < BASE.as_secs_f64() {
            return (0.0, 0.0);
        }
        let per_second = |from: u64, to: u64| to.saturating_sub(from) as f64 / seconds;
        (per_second(first.1, last.1), per_second(first.2, last.2))
    }
}

/// Shows progress on stderr until it is dropped; `waiting` says what everything waits for, if it does.
pub async fn show(
    clock: Clock,
    progress: watch::Receiver<Progress>,
    waiting: impl Fn() -> Option<String> + Send,
) {
    let is_terminal = std::io::stderr().is_terminal();
    let bar = if is_terminal { Some(bar()) } else { None };
    let _clear = bar.as_ref().map(ClearOnDrop);
    let (mut meter, mut last_line) = (Meter::default(), clock.now());
    loop {
        tokio::time::sleep(SAMPLE).await;
        let Progress { counts, run, estimate, .. } = *progress.borrow();
        let now = clock.now();
        meter.sample(now, run.done + run.parked, run.records);
        let text = line(&meter, &counts, estimate.remaining);
        let text = waiting().map_or(text.clone(), |what| format!("{text}, waiting: {what}"));
        match &bar {
            Some(bar) => {
                bar.set_length(counts.total());
                bar.set_position(counts.decided());
                bar.set_message(text);
            }
            None if now.duration_since(last_line) >= LINE => {
                last_line = now;
                // A closed stderr is no reason to stop working.
                let _unseen = writeln!(std::io::stderr(), "{text}");
            }
            None => {}
        }
    }
}

fn line(meter: &Meter, counts: &Counts, remaining: Option<Duration>) -> String {
    let (accounts, records) = meter.rates();
    let eta = match remaining {
        Some(remaining) => format!("done in about {}", HumanDuration(remaining)),
        None => "no estimate yet".to_owned(),
    };
    format!(
        "{} of {} accounts, {} parked, {accounts:.1} accounts/s, {records:.0} records/s, {eta}",
        HumanCount(counts.decided()),
        HumanCount(counts.total()),
        HumanCount(counts.parked)
    )
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("[{elapsed_precise}] {bar:30} {msg}");
    let bar = ProgressBar::new(0);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

struct ClearOnDrop<'b>(&'b ProgressBar);

impl Drop for ClearOnDrop<'_> {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rates_follow_the_last_minutes_and_a_line_says_when_it_will_be_done() {
        let (clock, mut meter) = (Clock::system(), Meter::default());
        let begun = clock.now();
        meter.sample(begun, 0, 0);
        assert_eq!(meter.rates(), (0.0, 0.0));
        for second in 1..=300 {
            meter.sample(begun + Duration::from_secs(second), second * 10, second * 1_000);
        }
        assert_eq!(meter.rates(), (10.0, 1_000.0));
        for second in 301..=600 {
            meter.sample(begun + Duration::from_secs(second), 3_000 + (second - 300), 0);
        }
        let counts = Counts { queued: 60, done: 900, parked: 40, ..Counts::default() };
        assert_eq!(
            line(&meter, &counts, Some(Duration::from_secs(60))),
            "940 of 1,000 accounts, 40 parked, 1.0 accounts/s, 0 records/s, done in about 60 seconds"
        );
        assert!(line(&meter, &counts, None).ends_with("no estimate yet"));
    }
}
