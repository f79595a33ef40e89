//! A probe stands in the code that it was planned for, or nowhere.

use std::fs;

use super::LoadError;
use crate::{plan::Uprobe, target::Target};

/// Checks that a probe would stand in the code that it was planned for; `is_ours` tells the addresses at which there is
/// a probe of ours already.
///
/// # Errors
///
/// [`LoadError::CodeDiffers`], or the code cannot be read.
pub fn check_code(
    probe: &Uprobe,
    target: &Target,
    is_ours: impl Fn(u64) -> bool,
) -> Result<(), LoadError> {
    let pid = target.pid;
    let mut mapped = vec![0; probe.code.len()];
    target
        .memory
        .read(probe.code_address, &mut mapped)
        .map_err(|source| match fs::exists(format!("/proc/{pid}/exe")) {
            Ok(true) => LoadError::other(&format!("read the code of `{}`", probe.function), source),
            _ => LoadError::Gone { pid },
        })?;
    let is_traced = target.is_traced();
    let may_break = |at: usize| !is_traced || is_ours(probe.code_address + at as u64);
    if same_code(&mapped, &probe.code, may_break) {
        Ok(())
    } else {
        Err(LoadError::CodeDiffers {
            function: probe.function,
        })
    }
}

/// Checks that a probe that was attached is in the target's memory. An overlay copies a file when it is changed in any
/// way; the kernel then puts probes into the copy, and whoever has the file mapped runs the old one.
///
/// # Errors
///
/// [`LoadError::Elsewhere`].
pub(super) fn check_reached(probe: &Uprobe, target: &Target) -> Result<(), LoadError> {
    let at = probe.address.checked_sub(probe.code_address);
    let original = at.and_then(|at| probe.code.get(at as usize));
    let mut mapped = [0];
    let is_read = target.memory.read(probe.address, &mut mapped).is_ok();
    match original {
        Some(original) if is_read && mapped == [*original] => Err(LoadError::Elsewhere {
            pid: target.pid,
            function: probe.function,
        }),
        _ => Ok(()),
    }
}

/// Whether the code in memory is the file's. The breakpoint of another uprobe does not count as a
/// difference, the kernel keeps several on one instruction; that of a debugger does, since the
/// kernel would take it away with ours. Where one may be, `may_break` tells.
fn same_code(mapped: &[u8], file: &[u8], may_break: impl Fn(usize) -> bool) -> bool {
    const INT3: u8 = 0xcc;
    let mut bytes = mapped.iter().zip(file).enumerate();
    mapped.len() == file.len()
        && bytes.all(|(at, (mapped, file))| mapped == file || *mapped == INT3 && may_break(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_breakpoint_of_a_uprobe_may_differ() {
        assert!(same_code(&[1, 2, 3], &[1, 2, 3], |_| false));
        assert!(same_code(&[1, 0xcc, 3], &[1, 2, 3], |at| at == 1));
        assert!(!same_code(&[1, 0xcc, 3], &[1, 2, 3], |at| at == 2));
        assert!(!same_code(&[1, 0x90, 3], &[1, 2, 3], |_| true));
        assert!(!same_code(&[1, 2], &[1, 2, 3], |_| true));
    }
}
