//! Whose memory a site's is and what it consists of, in words.

use crate::capture::schema::Kind;

/// Whose memory a site's is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The program's own.
    Program,
    /// The Go runtime's, for its heap: what leaks in it shows as `go_heap` sites.
    GoRuntimeHeap,
    /// A native allocator's: what leaks in it shows as `malloc` sites.
    Allocator,
}

impl Owner {
    /// Why the site is not judged by itself, if so.
    pub(super) fn not_judged(self) -> Option<String> {
        let (whose, kind) = match self {
            Self::Program => return None,
            Self::GoRuntimeHeap => ("the Go runtime takes for its own heap", "go_heap"),
            Self::Allocator => ("a native allocator takes for its blocks", "malloc"),
        };
        Some(format!(
            "memory that {whose}, not judged by itself: see the {kind} sites for who fills it"
        ))
    }
}

/// What a site of that kind has many of.
pub(super) fn one_of(kind: Kind) -> &'static str {
    match kind {
        Kind::GoHeap => "object",
        Kind::Malloc => "block",
        _ => "mapping",
    }
}

/// How one of these ends.
pub(super) fn end_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Malloc => "a free",
        _ => "an unmapping",
    }
}
