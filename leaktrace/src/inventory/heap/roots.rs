//! What the collector begins at: variables, stacks of goroutines, finalizers (runtime/mgcmark.go,
//! `markroot`, Go 1.19 to 1.27).
//!
//! Variables are looked at by the linker's own masks (`moduledata.gcdatamask`, `gcbssmask`), which say
//! which words are pointers. A stack is looked at word by word: a word that looks like an address
//! counts, so that may be one by chance, or of a variable that is dead.

use std::{
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
const PIECE: u64 = 1 << 20;
/// Stacks read at a time, and bytes of them.
const STACKS: usize = 1024;
const STACK_BYTES: u64 = 8 << 20;
/// How often a goroutine that runs is looked at again, and how long after.
const STACK_TRIES: usize = 10;
const STACK_PAUSE: Duration = Duration::from_millis(1);
/// Words of all finalizers, cleanups and their objects that are looked at; each is 16 bytes.
const MAX_SPECIAL_WORDS: usize = 1 << 22;
/// Blocks of the queue of finalizers that are followed.
const MAX_FINALIZER_BLOCKS: usize = 1 << 16;
/// `runtime.finblock` (runtime/mfinal.go, Go 1.19 to 1.27): 4 KiB, of which the first 24 bytes are a
/// header with `alllink` at 0 and `cnt` at 16, then 40 bytes each.
const FINALIZER_BLOCK: usize = 4096;
const FINALIZER_HEADER: usize = 24;
const FINALIZER: usize = 40;

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
    heap: &'a Heap,
    goroutines: &'a Goroutines<'a>,
    census: &'a Census,
    /// Addresses of the `runtime.g`s, in the order of `runtime.allgs`.
    gs: Vec<u64>,
    /// Variables with pointers: address, bytes, mask.
    data: Vec<(u64, u64, Vec<u8>)>,
    /// Addresses of the runtime's own variables, looked at last.
    own: Box<dyn Fn(u64) -> bool + 'a>,
    all_finalizers: Option<u64>,
    all_processors: Option<u64>,
    stacks: Stacks<'a>,
    /// Groups of goroutines that run nothing of the program.
    own_groups: HashSet<u32>,
    /// Goroutines that wait for another one at a channel, and which.
    waiting: HashMap<u32, u64>,
    /// What could not be looked at, with the reason.
    pub limits: Vec<(String, String)>,
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
        let running = |member: &&_| is_unread(member);
        let unread = census.members.iter().filter(running).count();
        if unread > 0 {
            let what = format!("stacks of {unread} goroutines");
            roots.limit(&what, "they ran, or moved whenever they were read");
        }
        let is_deep = |member: &&Member| u64::from(member.depth) > MAX_STACK;
        let deep = census.members.iter().filter(is_deep).count();
        if deep > 0 {
            let what = format!("outer frames of {deep} goroutines");
            roots.limit(&what, "their stacks are larger than 64 MiB");
        }
        Ok(roots)
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

    /// Every word of the roots that the program itself has: its variables and its stacks.
    pub fn programs(&self, mut visit: impl FnMut(Root, u64)) {
        self.data_words(false, &mut visit);
        self.stack_words(|place| !self.is_own(place), &mut visit);
    }

    /// The same without the goroutines that wait at a channel.
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
        let member = self.census.members.get(place as usize);
        member.is_some_and(|member| self.own_groups.contains(&member.group))
    }

    /// Those of the goroutines that are wanted.
    fn stack_words(&self, is_wanted: impl Fn(u32) -> bool, visit: &mut impl FnMut(Root, u64)) {
        let mut ranges = Vec::new();
        let mut bytes = 0;
        let mut read = |ranges: &mut Vec<(u32, (u64, usize))>| {
            let at: Vec<_> = ranges.iter().map(|(_, range)| *range).collect();
            let stacks = self.heap.memory.read_each(&at);
            for (index, (place, (sp, _))) in ranges.drain(..).enumerate() {
                let stack = stacks.get(index).unwrap_or_default();
                let pc = self.stands_at(place);
                self.stacks
                    .words(pc, sp, stack, |_, word, _| visit(Root::Stack(place), word));
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
    }

    /// Where the goroutine at a place stands, as the census has it.
    fn stands_at(&self, place: u32) -> Option<u64> {
        let member = self.census.members.get(place as usize)?;
        let (key, _) = self.census.groups.get(member.group as usize)?;
        key.pcs.first().copied()
    }

    /// A finalizer's closure, and whatever its object refers to, but not the object.
    fn specials(&self, visit: &mut impl FnMut(Root, u64)) {
        let mut found = Vec::new();
        each_special(self.heap, |at, bytes, span, layout| {
            if bytes.get(layout.kind as usize) != Some(&layout.kind_profile)
                && found.len() < MAX_SPECIAL_WORDS
            {
                let words = self.special_words(bytes, span.start, at);
                found.extend(words.map(|(_, word)| (at, word)));
            }
        });
        for (at, word) in found {
            visit(Root::Special(at), word);
        }
    }

    /// The words of a finalizer's or cleanup's special, and those of the object it waits for.
    fn special_words(
        &self,
        bytes: &[u8],
        span: u64,
        at: u64,
    ) -> impl Iterator<Item = (u64, u64)> + use<> {
        let layout = &self.heap.layout;
        let special = &layout.special;
        let kind = bytes.get(special.kind as usize).copied();
        let is_kind = |name| {
            let constant = layout.constant(name).ok();
            constant.is_some() && constant.and_then(|c| u8::try_from(c).ok()) == kind
        };
        let mut words = Vec::new();
        if is_kind("runtime._KindSpecialFinalizer") {
            let header = layout.size_of("runtime.special").unwrap_or(special.bucket);
            words.push((at + header, word(bytes, header)));
            let object = span + (word(bytes, special.offset) & 0xffff);
            words.extend(self.fields(object));
        } else if is_kind("runtime._KindSpecialCleanup") {
            // Its function is its first field; later releases have three words there, an adapter, the
            // function and its argument (runtime/mheap.go, `specialCleanup`, Go 1.24 to 1.27).
            let header = layout.size_of("runtime.special").unwrap_or(special.bucket);
            words.extend(
                (header..header + 24)
                    .step_by(8)
                    .map(|offset| (at + offset, word(bytes, offset))),
            );
        }
        words.into_iter()
    }

    fn fields(&self, object: u64) -> Vec<(u64, u64)> {
        let heap = self.heap;
        let Some(object) = heap.object_at(object) else {
            return Vec::new();
        };
        if heap.span(object).has_no_pointers {
            return Vec::new();
        }
        let at = heap.address(object);
        let mut bytes = vec![0; heap.size(object).min(PIECE) as usize];
        if heap.memory.read(at, &mut bytes).is_err() {
            return Vec::new();
        }
        let words = bytes.chunks_exact(8).enumerate();
        words
            .map(|(index, bytes)| (at + 8 * index as u64, word(bytes, 0)))
            .filter(|(_, word)| heap.object_at(*word).is_some_and(|other| other != object))
            .collect()
    }

    fn finalizer_queue(&self, visit: &mut impl FnMut(Root, u64)) {
        let Some(all) = self.all_finalizers else {
            return;
        };
        let mut block = self.heap.memory.read_u64(all).unwrap_or(0);
        let mut seen = HashSet::new();
        while block != 0 && seen.len() < MAX_FINALIZER_BLOCKS && seen.insert(block) {
            let mut bytes = vec![0; FINALIZER_BLOCK];
            if self.heap.memory.read(block, &mut bytes).is_err() {
                return;
            }
            let count = word(&bytes, 16) as u32 as usize;
            let queued = bytes[FINALIZER_HEADER..]
                .chunks_exact(FINALIZER)
                .take(count);
            for (index, queued) in queued.enumerate() {
                let at = block + (FINALIZER_HEADER + FINALIZER * index) as u64;
                visit(Root::FinalizerQueue(at), word(queued, 0));
                visit(Root::FinalizerQueue(at + 8), word(queued, 8));
            }
            block = word(&bytes, 0);
        }
    }
}

fn is_set(mask: &[u8], bit: u64) -> bool {
    mask.get(bit as usize / 8)
        .is_some_and(|byte| byte >> (bit % 8) & 1 == 1)
}

fn is_unread(member: &Member) -> bool {
    member.goid != 0 && member.depth == 0
}

/// Groups of goroutines that the runtime has made for itself: those that run finalizers and cleanups,
/// and the first, run the program.
fn own_groups(go: &GoTarget, census: &Census) -> HashSet<u32> {
    const OF_THE_PROGRAM: [&str; 4] = ["rt0_go", "createfing", "createGs", "main"];
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
