//! A probe stands in the code that it was planned for, or nowhere.

use std::fs;

use super::LoadError;
use crate::{plan::Uprobe, target::Target};

/// Checks that a probe would stand in the code that it was planned for.
///
/// # Errors
///
/// [`LoadError::CodeDiffers`], or the code cannot be read.
pub fn check_code(probe: &Uprobe, target: &Target) -> Result<(), LoadError> {
    let pid = target.pid;
    let mut mapped = vec![0; probe.code.len()];
    target
        .memory
        .read(probe.code_address, &mut mapped)
        .map_err(|source| match fs::exists(format!("/proc/{pid}/exe")) {
            Ok(true) => LoadError::other(&format!("read the code of `{}`", probe.function), source),
            _ => LoadError::Gone { pid },
        })?;
    if same_code(&mapped, &probe.code, target.is_traced()) {
        Ok(())
    } else {
        Err(LoadError::CodeDiffers {
            function: probe.function,
        })
    }
}

/// Whether the code in memory is the file's. The breakpoint of another uprobe does not count as a
/// difference, the kernel keeps several on one instruction; that of a debugger does, since the
/// kernel would take it away with ours.
fn same_code(mapped: &[u8], file: &[u8], is_traced: bool) -> bool {
    const INT3: u8 = 0xcc;
    mapped.len() == file.len()
        && mapped
            .iter()
            .zip(file)
            .all(|(mapped, file)| mapped == file || (!is_traced && *mapped == INT3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_breakpoint_of_a_uprobe_may_differ() {
        assert!(same_code(&[1, 2, 3], &[1, 2, 3], true));
        assert!(same_code(&[1, 0xcc, 3], &[1, 2, 3], false));
        assert!(!same_code(&[1, 0xcc, 3], &[1, 2, 3], true));
        assert!(!same_code(&[1, 0x90, 3], &[1, 2, 3], false));
        assert!(!same_code(&[1, 2], &[1, 2, 3], false));
    }
}
