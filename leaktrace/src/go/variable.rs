//! Addresses of the runtime's variables.
//!
//! pclntab names functions only. In a stripped binary a variable is recovered from the operands
//! of functions that use it, and only when two such functions agree (measured on Go 1.19 to 1.27:
//! the same addresses as in the unstripped twin).

use iced_x86::{Code, Decoder, DecoderOptions, OpKind, Register};

use super::{FoundBy, GoBinary};

/// A variable of the Go runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoVariable {
    /// `runtime.mbuckets`: pointer to the newest bucket of the heap profile (runtime/mprof.go).
    MBuckets,
    /// `runtime.MemProfileRate`: int, bytes between two samples; 0 is off (runtime/mprof.go).
    MemProfileRate,
    /// `runtime.allgs`: slice of `*g` (runtime/proc.go).
    AllGs,
    /// `runtime.allglen`: length of `allgs`, eight bytes, stored after the element is there
    /// (runtime/proc.go).
    AllGLen,
    /// `runtime.waitReasonStrings`: array of strings (runtime/runtime2.go).
    WaitReasonStrings,
    /// `runtime.mheap_`: the heap, an `mheap` (runtime/mheap.go).
    MHeap,
    /// `runtime.memstats`: statistics, an `mstats` (runtime/mstats.go).
    MemStats,
    /// `runtime.gcController`: the collector's pacing and more statistics, a `gcControllerState`
    /// (runtime/mgcpacer.go).
    GcController,
    /// `runtime.gcphase`: four bytes, `_GCoff`, `_GCmark` or `_GCmarktermination` (runtime/mgc.go).
    GcPhase,
    /// `runtime.writeBarrier`: its first byte is not zero while the collector marks (runtime/mgc.go).
    WriteBarrier,
}

impl GoVariable {
    /// All of them.
    pub const ALL: [GoVariable; 10] = [
        GoVariable::MBuckets,
        GoVariable::MemProfileRate,
        GoVariable::AllGs,
        GoVariable::AllGLen,
        GoVariable::WaitReasonStrings,
        GoVariable::MHeap,
        GoVariable::MemStats,
        GoVariable::GcController,
        GoVariable::GcPhase,
        GoVariable::WriteBarrier,
    ];

    /// Its name in the symbol table.
    pub fn symbol(self) -> &'static str {
        match self {
            GoVariable::MBuckets => "runtime.mbuckets",
            GoVariable::MemProfileRate => "runtime.MemProfileRate",
            GoVariable::AllGs => "runtime.allgs",
            GoVariable::AllGLen => "runtime.allglen",
            GoVariable::WaitReasonStrings => "runtime.waitReasonStrings",
            GoVariable::MHeap => "runtime.mheap_",
            GoVariable::MemStats => "runtime.memstats",
            GoVariable::GcController => "runtime.gcController",
            GoVariable::GcPhase => "runtime.gcphase",
            GoVariable::WriteBarrier => "runtime.writeBarrier",
        }
    }
}

/// Where a variable is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// Link-time address.
    pub address: u64,
    /// How it was found.
    pub found_by: FoundBy,
}

pub(super) fn locate(binary: &GoBinary, variable: GoVariable) -> Result<Located, String> {
    let name = variable.symbol();
    let symbol = binary
        .elf
        .symbols()
        .find(|symbol| symbol.name == name.as_bytes());
    if let Some(symbol) = symbol {
        return Ok(Located {
            address: symbol.address,
            found_by: FoundBy::Symtab,
        });
    }
    let address = match variable {
        GoVariable::MBuckets => mbuckets(binary)?,
        GoVariable::MemProfileRate => mem_profile_rate(binary)?,
        GoVariable::AllGs => allgs(binary)?,
        GoVariable::AllGLen => allglen(binary)?,
        GoVariable::WaitReasonStrings => wait_reason_strings(binary)?,
        GoVariable::MHeap => {
            let alloc = "runtime.(*mheap).alloc";
            let grow = receiver(binary, "runtime.(*mcentral).grow", alloc)?;
            let large = receiver(binary, "runtime.(*mcache).allocLarge", alloc)?;
            agree(grow == large, name, "runtime.(*mcache).allocLarge")?;
            grow
        }
        GoVariable::MemStats => {
            let acquire = "runtime.(*consistentHeapStats).acquire";
            let refill = receiver(binary, "runtime.(*mcache).refill", acquire)?;
            let span = receiver(binary, "runtime.(*mheap).allocSpan", acquire)?;
            agree(refill == span, name, "runtime.(*mheap).allocSpan")?;
            let layout = binary.layout().map_err(|error| error.to_string())?;
            let inside = layout.offset("runtime.mstats", "heapStats");
            refill.wrapping_sub(inside.map_err(|error| error.to_string())?)
        }
        GoVariable::GcController => {
            let update = "runtime.(*gcControllerState).update";
            let refill = receiver(binary, "runtime.(*mcache).refill", update)?;
            let start = "runtime.(*gcControllerState).startCycle";
            let cycle = receiver(binary, "runtime.gcStart", start)?;
            agree(refill == cycle, name, "runtime.gcStart")?;
            refill
        }
        GoVariable::GcPhase => gc_phase(binary)?,
        GoVariable::WriteBarrier => write_barrier(binary)?,
    };
    Ok(Located {
        address,
        found_by: match variable {
            GoVariable::WaitReasonStrings => FoundBy::Content,
            _ => FoundBy::Code,
        },
    })
}

/// The variable whose address is in RAX, the receiver, when `function` calls `method`.
fn receiver(binary: &GoBinary, function: &str, method: &str) -> Result<u64, String> {
    let uses = Operands::of(binary, function)?.uses;
    let missing = || format!("no function `{method}`");
    let entry = binary.function(method).ok_or_else(missing)?.entry;
    let call = uses.iter().position(|of| *of == Use::Call(entry));
    let before = call.map_or(&[][..], |call| &uses[..call]);
    let found = before.iter().rev().find_map(|of| match of {
        Use::Address(Register::RAX, address) => Some(Some(*address)),
        Use::Call(_) => Some(None),
        _ => None,
    });
    found
        .flatten()
        .ok_or_else(|| format!("`{function}` does not call `{method}` on a variable"))
}

/// Of the two variables that `forEachGRace` loads (`allglen` and `allgptr`) the one that `allgadd`
/// does not compare with anything, but stores to by its address.
fn allglen(binary: &GoBinary) -> Result<u64, String> {
    let loads = Operands::of(binary, "runtime.forEachGRace")?.loads();
    let added = Operands::of(binary, "runtime.allgadd")?.uses;
    let mut found = loads.into_iter().filter(|load| {
        let stored = |of: &Use| matches!(of, Use::Address(_, address) if address == load);
        let other = |of: &Use| of.variable() == Some(*load) && !stored(of);
        added.iter().any(stored) && !added.iter().any(other)
    });
    match (found.next(), found.next()) {
        (Some(address), None) => Ok(address),
        _ => Err("`runtime.allgadd` does not tell `runtime.allglen`".to_owned()),
    }
}

/// The variable whose address is taken, for an exchange, and that is then loaded with four bytes, in
/// `gcStart` and in `gcMarkTermination` (`setGCPhase`, inlined).
fn gc_phase(binary: &GoBinary) -> Result<u64, String> {
    let exchanged = |function: &str| {
        let uses = Operands::of(binary, function)?.uses;
        let mut pairs = uses.windows(2).filter_map(|pair| match pair {
            [Use::Address(_, exchanged), Use::Load32(loaded)] if exchanged == loaded => {
                Some(*loaded)
            }
            _ => None,
        });
        let first = pairs.next();
        first
            .filter(|first| pairs.all(|other| other == *first))
            .ok_or_else(|| format!("`{function}` does not tell `runtime.gcphase`"))
    };
    let start = exchanged("runtime.gcStart")?;
    let end = exchanged("runtime.gcMarkTermination")?;
    agree(start == end, "runtime.gcphase", "runtime.gcMarkTermination")?;
    Ok(start)
}

/// The one variable that `allgadd` compares with zero as four bytes; `gcStart` stores a byte there.
fn write_barrier(binary: &GoBinary) -> Result<u64, String> {
    let added = Operands::of(binary, "runtime.allgadd")?.uses;
    let mut tested = added.iter().filter_map(|of| match of {
        Use::Test32(address) => Some(*address),
        _ => None,
    });
    let unknown = || "`runtime.allgadd` does not tell `runtime.writeBarrier`".to_owned();
    let address = tested.next().ok_or_else(unknown)?;
    if tested.any(|other| other != address) {
        return Err(unknown());
    }
    let start = Operands::of(binary, "runtime.gcStart")?.uses;
    let stored = start.contains(&Use::Store8(address));
    agree(stored, "runtime.writeBarrier", "runtime.gcStart")?;
    Ok(address)
}

/// The only variable that `mProf_FlushLocked` touches; `stkbucket` touches it among others.
fn mbuckets(binary: &GoBinary) -> Result<u64, String> {
    let flush = Operands::of(binary, "runtime.mProf_FlushLocked")?;
    let addresses = flush.addresses();
    let [address] = addresses[..] else {
        return Err(format!(
            "{} variables, not one, in `runtime.mProf_FlushLocked`",
            addresses.len()
        ));
    };
    let other = Operands::of(binary, "runtime.stkbucket")?;
    agree(
        other.addresses().contains(&address),
        "runtime.mbuckets",
        "runtime.stkbucket",
    )?;
    Ok(address)
}

/// The last variable that `profilealloc` loads, and the last that `allocmcache` loads.
fn mem_profile_rate(binary: &GoBinary) -> Result<u64, String> {
    let last = |function: &str| {
        let operands = Operands::of(binary, function)?;
        operands
            .loads()
            .last()
            .copied()
            .ok_or_else(|| format!("no variable is loaded in `{function}`"))
    };
    let address = last("runtime.profilealloc")?;
    agree(
        last("runtime.allocmcache")? == address,
        "runtime.MemProfileRate",
        "runtime.allocmcache",
    )?;
    Ok(address)
}

/// The array whose first string is empty and whose second is "GC assist marking", as in Go 1.19 to
/// 1.27: the pointer to that text, with its length behind it, stands in one place.
fn wait_reason_strings(binary: &GoBinary) -> Result<u64, String> {
    let unknown = || "runtime.waitReasonStrings was not found by its second string".to_owned();
    let text = binary.elf.section(".rodata").ok_or_else(unknown)?;
    let bytes = binary.elf.section_bytes(text).ok_or_else(unknown)?;
    let second = SECOND_WAIT_REASON.as_bytes();
    let places = bytes
        .windows(second.len())
        .enumerate()
        .filter(|(_, window)| *window == second)
        .take(16)
        .flat_map(|(at, _)| {
            binary
                .elf
                .pointers_to(text.address.saturating_add(at as u64))
        });
    let mut arrays = places.filter_map(|place| {
        let array = place.checked_sub(16)?;
        let words = binary.elf.words(array, 4)?;
        (words[1] == 0 && words[3] == second.len() as u64).then_some(array)
    });
    let array = arrays.next().ok_or_else(unknown)?;
    match arrays.all(|other| other == array) {
        true => Ok(array),
        false => Err(unknown()),
    }
}

/// `waitReasonStrings[waitReasonGCAssistMarking]` (runtime/runtime2.go, Go 1.19 to 1.27).
const SECOND_WAIT_REASON: &str = "GC assist marking";

/// The strings of `runtime.waitReasonStrings`, by wait reason: as many as make sense.
pub(super) fn wait_reasons(binary: &GoBinary) -> Result<Vec<String>, String> {
    const MOST: usize = 128;
    const LONGEST: u64 = 64;
    let array = locate(binary, GoVariable::WaitReasonStrings)?.address;
    let read = |index: usize| {
        let words = binary.elf.words(array.checked_add(16 * index as u64)?, 2)?;
        let (address, len) = (words[0], words[1]);
        if index == 0 && len == 0 {
            return Some(String::new());
        }
        if len == 0 || len > LONGEST {
            return None;
        }
        let text = std::str::from_utf8(binary.elf.read(address, len)?).ok()?;
        text.chars()
            .all(|c| c.is_ascii_graphic() || c == ' ')
            .then(|| text.to_owned())
    };
    let reasons: Vec<String> = (0..MOST).map_while(read).collect();
    if reasons.get(1).map(String::as_str) == Some(SECOND_WAIT_REASON) {
        Ok(reasons)
    } else {
        Err("runtime.waitReasonStrings does not hold wait reasons".to_owned())
    }
}

/// The slice header of which `allgadd` touches all three words; `forEachG` loads the first two.
fn allgs(binary: &GoBinary) -> Result<u64, String> {
    let addresses = Operands::of(binary, "runtime.allgadd")?.addresses();
    let has = |base: u64, offset| {
        base.checked_add(offset)
            .is_some_and(|address| addresses.contains(&address))
    };
    let headers: Vec<u64> = addresses
        .iter()
        .copied()
        .filter(|base| has(*base, 8) && has(*base, 16))
        .collect();
    let [address] = headers[..] else {
        return Err(format!(
            "{} slices, not one, in `runtime.allgadd`",
            headers.len()
        ));
    };
    let other = Operands::of(binary, "runtime.forEachG")?.loads();
    let both = other.contains(&address) && other.contains(&(address + 8));
    agree(both, "runtime.allgs", "runtime.forEachG")?;
    Ok(address)
}

fn agree(agrees: bool, variable: &str, function: &str) -> Result<(), String> {
    agrees
        .then_some(())
        .ok_or_else(|| format!("`{function}` does not confirm `{variable}`"))
}

/// What a function's RIP-relative operands name, and what it calls, in the order of the code.
struct Operands {
    uses: Vec<Use>,
}

/// One use of a variable, by its address, or a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// `mov r64, [rip+…]`.
    Load64(u64),
    /// `mov r32, [rip+…]`.
    Load32(u64),
    /// `mov [rip+…], r8`.
    Store8(u64),
    /// `cmp dword [rip+…], 0`.
    Test32(u64),
    /// `lea r64, [rip+…]`.
    Address(Register, u64),
    /// Anything else.
    Other(u64),
    /// A direct call.
    Call(u64),
}

impl Use {
    fn variable(&self) -> Option<u64> {
        match self {
            Use::Load64(address)
            | Use::Load32(address)
            | Use::Store8(address)
            | Use::Test32(address)
            | Use::Address(_, address)
            | Use::Other(address) => Some(*address),
            Use::Call(_) => None,
        }
    }
}

impl Operands {
    fn of(binary: &GoBinary, name: &str) -> Result<Operands, String> {
        const MAX_CODE: usize = 1 << 16;
        let missing = || format!("no function `{name}`");
        let function = binary.function(name).ok_or_else(missing)?;
        let code = binary.code(&function).ok_or_else(missing)?;
        let code = &code[..code.len().min(MAX_CODE)];
        let decoded = Decoder::with_ip(64, code, function.entry, DecoderOptions::NONE);
        let uses = decoded.into_iter().filter_map(|instruction| {
            if instruction.code() == Code::Call_rel32_64 {
                return Some(Use::Call(instruction.near_branch_target()));
            }
            let mut operands = 0..instruction.op_count();
            let has_memory = operands.any(|at| instruction.op_kind(at) == OpKind::Memory);
            if !has_memory || instruction.memory_base() != Register::RIP {
                return None;
            }
            let address = instruction.ip_rel_memory_address();
            binary
                .elf
                .is_data(address)
                .then(|| match instruction.code() {
                    Code::Mov_r64_rm64 => Use::Load64(address),
                    Code::Mov_r32_rm32 => Use::Load32(address),
                    Code::Mov_rm8_r8 => Use::Store8(address),
                    Code::Cmp_rm32_imm8 if instruction.immediate8() == 0 => Use::Test32(address),
                    Code::Lea_r64_m => Use::Address(instruction.op0_register(), address),
                    _ => Use::Other(address),
                })
        });
        Ok(Operands {
            uses: uses.collect(),
        })
    }

    /// The variables that are loaded with eight bytes, in the order of the code.
    fn loads(&self) -> Vec<u64> {
        let loads = self.uses.iter().filter_map(|of| match of {
            Use::Load64(address) => Some(*address),
            _ => None,
        });
        loads.collect()
    }

    /// All of them, sorted, each once.
    fn addresses(&self) -> Vec<u64> {
        let mut all: Vec<u64> = self.uses.iter().filter_map(Use::variable).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}
