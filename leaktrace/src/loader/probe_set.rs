//! Many probes attached at once and taken away at once, again and again.
//!
//! A probe of its own perf event takes the kernel a grace period to open and three to close, one after the
//! other; the probes of one `uprobe_multi` link (Linux 6.6) are all gone before the first such period is
//! waited for. aya 0.14 has no such link, so the programs are loaded once more, for that kind of link, with
//! the maps that it has made.

use std::{
    collections::HashMap,
    ffi::CString,
    io, iter,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    thread::{self, JoinHandle},
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use aya_obj::{Object, generated::bpf_insn};
use nix::libc;

use super::{LoadError, Loaded, OBJECT, check_code, code::check_reached};
use crate::{plan::Uprobe, target::Target};

/// Of `enum bpf_cmd`, `bpf_prog_type` and `bpf_attach_type` (uapi/linux/bpf.h).
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;
const BPF_PROG_TYPE_KPROBE: u32 = 2;
const BPF_TRACE_UPROBE_MULTI: u32 = 48;
/// A flag of such a link: the probes are uretprobes.
const BPF_F_UPROBE_MULTI_RETURN: u32 = 1;

/// The map that keeps our programs on the stack of their thread (leaktrace-ebpf/src/private_stack.rs). One serves
/// programs for one kind of link only.
const NO_PRIVATE_STACK: &str = "NO_PRIVATE_STACK";

/// The program whose probes are uretprobes.
const AT_RETURN: &str = "malloc_returned";

/// The members of `union bpf_attr` for `BPF_PROG_LOAD`, as far as they are used.
#[repr(C)]
#[derive(Default)]
struct ProgramAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// The same for `BPF_MAP_CREATE`.
#[repr(C)]
struct MapAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// The same for `BPF_LINK_CREATE` of such a link.
#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    ref_ctr_offsets: u64,
    cookies: u64,
    cnt: u32,
    multi_flags: u32,
    pid: u32,
    padding: u32,
}

/// Probes that are attached together.
pub struct ProbeSet {
    programs: HashMap<&'static str, OwnedFd>,
    instructions: HashMap<String, Vec<bpf_insn>>,
    groups: Vec<Group>,
    probes: Vec<Uprobe>,
    /// Its number is in the instructions.
    _no_private_stack: OwnedFd,
}

/// Those of one program in one file.
struct Group {
    program: &'static str,
    path: CString,
    offsets: Vec<u64>,
}

/// All probes of a set, attached.
pub struct OpenSet(Vec<OwnedFd>);

/// Probes that are being taken away: a thread for each link.
#[derive(Default)]
pub struct Closing(Vec<JoinHandle<()>>);

impl ProbeSet {
    /// A set without probes, whose programs will use the maps of `ebpf`.
    ///
    /// # Errors
    ///
    /// The object cannot be read.
    pub(super) fn new(ebpf: &Ebpf) -> Result<Self, LoadError> {
        let failed = |error: &dyn std::error::Error| {
            LoadError::other("read the BPF object", error.to_string())
        };
        let mut object = Object::parse(OBJECT).map_err(|error| failed(&error))?;
        let sections = object.functions.keys().map(|(section, _)| *section);
        let sections = sections.collect();
        let described = std::mem::take(&mut object.maps);
        let no_private_stack = empty_program_array()?;
        let maps = described.iter().map(|(name, described)| {
            let fd = match name.as_str() {
                NO_PRIVATE_STACK => Some(no_private_stack.as_fd()),
                name => ebpf.map(name).and_then(fd),
            };
            let fd = fd
                .ok_or_else(|| LoadError::other("find a map in the BPF object", name.to_owned()))?;
            Ok((name.as_str(), fd.as_raw_fd(), described))
        });
        let maps = maps.collect::<Result<Vec<_>, LoadError>>()?;
        object
            .relocate_maps(maps.into_iter(), &sections)
            .map_err(|error| failed(&error))?;
        object
            .relocate_calls(&sections)
            .map_err(|error| failed(&error))?;
        let programs = object.programs.iter().filter_map(|(name, program)| {
            let function = object.functions.get(&program.function_key())?;
            Some((name.clone(), function.instructions.clone()))
        });
        Ok(Self {
            programs: HashMap::new(),
            instructions: programs.collect(),
            groups: Vec::new(),
            probes: Vec::new(),
            _no_private_stack: no_private_stack,
        })
    }

    /// Adds probes, which are attached from the next time on.
    ///
    /// # Errors
    ///
    /// The kernel refuses a program, or knows no such links.
    pub fn add(
        &mut self,
        probes: &[Uprobe],
        loaded: &mut Loaded,
        target: &Target,
    ) -> Result<(), LoadError> {
        for probe in probes {
            check_code(probe, target, |_| false)?;
            loaded.set_calls(probe)?;
            self.load(probe.program)?;
            let path = path_of(probe, target)?;
            let group = self.groups.iter_mut();
            let mut group =
                group.filter(|group| (group.program, &group.path) == (probe.program, &path));
            match group.next() {
                Some(group) => group.offsets.push(probe.file_offset),
                None => self.groups.push(Group {
                    program: probe.program,
                    path,
                    offsets: vec![probe.file_offset],
                }),
            }
            self.probes.push(probe.clone());
        }
        Ok(())
    }

    fn load(&mut self, program: &'static str) -> Result<(), LoadError> {
        if self.programs.contains_key(program) {
            return Ok(());
        }
        let instructions = self
            .instructions
            .get(program)
            .ok_or_else(|| LoadError::other("find a program in the BPF object", program))?;
        let mut attr = ProgramAttr {
            prog_type: BPF_PROG_TYPE_KPROBE,
            insn_cnt: instructions.len() as u32,
            insns: instructions.as_ptr() as u64,
            license: c"Dual MIT/GPL".as_ptr() as u64,
            expected_attach_type: BPF_TRACE_UPROBE_MULTI,
            ..ProgramAttr::default()
        };
        let name = program.bytes().take(attr.prog_name.len() - 1);
        for (to, from) in iter::zip(&mut attr.prog_name, name) {
            *to = from;
        }
        // SAFETY: `attr` is the start of `union bpf_attr`; its pointers lead to live instructions and a
        // C string.
        let fd = unsafe { bpf(BPF_PROG_LOAD, &attr) }
            .map_err(|error| LoadError::other(&format!("load `{program}` for windows"), error))?;
        self.programs.insert(program, fd);
        Ok(())
    }

    /// Attaches all of them.
    ///
    /// # Errors
    ///
    /// The first that could not be attached; none is then.
    pub fn open(&self, target: &Target) -> Result<OpenSet, LoadError> {
        for probe in &self.probes {
            check_code(probe, target, |_| false)?;
        }
        let open = self.open_in(target.pid)?;
        for probe in &self.probes {
            check_reached(probe, target)?;
        }
        Ok(open)
    }

    /// Attaches all of them in a process that the target has made: it has the target's code, in which these
    /// probes are.
    ///
    /// # Errors
    ///
    /// As of [`ProbeSet::open`].
    pub fn open_in(&self, pid: i32) -> Result<OpenSet, LoadError> {
        let links = self.groups.iter().map(|group| {
            let attr = LinkAttr {
                prog_fd: self
                    .programs
                    .get(group.program)
                    .map_or(0, |fd| fd.as_raw_fd() as u32),
                attach_type: BPF_TRACE_UPROBE_MULTI,
                path: group.path.as_ptr() as u64,
                offsets: group.offsets.as_ptr() as u64,
                cnt: group.offsets.len() as u32,
                multi_flags: match group.program {
                    AT_RETURN => BPF_F_UPROBE_MULTI_RETURN,
                    _ => 0,
                },
                pid: pid as u32,
                ..LinkAttr::default()
            };
            // SAFETY: as above; `cnt` offsets are there.
            unsafe { bpf(BPF_LINK_CREATE, &attr) }.map_err(|error| match error.raw_os_error() {
                Some(libc::ESRCH) => LoadError::Gone { pid },
                _ => LoadError::other(&format!("attach `{}`", group.program), error),
            })
        });
        links.collect::<Result<_, _>>().map(OpenSet)
    }
}

impl OpenSet {
    /// Takes them away.
    pub fn close(self) -> Closing {
        let mut closing = Closing::default();
        closing.add(self);
        closing
    }
}

impl Closing {
    /// Takes the probes of one more set away: at once, each link on a thread of its own, since the kernel lets
    /// each wait until nobody uses its probes any more.
    pub fn add(&mut self, open: OpenSet) {
        let links = open.0.into_iter();
        self.0
            .extend(links.map(|link| thread::spawn(move || drop(link))));
    }

    /// Whether the kernel has done.
    pub fn is_over(&mut self) -> bool {
        self.0.retain(|thread| !thread.is_finished());
        self.0.is_empty()
    }

    /// Waits until it has.
    pub fn wait(self) {
        for thread in self.0 {
            // It can only have panicked, which it has said itself.
            let _ = thread.join();
        }
    }
}

fn path_of(probe: &Uprobe, target: &Target) -> Result<CString, LoadError> {
    let executable = format!("/proc/{}/exe", target.pid);
    let path = probe
        .file
        .as_ref()
        .map_or(Path::new(&executable), |file| &file.open_path);
    CString::new(path.as_os_str().as_bytes())
        .map_err(|error| LoadError::other("name a file", error))
}

fn fd(map: &Map) -> Option<BorrowedFd<'_>> {
    let data: &MapData = match map {
        Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::HashMap(data)
        | Map::PerCpuHashMap(data)
        | Map::Queue(data)
        | Map::RingBuf(data) => data,
        _ => return None,
    };
    Some(data.fd().as_fd())
}

fn empty_program_array() -> Result<OwnedFd, LoadError> {
    let attr = MapAttr {
        map_type: BPF_MAP_TYPE_PROG_ARRAY,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        map_flags: 0,
    };
    // SAFETY: `attr` is the start of `union bpf_attr`, without pointers.
    unsafe { bpf(BPF_MAP_CREATE, &attr) }.map_err(|error| LoadError::other("make a BPF map", error))
}

/// `bpf(2)` for a command that gives a file descriptor.
///
/// # Safety
///
/// `attr` must be the start of `union bpf_attr` for that command, and its pointers valid.
unsafe fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attr, size_of::<T>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given it to us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[cfg(test)]
mod tests {
    use aya_obj::ProgramSection;

    use super::*;

    /// `BPF_JMP | BPF_CALL`, and the number of the helper `bpf_tail_call`.
    const CALL: u8 = 0x85;
    const TAIL_CALL: i32 = 12;

    /// One without a tail call may be given a stack that it shares with another thread
    /// (leaktrace-ebpf/src/private_stack.rs).
    #[test]
    fn uprobe_programs_keep_the_stack_of_their_thread() {
        let mut object = Object::parse(OBJECT).unwrap();
        let sections = object.functions.keys().map(|(section, _)| *section);
        let sections = sections.collect();
        object.relocate_calls(&sections).unwrap();
        let mut seen = 0;
        for (name, program) in &object.programs {
            let is_uprobe = matches!(
                program.section,
                ProgramSection::UProbe { .. } | ProgramSection::URetProbe { .. }
            );
            let function = &object.functions[&program.function_key()];
            let mut instructions = function.instructions.iter();
            let calls = instructions.any(|instruction| {
                (instruction.code, instruction.imm) == (CALL, TAIL_CALL)
                    && instruction.src_reg() == 0
            });
            assert_eq!(calls, is_uprobe, "{name}");
            seen += u32::from(is_uprobe);
        }
        assert!(seen >= 13, "{seen}");
    }
}
