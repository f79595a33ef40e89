//! Whether the kernel lets its own system call for uretprobes past a seccomp filter.
//!
//! On x86-64 a kernel since 6.11 makes a thread call `uretprobe` when a function with a uretprobe returns
//! (kernel commit ff474a78cef5). Until seccomp was taught to let it pass (cf6cb56ef244, 6.14 and several
//! stable releases) a process that goes under a filter which does not know it can die of that, and nobody
//! can tell beforehand which process will. So it is tried: a child puts itself under a filter that refuses
//! this one system call with an error of its own, and calls it.

use std::sync::OnceLock;

use nix::{
    libc,
    sys::{
        signal::Signal,
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, fork},
};

/// `uretprobe` (arch/x86/entry/syscalls/syscall_64.tbl).
const URETPROBE: u32 = 335;
/// The error with which the filter refuses it; no kernel gives it.
const REFUSED: i32 = libc::EDOM;
/// Exit code of the child when the filter has been asked.
const WAS_FILTERED: i32 = 1;
/// Exit code of the child when there can be no filter here.
const NO_FILTER: i32 = 2;

/// Tries it, once in a run.
///
/// # Errors
///
/// Why a process may be harmed, in words.
pub fn uretprobes_bear_seccomp() -> Result<(), String> {
    static FOUND: OnceLock<Result<(), String>> = OnceLock::new();
    FOUND.get_or_init(in_a_child).clone()
}

fn in_a_child() -> Result<(), String> {
    // SAFETY: the child calls nothing but system calls and ends by `_exit`, as a child of a process with
    // threads must.
    let child = match unsafe { fork() } {
        Ok(ForkResult::Parent { child }) => child,
        Ok(ForkResult::Child) => {
            let code = call_under_filter();
            // SAFETY: ends this process at once, and runs nothing of its parent's.
            unsafe { libc::_exit(code) }
        }
        Err(error) => return Err(format!("it could not be tried: {error}")),
    };
    let filtered =
        "this kernel lets a seccomp filter kill a process for it, and any process may set one";
    match waitpid(child, None) {
        // The system call was made. From anywhere but the kernel's own page that is illegal.
        Ok(WaitStatus::Signaled(_, Signal::SIGILL, _) | WaitStatus::Exited(_, 0)) => Ok(()),
        Ok(WaitStatus::Exited(_, WAS_FILTERED)) => Err(filtered.to_owned()),
        // Without seccomp nothing is killed by it.
        Ok(WaitStatus::Exited(_, NO_FILTER)) => Ok(()),
        other => Err(format!(
            "whether seccomp lets it pass could not be told: {other:?}"
        )),
    }
}

/// In the child.
fn call_under_filter() -> i32 {
    const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut code = [
        instruction(LOAD_NUMBER, 0, 0, 0),
        instruction(JUMP_IF_EQUAL, 0, 1, URETPROBE),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | REFUSED as u32),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog {
        len: code.len() as u16,
        filter: code.as_mut_ptr(),
    };
    let no_core = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: plain system calls; `filter` and `no_core` live through them.
    unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core);
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        if libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter) != 0 {
            return NO_FILTER;
        }
        match libc::syscall(URETPROBE.into()) {
            -1 if *libc::__errno_location() == REFUSED => WAS_FILTERED,
            _ => 0,
        }
    }
}
