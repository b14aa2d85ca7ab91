//! Pace by address: however many names lead to one machine, it is asked no faster than
//! `fetch.address_requests_per_second`. One IPv4 address is one machine, and so is one IPv6 /64.
//!
//! Requests to an address are evenly spaced, without bursts. A name with several addresses takes a place at all of them,
//! because nobody knows which one the connection will use. The table is bounded: an address whose place is free again is the
//! same as one never seen, so it can be forgotten.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::clock::Instant;

/// Addresses remembered. At most `fetch.concurrency` requests wait at once, so far fewer are ever busy.
const ADDRESSES_MAX: usize = 4_096;

/// When each address may be asked next.
#[derive(Debug)]
pub struct AddressPace {
    interval: Duration,
    next_free: HashMap<IpAddr, Instant>,
}

impl AddressPace {
    /// A pace of at most `requests_per_second` (above 0).
    #[must_use]
    pub fn new(requests_per_second: f64) -> Self {
        let interval = Duration::try_from_secs_f64(1.0 / requests_per_second);
        // A rate so small that it has no interval is once a day.
        let interval = interval.unwrap_or(Duration::from_secs(86_400));
        // Rounded up, or nine intervals of 1/9 s would be less than a second.
        let interval = interval + Duration::from_nanos(1);
        Self { interval, next_free: HashMap::new() }
    }

    /// Takes the next place at all `addresses` and says how long to wait for it.
    pub fn reserve(&mut self, addresses: &[IpAddr], now: Instant) -> Duration {
        let blocks: Vec<IpAddr> = addresses.iter().map(|address| block(*address)).collect();
        let places = blocks.iter().filter_map(|block| self.next_free.get(block));
        let place = places.copied().max().unwrap_or(now).max(now);
        for block in blocks {
            self.make_room(now);
            self.next_free.insert(block, place + self.interval);
        }
        place - now
    }

    /// Forgets what is free again; if all are busy, the one that is free next.
    fn make_room(&mut self, now: Instant) {
        if self.next_free.len() < ADDRESSES_MAX {
            return;
        }
        self.next_free.retain(|_, free| *free > now);
        if self.next_free.len() >= ADDRESSES_MAX {
            let next =
                self.next_free.iter().min_by_key(|(_, free)| **free).map(|(block, _)| *block);
            if let Some(block) = next {
                self.next_free.remove(&block);
            }
        }
    }
}

/// What counts as one machine.
fn block(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn one_machine_is_asked_evenly_whatever_its_names_and_others_do_not_wait() {
        let (mut pace, now) = (AddressPace::new(100.0), Clock::system().now());
        let waits: Vec<u128> =
            (0..4).map(|_| pace.reserve(&ips(&["9.9.9.9"]), now).as_millis()).collect();
        assert_eq!(waits, [0, 10, 20, 30]);
        assert_eq!(pace.reserve(&ips(&["9.9.9.8"]), now), Duration::ZERO);
        assert_eq!(pace.reserve(&ips(&["::ffff:9.9.9.9"]), now).as_millis(), 40);
        assert_eq!(pace.reserve(&ips(&["2606::1"]), now), Duration::ZERO);
        assert_eq!(pace.reserve(&ips(&["2606::ffff:1"]), now).as_millis(), 10, "one /64");
        assert_eq!(pace.reserve(&ips(&["2606:0:0:1::1"]), now), Duration::ZERO, "the next /64");
        let later = now + Duration::from_secs(1);
        assert_eq!(pace.reserve(&ips(&["9.9.9.9"]), later), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn no_second_holds_more_than_the_rate() {
        let (mut pace, start) = (AddressPace::new(9.0), Clock::system().now());
        let mut sent = Vec::new();
        for request in 0..200_u64 {
            let now = start + Duration::from_millis(request * 7);
            sent.push(now + pace.reserve(&ips(&["9.9.9.9"]), now));
        }
        for (at, first) in sent.iter().enumerate() {
            let within = sent[at..].iter().filter(|s| **s < *first + Duration::from_secs(1));
            assert!(within.count() <= 9);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_takes_a_place_at_each_of_its_addresses() {
        let (mut pace, now) = (AddressPace::new(100.0), Clock::system().now());
        pace.reserve(&ips(&["9.9.9.9"]), now);
        pace.reserve(&ips(&["9.9.9.9"]), now);
        assert_eq!(pace.reserve(&ips(&["9.9.9.8", "9.9.9.9"]), now).as_millis(), 20);
        assert_eq!(pace.reserve(&ips(&["9.9.9.8"]), now).as_millis(), 30);
        assert_eq!(pace.reserve(&[], now), Duration::ZERO, "all exempt");
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_stays_bounded_and_keeps_the_busy() {
        let (mut pace, mut now) = (AddressPace::new(1.0), Clock::system().now());
        pace.reserve(&ips(&["9.9.9.9"]), now + Duration::from_secs(30));
        for number in 0..10_000_u32 {
            now += Duration::from_millis(1);
            pace.reserve(&[IpAddr::V4((0x0b00_0000 + number).into())], now);
            assert!(pace.next_free.len() <= ADDRESSES_MAX);
        }
        assert!(pace.reserve(&ips(&["9.9.9.9"]), now) > Duration::from_secs(20));
        let mut full = AddressPace::new(0.000_001);
        for number in 0..4_500_u32 {
            full.reserve(&[IpAddr::V4((0x0b00_0000 + number).into())], now);
        }
        assert!(full.next_free.len() <= ADDRESSES_MAX);
    }
}
