//! What native allocators take from the kernel, and how much of it is in blocks that live.
//!
//! An allocator's own mappings are not leaks by themselves: what fills them shows as `malloc` sites. What
//! they have grown by beyond that is free memory that the allocator keeps.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::human;
use crate::capture::schema::Header;

/// Is probed to see that an allocator is left by it, and is of a library that is none: the C++ library also
/// makes threads, with mappings that are the program's.
const THROW: &str = "__cxa_allocate_exception";

/// Which frames are a native allocator's, by what was probed.
#[derive(Debug)]
pub(super) struct Allocators<'a> {
    functions: HashSet<&'a str>,
    /// Libraries that are allocators, as the C library is not.
    modules: HashSet<&'a str>,
}

impl<'a> Allocators<'a> {
    /// Those of a capture; none where their blocks were not followed.
    pub(super) fn new(header: &'a Header) -> Self {
        let exe = header.target.as_ref().map_or("", |target| &target.exe);
        let is_followed = header.malloc.is_some();
        let probes = header.probes.iter().filter(|_| is_followed);
        let native = probes.filter(|probe| {
            let is_allocators = !probe.name.starts_with("runtime.") && probe.name != THROW;
            !probe.module.is_empty() && is_allocators
        });
        let is_allocator = |module: &&str| {
            let name = module.rsplit('/').next().unwrap_or_default();
            let is_libc = ["libc.", "libc-", "ld-"]
                .iter()
                .any(|libc| name.starts_with(libc));
            *module != exe && !is_libc
        };
        Self {
            functions: native.clone().map(|probe| probe.name.as_str()).collect(),
            modules: native
                .map(|probe| probe.module.as_str())
                .filter(is_allocator)
                .collect(),
        }
    }

    /// Whether a block was asked for by this function, the `index`-th of its stack. The innermost is always
    /// an allocator's; `operator new` of the C++ library may come behind it.
    pub(super) fn asked(index: usize, function: Option<&str>) -> bool {
        index == 0 || function.is_some_and(|name| name.starts_with("operator new"))
    }

    /// Whether a stack with these functions and modules goes through an allocator.
    pub(super) fn own<'b>(
        &self,
        mut frames: impl Iterator<Item = (Option<&'b str>, Option<String>)>,
    ) -> bool {
        frames.any(|(function, module)| {
            function.is_some_and(|function| self.functions.contains(plain(function)))
                || module.is_some_and(|module| self.modules.contains(module.as_str()))
        })
    }
}

/// The name of a function without what glibc puts before it for itself.
fn plain(function: &str) -> &str {
    let function = function.strip_prefix("__GI_").unwrap_or(function);
    function.strip_prefix("__libc_").unwrap_or(function)
}

/// What native allocators have taken from the kernel since the attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllocatorReport {
    /// Bytes mapped less those unmapped; address space, of which not all need be resident.
    pub taken_bytes: i64,
    /// Bytes in blocks that were allocated since and live.
    pub live_bytes: i64,
    /// What of it is in no such block, at least: blocks from before the attach may have been freed too.
    pub free_bytes: i64,
}

impl AllocatorReport {
    /// Of `taken` bytes that the allocators have got from the kernel since the attach, `live` are in
    /// blocks that were allocated since and live.
    pub(super) fn new(taken: i64, live: u64) -> Self {
        let live = i64::try_from(live).unwrap_or(i64::MAX);
        Self {
            taken_bytes: taken,
            live_bytes: live,
            free_bytes: taken.saturating_sub(live).max(0),
        }
    }

    /// As lines of text.
    pub(super) fn lines(&self) -> Vec<String> {
        let bytes = |bytes: i64| human::bytes(bytes as f64);
        let mut lines = vec![format!(
            "  native allocators, since the attach: {} taken from the kernel, {} in blocks that live",
            bytes(self.taken_bytes),
            bytes(self.live_bytes)
        )];
        if self.free_bytes > 0 {
            lines.push(format!(
                "  {} or more of it is in none: fragmentation, or kept for later, no leak",
                bytes(self.free_bytes)
            ));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::schema::{MallocSampling, Probe, Target};

    fn header(is_followed: bool) -> Header {
        let probe = |name: &str, module: &str| Probe {
            name: name.to_owned(),
            module: module.to_owned(),
            ..Probe::default()
        };
        Header {
            target: Some(Target {
                exe: "/srv/app".to_owned(),
                ..Target::default()
            }),
            probes: vec![
                probe("syscalls:sys_exit_mmap", ""),
                probe("malloc", "/lib/x86_64-linux-gnu/libc.so.6"),
                probe("mi_malloc", "/usr/lib/libmimalloc.so.2"),
                probe("_Znwm", "/srv/app"),
                probe("__cxa_allocate_exception", "/usr/lib/libstdc++.so.6"),
            ],
            malloc: is_followed.then(MallocSampling::default),
            ..Header::default()
        }
    }

    #[test]
    fn an_allocators_mappings_are_told_from_the_programs() {
        let frame = |function, module: &str| (Some(function), Some(module.to_owned()));
        let libc = "/lib/x86_64-linux-gnu/libc.so.6";
        let arena = [frame("__GI___mmap64", libc), frame("__libc_malloc", libc)];
        let own = [frame("__GI___mmap64", libc), frame("main", "/srv/app")];
        let segment = [(None, Some("/usr/lib/libmimalloc.so.2".to_owned()))];
        let thread = [
            frame("__pthread_create_2_1", libc),
            frame("std::thread::_M_start_thread", "/usr/lib/libstdc++.so.6"),
            frame("main", "/srv/app"),
        ];
        let (followed, not) = (header(true), header(false));
        let allocators = Allocators::new(&followed);
        assert!(allocators.own(arena.clone().into_iter()));
        assert!(!allocators.own(own.into_iter()));
        assert!(!allocators.own(thread.into_iter()));
        assert!(allocators.own(segment.into_iter()));
        assert!(!Allocators::new(&not).own(arena.into_iter()));
    }

    #[test]
    fn what_is_free_is_never_less_than_nothing() {
        let fragmented = AllocatorReport::new(10 << 20, 3 << 20);
        assert_eq!(fragmented.free_bytes, 7 << 20);
        assert!(fragmented.lines()[1].contains("fragmentation"));
        let full = AllocatorReport::new(1 << 20, 3 << 20);
        assert_eq!(full.free_bytes, 0);
        assert_eq!(full.lines().len(), 1);
    }
}
