//! Files of the target, mapped to read.

use std::{fs::File, io, path::Path};

use bytes::Bytes;
use memmap2::Mmap;

/// Maps the file at `path`. Only the pages that are looked at take memory.
///
/// # Errors
///
/// The file cannot be opened or mapped.
pub fn open_image(path: &Path) -> io::Result<Bytes> {
    let file = File::open(path)?;
    // SAFETY: the file is the text of a running program, which the kernel does not let anyone
    // write (ETXTBSY); a file truncated in spite of that would end leaktrace, not the target.
    let image = unsafe { Mmap::map(&file) }?;
    Ok(Bytes::from_owner(image))
}
