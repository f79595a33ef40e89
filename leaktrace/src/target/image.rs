//! Files of the target, mapped to read.

use std::{fs::OpenOptions, io, os::unix::fs::OpenOptionsExt as _, path::Path};

use bytes::Bytes;
use memmap2::Mmap;

/// Maps a regular file: nothing of it is copied, only the pages that are looked at take memory. A
/// named pipe or a device is not waited for.
///
/// # Errors
///
/// It cannot be opened or mapped, or is not a regular file.
pub fn open_image(path: &Path) -> io::Result<Bytes> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    // SAFETY: the mapping is private and read-only, and lives as long as the bytes. Whoever owns
    // the file can change or truncate it meanwhile: changed bytes are parsed as hostile ones are,
    // a truncated file ends leaktrace, not the target; files that are mapped as running code are
    // not truncated in practice (ETXTBSY).
    let image = unsafe { Mmap::map(&file) }?;
    Ok(Bytes::from_owner(image))
}
