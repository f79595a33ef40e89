//! Links of many uprobes, their programs, and what the kernel knows of them: `bpf(2)` as far as aya 0.14 does not.

use std::{
    ffi::CStr,
    io, iter,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::OnceLock,
};

use aya_obj::generated::bpf_insn;
use nix::libc;

/// Of `enum bpf_cmd`, `bpf_prog_type`, `bpf_map_type` and `bpf_attach_type` (uapi/linux/bpf.h).
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_PROG_LOAD: libc::c_long = 5;
pub(super) const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;
const BPF_PROG_TYPE_KPROBE: u32 = 2;
const BPF_TRACE_UPROBE_MULTI: u32 = 48;
const BPF_TRACE_UPROBE_SESSION: u32 = 57;
/// A flag of such a link: the probes are uretprobes.
const BPF_F_UPROBE_MULTI_RETURN: u32 = 1;

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

/// Of what the program of a link is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// That a probe is met.
    Hits,
    /// That a function returns at whose beginning the probe stands.
    Returns,
    /// Of both; of the return only if it says so at the beginning: a session (Linux 6.13).
    Calls,
}

impl Told {
    fn attach_type(self) -> u32 {
        match self {
            Self::Hits | Self::Returns => BPF_TRACE_UPROBE_MULTI,
            Self::Calls => BPF_TRACE_UPROBE_SESSION,
        }
    }
}

/// Loads a program for such links.
pub(super) fn load(name: &str, told: Told, instructions: &[bpf_insn]) -> io::Result<OwnedFd> {
    let mut attr = ProgramAttr {
        prog_type: BPF_PROG_TYPE_KPROBE,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        expected_attach_type: told.attach_type(),
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

/// Attaches a program at these offsets of a file, for the process `pid`.
pub(super) fn attach(
    program: &OwnedFd,
    told: Told,
    path: &CStr,
    offsets: &[u64],
    pid: i32,
) -> io::Result<OwnedFd> {
    let attr = LinkAttr {
        prog_fd: program.as_raw_fd() as u32,
        attach_type: told.attach_type(),
        path: path.as_ptr() as u64,
        offsets: offsets.as_ptr() as u64,
        cnt: offsets.len() as u32,
        multi_flags: match told {
            Told::Returns => BPF_F_UPROBE_MULTI_RETURN,
            Told::Hits | Told::Calls => 0,
        },
        pid: pid as u32,
        ..LinkAttr::default()
    };
    // SAFETY: `attr` is the start of `union bpf_attr`; its pointers lead to a C string and to as many offsets.
    unsafe { bpf(BPF_LINK_CREATE, &attr) }
}

/// Makes an array for one program, which has none.
pub(super) fn empty_program_array() -> io::Result<OwnedFd> {
    let attr = MapAttr {
        map_type: BPF_MAP_TYPE_PROG_ARRAY,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        map_flags: 0,
    };
    // SAFETY: `attr` is the start of `union bpf_attr`, without pointers.
    unsafe { bpf(BPF_MAP_CREATE, &attr) }
}

/// Whether the kernel knows such links, and has each see one process. Before 46ba0e49b642 (Linux 6.10, 6.9.4, 6.6.33)
/// they saw one thread of it: only where that is mended does a negative id of a process not make sense (`EINVAL`).
/// Asked once in a run.
pub(super) fn are_links_known() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    let refused = |pid| refusal(Told::Hits, pid);
    *KNOWN.get_or_init(|| refused(0) == Some(libc::EBADF) && refused(-1) == Some(libc::EINVAL))
}

/// Whether the kernel knows links that are sessions: whose program says of each call whether it is to be told of the
/// return. Asked once in a run.
pub fn are_sessions_known() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| are_links_known() && refusal(Told::Calls, 0) == Some(libc::EBADF))
}

/// How the kernel refuses a link to a folder, which has no code: with `EBADF`, if it knows the kind of link.
fn refusal(told: Told, pid: i32) -> Option<i32> {
    /// `BPF_ALU64 | BPF_MOV | BPF_K` of zero to the first register, `BPF_JMP | BPF_EXIT`.
    const NOTHING: [u8; 2] = [0xb7, 0x95];
    let nothing = NOTHING.map(|code| bpf_insn {
        code,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(0, 0),
        off: 0,
        imm: 0,
    });
    let program = load("nothing", told, &nothing).ok()?;
    let error = attach(&program, told, c"/", &[0], pid).err()?;
    error.raw_os_error()
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
