//! Files that a command makes: for their owner alone, never over something that is there.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::Result;

/// Makes a file, for its owner alone, where nothing is yet, and not through a symbolic link.
///
/// # Errors
///
/// When it cannot be made; the message names it and what to do.
pub fn create(path: &Path) -> Result<File> {
    let name = path.display();
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists if path.is_symlink() => {
                anyhow::anyhow!("`{name}` is a symbolic link: give another file")
            }
            io::ErrorKind::AlreadyExists => {
                anyhow::anyhow!("`{name}` exists already: give another file, or remove it")
            }
            io::ErrorKind::NotFound => {
                anyhow::anyhow!("the directory of `{name}` does not exist: make it first")
            }
            _ => anyhow::Error::new(error).context(format!("failed to make `{name}`")),
        })
}

/// Makes a directory, for its owner alone, where nothing is yet.
///
/// # Errors
///
/// When it cannot be made.
pub fn create_folder(path: &Path) -> Result<()> {
    let name = path.display();
    DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                anyhow::anyhow!(
                    "`{name}` exists already: give another directory with -o, or remove it"
                )
            }
            _ => anyhow::Error::new(error).context(format!("failed to make `{name}`")),
        })
}

/// A file or a directory that is removed again unless it became whole.
#[derive(Debug)]
pub struct Unfinished {
    path: PathBuf,
    is_whole: bool,
}

impl Unfinished {
    /// Takes charge of what was just made at `path`.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            is_whole: false,
        }
    }

    /// It is whole: it stays.
    pub fn finish(mut self) {
        self.is_whole = true;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_whole {
            let _ = match self.path.is_dir() {
                true => fs::remove_dir_all(&self.path),
                false => fs::remove_file(&self.path),
            };
        }
    }
}
