//! The key file of pseudonyms: read whole, and refused where others could read it too.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::store::error::StoreError;
use crate::transform::pseudonym::{KEY_BYTES_MIN, Pseudonyms};

/// Bytes of a key file: whatever is longer is no key.
const KEY_BYTES_MAX: u64 = 64 << 10;

/// Reads the key at `path`; none without one.
///
/// # Errors
/// [`StoreError::Permission`] if it cannot be read or others can, [`StoreError::Config`] if it is no key.
pub fn read(path: Option<&Path>) -> Result<Option<Pseudonyms>, StoreError> {
    let Some(path) = path else { return Ok(None) };
    let named = |what: &str| named(path, what);
    let unreadable = |error| unreadable(path, &error);
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(StoreError::Config(named("is no regular file")));
    }
    if metadata.mode() & 0o077 != 0 {
        let text = "others may read or write it, and whoever has the key undoes the pseudonyms: chmod 600 it";
        return Err(StoreError::Permission(named(text)));
    }
    let mut key = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(KEY_BYTES_MAX + 1).read_to_end(&mut key).map_err(unreadable)?;
    if key.len() as u64 > KEY_BYTES_MAX {
        return Err(StoreError::Config(named("is longer than any key, name another file")));
    }
    let short = || {
        let text = format!(
            "has {} bytes, a key has at least {KEY_BYTES_MIN}: head -c 32 /dev/urandom > {}",
            key.len(),
            path.display()
        );
        StoreError::Config(named(&text))
    };
    Pseudonyms::new(&key).ok_or_else(short).map(Some)
}

fn named(path: &Path, what: &str) -> String {
    format!("records.pseudonyms: {}: {what}", path.display())
}

fn unreadable(path: &Path, error: &std::io::Error) -> StoreError {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            StoreError::Permission(named(path, "permission denied"))
        }
        _ => StoreError::Config(named(path, &error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "what tests write need not last")]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_long_enough_and_its_owner_s_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let put = |bytes: usize, mode: u32| {
            std::fs::write(&path, vec![1; bytes]).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            read(Some(&path))
        };
        for mode in [0o600, 0o400] {
            let _writable = std::fs::remove_file(&path);
            assert!(put(32, mode).unwrap().is_some());
        }
        let _writable = std::fs::remove_file(&path);
        for mode in [0o640, 0o604, 0o620, 0o601] {
            assert!(
                matches!(put(32, mode), Err(StoreError::Permission(text)) if text.contains("key: "))
            );
        }
        assert!(put(65_536, 0o600).unwrap().is_some(), "the longest");
        for bytes in [0, 31, 65_537] {
            assert!(matches!(put(bytes, 0o600), Err(StoreError::Config(_))), "{bytes}");
        }
        let missing = folder.path().join("none");
        for path in [folder.path(), &missing] {
            assert!(matches!(read(Some(path)), Err(StoreError::Config(_))));
        }
        assert!(read(None).unwrap().is_none());
        let long = put(65_537, 0o600).err().unwrap().to_string();
        assert!(long.contains("longer than any key"), "{long}");
    }

    #[test]
    fn a_key_that_may_not_be_read_is_told_from_one_that_is_not_there() {
        use std::io::ErrorKind::{NotFound, PermissionDenied};
        let told = |kind| unreadable(Path::new("k"), &std::io::Error::from(kind));
        let denied = "records.pseudonyms: k: permission denied";
        assert!(matches!(told(PermissionDenied), StoreError::Permission(text) if text == denied));
        assert!(matches!(told(NotFound), StoreError::Config(text) if text.contains(": k: ")));
    }
}
