//! Many probes attached at once and taken away at once.
//!
//! A probe of its own perf event takes the kernel a grace period to open and three to close, one after the
//! other; the probes of one `uprobe_multi` link (Linux 6.6) are all gone before the first such period is
//! waited for. aya 0.14 has no such link, so the programs are loaded here, for that kind of link, with
//! the maps that it has made.

use std::{
    collections::HashMap,
    ffi::CString,
    fs, io, iter,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    sync::Arc,
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
pub(super) const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;
const BPF_PROG_TYPE_KPROBE: u32 = 2;
const BPF_TRACE_UPROBE_MULTI: u32 = 48;
/// The same for links that are sessions: of each call the program is told when it begins and, if it says so then, when
/// it returns (Linux 6.13, d920179b3d4842).
const BPF_TRACE_UPROBE_SESSION: u32 = 57;
/// A flag of such a link: the probes are uretprobes.
const BPF_F_UPROBE_MULTI_RETURN: u32 = 1;

/// `BPF_LD | BPF_DW | BPF_IMM` and, in its source register, what says that the number is a map's.
const LOAD_WORD: u8 = 0x18;
const BPF_PSEUDO_MAP_FD: u8 = 1;

/// The map that keeps our programs on the stack of their thread (leaktrace-ebpf/src/private_stack.rs). One serves
/// programs for one kind of link only.
const NO_PRIVATE_STACK: &str = "NO_PRIVATE_STACK";

/// The program whose probes are uretprobes.
const AT_RETURN: &str = "malloc_returned";

/// The program of a session.
const OF_CALL: &str = "malloc_call";

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

/// The programs of the object, for such links.
pub(super) struct Programs {
    loaded: HashMap<&'static str, Arc<OwnedFd>>,
    instructions: HashMap<String, Vec<bpf_insn>>,
    /// Its number is in the instructions.
    no_private_stack: OwnedFd,
    /// The same for the program of a session.
    no_private_stack_of_session: OwnedFd,
}

/// Probes that are attached together.
#[derive(Default)]
pub struct ProbeSet {
    groups: Vec<Group>,
    probes: Vec<Uprobe>,
}

/// Those of one program in one file: a link.
struct Group {
    program: &'static str,
    loaded: Arc<OwnedFd>,
    path: CString,
    offsets: Vec<u64>,
    addresses: Vec<u64>,
}

/// All probes of a set, attached.
pub struct OpenSet(Vec<Link>);

/// The probes of one program in one file, attached as long as this lives.
pub(super) struct Link {
    pub(super) program: &'static str,
    /// What runs.
    pub(super) loaded: Arc<OwnedFd>,
    /// Where the probes stand in the target.
    pub(super) addresses: Vec<u64>,
    _fd: OwnedFd,
}

/// Probes that are being taken away: a thread for each link.
#[derive(Default)]
pub struct Closing(Vec<JoinHandle<()>>);

impl Programs {
    /// None is loaded yet; they will use the maps of `ebpf`, of which none may have been taken out. None if the kernel
    /// has no such links.
    ///
    /// # Errors
    ///
    /// The object cannot be read.
    pub(super) fn find(ebpf: &Ebpf) -> Result<Option<Self>, LoadError> {
        are_links_known().then(|| Self::new(ebpf)).transpose()
    }

    fn new(ebpf: &Ebpf) -> Result<Self, LoadError> {
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
            loaded: HashMap::new(),
            instructions: programs.collect(),
            no_private_stack,
            no_private_stack_of_session: empty_program_array()?,
        })
    }

    /// Loads a program, once.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub(super) fn load(&mut self, program: &'static str) -> Result<Arc<OwnedFd>, LoadError> {
        if let Some(fd) = self.loaded.get(program) {
            return Ok(Arc::clone(fd));
        }
        let instructions = self
            .instructions
            .get_mut(program)
            .ok_or_else(|| LoadError::other("find a program in the BPF object", program))?;
        if attach_type(program) == BPF_TRACE_UPROBE_SESSION {
            let (of_links, of_session) = (
                self.no_private_stack.as_raw_fd(),
                self.no_private_stack_of_session.as_raw_fd(),
            );
            let uses = instructions.iter_mut().filter(|instruction| {
                (instruction.code, instruction.src_reg(), instruction.imm)
                    == (LOAD_WORD, BPF_PSEUDO_MAP_FD, of_links)
            });
            uses.for_each(|instruction| instruction.imm = of_session);
        }
        let fd = load(program, attach_type(program), instructions)
            .map_err(|error| LoadError::other(&format!("load `{program}`"), error))?;
        let fd = Arc::new(fd);
        self.loaded.insert(program, Arc::clone(&fd));
        Ok(fd)
    }
}

impl ProbeSet {
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
            check_code(probe, target, |address| loaded.stands_at(address))?;
            loaded.set_calls(probe)?;
            let fd = loaded.programs()?.load(probe.program)?;
            let path = path_of(probe, target)?;
            let group = self.groups.iter_mut();
            let mut group =
                group.filter(|group| (group.program, &group.path) == (probe.program, &path));
            match group.next() {
                Some(group) => {
                    group.offsets.push(probe.file_offset);
                    group.addresses.push(probe.address);
                }
                None => self.groups.push(Group {
                    program: probe.program,
                    loaded: fd,
                    path,
                    offsets: vec![probe.file_offset],
                    addresses: vec![probe.address],
                }),
            }
            self.probes.push(probe.clone());
        }
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
        self.open_now(target)
    }

    /// The same when they have just been added.
    pub(super) fn open_now(&self, target: &Target) -> Result<OpenSet, LoadError> {
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
                prog_fd: group.loaded.as_raw_fd() as u32,
                attach_type: attach_type(group.program),
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
            let link = unsafe { bpf(BPF_LINK_CREATE, &attr) };
            // A file that is named by its process goes with that.
            let is_there = || fs::exists(format!("/proc/{pid}/exe")).unwrap_or(false);
            let link = link.map_err(|error| match error.raw_os_error() {
                Some(libc::ESRCH) => LoadError::Gone { pid },
                _ if !is_there() => LoadError::Gone { pid },
                _ => LoadError::other(&format!("attach `{}`", group.program), error),
            })?;
            Ok(Link {
                program: group.program,
                loaded: Arc::clone(&group.loaded),
                addresses: group.addresses.clone(),
                _fd: link,
            })
        });
        links.collect::<Result<_, _>>().map(OpenSet)
    }
}

impl OpenSet {
    /// Its links, each to be held by itself.
    pub(super) fn into_links(self) -> Vec<Link> {
        self.0
    }

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

fn attach_type(program: &str) -> u32 {
    match program {
        OF_CALL => BPF_TRACE_UPROBE_SESSION,
        _ => BPF_TRACE_UPROBE_MULTI,
    }
}

fn load(name: &str, attach_type: u32, instructions: &[bpf_insn]) -> io::Result<OwnedFd> {
    let mut attr = ProgramAttr {
        prog_type: BPF_PROG_TYPE_KPROBE,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        expected_attach_type: attach_type,
        ..ProgramAttr::default()
    };
    let name = name.bytes().take(attr.prog_name.len() - 1);
    for (to, from) in iter::zip(&mut attr.prog_name, name) {
        *to = from;
    }
    // SAFETY: `attr` is the start of `union bpf_attr`; its pointers lead to live instructions and a
    // C string.
    unsafe { bpf(BPF_PROG_LOAD, &attr) }
}

/// Whether the kernel knows such links, and has each see one process. Before 46ba0e49b642 (Linux 6.10, 6.9.4, 6.6.33)
/// they saw one thread of it: only where that is mended does a negative id of a process not make sense (`EINVAL`).
pub(super) fn are_links_known() -> bool {
    let refused = |pid| refusal(BPF_TRACE_UPROBE_MULTI, pid);
    refused(0) == Some(libc::EBADF) && refused(-1) == Some(libc::EINVAL)
}

/// Whether the kernel knows links that are sessions.
pub fn are_sessions_known() -> bool {
    are_links_known() && refusal(BPF_TRACE_UPROBE_SESSION, 0) == Some(libc::EBADF)
}

/// How the kernel refuses a link to a folder, which has no code: with `EBADF`, if it knows the kind of link.
fn refusal(attach_type: u32, pid: i32) -> Option<i32> {
    /// `BPF_ALU64 | BPF_MOV | BPF_K` of zero to the first register, `BPF_JMP | BPF_EXIT`.
    const NOTHING: [u8; 2] = [0xb7, 0x95];
    let nothing = NOTHING.map(|code| bpf_insn {
        code,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(0, 0),
        off: 0,
        imm: 0,
    });
    let program = load("nothing", attach_type, &nothing).ok()?;
    let offset = 0u64;
    let attr = LinkAttr {
        prog_fd: program.as_raw_fd() as u32,
        attach_type,
        path: c"/".as_ptr() as u64,
        offsets: &raw const offset as u64,
        cnt: 1,
        pid: pid as u32,
        ..LinkAttr::default()
    };
    // SAFETY: as above; there is one offset.
    unsafe { bpf(BPF_LINK_CREATE, &attr) }.err()?.raw_os_error()
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
pub(super) unsafe fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
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
