//! Whether a file is the module's.

use super::Module;
use crate::go::elf::Elf;
use crate::go::version::build_ids;

/// How a file's build ids compare with the module's.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Identity {
    Same,
    /// One of them has none.
    Unknown,
    /// The file's.
    Different(String),
}

pub(super) fn identity(module: &Module, elf: &Elf) -> Identity {
    let (go, gnu) = build_ids(elf);
    let Some(wanted) = &module.build_id else {
        return Identity::Unknown;
    };
    if gnu.as_ref() == Some(wanted) || go.as_ref() == Some(wanted) {
        return Identity::Same;
    }
    gnu.or(go).map_or(Identity::Unknown, Identity::Different)
}
