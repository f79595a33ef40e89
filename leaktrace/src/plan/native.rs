//! The part of the plan that concerns native allocators: where their functions are, how their
//! beginnings and their returns are probed, and which of them need not be.
//!
//! Whatever can be called is probed, each address once; which of several definitions a program calls is
//! seen when it does. A function that only hands on to another one (`operator new` of libstdc++ to
//! `malloc`) is left out: it is seen there. docs/native.md has the rules and their reasons.

mod functions;
mod image;
mod returns;
mod thread_cache;

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;
use iced_x86::{FlowControl, Register};
use leaktrace_common::{
    ALLOCATOR_ALLOCATE, ALLOCATOR_CHUNKS, ALLOCATOR_EXPAND, ALLOCATOR_FREE_AGAIN, ALLOCATOR_RESIZE,
    ALLOCATOR_STORE, ALLOCATOR_URETPROBE, AllocatorCall, BY_FRAME_POINTER, NO_ARGUMENT,
};

pub use self::image::Entries;
use self::{
    functions::{Action, Function},
    image::{Found, Image, near},
    returns::{frees_again, returns},
    thread_cache::Place,
};
use super::{
    Limit, Plan, Uprobe, frame_table,
    placement::{self, Class, FrameState, Placement},
};

/// A file with code that the target has mapped.
#[derive(Clone, Debug)]
pub struct NativeObject {
    /// Path, as the target sees it.
    pub path: String,
    /// A path under which leaktrace can open the very same file.
    pub open_path: PathBuf,
    /// Its bytes.
    pub image: Bytes,
    /// Its executable mappings: start and end in the process, and the file offset of the start.
    pub mappings: Vec<(u64, u64, u64)>,
}

/// What is known of a target's native code.
#[derive(Clone, Debug)]
pub struct NativeFacts {
    /// The files.
    pub objects: Vec<NativeObject>,
    /// Whether a uretprobe may be used; the error says why not.
    pub uretprobes: Result<(), String>,
    /// Whether a program can say of each call whether it wants to see its return.
    pub sessions: bool,
}

/// A file in which a probe stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbedFile {
    /// Path, as the target sees it.
    pub path: String,
    /// A path under which leaktrace can open the very same file.
    pub open_path: PathBuf,
}

/// Longest instruction of x86.
const MAX_INSTRUCTION: u64 = 15;

/// Adds the probes for native allocators to a plan.
pub(super) fn plan(native: &NativeFacts, is_go: bool, plan: &mut Plan) {
    let before = plan.uprobes.len();
    let (probes, limits) = probes(native);
    plan.uprobes.extend(probes);
    plan.limits.extend(limits);
    if plan.uprobes.len() > before {
        (plan.malloc, plan.watches_objects) = (true, true);
    } else if !is_go {
        plan.limit(
            "allocations inside native allocators",
            "no function of an allocator was found in the executable or its libraries; only the memory \
             they take from the kernel (mmap, brk) is traced",
        );
    }
}

/// The probes for the allocators in these objects, in the order in which they must be attached: what is
/// freed is seen before what is allocated.
pub fn probes(native: &NativeFacts) -> (Vec<Uprobe>, Vec<Limit>) {
    let mut frees = Vec::new();
    let mut others = Vec::new();
    let mut limits = Vec::new();
    for object in &native.objects {
        let Ok(image) = Image::parse(&object.image) else {
            continue;
        };
        let found = image.functions();
        let mut code = Code {
            object,
            file: Arc::new(ProbedFile {
                path: object.path.clone(),
                open_path: object.open_path.clone(),
            }),
            chunks: match image.is_glibc() {
                true => ALLOCATOR_CHUNKS,
                false => 0,
            },
            image: &image,
            extents: None,
        };
        for each in &found {
            if code.hands_on(each, &found) {
                continue;
            }
            match code.probes(each, native) {
                Ok(probes) if each.function.action == Action::Free => frees.extend(probes),
                Ok(probes) => others.extend(probes),
                Err(reason) => limits.push(Limit {
                    what: format!("`{}` of `{}`", each.function.name, object.path),
                    reason,
                }),
            }
        }
    }
    frees.extend(others);
    // Functions may return by the same `ret`.
    let mut seen = HashSet::new();
    frees.retain(|probe| seen.insert((probe.program, probe.address)));
    (frees, limits)
}

/// How the code of an ELF file gets to allocators; nothing if it cannot be read.
pub fn entries(image: &[u8]) -> Entries {
    Image::parse(image).map_or_else(|_| Entries::default(), |image| image.entries())
}

/// The code of an object file.
struct Code<'a> {
    object: &'a NativeObject,
    file: Arc<ProbedFile>,
    image: &'a Image<'a>,
    /// [`ALLOCATOR_CHUNKS`] if it is glibc's allocator, otherwise zero.
    chunks: u8,
    /// Functions by address, with their sizes; found out when first asked for.
    extents: Option<BTreeMap<u64, u64>>,
}

impl Code<'_> {
    /// Whether a function only hands on to another one that is seen: an operator of C++ that calls
    /// `malloc` or `free`, a `reallocarray` that calls `realloc`, or a `free` with more arguments that calls a plain one.
    fn hands_on(&self, found: &Found, all: &[Found]) -> bool {
        let is_free = found.function.action == Action::Free;
        if !is_free && !found.function.may_hand_on {
            return false;
        }
        let Some(code) = self.image.code(found.address, found.size) else {
            return false;
        };
        let Ok(function) = placement::Function::decode(code, found.address) else {
            return false;
        };
        let suits = |other: &Function| other.suits(found.function.action);
        function.instructions.iter().any(|instruction| {
            if !matches!(
                instruction.flow_control(),
                FlowControl::Call
                    | FlowControl::UnconditionalBranch
                    | FlowControl::ConditionalBranch
                    | FlowControl::IndirectCall
                    | FlowControl::IndirectBranch
            ) {
                return false;
            }
            let target = near(instruction);
            let within = all
                .iter()
                .find(|other| Some(other.address) == target && other.address != found.address);
            match within {
                Some(other) => suits(&other.function),
                None => {
                    let import = self.image.import(instruction);
                    import
                        .and_then(functions::named)
                        .is_some_and(|other| suits(&other))
                }
            }
        })
    }

    /// The probes of one function; those at its return first.
    fn probes(&mut self, found: &Found, native: &NativeFacts) -> Result<Vec<Uprobe>, String> {
        let code = self
            .image
            .code(found.address, found.size)
            .filter(|code| !code.is_empty())
            .ok_or("its code is not in the file")?;
        let (keep, call) = arguments(found.function.action);
        let place = placement::place_in_native(code, found.address, &keep)
            .or_else(|error| error.single_step.ok_or(error.reason))
            .unwrap_or_else(|_| placement::at_entry(code, found.address));
        if found.function.action == Action::Throw {
            let purpose = "an allocator is left by an exception";
            return Ok(vec![self.uprobe(
                "malloc_throw",
                found,
                &place,
                purpose,
                None,
            )?]);
        }
        let Some(mut call) = call else {
            return self.free(found, &place).map(|probe| vec![probe]);
        };
        call.depth = depth(&place)?;
        call.action |= self.chunks;
        let purpose = match found.function.action {
            Action::Resize { .. } | Action::Expand { .. } => "a block is resized",
            _ => "a block is allocated",
        };
        let mut probes = match (&native.uretprobes, found.function.throws) {
            // One probe for both ends, if the return address lies on top of the stack.
            (Ok(()), false) if native.sessions && call.depth == 0 => {
                call.action |= ALLOCATOR_URETPROBE;
                call.cache = self.thread_cache(found, code);
                let probe = self.uprobe("malloc_call", found, &place, purpose, Some(call))?;
                return Ok(vec![probe]);
            }
            (Ok(()), false) => {
                // At the same place if the return address lies on top of the stack there.
                let entry = match place.frame {
                    FrameState::CallerReturnAtSp => place.clone(),
                    _ => placement::at_entry(code, found.address),
                };
                let at = Placement {
                    class: Class::Return,
                    ..entry
                };
                call.action |= ALLOCATOR_URETPROBE;
                vec![self.uprobe("malloc_returned", found, &at, "its return", None)?]
            }
            (Ok(()), true) => self.returns(
                found,
                "an exception may leave it, and would find the kernel's trampoline",
            )?,
            (Err(reason), _) => self.returns(found, reason)?,
        };
        probes.push(self.uprobe("malloc_enter", found, &place, purpose, Some(call))?);
        Ok(probes)
    }

    /// How glibc's `malloc` finds its thread's cache, as an [`AllocatorCall`] has it.
    fn thread_cache(&self, found: &Found, code: &[u8]) -> i64 {
        if self.chunks == 0 || found.function.name != "malloc" {
            return 0;
        }
        let function = placement::Function::decode(code, found.address).ok();
        match function.and_then(|function| thread_cache::variable(&function)) {
            Some(Place::Offset(offset)) => offset,
            // It is mapped as far from there as in the file.
            Some(Place::Slot(slot)) => {
                let mapped = self.mapped(found.address).ok();
                let function = mapped.and_then(|(_, mapped)| mapped.first().copied());
                let moved = |function| slot.wrapping_sub(found.address).wrapping_add(function);
                function.map_or(0, moved).cast_signed().max(0)
            }
            None => 0,
        }
    }

    /// The probe of a function that frees. Where the allocator itself calls it for blocks that the program
    /// has freed before, the kernel side is told by the calls' return addresses.
    fn free(&mut self, found: &Found, place: &Placement) -> Result<Uprobe, String> {
        let call = AllocatorCall {
            depth: depth(place)?,
            action: self.chunks,
            ..AllocatorCall::default()
        };
        let mut probe = self.uprobe("malloc_free", found, place, "a block is freed", Some(call))?;
        let again = AllocatorCall {
            action: ALLOCATOR_FREE_AGAIN,
            ..AllocatorCall::default()
        };
        let returns = frees_again(self.image, found.address, self.extents(found));
        let functions: Vec<u64> = probe.calls.iter().map(|(_, call)| call.function).collect();
        for function in functions {
            let moved = |at: &u64| (at.wrapping_sub(found.address).wrapping_add(function), again);
            probe.calls.extend(returns.iter().map(moved));
        }
        Ok(probe)
    }

    /// The functions of the file.
    fn extents(&mut self, found: &Found) -> &BTreeMap<u64, u64> {
        self.extents.get_or_insert_with(|| {
            let mut extents = frame_table::functions(&self.object.image);
            extents.insert(found.address, found.size);
            extents
        })
    }

    /// A probe on each `ret` instruction by which the function may return, since there can be no
    /// uretprobe for that `reason`.
    fn returns(&mut self, found: &Found, reason: &str) -> Result<Vec<Uprobe>, String> {
        let image = self.image;
        let places = returns(image, found.address, found.size, self.extents(found))
            .map_err(|error| format!("no uretprobe ({reason}), and {error}"))?;
        let probe = |at: &returns::Return| {
            let code = self.image.code(at.part, at.size).unwrap_or_default();
            let part = Found {
                address: at.part,
                size: at.size,
                ..*found
            };
            let place = Placement {
                offset: at.address - at.part,
                instruction: at.instruction.to_owned(),
                class: at.class,
                ..placement::at_entry(code, at.part)
            };
            let purpose = "its return; no uretprobe, since a seccomp filter or an exception could \
                           meet it";
            self.uprobe(at.program, &part, &place, purpose, None)
        };
        places.iter().map(probe).collect()
    }

    /// Where in the file a link-time address lies, and where in the process: the object may be mapped more than
    /// once.
    fn mapped(&self, address: u64) -> Result<(u64, Vec<u64>), String> {
        let start = self.image.file_offset(address);
        let start = start.ok_or("it lies outside the file's segments")?;
        let mappings = self.object.mappings.iter();
        let there = mappings.filter(|(from, to, at)| (*at..at + (to - from)).contains(&start));
        Ok((
            start,
            there.map(|(from, _, at)| from + (start - at)).collect(),
        ))
    }

    fn uprobe(
        &self,
        program: &'static str,
        found: &Found,
        place: &Placement,
        purpose: &'static str,
        call: Option<AllocatorCall>,
    ) -> Result<Uprobe, String> {
        let code = self
            .image
            .code(found.address, found.size)
            .ok_or("its code is not in the file")?;
        let (start, entries) = self.mapped(found.address)?;
        let code_address = *entries.first().ok_or("it is not mapped")?;
        let compared = found.size.min(place.offset + MAX_INSTRUCTION) as usize;
        let calls = call.into_iter().flat_map(|call| {
            entries.iter().map(move |&entry| {
                let function = entry;
                (entry + place.offset, AllocatorCall { function, ..call })
            })
        });
        Ok(Uprobe {
            program,
            function: found.function.name,
            file: Some(self.file.clone()),
            file_offset: start + place.offset,
            address: code_address + place.offset,
            offset: place.offset,
            instruction: place.instruction.clone(),
            class: place.class,
            found_by: found.found_by,
            purpose,
            code: code.get(..compared).unwrap_or_default().to_vec(),
            code_address,
            reason: format!(
                "{purpose}; at +{:#x} `{}`, {}; found by {}",
                place.offset,
                place.instruction,
                place.class.cost(),
                found.found_by.name()
            ),
            calls: calls.collect(),
            in_windows: false,
        })
    }
}

/// How far the return address lies above the stack pointer, as [`AllocatorCall`] has it.
fn depth(place: &Placement) -> Result<u32, String> {
    match place.frame {
        FrameState::CallerReturnAtSp => Ok(0),
        FrameState::PushedRbp => Ok(8),
        FrameState::CallerReturnAbove(depth) => {
            u32::try_from(depth).map_err(|_| "its frame is too large".to_owned())
        }
        FrameState::SetUp => Ok(BY_FRAME_POINTER),
    }
}

/// The registers that must still hold the arguments, and what the kernel side does with them; nothing
/// where that has a program of its own.
fn arguments(action: Action) -> (Vec<Register>, Option<AllocatorCall>) {
    let call = |action, size, count: Option<u8>, block| AllocatorCall {
        function: 0,
        depth: 0,
        cache: 0,
        action,
        size,
        count: count.unwrap_or(NO_ARGUMENT),
        block,
    };
    let call = match action {
        Action::Free => return (vec![Register::RDI], None),
        Action::Throw => return (Vec::new(), None),
        Action::Allocate { size, count } => call(ALLOCATOR_ALLOCATE, size, count, NO_ARGUMENT),
        Action::Store { place, size } => call(ALLOCATOR_STORE, size, None, place),
        Action::Resize { block, size, count } => call(ALLOCATOR_RESIZE, size, count, block),
        Action::Expand { block, size } => call(ALLOCATOR_EXPAND, size, None, block),
    };
    const REGISTERS: [Register; 5] = [
        Register::RDI,
        Register::RSI,
        Register::RDX,
        Register::RCX,
        Register::R8,
    ];
    let used = [call.size, call.count, call.block];
    let keep = used.iter().filter_map(|&n| REGISTERS.get(usize::from(n)));
    (keep.copied().collect(), Some(call))
}

#[cfg(test)]
mod tests;
