//! One goroutine as it was read, and the walk of its stack.

use super::{State, word};
use crate::go::layout::G;

/// Bytes of each stack that are read, from the stack pointer up.
pub(super) const STACK_WINDOW: u64 = 4096;
/// Frames kept of each stack.
const MAX_FRAMES: usize = 64;
/// The largest stack there can be (runtime/proc.go of Go 1.27, `maxstackceiling`: twice a gigabyte).
const MAX_STACK: u64 = 2_000_000_000;

/// What a census takes from a `runtime.g`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) goid: u64,
    pub(super) state: State,
    pub(super) stack: (u64, u64),
    pub(super) sp: u64,
    pub(super) pc: u64,
    pub(super) bp: u64,
    pub(super) seq: u8,
    pub(super) wait_reason: u8,
    pub(super) wait_since: u64,
    pub(super) created_by: u64,
    pub(super) waiting: u64,
}

impl Seen {
    /// `None`: it does not exist any more, or not yet.
    pub(super) fn of(bytes: &[u8], g: &G) -> Option<Self> {
        let byte = |offset: u64| bytes.get(offset as usize).copied().unwrap_or(0);
        Some(Self {
            goid: word(bytes, g.goid),
            state: State::of(word(bytes, g.status) as u32)?,
            stack: (word(bytes, g.stack), word(bytes, g.stack + 8)),
            sp: word(bytes, g.sched),
            pc: word(bytes, g.sched + 8),
            bp: word(bytes, g.sched_bp),
            seq: byte(g.tracking_seq),
            wait_reason: byte(g.waitreason),
            wait_since: word(bytes, g.waitsince),
            created_by: word(bytes, g.gopc),
            waiting: word(bytes, g.waiting),
        })
    }

    /// Whether it has not moved since: a collection may have noted that it waits.
    pub(super) fn is_same(&self, before: &Self) -> bool {
        let wait_since = before.wait_since;
        *before
            == Self {
                wait_since,
                ..self.clone()
            }
    }

    /// Bytes of its stack; zero for one that is larger than any can be, which is misread.
    pub(super) fn stack_bytes(&self) -> u64 {
        let bytes = self.stack.1.saturating_sub(self.stack.0);
        if bytes <= MAX_STACK { bytes } else { 0 }
    }

    /// Bytes between its stack pointer and the end of its stack, if they can be walked.
    pub(super) fn depth(&self) -> u64 {
        let is_inside = self.stack.0 <= self.sp && self.sp < self.stack.1;
        match self.state.can_be_walked() && is_inside {
            true => self.stack.1 - self.sp,
            false => 0,
        }
    }

    /// The part of its stack to read.
    pub(super) fn window(&self) -> (u64, usize) {
        (self.sp, self.depth().min(STACK_WINDOW) as usize)
    }

    /// Where it stands, as a return address: one that has not run yet stands on its first
    /// instruction, not behind a call.
    pub(super) fn return_address(&self, is_entry: bool) -> u64 {
        let behind = u64::from(is_entry && self.state == State::Runnable);
        self.pc.wrapping_add(behind)
    }

    /// Return addresses by frame pointers through the window of its stack, and whether outermost
    /// ones are missing. A goroutine begins with a frame pointer of zero (runtime/proc.go,
    /// `newproc1`). `frame` says of a code address how large the frame is there, and whether a
    /// function begins there.
    pub(super) fn walk(
        &self,
        window: &[u8],
        frame: impl Fn(u64) -> (Option<u64>, bool),
    ) -> (Vec<u64>, bool) {
        let (size, is_entry) = frame(self.pc);
        let mut pcs = vec![self.return_address(is_entry)];
        let mut bp = self.bp;
        if self.state == State::Syscall {
            // Before Go 1.23 the frame pointer is not saved when a system call begins.
            match size.filter(|size| *size >= 8 && size + 8 <= window.len() as u64) {
                Some(size) => {
                    pcs.push(word(window, size));
                    bp = word(window, size - 8);
                }
                None => return (pcs, true),
            }
        }
        loop {
            if bp == 0 {
                return (pcs, false);
            }
            let at = bp
                .checked_sub(self.sp)
                .filter(|at| at.saturating_add(16) <= window.len() as u64);
            let Some(at) = at.filter(|_| pcs.len() < MAX_FRAMES) else {
                return (pcs, true);
            };
            let (next, ret) = (word(window, at), word(window, at + 8));
            if ret == 0 {
                return (pcs, false);
            }
            pcs.push(ret);
            if next != 0 && next <= bp {
                return (pcs, true);
            }
            bp = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SP: u64 = 0x1000;

    fn seen(state: State, bp: u64) -> Seen {
        Seen {
            goid: 1,
            state,
            stack: (0x800, 0x9000),
            sp: SP,
            pc: 0x40_0000,
            bp,
            seq: 0,
            wait_reason: 0,
            wait_since: 0,
            created_by: 0,
            waiting: 0,
        }
    }

    fn window(words: &[(u64, u64)]) -> Vec<u8> {
        let mut window = vec![0; STACK_WINDOW as usize];
        for &(at, word) in words {
            let at = (at - SP) as usize;
            window[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        window
    }

    #[test]
    fn a_walk_that_ends_early_says_so() {
        let no_frame = |_| (None, false);
        let whole = window(&[(0x1010, 0x1040), (0x1018, 1), (0x1048, 2)]);
        let waiting = seen(State::Waiting, 0x1010);
        assert_eq!(
            waiting.walk(&whole, no_frame),
            (vec![0x40_0000, 1, 2], false)
        );
        // The next frame is beyond the window, before this one, or one too many.
        let far = window(&[(0x1010, 0x8000), (0x1018, 1)]);
        assert_eq!(waiting.walk(&far, no_frame), (vec![0x40_0000, 1], true));
        let back = window(&[(0x1010, 0x1008), (0x1018, 1)]);
        assert_eq!(waiting.walk(&back, no_frame), (vec![0x40_0000, 1], true));
        let mut many = Vec::new();
        for frame in 0..100 {
            let at = 0x1010 + 16 * frame;
            many.extend([(at, at + 16), (at + 8, frame + 1)]);
        }
        let (pcs, truncated) = waiting.walk(&window(&many), no_frame);
        assert_eq!((pcs.len(), truncated), (MAX_FRAMES, true));
    }

    #[test]
    fn a_system_call_is_left_by_the_size_of_its_frame() {
        let frame = |_| (Some(0x20), false);
        let stack = window(&[(0x1018, 0x1050), (0x1020, 7), (0x1058, 8)]);
        let syscall = seen(State::Syscall, 0xdead);
        assert_eq!(syscall.walk(&stack, frame), (vec![0x40_0000, 7, 8], false));
        assert_eq!(
            syscall.walk(&stack, |_| (None, false)),
            (vec![0x40_0000], true)
        );
    }

    #[test]
    fn a_stack_larger_than_any_is_not_counted() {
        let mut misread = seen(State::Waiting, 0);
        assert_eq!(misread.stack_bytes(), 0x8800);
        misread.stack = (0, u64::MAX);
        assert_eq!(misread.stack_bytes(), 0);
    }

    #[test]
    fn one_that_has_not_run_stands_on_its_first_instruction() {
        let new = seen(State::Runnable, 0);
        assert_eq!(new.walk(&[], |_| (Some(0), true)), (vec![0x40_0001], false));
    }
}
