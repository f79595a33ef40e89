//! Which kinds of memory are followed, of those whose probes may be taken away before the end.

use crate::capture::schema::Kind;

/// What is followed.
pub(super) struct Following {
    /// Blocks of native allocators.
    pub(super) malloc: bool,
    /// Mappings and the program break.
    pub(super) vm: bool,
    ending: Vec<Kind>,
}

impl Following {
    pub(super) fn new(malloc: bool) -> Self {
        Self {
            malloc,
            vm: true,
            ending: Vec::new(),
        }
    }

    /// The interval that is under way is the last of these kinds.
    pub(super) fn end(&mut self, kinds: &[Kind]) {
        self.ending.extend(kinds);
    }

    /// The kinds whose last interval is over.
    pub(super) fn take_ended(&mut self) -> Vec<i32> {
        let ended = std::mem::take(&mut self.ending);
        for kind in &ended {
            match kind {
                Kind::Malloc => self.malloc = false,
                Kind::Mmap | Kind::Brk => self.vm = false,
                Kind::GoHeap | Kind::Unspecified => {}
            }
        }
        ended.into_iter().map(i32::from).collect()
    }
}
