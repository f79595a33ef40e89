//! Files below `/proc/PID` with names that the target chooses: a thread's in `status`, paths in `maps`.
//! The kernel hands such a name on byte by byte, whatever it is in; a reader that insists on UTF-8 can be
//! made to fail by it.

use std::{io::Read as _, path::Path};

use procfs::{FromRead, ProcResult, process::Process};

/// Reads a file of a process. In names, what is not UTF-8 becomes U+FFFD; the kernel itself escapes line
/// feeds.
pub(crate) fn read<T: FromRead>(process: &Process, name: impl AsRef<Path>) -> ProcResult<T> {
    T::from_read(String::from_utf8_lossy(&bytes(process, name)?).as_bytes())
}

/// The same as it is.
pub(super) fn bytes(process: &Process, name: impl AsRef<Path>) -> ProcResult<Vec<u8>> {
    let mut bytes = Vec::new();
    process.open_relative(name)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use procfs::process::Status;

    use super::*;
    use crate::target::{Mapping, open_image};

    /// A thread and a mapped file of this very process, with names that are not UTF-8.
    #[test]
    fn names_that_are_no_text_are_read() {
        use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(OsStr::from_bytes(b"l\xff\n\x1b[2J"));
        fs::write(&path, [0; 4096]).unwrap();
        let _mapped = open_image(&path).unwrap();
        let hostile = thread::spawn(|| {
            fs::write("/proc/thread-self/comm", b"\xff:\x1b[2J\n\xfe").unwrap();
            let process = Process::myself().unwrap();
            let tid = fs::read_link("/proc/thread-self").unwrap();
            let tid = tid.file_name().unwrap().to_str().unwrap().to_owned();
            let status: Status = read(&process, format!("task/{tid}/status")).unwrap();
            let maps = Mapping::parse_all(&bytes(&process, "maps").unwrap()).unwrap();
            (status, maps)
        });
        let (status, maps) = hostile.join().unwrap();
        assert_eq!(status.tgid as u32, std::process::id());
        assert!(status.seccomp.is_some());
        let paths = maps.iter().map(|map| &map.name);
        let mut hostile = paths.filter(|path| path.ends_with("l\u{fffd}\\012\u{1b}[2J"));
        assert!(hostile.next().is_some(), "{maps:?}");
    }
}
