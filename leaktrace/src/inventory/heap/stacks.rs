//! The words of a goroutine's stack that are pointers, frame by frame.
//!
//! Where a frame's map is not known, and in one that was interrupted anywhere, every word counts as one
//! that may be an address; so does every word of a variable whose address is taken and still somewhere
//! on the stack. What only a deferred call refers to is not seen, if its record is on the stack.

use std::{cell::RefCell, collections::HashMap};

use super::word;
use crate::{go::FrameMap, target::GoTarget};

/// Code addresses about which the binary's tables are asked once.
const MAX_FRAMES: usize = 1 << 16;

/// Reads stacks of a process.
pub(super) struct Stacks<'a> {
    go: &'a GoTarget,
    maps: RefCell<HashMap<u64, Frame>>,
}

/// What is known of the frame at a code address.
#[derive(Clone, Debug)]
enum Frame {
    Known(FrameMap),
    /// Nothing: the rest of the stack is taken as it is.
    Unknown,
    /// The frame of a function that was interrupted follows.
    Interrupted(u64),
    /// The outermost.
    Last,
}

impl<'a> Stacks<'a> {
    pub(super) fn new(go: &'a GoTarget) -> Self {
        Self {
            go,
            maps: RefCell::default(),
        }
    }

    /// Calls `visit` for each word that may be a pointer, with its offset and whether it is one for
    /// sure. `stack` is that of a goroutine that stands at the return address `pc`, from its stack
    /// pointer, `sp`, up; `None`: where it stands is not known.
    pub(super) fn words(
        &self,
        pc: Option<u64>,
        sp: u64,
        stack: &[u8],
        mut visit: impl FnMut(u64, u64, bool),
    ) {
        let mut found = Found::default();
        self.frames(pc.unwrap_or(0), stack, &mut found);
        found.objects.sort_unstable();
        // A variable whose address is taken is in use if a pointer leads to it.
        let mut next = 0;
        while let Some(&(at, is_sure)) = found.words.get(next) {
            next += 1;
            let word = word(stack, at);
            visit(at, word, is_sure);
            let Some(offset) = word.checked_sub(sp).filter(|at| *at < stack.len() as u64) else {
                continue;
            };
            let after = found.objects.partition_point(|(from, ..)| *from <= offset);
            let before = after
                .checked_sub(1)
                .and_then(|at| found.objects.get_mut(at));
            if let Some((from, to, is_seen)) = before
                && offset < *to
                && !std::mem::replace(is_seen, true)
            {
                let to = (*to).min(stack.len() as u64 & !7);
                found
                    .words
                    .extend((*from..to).step_by(8).map(|at| (at, false)));
            }
        }
    }

    /// The frame that has the word `at` bytes from the stack pointer, as in [`Stacks::words`]: the return address at
    /// which it stands, and how far from the stack pointer its canonical frame address is. `None`: it is not known.
    pub(super) fn frame_of(&self, mut pc: u64, stack: &[u8], at: u64) -> Option<(u64, u64)> {
        let end = stack.len() as u64 & !7;
        let mut sp = 0;
        while sp < end {
            let Frame::Known(map) = self.frame(pc) else {
                return None;
            };
            let arguments = sp + map.size + 8;
            let is_argument = |at: u64| {
                let index = at.checked_sub(arguments)? / 8;
                Some(index < map.arguments.words && map.arguments.is_pointer(index))
            };
            if at < arguments || is_argument(at) == Some(true) {
                return Some((pc, arguments));
            }
            (sp, pc) = (arguments, word(stack, arguments - 8));
        }
        None
    }

    /// Goes through the frames.
    fn frames(&self, mut pc: u64, stack: &[u8], found: &mut Found) {
        let end = stack.len() as u64 & !7;
        // A word is in one frame, or in an argument that two know about; so are variables.
        let most = stack.len() / 4 + MAX_FRAMES;
        let mut sp = 0;
        let mut is_interrupted = false;
        while sp < end {
            if found.words.len() > most || found.objects.len() > most {
                // No compiler makes such maps: each frame has all words of the stack.
                *found = Found::default();
                return found.all(0, end);
            }
            match self.frame(pc) {
                Frame::Known(map) => {
                    let arguments = sp + map.size + 8;
                    if is_interrupted {
                        found.all(sp, (arguments + 8 * map.arguments.words).min(end));
                        is_interrupted = false;
                    } else {
                        found.frame(&map, sp, end);
                    }
                    (sp, pc) = (arguments, word(stack, arguments - 8));
                }
                Frame::Interrupted(size) => {
                    let next = sp + size + 8;
                    found.all(sp, (sp + size).min(end));
                    is_interrupted = true;
                    // Not behind a call, but on an instruction.
                    (sp, pc) = (next, word(stack, next - 8).wrapping_add(1));
                }
                Frame::Last => return,
                Frame::Unknown => return found.all(sp, end),
            }
        }
    }

    fn frame(&self, pc: u64) -> Frame {
        let mut maps = self.maps.borrow_mut();
        if let Some(frame) = maps.get(&pc) {
            return frame.clone();
        }
        let binary = &self.go.binary;
        let linked = pc.wrapping_sub(self.go.bias);
        let name = binary.function_name_at(linked.wrapping_sub(1));
        let frame = match name.as_deref() {
            Some("runtime.goexit") => Frame::Last,
            Some("runtime.asyncPreempt" | "runtime.asyncPreempt.abi0") => binary
                .frame_size(linked)
                .map_or(Frame::Unknown, Frame::Interrupted),
            _ => binary
                .frame_map(linked)
                .map_or(Frame::Unknown, Frame::Known),
        };
        if maps.len() < MAX_FRAMES {
            maps.insert(pc, frame.clone());
        }
        frame
    }
}

/// What frames have.
#[derive(Default)]
struct Found {
    /// Offsets of words, and whether each is a pointer for sure.
    words: Vec<(u64, bool)>,
    /// Variables whose address is taken, their words with pointers: from, to, whether one is in use.
    objects: Vec<(u64, u64, bool)>,
}

impl Found {
    fn all(&mut self, from: u64, to: u64) {
        self.words
            .extend((from..to).step_by(8).map(|at| (at, false)));
    }

    fn frame(&mut self, map: &FrameMap, sp: u64, end: u64) {
        let locals_end = (sp + map.size).saturating_sub(8);
        let arguments = sp + map.size + 8;
        let locals = locals_end.saturating_sub(8 * map.locals.words);
        for (slots, from) in [(&map.locals, locals), (&map.arguments, arguments)] {
            let words = slots.words.min(end.saturating_sub(from) / 8);
            let at = (0..words).filter(|index| slots.is_pointer(*index));
            let at = at.map(|index| from + 8 * index);
            self.words.extend(at.map(|at| (at, true)));
        }
        for (offset, bytes) in &map.objects {
            let from = if *offset < 0 { locals_end } else { arguments };
            let from = from.saturating_add_signed((*offset).into());
            self.objects.push((from, from + u64::from(*bytes), false));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::go::{
        GoBinary,
        testing::{self, Mode},
    };

    /// Each word of this stack is a frame, each frame has 64 Ki variables: 24 GB of them, if they
    /// were believed.
    #[test]
    fn frames_with_more_variables_than_there_is_stack_are_not_believed() {
        let toolchain = testing::toolchains().pop().unwrap();
        let program = "package main\n\nfunc main() { println() }\n";
        let path = testing::build(&toolchain, Mode::Plain, program);
        let bytes = std::fs::read(path).unwrap();
        let binary = GoBinary::parse(bytes.into()).unwrap().unwrap();
        let go = GoTarget { binary, bias: 0 };
        let stacks = Stacks::new(&go);
        let map = FrameMap {
            objects: vec![(-8, 8); 1 << 16],
            ..FrameMap::default()
        };
        stacks.maps.borrow_mut().insert(0, Frame::Known(map));
        let stack = vec![0; 128 << 10];
        let mut words = 0;
        stacks.words(None, 0x1000, &stack, |_, _, is_sure| {
            assert!(!is_sure);
            words += 1;
        });
        assert_eq!(words, stack.len() / 8, "each word once");
    }
}
