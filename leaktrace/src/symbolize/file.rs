//! Opening a module's file.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use bytes::Bytes;
use memmap2::Mmap;

use super::Module;
use crate::go::elf::Elf;
use crate::go::version::build_ids;

/// Maps a regular file: nothing of it is copied. A named pipe or a device is not waited for.
pub(super) fn map(path: &Path) -> io::Result<Bytes> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    // SAFETY: the mapping is private and read-only, and lives as long as the bytes. Whoever owns
    // the file can change or truncate it meanwhile: changed bytes are parsed as hostile ones are,
    // a truncated file ends leaktrace with SIGBUS, as it does blazesym; files that are mapped as
    // running code are not truncated in practice (ETXTBSY).
    let mapped = unsafe { Mmap::map(&file)? };
    Ok(Bytes::from_owner(mapped))
}

/// How a file's build ids compare with the module's.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Identity {
    Same,
    /// One of them has none.
    Unknown,
    /// The file's.
    Different(String),
}

pub(super) fn identity(module: &Module, elf: &Elf) -> Identity {
    let (go, gnu) = build_ids(elf);
    let Some(wanted) = &module.build_id else {
        return Identity::Unknown;
    };
    if gnu.as_ref() == Some(wanted) || go.as_ref() == Some(wanted) {
        return Identity::Same;
    }
    gnu.or(go).map_or(Identity::Unknown, Identity::Different)
}
