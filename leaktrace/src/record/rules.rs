//! The frame rules of a process: those of its files, at the addresses at which they are mapped.

use std::collections::HashMap;

use anyhow::Result;
use leaktrace_common::FrameRule;

use crate::{
    capture::schema,
    plan::{
        cgo::crossings,
        frame_rules::{self, NoRules, Reach},
    },
    target::{Target, maps::Modules, open_image},
};

/// How to leave the frames of system calls, of native allocators if `malloc` says so, and of their callers,
/// in every mapped file that says so, and
/// those between Go and C. A file that does not (Go, or built without) is walked by frame pointers
/// alone, and each stack that breaks there says so.
///
/// Gives the rules by address, and the number of places that were over a file's bound; a file that
/// is too large to be searched becomes a limit.
pub(super) fn frame_rules(
    target: &Target,
    modules: &mut Modules,
    malloc: bool,
    limits: &mut Vec<schema::Limit>,
) -> Result<(Vec<(u64, FrameRule)>, u64)> {
    let map = target.address_map()?;
    let go = target.go.as_ref().and_then(|go| go.as_ref().ok());
    let mut of_module = HashMap::new();
    let mut rules = Vec::new();
    let mut left_out = 0;
    for mapping in map.executable() {
        let index = modules.intern(&map, mapping);
        let of_module = of_module.entry(index).or_insert_with(|| {
            let module = modules.get(index)?;
            let path = &module.path;
            let reach = match go {
                Some(_) if *path == target.exe => Reach::AllCalls,
                _ if malloc => Reach::Allocators,
                _ => Reach::SystemCalls,
            };
            match frame_rules::frame_rules(&open_image(&module.open_path()?).ok()?, reach) {
                Ok(found) => {
                    left_out += found.left_out;
                    Some(found.rules)
                }
                Err(error @ NoRules::TooLarge) => {
                    limits.push(schema::Limit {
                        what: format!("callers of system calls in `{path}`"),
                        reason: error.to_string(),
                    });
                    None
                }
                Err(NoRules::Elf(_) | NoRules::NoFrames) => None,
            }
        });
        let (start, end) = mapping.address;
        let range = mapping.offset..mapping.offset + (end - start);
        let found = of_module
            .iter()
            .flat_map(|of_module| of_module.range(range.clone()));
        rules.extend(found.map(|(offset, rule)| (start + (offset - mapping.offset), *rule)));
    }
    if let Some(go) = go {
        let crossings = crossings(&go.binary).into_iter();
        rules.extend(crossings.map(|(address, rule)| (address.wrapping_add(go.bias), rule)));
    }
    Ok((rules, left_out))
}
