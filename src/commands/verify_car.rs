//! `skyfill verify FILE.car`: proves a repository with our engine, reads it again with iroh-car and serde_ipld_dagcbor, and
//! reports any difference.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::json;

use crate::commands::error::CommandError;
use crate::commands::verify::Agreement;
use crate::domain::did::cleaned;
use crate::repo::Source;
use crate::repo::car::Framer;
use crate::repo::error::RepoError;
use crate::repo::key::PublicKey;
use crate::repo::second_opinion;
use crate::repo::walk::{Expected, Walk};
use crate::store::error::StoreError;

/// Bytes read at once.
const CHUNK_BYTES: usize = 256 << 10;

/// A CAR on disk.
struct CarFile {
    file: File,
    bytes: u64,
}

impl Source for CarFile {
    fn len(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

/// What our engine found.
struct Proof {
    did: String,
    rev: String,
    commit: String,
    keys: Vec<(String, String)>,
}

/// Verifies the CAR at `path`; `key` is the account's `did:key:...`, without which the signature is not checked.
///
/// # Errors
/// [`CommandError`] if it cannot be read.
pub fn run(
    path: &Path,
    key: Option<&str>,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<Agreement, CommandError> {
    // A key that is none would look like a signature that is wrong.
    if let Some(key) = key.filter(|key| PublicKey::from_did_key(key).is_none()) {
        let text = format!("--key {}: not a did:key of secp256k1 or P-256", cleaned(key));
        return Err(CommandError::Usage(text));
    }
    let unreadable = |error| StoreError::io(path, error);
    let mut file = File::open(path).map_err(unreadable)?;
    let bytes = file.metadata().map_err(unreadable)?.len();
    let ours = prove(&mut file, bytes, key).map_err(unreadable)?;
    let second = second(path)?;
    let mut differences = Vec::new();
    let (proof, error) = match ours {
        Ok(proof) => (Some(proof), None),
        Err(error) => (None, Some(error.to_string())),
    };
    match (&proof, &error, second) {
        (Some(proof), _, Ok(listing)) => {
            let theirs: Vec<(String, String)> =
                listing.into_iter().map(|(key, cid)| (key, cid.to_string())).collect();
            differences.extend(compare(&proof.keys, &theirs));
        }
        (Some(_), _, Err(theirs)) => {
            differences.push(format!("the second reader refuses it: {theirs}"))
        }
        (None, Some(ours), _) => differences.push(ours.clone()),
        (None, None, _) => {}
    }
    let summary = json!({
        "file": path.display().to_string(),
        "bytes": bytes,
        "did": proof.as_ref().map(|proof| &proof.did),
        "rev": proof.as_ref().map(|proof| &proof.rev),
        "commit_cid": proof.as_ref().map(|proof| &proof.commit),
        "records": proof.as_ref().map(|proof| proof.keys.len()),
        "signature_checked": key.is_some() && proof.is_some(),
        "differences": differences,
    });
    let text = if as_json { format!("{summary}\n") } else { text(path, &proof, key, &differences) };
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| StoreError::io(Path::new("stdout"), error))?;
    Ok(if differences.is_empty() { Agreement::Agree } else { Agreement::Disagree })
}

fn prove(
    file: &mut File,
    bytes: u64,
    key: Option<&str>,
) -> std::io::Result<Result<Proof, RepoError>> {
    let mut framer = Framer::new(u64::MAX);
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        if let Err(error) = framer.push(&buffer[..read]) {
            return Ok(Err(error));
        }
    }
    let source = CarFile { file: file.try_clone()?, bytes };
    Ok(walk(&source, framer, key))
}

fn walk(source: &CarFile, framer: Framer, key: Option<&str>) -> Result<Proof, RepoError> {
    let (framed, never) = (framer.finish()?, AtomicBool::new(false));
    let mut walk =
        Walk::open(source, &framed, &Expected { did: None, key, earlier_keys: &[] }, &never)?;
    let commit = walk.commit().clone();
    let mut keys = Vec::new();
    while let Some(leaf) = walk.next_leaf()? {
        keys.push((leaf.key.to_owned(), leaf.cid.to_string()));
    }
    Ok(Proof { did: commit.did, rev: commit.rev, commit: commit.cid.to_string(), keys })
}

fn second(path: &Path) -> Result<Result<second_opinion::Listing, String>, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CommandError::Internal(error.to_string()))?;
    Ok(runtime.block_on(async {
        let file = tokio::fs::File::open(path).await.map_err(|error| error.to_string())?;
        second_opinion::list(tokio::io::BufReader::with_capacity(CHUNK_BYTES, file)).await
    }))
}

/// First differences of two listings.
fn compare(ours: &[(String, String)], theirs: &[(String, String)]) -> Vec<String> {
    let mut differences = Vec::new();
    if ours.len() != theirs.len() {
        differences.push(format!("{} records here, {} there", ours.len(), theirs.len()));
    }
    let pairs = ours.iter().zip(theirs).filter(|(ours, theirs)| ours != theirs);
    differences.extend(pairs.take(20).map(|(ours, theirs)| {
        format!("{} {} here, {} {} there", ours.0, ours.1, theirs.0, theirs.1)
    }));
    differences
}

fn text(path: &Path, proof: &Option<Proof>, key: Option<&str>, differences: &[String]) -> String {
    let mut text = String::new();
    if let Some(proof) = proof {
        text += &format!(
            "{}: {} at {}, {} records, every block's hash and the whole tree are right\n",
            path.display(),
            cleaned(&proof.did),
            proof.rev,
            proof.keys.len()
        );
        text += match key {
            Some(_) => "the signature is good under the given key\n",
            None => {
                "the signature was not checked: give the account's key with --key did:key:...\n"
            }
        };
    }
    for difference in differences {
        text += &format!("{}: {difference}\n", path.display());
    }
    if differences.is_empty() {
        text += "iroh-car and serde_ipld_dagcbor list the same records\n";
    }
    text
}
