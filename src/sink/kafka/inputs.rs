//! Messages of `<topics>.dids` that were admitted and are not decided, by account and by partition.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Inputs {
    by_did: HashMap<Arc<str>, BTreeSet<(i32, i64)>>,
    by_partition: BTreeMap<i32, BTreeMap<i64, Arc<str>>>,
}

impl Inputs {
    /// A message that asks for `did`.
    pub fn add(&mut self, did: &str, partition: i32, offset: i64) {
        let did: Arc<str> = match self.by_did.get_key_value(did) {
            Some((did, _)) => Arc::clone(did),
            None => did.into(),
        };
        self.by_did.entry(Arc::clone(&did)).or_default().insert((partition, offset));
        self.by_partition.entry(partition).or_default().insert(offset, did);
    }

    /// A message that is decided.
    pub fn remove(&mut self, partition: i32, offset: i64) {
        let Some(inputs) = self.by_partition.get_mut(&partition) else { return };
        let Some(did) = inputs.remove(&offset) else { return };
        if let Some(places) = self.by_did.get_mut(&did) {
            places.remove(&(partition, offset));
            if places.is_empty() {
                self.by_did.remove(&did);
            }
        }
    }

    /// Everything of a partition.
    pub fn remove_partition(&mut self, partition: i32) {
        let offsets: Vec<i64> = self.of_partition(partition).collect();
        offsets.into_iter().for_each(|offset| self.remove(partition, offset));
        self.by_partition.remove(&partition);
    }

    /// Messages of an account: partition and offset.
    #[must_use]
    pub fn of_did(&self, did: &str) -> Vec<(i32, i64)> {
        self.by_did.get(did).into_iter().flatten().copied().collect()
    }

    /// Messages of a partition: their offsets.
    pub fn of_partition(&self, partition: i32) -> impl Iterator<Item = i64> {
        self.by_partition.get(&partition).into_iter().flatten().map(|(offset, _)| *offset)
    }

    /// How many messages of a partition there are.
    #[must_use]
    pub fn count(&self, partition: i32) -> usize {
        self.by_partition.get(&partition).map_or(0, BTreeMap::len)
    }

    /// How many there are.
    #[must_use]
    pub fn total(&self) -> usize {
        self.by_partition.values().map(BTreeMap::len).sum()
    }

    /// The oldest message of a partition, and its account.
    #[must_use]
    pub fn oldest(&self, partition: i32) -> Option<(i64, String)> {
        let (offset, did) = self.by_partition.get(&partition)?.first_key_value()?;
        Some((*offset, did.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_found_by_account_and_by_partition_and_go_from_both() {
        let mut inputs = Inputs::default();
        inputs.add("a", 1, 10);
        inputs.add("a", 1, 10);
        inputs.add("a", 2, 5);
        inputs.add("b", 1, 11);
        assert_eq!(inputs.of_did("a"), [(1, 10), (2, 5)]);
        assert_eq!(inputs.by_partition[&1].len(), 2);
        inputs.remove(1, 10);
        inputs.remove(1, 10);
        assert_eq!(inputs.of_did("a"), [(2, 5)]);
        inputs.remove_partition(2);
        assert!(inputs.of_did("a").is_empty() && !inputs.by_did.contains_key("a"));
        assert_eq!(inputs.of_did("b"), [(1, 11)]);
        inputs.remove_partition(7);
        inputs.remove_partition(1);
        assert!(inputs.by_did.is_empty() && inputs.by_partition.is_empty());
    }
}
