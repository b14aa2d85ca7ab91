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
