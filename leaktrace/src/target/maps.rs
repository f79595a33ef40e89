//! The target's address space: its mappings and the files behind them.

use std::{
    collections::HashMap,
    fs::File,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use object::{Object as _, read::elf::ElfFile64};
use procfs::{ProcError, ProcResult, process::Process};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::{Backing, Mapping, image::open_image, proc_file};
use crate::go::GoBinary;

/// All mappings of a process at one moment.
pub struct AddressMap {
    mappings: Vec<Mapping>,
    pid: i32,
}

/// Identity of a mapped file: device and inode, so that a replaced file is another module.
pub type FileId = ((u32, u32), u64);

/// A file with executable mappings, kept open so that it can be read after it was replaced or
/// deleted and after the target has ended.
pub struct Module {
    /// Which file it is; `None` for memory that is no file's (`[vdso]`, JIT code).
    pub file_id: Option<FileId>,
    /// Path as `/proc/PID/maps` has it.
    pub path: String,
    /// GNU build id in hex, or Go build id, if there is one.
    pub build_id: Option<String>,
    /// The open file; `None` when it could not be opened or is not a file.
    pub file: Option<File>,
}

impl AddressMap {
    pub(super) fn read(process: &Process) -> ProcResult<Self> {
        let none = |line| ProcError::Other(format!("`maps` has a line that is none: {line:?}"));
        Ok(Self {
            mappings: Mapping::parse_all(&proc_file::bytes(process, "maps")?).map_err(none)?,
            pid: process.pid(),
        })
    }

    /// Every mapping as (start, end), and whether it is the one that the program break moves.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64, bool)> + '_ {
        self.mappings.iter().map(|mapping| {
            let (start, end) = mapping.address;
            (start, end, mapping.backing() == Backing::Break)
        })
    }

    /// Every mapping, in the order of addresses.
    pub(super) fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    /// The file whose data an address is in, its zeroed data included: one of its mappings, and the address at
    /// which its first byte is mapped.
    pub fn data_of(&self, address: u64) -> Option<(&Mapping, u64)> {
        let after = self
            .mappings
            .partition_point(|mapping| mapping.address.0 <= address);
        let at = after.checked_sub(1)?;
        let mut mapping = self
            .mappings
            .get(at)
            .filter(|mapping| address < mapping.address.1)?;
        if mapping.inode == 0 {
            let before = self.mappings.get(at.checked_sub(1)?)?;
            mapping = Some(before).filter(|before| before.address.1 == mapping.address.0)?;
        }
        let id = Self::file_id(mapping)?;
        let mut of_file = self
            .mappings
            .iter()
            .filter(|other| Self::file_id(other) == Some(id));
        let first = of_file.find(|other| other.offset == 0)?;
        Some((mapping, first.address.0))
    }

    /// The executable mappings.
    pub fn executable(&self) -> impl Iterator<Item = &Mapping> + '_ {
        self.mappings
            .iter()
            .filter(|mapping| mapping.is_executable())
    }

    /// Identity of the file behind a mapping.
    pub fn file_id(mapping: &Mapping) -> Option<FileId> {
        (mapping.inode != 0).then_some((mapping.device, mapping.inode))
    }

    /// The executable's load bias: address in the process minus link-time address.
    pub(super) fn load_bias(&self, binary: &GoBinary) -> Option<u64> {
        let exe = rustix::fs::stat(format!("/proc/{}/exe", self.pid)).ok()?;
        self.mappings
            .iter()
            .filter(|mapping| mapping.inode == exe.st_ino)
            .find_map(|mapping| {
                let link = binary.file_offset_to_link_address(mapping.offset)?;
                Some(mapping.address.0.wrapping_sub(link))
            })
    }

    /// Opens the file behind an executable mapping: the target's own inode, not whatever the
    /// host has under that name.
    pub fn open_module(&self, mapping: &Mapping) -> Module {
        let path = module_path(mapping);
        let (start, end) = mapping.address;
        let by_mapping = PathBuf::from(format!("/proc/{}/map_files/{start:x}-{end:x}", self.pid));
        let file = Self::file_id(mapping).and_then(|(_, inode)| {
            let file = File::open(by_mapping).ok();
            file.or_else(|| open_in_root(self.pid, &path, inode))
        });
        let build_id = file.as_ref().and_then(|file| build_id(&fd_path(file)));
        Module {
            file_id: Self::file_id(mapping),
            path,
            build_id,
            file,
        }
    }
}

/// Opens the file of that inode by its name in the target's root, out of which no link leads. What it is is looked
/// at first: to open anything but a regular file may wait, or do something.
fn open_in_root(pid: i32, path: &str, inode: u64) -> Option<File> {
    let root = File::open(format!("/proc/{pid}/root")).ok()?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = File::from(openat2(&root, path, flags, Mode::empty(), resolve).ok()?);
    let is_it = found
        .metadata()
        .is_ok_and(|found| found.is_file() && found.ino() == inode);
    is_it.then(|| File::open(fd_path(&found)).ok()).flatten()
}

impl Module {
    /// A path under which this process can open the file, whatever became of its name.
    pub fn open_path(&self) -> Option<PathBuf> {
        self.file.as_ref().map(fd_path)
    }
}

/// Modules of a run, each once: files by their identity, other memory by its name.
#[derive(Default)]
pub struct Modules {
    list: Vec<Module>,
    index: HashMap<(Option<FileId>, String), usize>,
}

impl Modules {
    /// Index of the module behind `mapping`.
    pub fn intern(&mut self, map: &AddressMap, mapping: &Mapping) -> usize {
        let file_id = AddressMap::file_id(mapping);
        let name = match file_id {
            Some(_) => String::new(),
            None => module_path(mapping),
        };
        *self.index.entry((file_id, name)).or_insert_with(|| {
            self.list.push(map.open_module(mapping));
            self.list.len() - 1
        })
    }

    /// The module with that index.
    pub fn get(&self, index: usize) -> Option<&Module> {
        self.list.get(index)
    }

    /// A path under which this process can open the module of that name and build id.
    pub fn open_path(&self, path: &str, build_id: Option<&str>) -> Option<PathBuf> {
        self.list
            .iter()
            .find(|module| module.path == path && module.build_id.as_deref() == build_id)
            .and_then(Module::open_path)
    }

    /// All modules, in the order in which they were found.
    pub fn iter(&self) -> impl Iterator<Item = &Module> {
        self.list.iter()
    }
}

fn module_path(mapping: &Mapping) -> String {
    match mapping.name.as_str() {
        "" => "[anon]".to_owned(),
        name => name.to_owned(),
    }
}

fn fd_path(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd as _;
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// The GNU build id in hex, or the Go build id of an executable without one.
fn build_id(path: &Path) -> Option<String> {
    let image = open_image(path).ok()?;
    let gnu = ElfFile64::<object::Endianness>::parse(image.as_ref())
        .ok()
        .and_then(|elf| Some(hex(elf.build_id().ok()??)));
    gnu.or_else(|| {
        let binary = GoBinary::parse(image.clone()).ok()??;
        binary.go_build_id().map(str::to_owned)
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use rustix::fs::{CWD, FileType, mknodat};

    use super::*;

    /// Of this process, whose root is everybody's.
    #[test]
    fn only_the_mapped_file_is_opened_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("app"), "code").unwrap();
        symlink(path("app"), path("link")).unwrap();
        mknodat(CWD, path("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        let inode = |name: &str| fs::metadata(path(name)).unwrap().ino();
        let pid = std::process::id() as i32;
        assert!(open_in_root(pid, &path("app"), inode("app")).is_some());
        assert!(open_in_root(pid, &path("link"), inode("app")).is_some());
        assert!(open_in_root(pid, &path("app"), inode("app") + 1).is_none());
        assert!(open_in_root(pid, &path("pipe"), inode("pipe")).is_none());
        assert!(open_in_root(pid, "/proc/self/exe", inode("app")).is_none());
        assert!(open_in_root(pid, "app", 0).is_none());
    }
}
