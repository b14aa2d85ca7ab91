//! A second opinion on a repository: iroh-car reads the blocks, serde_ipld_dagcbor the nodes, and a plain map finds them.
//!
//! Independent of `car`, `blocks`, `mst` and `walk`, slow, and without limits on memory: for `skyfill verify FILE.car` and the
//! differential tests. What it shares with the engine is only the hash function.

use std::collections::HashMap;

use cid::Cid;
use ipld_core::ipld::Ipld;
use sha2::{Digest, Sha256};
use tokio::io::AsyncRead;

/// Key (`collection/rkey`) and CID of every record, in key order.
pub type Listing = Vec<(String, Cid)>;

/// Lists the records of a CAR.
///
/// # Errors
/// A sentence that says what it could not read.
pub async fn list(car: impl AsyncRead + Send + Unpin) -> Result<Listing, String> {
    let mut reader = iroh_car::CarReader::new(car).await.map_err(|error| error.to_string())?;
    let root = reader.header().roots().first().copied().ok_or("no root")?;
    let mut blocks = HashMap::new();
    while let Some((cid, block)) = reader.next_block().await.map_err(|error| error.to_string())? {
        if Sha256::digest(&block).as_slice() != cid.hash().digest() {
            return Err(format!("block {cid} has another hash"));
        }
        blocks.insert(cid, block);
    }
    let commit = decode(&blocks, &root)?;
    let data = link(field(&commit, "data")?)?.ok_or("the commit has no data")?;
    let mut listing = Vec::new();
    walk(&blocks, data, &mut listing)?;
    Ok(listing)
}

/// What remains to be visited, last first.
enum Visit {
    Node(Cid),
    Record(String, Cid),
}

fn walk(blocks: &HashMap<Cid, Vec<u8>>, root: Cid, listing: &mut Listing) -> Result<(), String> {
    let mut pending = vec![Visit::Node(root)];
    while let Some(visit) = pending.pop() {
        let node = match visit {
            Visit::Record(key, cid) => {
                if !blocks.contains_key(&cid) {
                    return Err(format!("record {cid} of {key} is missing"));
                }
                listing.push((key, cid));
                continue;
            }
            Visit::Node(cid) => decode(blocks, &cid)?,
        };
        let Ipld::List(entries) = field(&node, "e")? else { return Err("e is no list".to_owned()) };
        let mut visits: Vec<Visit> =
            link(field(&node, "l")?)?.map(Visit::Node).into_iter().collect();
        let mut key = Vec::new();
        for entry in entries {
            let (Ipld::Integer(shared), Ipld::Bytes(rest)) =
                (field(entry, "p")?, field(entry, "k")?)
            else {
                return Err("p or k of the wrong type".to_owned());
            };
            key.truncate(usize::try_from(*shared).map_err(|_| "p out of range")?);
            key.extend_from_slice(rest);
            let text = String::from_utf8(key.clone()).map_err(|_| "a key that is no text")?;
            let value = link(field(entry, "v")?)?.ok_or("an entry without a record")?;
            visits.push(Visit::Record(text, value));
            visits.extend(link(field(entry, "t")?)?.map(Visit::Node));
        }
        pending.extend(visits.into_iter().rev());
    }
    Ok(())
}

fn decode(blocks: &HashMap<Cid, Vec<u8>>, cid: &Cid) -> Result<Ipld, String> {
    let block = blocks.get(cid).ok_or_else(|| format!("block {cid} is missing"))?;
    serde_ipld_dagcbor::from_slice(block).map_err(|error| format!("block {cid}: {error}"))
}

fn field<'v>(value: &'v Ipld, name: &str) -> Result<&'v Ipld, String> {
    let Ipld::Map(fields) = value else { return Err(format!("no map around {name}")) };
    fields.get(name).ok_or_else(|| format!("no field {name}"))
}

fn link(value: &Ipld) -> Result<Option<Cid>, String> {
    match value {
        Ipld::Null => Ok(None),
        Ipld::Link(cid) => Ok(Some(*cid)),
        _ => Err("a link of the wrong type".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn map<const N: usize>(fields: [(&str, Ipld); N]) -> Ipld {
        Ipld::Map(fields.map(|(name, value)| (name.to_owned(), value)).into())
    }

    fn cid_of(block: &[u8]) -> Cid {
        let hash = cid::multihash::Multihash::wrap(0x12, &Sha256::digest(block)).unwrap();
        Cid::new_v1(0x71, hash)
    }

    #[derive(Default)]
    struct Blocks(BTreeMap<Cid, Vec<u8>>);

    impl Blocks {
        fn add(&mut self, value: &Ipld) -> Cid {
            let block = serde_ipld_dagcbor::to_vec(value).unwrap();
            let cid = cid_of(&block);
            self.0.insert(cid, block);
            cid
        }

        /// A node of these entries: bytes of the key before, the rest of the key, record and subtree.
        fn node(&mut self, left: Ipld, entries: &[(i128, &str, Cid, Ipld)]) -> Cid {
            let entry = |(shared, rest, record, tree): &(i128, &str, Cid, Ipld)| {
                let rest = Ipld::Bytes(rest.as_bytes().to_vec());
                let (shared, record) = (Ipld::Integer(*shared), Ipld::Link(*record));
                map([("p", shared), ("k", rest), ("v", record), ("t", tree.clone())])
            };
            let entries = Ipld::List(entries.iter().map(entry).collect());
            self.add(&map([("l", left), ("e", entries)]))
        }

        /// All but the block of `missing`, and the one of `changed` under a hash that is not its own.
        fn car(&self, root: Cid, missing: Option<Cid>, changed: Option<Cid>) -> Vec<u8> {
            let length = |bytes: usize| {
                let (low, high) = (bytes & 0x7f, bytes >> 7);
                let head = if high == 0 { vec![low] } else { vec![low | 0x80, high] };
                head.into_iter().map(|it| u8::try_from(it).unwrap()).collect::<Vec<_>>()
            };
            let roots = Ipld::List(vec![Ipld::Link(root)]);
            let header = map([("roots", roots), ("version", Ipld::Integer(1))]);
            let header = serde_ipld_dagcbor::to_vec(&header).unwrap();
            let mut car = [length(header.len()), header].concat();
            for (cid, block) in &self.0 {
                let mut section = [cid.to_bytes(), block.clone()].concat();
                if changed == Some(*cid) {
                    *section.last_mut().unwrap() ^= 1;
                }
                if missing != Some(*cid) {
                    car.extend([length(section.len()), section].concat());
                }
            }
            car
        }
    }

    #[tokio::test]
    async fn every_record_is_listed_once_in_the_order_of_keys_or_it_is_said_why_not() {
        let mut blocks = Blocks::default();
        let mut record = |n: i128| blocks.add(&map([("n", Ipld::Integer(n))]));
        let [a, b, c, d] = [1, 2, 3, 4].map(&mut record);
        let left = blocks.node(Ipld::Null, &[(0, "x.y/a", a, Ipld::Null)]);
        let right = blocks.node(Ipld::Null, &[(0, "x.y/ba", c, Ipld::Null)]);
        let entries = [(0, "x.y/b", b, Ipld::Link(right)), (4, "c", d, Ipld::Null)];
        let data = blocks.node(Ipld::Link(left), &entries);
        let root = blocks.add(&map([("data", Ipld::Link(data))]));
        let listing = list(blocks.car(root, None, None).as_slice()).await.unwrap();
        let expected = [("x.y/a", a), ("x.y/b", b), ("x.y/ba", c), ("x.y/c", d)];
        assert_eq!(listing, expected.map(|(key, cid)| (key.to_owned(), cid)));

        for cid in blocks.0.keys() {
            let error = list(blocks.car(root, Some(*cid), None).as_slice()).await.unwrap_err();
            assert!(error.contains(&cid.to_string()) && error.contains("is missing"), "{error}");
            let error = list(blocks.car(root, None, Some(*cid)).as_slice()).await.unwrap_err();
            assert!(!error.contains("missing"), "{error}");
        }
        let wrong = map([("l", Ipld::Integer(1)), ("e", Ipld::List(Vec::new()))]);
        let wrong = blocks.add(&wrong);
        for (data, said) in [
            (Ipld::Null, "the commit has no data"),
            (Ipld::Integer(1), "a link of the wrong type"),
            (Ipld::Link(a), "no field e"),
            (Ipld::Link(wrong), "a link of the wrong type"),
        ] {
            let root = blocks.add(&map([("data", data)]));
            let error = list(blocks.car(root, None, None).as_slice()).await.unwrap_err();
            assert_eq!(error, said);
        }
    }
}
