//! When it will be done, told at 5%, 20% and 50% of the accounts, against when it was done: networks whose hosts differ by
//! factors of ten in pace, size and count, and whatever else can be what everything waits for.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use skyfill::stages::scheduler::estimate::{Bound, Estimate};
use skyfill::stages::scheduler::terms::PlanLimits;

use crate::books::Memory;
use crate::simulation::{BEGIN_MS, Behaviour, Reply, Simulation, limits};
use crate::{Duration, HOUR, Rng, SECOND, homes, policy};

/// Shares of the accounts at which it is asked.
const SHARES: [f64; 3] = [0.05, 0.2, 0.5];

/// How far off an answer may be.
const ERROR_MAX: f64 = 0.25;

/// A network and what its end waits for.
struct Shape {
    name: &'static str,
    homes: Vec<usize>,
    is_warm: bool,
    limits: PlanLimits,
    behaviour: Behaviour,
    /// Shares are of the time, not of the accounts: what binds could not be known before.
    by_time: Option<Duration>,
    /// What the end waits for when half is done.
    bound: fn(Bound) -> bool,
}

/// `counts[k]` accounts on host `k`, in a seeded order.
fn spread(counts: &[usize], seed: u64) -> Vec<usize> {
    let mut homes: Vec<usize> = counts
        .iter()
        .enumerate()
        .flat_map(|(host, count)| std::iter::repeat_n(host, *count))
        .collect();
    Rng::with_seed(seed).shuffle(&mut homes);
    homes
}

/// Hosts whose transfers take so many milliseconds, the last one's for all others.
fn transfers(milliseconds: &'static [u64]) -> Behaviour {
    Box::new(move |host, _, _| {
        let takes = milliseconds.get(host).or(milliseconds.last()).copied().unwrap_or(300);
        Reply::slow(Duration::from_millis(takes))
    })
}

/// Transfers of 1 to 3 s.
fn uneven() -> Behaviour {
    Box::new(|_, _, id| {
        let share = (id.0 as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 53;
        Reply::slow(Duration::from_millis(1_000 + share))
    })
}

/// Runs a shape to its end; gives what was told at each share, when, and when the end was.
fn run(shape: Shape) -> (Vec<(Duration, Estimate)>, Duration) {
    let total = shape.homes.len() as f64;
    let books = Memory::new(&shape.homes, policy(), shape.is_warm.then_some(BEGIN_MS));
    let mut simulation = Simulation::new(books, shape.homes, shape.limits, shape.behaviour);
    let told = RefCell::new(Vec::new());
    simulation.run(100 * HOUR, |simulation| {
        let (counts, _) = simulation.plan.counts();
        let share = match shape.by_time {
            Some(end) => simulation.now.as_secs_f64() / end.as_secs_f64(),
            None => (counts.done + counts.parked) as f64 / total,
        };
        let mut told = told.borrow_mut();
        if told.len() < SHARES.len() && share >= SHARES[told.len()] {
            told.push((simulation.now, simulation.plan.estimate()));
        }
        false
    });
    (told.into_inner(), simulation.now)
}

fn paced(host: f64, directory: f64) -> PlanLimits {
    let mut limits = limits(HOUR);
    limits.host.requests_per_second = host;
    limits.directory.requests_per_second = directory;
    limits
}

/// Serves 60 requests in each minute and refuses the others until the next one, as an edge does that tells nothing before.
fn windows() -> Behaviour {
    let used = Rc::new(Cell::new((0, 0)));
    Box::new(move |host, now, _| {
        if host != 0 {
            return Reply::good();
        }
        let minute = now.as_secs() / 60;
        let count = if used.get().0 == minute { used.get().1 + 1 } else { 1 };
        used.set((minute, count));
        let rest = 60 * SECOND * u32::try_from(minute + 1).unwrap() - now;
        if count > 60 { Reply::refused(Some(rest)) } else { Reply::good() }
    })
}

fn at_host(host: i64) -> impl Fn(Bound) -> bool {
    move |bound| bound == Bound::Host(host + 1)
}

fn shapes() -> Vec<Shape> {
    let shape = |name, homes, limits, behaviour, bound| Shape {
        name,
        homes,
        is_warm: true,
        limits,
        behaviour,
        by_time: None,
        bound,
    };
    let mut crowded = paced(9.0, 10.0);
    crowded.batch_size = 16;
    vec![
        shape(
            "counts by tens",
            spread(&[20_000, 2_000, 200, 20], 1),
            paced(9.0, 10.0),
            transfers(&[300]),
            |bound| at_host(0)(bound),
        ),
        shape(
            "the second is ten times slower",
            spread(&[10_000, 3_000, 1_000, 100], 2),
            paced(9.0, 10.0),
            transfers(&[300, 4_500, 450, 45]),
            |bound| at_host(1)(bound),
        ),
        shape(
            "sizes by tens: 0.03 s to 30 s a transfer",
            spread(&[9_000, 3_000, 1_000, 300], 3),
            paced(9.0, 10.0),
            transfers(&[30, 300, 3_000, 30_000]),
            |bound| at_host(3)(bound),
        ),
        Shape {
            is_warm: false,
            ..shape(
                "the directory",
                homes(20_000, 60, 4),
                paced(9.0, 10.0),
                transfers(&[300]),
                |bound| bound == Bound::Directory,
            )
        },
        Shape {
            is_warm: false,
            ..shape(
                "a fast directory, the largest host",
                homes(30_000, 200, 5),
                paced(9.0, 100.0),
                transfers(&[300]),
                |bound| at_host(0)(bound),
            )
        },
        Shape {
            is_warm: false,
            ..shape(
                "a fast directory, a slow host of a tenth",
                spread(&[9_000, 1_000], 6),
                paced(9.0, 50.0),
                transfers(&[100, 8_000]),
                |bound| at_host(1)(bound),
            )
        },
        shape("room for 16", homes(20_000, 60, 7), crowded, uneven(), |bound| {
            bound == Bound::Machine || at_host(0)(bound)
        }),
        Shape {
            by_time: Some(4_000 * SECOND),
            ..shape(
                "60 a minute, then refusals (of the time)",
                spread(&[4_000, 2_000, 500], 8),
                paced(9.0, 10.0),
                windows(),
                |bound| at_host(0)(bound),
            )
        },
        shape(
            "a host that never answers",
            spread(&[6_000, 300, 500], 9),
            paced(9.0, 10.0),
            Box::new(|host, _, _| if host == 1 { Reply::fault(SECOND) } else { Reply::good() }),
            |bound| at_host(1)(bound),
        ),
        shape(
            "one refusal that announces 330 s",
            spread(&[3_000, 600], 10),
            paced(9.0, 10.0),
            Box::new(|host, now, _| {
                let refuses = now > 5 * SECOND && now < 7 * SECOND;
                if host == 0 && refuses {
                    Reply::refused(Some(330 * SECOND))
                } else {
                    Reply::good()
                }
            }),
            |bound| at_host(0)(bound),
        ),
    ]
}

#[test]
fn the_end_is_told_within_a_quarter_after_a_twentieth_of_the_accounts() {
    let mut worst: f64 = 0.0;
    println!("{:45} {:>9}  told at 5%, 20%, 50% (error)", "network", "took");
    for shape in shapes() {
        let (name, bound) = (shape.name, shape.bound);
        let (told, end) = run(shape);
        let mut line = format!("{name:45} {:>8.0}s ", end.as_secs_f64());
        for (at, estimate) in &told {
            let left = (end - *at).as_secs_f64();
            let said = estimate.remaining.map_or(f64::NAN, |said| said.as_secs_f64());
            let error = said / left - 1.0;
            line += &format!(" {said:>7.0} of {left:>6.0} ({:+.1}%)", error * 100.0);
            worst = worst.max(if error.is_nan() { f64::INFINITY } else { error.abs() });
        }
        println!("{line}  {:?}", told[2].1.bound);
        assert_eq!(told.len(), SHARES.len());
        assert!(bound(told[2].1.bound), "{name}: {:?}", told[2].1.bound);
    }
    assert!(worst <= ERROR_MAX, "an estimate was {:.0}% off", worst * 100.0);
}
