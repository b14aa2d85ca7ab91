//! Changes: which keys differ between two configurations, and what a running daemon can make of each.
//!
//! ```text
//!  now      rates, limits of work, retries, lists, log level: in force with the reload
//!  restart  what threads, budgets, mailboxes and the network client are made from: in force after a restart, and said so
//!  fixed    where everything lies and listens, and for whom it works: refuses the whole reload
//! ```

use crate::config::settings::Settings;
use crate::config::written::short;

/// What a running daemon makes of a changed key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is in force with the reload.
    Now,
    /// It is in force after a restart.
    Restart,
    /// It refuses the reload.
    Fixed,
}

/// A key whose value differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// `section.key`.
    pub key: &'static str,
    /// What becomes of it.
    pub effect: Effect,
    /// The old value, cut short.
    pub from: String,
    /// The new value, cut short.
    pub to: String,
}

type Show = fn(&Settings) -> String;

/// Every key that differs, in the order of the file.
#[must_use]
pub fn changes(old: &Settings, new: &Settings) -> Vec<Change> {
    let differs = |(key, effect, show): &(&'static str, Effect, Show)| {
        let (from, to) = (show(old), show(new));
        (from != to).then(|| Change { key, effect: *effect, from: short(&from), to: short(&to) })
    };
    let sinks: (&'static str, Effect, Show) =
        ("sink", Effect::Restart, |it| format!("{:?}", it.sinks));
    TABLE.iter().chain([&sinks]).filter_map(differs).collect()
}

/// Every key but those of sinks with its effect and a text that differs when the value does.
const TABLE: &[(&str, Effect, Show)] = &[
    ("data_dir", Effect::Fixed, |it| format!("{}", it.data_dir.display())),
    ("source.files", Effect::Now, |it| format!("{:?}", it.source.files)),
    ("source.dids", Effect::Now, |it| format!("{:?}", it.source.dids)),
    ("source.group", Effect::Fixed, |it| format!("{:?}", it.source.group)),
    ("window.start", Effect::Restart, |it| it.filter.window.start.clone()),
    ("window.end", Effect::Restart, |it| it.filter.window.end.clone()),
    ("window.outside", Effect::Restart, |it| format!("{:?}", it.filter.window.outside)),
    ("window.offsets", Effect::Restart, |it| format!("{:?}", it.filter.window.offsets)),
    ("records.types", Effect::Restart, |it| format!("{:?}", it.filter.types)),
    ("records.pseudonyms", Effect::Restart, |it| format!("{:?}", it.pseudonyms)),
    ("identity.plc_url", Effect::Restart, |it| it.identity.plc_url.to_string()),
    ("identity.mirrors", Effect::Restart, |it| format!("{:?}", it.identity.mirrors)),
    ("identity.requests_per_second", Effect::Now, |it| it.identity.requests_per_second.to_string()),
    ("identity.cache_ttl", Effect::Now, |it| format!("{:?}", it.identity.cache_ttl)),
    ("fetch.concurrency", Effect::Restart, |it| it.fetch.concurrency.to_string()),
    ("fetch.host_requests_per_second", Effect::Now, |it| {
        it.fetch.host_requests_per_second.to_string()
    }),
    ("fetch.host_concurrency", Effect::Now, |it| it.fetch.host_concurrency.to_string()),
    ("fetch.address_requests_per_second", Effect::Restart, |it| {
        it.fetch.address_requests_per_second.to_string()
    }),
    ("fetch.first_byte_timeout", Effect::Restart, |it| {
        format!("{:?}", it.fetch.first_byte_timeout)
    }),
    ("fetch.idle_timeout", Effect::Restart, |it| format!("{:?}", it.fetch.idle_timeout)),
    ("fetch.min_bytes_per_second", Effect::Restart, |it| it.fetch.min_bytes_per_second.to_string()),
    ("fetch.total_timeout", Effect::Restart, |it| format!("{:?}", it.fetch.total_timeout)),
    ("fetch.compression", Effect::Restart, |it| format!("{:?}", it.fetch.compression)),
    ("fetch.contact", Effect::Restart, |it| it.fetch.contact.clone()),
    ("network.allow", Effect::Restart, |it| format!("{:?}", it.network.allow)),
    ("network.ports", Effect::Restart, |it| format!("{:?}", it.network.ports)),
    ("retry.attempts", Effect::Now, |it| it.retry.attempts.to_string()),
    ("retry.base", Effect::Now, |it| format!("{:?}", it.retry.base)),
    ("retry.max", Effect::Now, |it| format!("{:?}", it.retry.max)),
    ("retry.host_patience", Effect::Now, |it| format!("{:?}", it.retry.host_patience)),
    ("refresh.every", Effect::Now, |it| format!("{:?}", it.refresh.every)),
    ("refresh.leaves", Effect::Restart, |it| it.refresh.leaves.to_string()),
    ("limits.batch_size", Effect::Now, |it| it.limits.batch_size.to_string()),
    ("limits.memory", Effect::Restart, |it| it.limits.memory.to_string()),
    ("limits.spool_memory", Effect::Restart, |it| it.limits.spool_memory.to_string()),
    ("limits.spool", Effect::Restart, |it| it.limits.spool.to_string()),
    ("limits.repo_bytes", Effect::Restart, |it| it.limits.repo_bytes.to_string()),
    ("limits.journal", Effect::Restart, |it| it.limits.journal.to_string()),
    ("limits.disk_free", Effect::Restart, |it| it.limits.disk_free.to_string()),
    ("limits.parsers", Effect::Restart, |it| it.limits.parsers.to_string()),
    ("queue.rows_per_item", Effect::Restart, |it| it.rows_per_item.to_string()),
    ("metrics.listen", Effect::Fixed, |it| format!("{:?}", it.metrics.listen)),
    ("metrics.public", Effect::Restart, |it| it.metrics.public.to_string()),
    ("log.level", Effect::Now, |it| it.log.level.to_string()),
    ("log.format", Effect::Restart, |it| format!("{:?}", it.log.format)),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::KEYS;

    #[test]
    fn every_key_has_an_effect() {
        let known: Vec<&str> = TABLE.iter().map(|(key, ..)| *key).collect();
        let keys: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
        assert_eq!(known, keys);
    }

    #[test]
    fn what_differs_is_named_and_nothing_else() {
        let old = Settings::default();
        assert_eq!(changes(&old, &old), []);
        let mut new = old.clone();
        new.data_dir = "/elsewhere".into();
        new.fetch.host_concurrency = 9;
        new.limits.memory += 1;
        let found: Vec<(&str, Effect)> =
            changes(&old, &new).iter().map(|change| (change.key, change.effect)).collect();
        let expected = [
            ("data_dir", Effect::Fixed),
            ("fetch.host_concurrency", Effect::Now),
            ("limits.memory", Effect::Restart),
        ];
        assert_eq!(found, expected);
    }
}
