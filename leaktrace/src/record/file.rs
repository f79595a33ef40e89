//! The capture file: its name, and how it is made.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use anyhow::Result;

use crate::target::Target;

/// Makes the file, for its owner alone, where nothing is yet.
pub(super) fn create(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let name = path.display();
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists if path.is_symlink() => {
                anyhow::anyhow!("`{name}` is a symbolic link: give another file with -o")
            }
            io::ErrorKind::AlreadyExists => {
                anyhow::anyhow!("`{name}` exists already: give another file with -o, or remove it")
            }
            io::ErrorKind::NotFound => {
                anyhow::anyhow!("the directory of `{name}` does not exist: make it first")
            }
            _ => anyhow::Error::new(error).context(format!("failed to make `{name}`")),
        })
}

/// `leaktrace-COMM-PID-UTC.leaktrace`, with nothing in COMM that a shell or a path minds.
pub(super) fn default_file(target: &Target) -> PathBuf {
    let comm: String = target
        .comm
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    let utc = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    PathBuf::from(format!("leaktrace-{comm}-{}-{utc}.leaktrace", target.pid))
}
