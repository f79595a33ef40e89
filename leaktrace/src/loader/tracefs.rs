//! Tracepoints are found by number in tracefs, which must be mounted somewhere.

use std::{fs, io, path::Path};

use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::{UnshareFlags, unshare_unsafe},
};

use super::LoadError;

const PLACE: &str = "/sys/kernel/tracing";

/// Makes sure that this process sees tracefs. Where the host has not mounted it, it is mounted in
/// a mount namespace of our own: nothing on the host changes, and it goes with this process.
///
/// Call it before any thread is started: a mount namespace belongs to the calling thread.
///
/// # Errors
///
/// tracefs cannot be mounted.
pub fn ensure_tracefs() -> Result<(), LoadError> {
    if place().is_some() {
        return Ok(());
    }
    private_mount(PLACE).map_err(|error| LoadError::Unsupported {
        what: format!("a mounted tracefs, and mounting it failed ({error})"),
        remedy: format!("run `mount -t tracefs tracefs {PLACE}`"),
    })
}

/// Where this process sees tracefs.
pub(super) fn place() -> Option<&'static str> {
    let places = [PLACE, "/sys/kernel/debug/tracing"].into_iter();
    let is_mounted = |path: &&str| fs::exists(Path::new(path).join("events")).unwrap_or(false);
    places.into_iter().find(is_mounted)
}

fn private_mount(place: &str) -> io::Result<()> {
    // SAFETY: a new mount namespace takes no file descriptors or memory away from this process.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change(
        "/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
    )?;
    mount("tracefs", place, "tracefs", MountFlags::empty(), None)?;
    Ok(())
}
