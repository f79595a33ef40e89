//! What the collector begins at: variables, stacks of goroutines, finalizers (runtime/mgcmark.go,
//! `markroot`, Go 1.19 to 1.27).
//!
//! Variables are looked at by the linker's own masks (`moduledata.gcdatamask`, `gcbssmask`), which say
//! which words are pointers. A stack is looked at word by word: a word that looks like an address
//! counts, so that may be one by chance, or of a variable that is dead.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    thread,
    time::Duration,
};

use super::{Heap, HeapError, Holder, samples::each_special, stacks::Stacks, word};
use crate::{
    go::GoVariable,
    inventory::goroutines::{Census, Goroutines, MAX_STACK, Member},
    target::GoTarget,
};

/// Modules of a process (its executable and plugins) that are looked at.
const MAX_MODULES: usize = 64;
/// Processors that are looked at.
const MAX_PROCESSORS: u64 = 1 << 16;
/// Variables of a module larger than this are not looked at.
const MAX_DATA: u64 = 1 << 32;
/// Bytes read at a time.
pub(super) const PIECE: u64 = 1 << 20;
/// Stacks read at a time, and bytes of them.
const STACKS: usize = 1024;
const STACK_BYTES: u64 = 8 << 20;
/// Bytes of the stacks of goroutines that ran during the census.
const LATE_BYTES: u64 = 64 << 20;
/// How often a goroutine that runs is looked at again, and how long after.
const STACK_TRIES: usize = 10;
const STACK_PAUSE: Duration = Duration::from_millis(1);

/// The stack of a goroutine: from where, its bytes, and the return address at which it stands.
type Stack = (u64, Vec<u8>, u64);

/// Where a path begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Root {
    /// A variable: the address of the word.
    Data(u64),
    /// The stack of the goroutine at this place of `runtime.allgs`.
    Stack(u32),
    /// The `runtime.g` itself of the goroutine at this place of `runtime.allgs`.
    Goroutine(u32),
    /// A finalizer or cleanup that waits for its object to die: the address of the special.
    Special(u64),
    /// A finalizer in the queue, of an object that has died: the address of the word.
    FinalizerQueue(u64),
}

/// The roots of a process.
pub struct Roots<'a> {
    pub(super) heap: &'a Heap,
    goroutines: &'a Goroutines<'a>,
    census: &'a Census,
    /// Addresses of the `runtime.g`s, in the order of `runtime.allgs`.
    gs: Vec<u64>,
    /// Variables with pointers: address, bytes, mask.
    data: Vec<(u64, u64, Vec<u8>)>,
    /// Addresses of the runtime's own variables, looked at last.
    own: Box<dyn Fn(u64) -> bool + 'a>,
    pub(super) all_finalizers: Option<u64>,
    all_processors: Option<u64>,
    stacks: Stacks<'a>,
    /// Groups of goroutines that run nothing of the program.
    own_groups: HashSet<u32>,
    /// Stacks of goroutines that ran or moved during the census.
    late: HashMap<u32, Stack>,
    /// Those that could not be read afterwards either, and those that moved each time since.
    unread: RefCell<HashSet<u32>>,
    /// Goroutines that wait for another one at a channel, and which.
    waiting: HashMap<u32, u64>,
    limits: Vec<(String, String)>,
}

impl<'a> Roots<'a> {
    /// Finds them; `is_runtimes_own` tells by its link-time address whether a variable is the
    /// runtime's own.
    ///
    /// # Errors
    ///
    /// The program's variables are not known.
    pub fn find(
        heap: &'a Heap,
        go: &'a GoTarget,
        goroutines: &'a Goroutines<'a>,
        census: &'a Census,
        is_runtimes_own: impl Fn(u64) -> bool + 'a,
    ) -> Result<Self, HeapError> {
        let gs = goroutines
            .addresses()
            .map_err(|error| HeapError::Nonsense(error.to_string()))?;
        let mut roots = Self {
            heap,
            goroutines,
            census,
            waiting: goroutines.waiting(census, &gs),
            gs,
            data: Vec::new(),
            own: Box::new(|_| false),
            all_finalizers: None,
            all_processors: None,
            stacks: Stacks::new(go),
            own_groups: own_groups(go, census),
            late: HashMap::new(),
            unread: RefCell::default(),
            limits: Vec::new(),
        };
        let Some(module) = go.binary.module_data() else {
            let reason = "the executable's moduledata was not found";
            return Err(HeapError::Unknown(reason.to_owned()));
        };
        roots.variables(module.wrapping_add(go.bias))?;
        let allgs = go.address(GoVariable::AllGs).unwrap_or(0);
        roots.own = Box::new(move |at| {
            at.wrapping_sub(allgs) < 24 || is_runtimes_own(at.wrapping_sub(go.bias))
        });
        let symbols = go.binary.data_symbols();
        let variable = |name| Some(symbols.address(name)?.wrapping_add(go.bias));
        roots.all_processors = variable("runtime.allp");
        match variable("runtime.allfin") {
            Some(address) => roots.all_finalizers = Some(address),
            None => roots.limit(
                "finalizers whose objects have died",
                "the executable is stripped: where their queue is, is not known",
            ),
        }
        if go.binary.cgo() {
            roots.limit(
                "memory of C code",
                "which of its words are pointers is not known",
            );
        }
        roots.read_late();
        let left_out = census.not_followed + census.unreadable;
        if left_out > 0 {
            let what = format!("stacks of {left_out} more goroutines");
            roots.limit(
                &what,
                "they are beyond the first million, or could not be read",
            );
        }
        let is_deep = |member: &&Member| u64::from(member.depth) > MAX_STACK;
        let deep = census.members.iter().filter(is_deep).count();
        if deep > 0 {
            let what = format!("outer frames of {deep} goroutines");
            roots.limit(&what, "their stacks are larger than 64 MiB");
        }
        Ok(roots)
    }

    /// Reads the stacks of goroutines that ran or moved during the census, once they do not.
    fn read_late(&mut self) {
        let mut left: Vec<(u32, u64, u64)> = self
            .census
            .members
            .iter()
            .zip(&self.gs)
            .zip(0..)
            .filter(|((member, _), _)| is_unread(member))
            .map(|((member, at), place)| (place, *at, member.goid))
            .collect();
        let mut bytes = 0;
        for attempt in 0..STACK_TRIES {
            if attempt > 0 && !left.is_empty() {
                thread::sleep(STACK_PAUSE);
            }
            left.retain(|&(place, at, goid)| {
                if bytes > LATE_BYTES || self.goroutines.is_gone(at, goid) {
                    return bytes > LATE_BYTES;
                }
                let Some(stack) = self.goroutines.stack(at, goid) else {
                    return true;
                };
                bytes += stack.1.len() as u64;
                self.late.insert(place, stack);
                false
            });
        }
        let left = left.into_iter().map(|(place, ..)| place);
        self.unread.get_mut().extend(left);
    }

    /// Whether the stack of every goroutine was read.
    pub fn are_all_read(&self) -> bool {
        let left_out = self.census.not_followed + self.census.unreadable;
        left_out == 0 && self.unread.borrow().is_empty()
    }

    /// What could not be looked at, with the reason.
    pub fn limits(&self) -> Vec<(String, String)> {
        let unread = self.unread.borrow().len();
        let ran = (unread > 0).then(|| {
            let reason = "they ran, or moved whenever they were read";
            (format!("stacks of {unread} goroutines"), reason.to_owned())
        });
        self.limits.iter().cloned().chain(ran).collect()
    }

    /// Whether a goroutine stands where the census has seen it.
    pub fn stands_still(&self, places: &[u32]) -> Vec<bool> {
        let of = places.iter().map(|&place| {
            let at = self.gs.get(place as usize).copied().unwrap_or(0);
            (at, self.census.members[place as usize])
        });
        self.goroutines.stand_still(&of.collect::<Vec<_>>())
    }

    fn limit(&mut self, what: &str, reason: &str) {
        self.limits.push((what.to_owned(), reason.to_owned()));
    }

    /// Reads the masks of all modules.
    fn variables(&mut self, first: u64) -> Result<(), HeapError> {
        const M: &str = "runtime.moduledata";
        let (memory, layout) = (&self.heap.memory, &self.heap.layout);
        let unknown =
            |error: crate::go::layout::UnknownLayout| HeapError::Unknown(error.to_string());
        let size = layout.size_of(M).map_err(unknown)?;
        let offset = |field| layout.offset(M, field).map_err(unknown);
        let parts = [
            (offset("data")?, offset("edata")?, offset("gcdatamask")?),
            (offset("bss")?, offset("ebss")?, offset("gcbssmask")?),
        ];
        let next = offset("next")?;
        let mut module = first;
        for _ in 0..MAX_MODULES {
            let mut bytes = vec![0; size as usize];
            memory.read(module, &mut bytes)?;
            for (start, end, mask) in parts {
                let (start, end) = (word(&bytes, start), word(&bytes, end));
                let len = end.saturating_sub(start);
                let bits = word(&bytes, mask) & 0xffff_ffff;
                if len > MAX_DATA || bits.saturating_mul(8) > len + 8 {
                    return Err(HeapError::Nonsense(format!("variables of {len} bytes")));
                }
                let mut words = vec![0; bits.div_ceil(8) as usize];
                memory.read(word(&bytes, mask + 8), &mut words)?;
                self.data.push((start, len, words));
            }
            module = word(&bytes, next);
            if module == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Whether a word of a variable is a pointer, as the linker has it.
    pub fn is_pointer(&self, at: u64) -> bool {
        self.data.iter().any(|(start, len, mask)| {
            let offset = at.wrapping_sub(*start);
            offset < *len && is_set(mask, offset / 8)
        })
    }

    /// Every word of the roots that the program itself has, its variables and its stacks, without the goroutines that
    /// wait at a channel.
    pub fn programs_that_run(&self, mut visit: impl FnMut(Root, u64)) {
        self.data_words(false, &mut visit);
        let runs = |place| !self.is_own(place) && !self.waiting.contains_key(&place);
        self.stack_words(runs, &mut visit);
    }

    /// The goroutines that wait to send or to receive, not in a select, with the channel.
    pub fn waiting(&self) -> &HashMap<u32, u64> {
        &self.waiting
    }

    /// Every word of the stacks of some goroutines.
    pub fn stacks(&self, of: &HashSet<u32>, mut visit: impl FnMut(Root, u64)) {
        self.stack_words(|place| of.contains(&place), &mut visit);
    }

    /// Every word of the roots that the runtime has of its own.
    pub fn runtimes(&self, mut visit: impl FnMut(Root, u64)) {
        self.data_words(true, &mut visit);
        self.specials(&mut visit);
        self.finalizer_queue(&mut visit);
    }

    /// Every word of the stacks of the runtime's own goroutines.
    pub fn runtimes_stacks(&self, mut visit: impl FnMut(Root, u64)) {
        self.stack_words(|place| self.is_own(place), &mut visit);
    }

    /// The processors, `runtime.p`, which hold the timers, and before them the array that holds them:
    /// each with what refers to it. None if a stripped executable does not say where they are.
    pub fn ps(&self) -> Vec<(Holder, u64)> {
        let memory = &self.heap.memory;
        let list = |all: u64| {
            let (array, len) = (memory.read_u64(all).ok()?, memory.read_u64(all + 8).ok()?);
            let holder = Holder::Object(self.heap.object_at(array)?);
            let mut pointers = vec![0; 8 * len.min(MAX_PROCESSORS) as usize];
            memory.read(array, &mut pointers).ok()?;
            let ps = pointers.chunks(8).map(|pointer| (holder, word(pointer, 0)));
            Some(
                [(Holder::Root(Root::Data(all)), array)]
                    .into_iter()
                    .chain(ps)
                    .collect(),
            )
        };
        self.all_processors.and_then(list).unwrap_or_default()
    }

    /// The `runtime.g`s, with their roots.
    pub fn gs(&self) -> impl Iterator<Item = (Root, u64)> + '_ {
        let gs = self.gs.iter().zip(0..);
        gs.map(|(address, place)| (Root::Goroutine(place), *address))
    }

    /// The words of one root once more: where each is, what it is, and whether it is a pointer for
    /// sure. `None` if it is not what it was.
    pub fn again(&self, root: Root) -> Option<Vec<(u64, u64, bool)>> {
        let memory = &self.heap.memory;
        match root {
            Root::Data(at) => Some(vec![(at, memory.read_u64(at).ok()?, self.is_pointer(at))]),
            Root::FinalizerQueue(at) => Some(vec![(at, memory.read_u64(at).ok()?, true)]),
            Root::Goroutine(place) => {
                let at = *self.gs.get(place as usize)?;
                Some(vec![(at, at, true)])
            }
            Root::Stack(place) => {
                let goid = self.census.members.get(place as usize)?.goid;
                let at = *self.gs.get(place as usize)?;
                let (sp, stack, pc) = self.stack_again(at, goid)?;
                let mut words = Vec::new();
                self.stacks
                    .words(Some(pc), sp, &stack, |offset, word, is_sure| {
                        words.push((sp + offset, word, is_sure));
                    });
                Some(words)
            }
            Root::Special(at) => {
                let mut words = Vec::new();
                each_special(self.heap, |special, bytes, span, _| {
                    if special == at {
                        let found = self.special_words(bytes, span.start, special);
                        words.extend(found.map(|(at, word)| (at, word, true)));
                    }
                });
                (!words.is_empty()).then_some(words)
            }
        }
    }

    /// The frame in which a word of a goroutine's stack is: the return address at which it stands, and its canonical
    /// frame address. `None`: it moves, or that is not known.
    pub fn frame_of(&self, place: u32, at: u64) -> Option<(u64, u64)> {
        let goid = self.census.members.get(place as usize)?.goid;
        let g = *self.gs.get(place as usize)?;
        let (sp, stack, pc) = self.stack_again(g, goid)?;
        let (pc, cfa) = self.stacks.frame_of(pc, &stack, at.checked_sub(sp)?)?;
        Some((pc, sp + cfa))
    }

    /// The stack of a goroutine that has moved since the census; `None`: it has ended, or could not be read.
    fn stack_now(&self, place: u32) -> Option<Stack> {
        let at = *self.gs.get(place as usize)?;
        let goid = self.census.members.get(place as usize)?.goid;
        let stack = self.stack_again(at, goid);
        let mut unread = self.unread.borrow_mut();
        if stack.is_none() && !self.goroutines.is_gone(at, goid) {
            unread.insert(place);
        } else {
            unread.remove(&place);
        }
        stack
    }

    /// The stack of a goroutine, once it does not run.
    fn stack_again(&self, at: u64, goid: u64) -> Option<(u64, Vec<u8>, u64)> {
        (0..STACK_TRIES).find_map(|attempt| {
            if attempt > 0 {
                thread::sleep(STACK_PAUSE);
            }
            self.goroutines.stack(at, goid)
        })
    }

    /// Those of the runtime, or those of the program.
    fn data_words(&self, own: bool, visit: &mut impl FnMut(Root, u64)) {
        for (start, len, mask) in &self.data {
            for piece in (0..*len).step_by(PIECE as usize) {
                let mut bytes = vec![0; PIECE.min(len - piece) as usize];
                if self.heap.memory.read(start + piece, &mut bytes).is_err() {
                    continue;
                }
                for (index, bytes) in bytes.chunks_exact(8).enumerate() {
                    let at = piece + 8 * index as u64;
                    let word = word(bytes, 0);
                    if word != 0 && is_set(mask, at / 8) && (self.own)(start + at) == own {
                        visit(Root::Data(start + at), word);
                    }
                }
            }
        }
    }

    /// Whether a goroutine runs nothing of the program.
    fn is_own(&self, place: u32) -> bool {
        /// `goid` of the one that runs `main`, whoever made it.
        const MAIN: u64 = 1;
        let member = self.census.members.get(place as usize);
        member.is_some_and(|of| of.goid != MAIN && self.own_groups.contains(&of.group))
    }

    /// Those of the goroutines that are wanted.
    fn stack_words(&self, is_wanted: impl Fn(u32) -> bool, visit: &mut impl FnMut(Root, u64)) {
        let mut ranges = Vec::new();
        let mut bytes = 0;
        let mut read = |ranges: &mut Vec<(u32, (u64, usize))>| {
            let at: Vec<_> = ranges.iter().map(|(_, range)| *range).collect();
            let stacks = self.heap.memory.read_each(&at);
            let places: Vec<u32> = ranges.iter().map(|(place, _)| *place).collect();
            let stand = self.stands_still(&places);
            for (index, (place, (sp, _))) in ranges.drain(..).enumerate() {
                let mut visit = |_, word, _| visit(Root::Stack(place), word);
                if stand[index] {
                    let stack = stacks.get(index).unwrap_or_default();
                    let pc = self.stands_at(place);
                    self.stacks.words(pc, sp, stack, visit);
                } else if let Some((sp, stack, pc)) = self.stack_now(place) {
                    self.stacks.words(Some(pc), sp, &stack, &mut visit);
                }
            }
        };
        for (member, place) in self.census.members.iter().zip(0..) {
            if member.depth == 0 || member.goid == 0 || !is_wanted(place) {
                continue;
            }
            let depth = u64::from(member.depth).min(MAX_STACK);
            ranges.push((place, (member.sp, depth as usize)));
            bytes += depth;
            if ranges.len() == STACKS || bytes > STACK_BYTES {
                read(&mut ranges);
                bytes = 0;
            }
        }
        read(&mut ranges);
        for (&place, (sp, stack, pc)) in self.late.iter().filter(|(place, _)| is_wanted(**place)) {
            self.stacks.words(Some(*pc), *sp, stack, |_, word, _| {
                visit(Root::Stack(place), word)
            });
        }
    }

    /// Where the goroutine at a place stands, as the census has it.
    fn stands_at(&self, place: u32) -> Option<u64> {
        let member = self.census.members.get(place as usize)?;
        let (key, _) = self.census.groups.get(member.group as usize)?;
        key.pcs.first().copied()
    }
}

fn is_set(mask: &[u8], bit: u64) -> bool {
    mask.get(bit as usize / 8)
        .is_some_and(|byte| byte >> (bit % 8) & 1 == 1)
}

fn is_unread(member: &Member) -> bool {
    member.goid != 0 && member.depth == 0
}

/// Groups of goroutines that the runtime has made for itself: those that run finalizers and cleanups run the program.
fn own_groups(go: &GoTarget, census: &Census) -> HashSet<u32> {
    const OF_THE_PROGRAM: [&str; 3] = ["createfing", "createGs", "main"];
    let is_own = |created_by: u64| {
        let linked = created_by.wrapping_sub(go.bias).wrapping_sub(1);
        let name = go
            .binary
            .function_name_at(linked)
            .filter(|_| created_by != 0);
        name.is_some_and(|name| {
            let last = name.rsplit('.').next().unwrap_or_default();
            name.starts_with("runtime.") && !OF_THE_PROGRAM.contains(&last)
        })
    };
    let groups = census.groups.iter().zip(0..);
    groups
        .filter(|((key, _), _)| is_own(key.created_by))
        .map(|(_, index)| index)
        .collect()
}
