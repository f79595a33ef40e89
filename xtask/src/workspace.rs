//! Where things are.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// The folder that holds the workspace's Cargo.toml.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// Cargo's target folder.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where the built sample targets are; [`crate::targets`] describes it.
pub(crate) fn targets() -> PathBuf {
    target().join("targets")
}

/// What leaktrace is built for.
pub(crate) const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// leaktrace itself, as [`crate::release::build`] leaves it.
pub(crate) fn leaktrace() -> PathBuf {
    target().join(TRIPLE).join("release/leaktrace")
}

/// The cargo that runs this chore.
pub(crate) fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Where downloads are kept across checkouts: `$XDG_CACHE_HOME/leaktrace` or `~/.cache/leaktrace`.
///
/// # Errors
///
/// When there is neither a cache nor a home folder.
pub(crate) fn cache() -> Result<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| env::home_dir().map(|home| home.join(".cache")))
        .context("failed to find a cache folder: neither `XDG_CACHE_HOME` nor `HOME` is set")?;
    Ok(cache.join("leaktrace"))
}
