//! The Debian package of the binary that a test was built with, made by `package/build-deb`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Packs `binary` (`env!("CARGO_BIN_EXE_skyfill")`) into `folder`; `None`, and one line that says why, where that is not possible.
pub fn pack(binary: &str, folder: &Path) -> Option<PathBuf> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = std::env::var("PATH").unwrap();
    let tools = repository.join("target/tools/bin");
    let path = format!("{path}:{}", tools.display());
    let has = |tool: &str| std::env::split_paths(&path).any(|at| at.join(tool).is_file());
    if let Some(missing) = ["cargo-deb", "dpkg-deb"].into_iter().find(|tool| !has(tool)) {
        println!("{missing} is missing: the package is left out");
        return None;
    }
    // What the script makes on the way lies in one place: one test at a time, over all processes.
    let lock = File::create(repository.join("target/package.lock")).unwrap();
    lock.lock().unwrap();
    let profile = Path::new(binary).parent().unwrap();
    let output = Command::new(repository.join("package/build-deb"))
        .arg(profile.file_name().unwrap())
        .arg(folder)
        .env("CARGO_TARGET_DIR", profile.parent().unwrap())
        .env("PATH", &path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut made = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let package = made.next().unwrap();
    assert_eq!(made.next(), None);
    Some(package)
}
