//! Files of debug information in directories named by the user.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::Module;
use super::file::{Identity, identity};
use crate::go::elf::Elf;
use crate::target::open_image;

/// What a search found: the file that fits, and a reason for each that did not.
#[derive(Default)]
pub(super) struct Found {
    pub(super) file: Option<(PathBuf, Bytes, Elf)>,
    pub(super) refused: Vec<String>,
}

/// Looks for the module by build id, then by path and by name. A module with a build id accepts
/// a file with the same one only.
pub(super) fn find(module: &Module, directories: &[PathBuf]) -> Found {
    let mut found = Found::default();
    for path in directories
        .iter()
        .flat_map(|directory| candidates(module, directory))
    {
        let Ok(bytes) = open_image(&path) else {
            continue;
        };
        let shown = path.display();
        let elf = match Elf::parse(bytes.clone()) {
            Ok(elf) => elf,
            Err(error) => {
                found.refused.push(format!("`{shown}`: {error}"));
                continue;
            }
        };
        match (identity(module, &elf), &module.build_id) {
            (Identity::Same, _) | (Identity::Unknown, None) => {
                found.file = Some((path, bytes, elf));
                break;
            }
            (Identity::Unknown, Some(wanted)) => {
                found
                    .refused
                    .push(format!("`{shown}` has no build id, not {wanted}"));
            }
            (Identity::Different(other), _) => {
                let wanted = module.build_id.as_deref().unwrap_or("none");
                found
                    .refused
                    .push(format!("`{shown}` has build id {other}, not {wanted}"));
            }
        }
    }
    found
}

fn candidates(module: &Module, directory: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    let hex = |id: &&String| id.len() > 2 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if let Some(id) = module.build_id.as_ref().filter(hex) {
        paths.push(
            directory
                .join(".build-id")
                .join(&id[..2])
                .join(format!("{}.debug", &id[2..])),
        );
    }
    let path = module.path.trim_end_matches(" (deleted)");
    // A capture's path is not trusted: it stays below the directory.
    let plain = !path.split('/').any(|part| part == "..");
    let below = path.trim_start_matches('/');
    if !below.is_empty() && plain {
        let name = below.rsplit('/').next().unwrap_or(below);
        for path in [below, name] {
            paths.push(directory.join(path));
            paths.push(directory.join(format!("{path}.debug")));
        }
    }
    paths
}
