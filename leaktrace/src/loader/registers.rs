//! The registers of the target's threads, without stopping any: a BPF iterator over the tasks of one process
//! (Linux 6.1). aya 0.14 makes iterators over all tasks of the host only, so its link is made here.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use aya::{Btf, programs::Iter};
use nix::libc;

use super::{
    LoadError, Loaded,
    links::{BPF_LINK_CREATE, bpf},
    program_error,
};

/// Of `enum bpf_cmd` and `bpf_attach_type` (uapi/linux/bpf.h).
const BPF_ITER_CREATE: libc::c_long = 33;
const BPF_TRACE_ITER: u32 = 28;

const PROGRAM: &str = "thread_registers";

/// The members of `union bpf_attr` for `BPF_LINK_CREATE` of an iterator.
#[repr(C)]
struct LinkAttr {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    iter_info: u64,
    iter_info_len: u32,
    padding: u32,
}

/// `task` of `union bpf_iter_link_info`: all threads of a process.
#[repr(C)]
struct Tasks {
    tid: u32,
    pid: u32,
    pid_fd: u32,
}

/// The same for `BPF_ITER_CREATE`.
#[repr(C)]
struct IterAttr {
    link_fd: u32,
    flags: u32,
}

/// What the threads of a process have in their registers can be read as long as this lives. It is attached to nothing.
pub struct ThreadRegisters(OwnedFd);

impl Loaded {
    /// Makes it possible to read the registers of all threads of process `pid`.
    ///
    /// # Errors
    ///
    /// The kernel cannot do that for one process.
    pub fn thread_registers(&mut self, pid: i32) -> Result<ThreadRegisters, LoadError> {
        let btf = Btf::from_sys_fs()
            .map_err(|error| LoadError::other("read the kernel's type information", error))?;
        let program: &mut Iter = self.program(PROGRAM)?;
        program
            .load("task", &btf)
            .map_err(|error| program_error(PROGRAM, error))?;
        let tasks = Tasks {
            tid: 0,
            pid: pid as u32,
            pid_fd: 0,
        };
        let program = program
            .fd()
            .map_err(|error| program_error(PROGRAM, error))?;
        let attr = LinkAttr {
            prog_fd: program.as_fd().as_raw_fd() as u32,
            target_fd: 0,
            attach_type: BPF_TRACE_ITER,
            flags: 0,
            iter_info: &raw const tasks as u64,
            iter_info_len: size_of::<Tasks>() as u32,
            padding: 0,
        };
        // SAFETY: `attr` is the start of `union bpf_attr`; its pointer leads to as many bytes as it says.
        match unsafe { bpf(BPF_LINK_CREATE, &attr) } {
            Ok(link) => Ok(ThreadRegisters(link)),
            // It does not know that one can choose.
            Err(error) if error.raw_os_error() == Some(libc::E2BIG) => {
                Err(LoadError::Unsupported {
                    what: "BPF iterators over the threads of one process".to_owned(),
                    remedy: "use Linux 6.1 or later".to_owned(),
                })
            }
            Err(error) => Err(LoadError::other("iterate over threads", error)),
        }
    }
}

impl ThreadRegisters {
    /// The words that the threads have in their registers: of one that waits in the kernel as of when it came there, of
    /// one that runs as of when it was last interrupted.
    ///
    /// # Errors
    ///
    /// The kernel does not give them.
    pub fn read(&self) -> io::Result<Vec<u64>> {
        let attr = IterAttr {
            link_fd: self.0.as_raw_fd() as u32,
            flags: 0,
        };
        // SAFETY: `attr` is the start of `union bpf_attr`, without pointers.
        let iterator = unsafe { bpf(BPF_ITER_CREATE, &attr) }?;
        let mut bytes = Vec::new();
        File::from(iterator).read_to_end(&mut bytes)?;
        let words = bytes.chunks_exact(8);
        Ok(words
            .map(|word| word.try_into().map_or(0, u64::from_le_bytes))
            .collect())
    }
}
