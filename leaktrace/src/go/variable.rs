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
    /// `runtime.waitReasonStrings`: array of strings (runtime/runtime2.go).
    WaitReasonStrings,
}

impl GoVariable {
    /// Its name in the symbol table.
    pub fn symbol(self) -> &'static str {
        match self {
            GoVariable::MBuckets => "runtime.mbuckets",
            GoVariable::MemProfileRate => "runtime.MemProfileRate",
            GoVariable::AllGs => "runtime.allgs",
            GoVariable::WaitReasonStrings => "runtime.waitReasonStrings",
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
        GoVariable::WaitReasonStrings => wait_reason_strings(binary)?,
    };
    Ok(Located {
        address,
        found_by: FoundBy::Code,
    })
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
            .loads
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
    let other = Operands::of(binary, "runtime.forEachG")?.loads;
    let both = other.contains(&address) && other.contains(&(address + 8));
    agree(both, "runtime.allgs", "runtime.forEachG")?;
    Ok(address)
}

fn agree(agrees: bool, variable: &str, function: &str) -> Result<(), String> {
    agrees
        .then_some(())
        .ok_or_else(|| format!("`{function}` does not confirm `{variable}`"))
}

/// The variables that a function's RIP-relative operands name.
struct Operands {
    /// Loaded with `mov r64, [rip+…]`, in the order of the code.
    loads: Vec<u64>,
    /// Stored to, compared, or whose address is taken.
    others: Vec<u64>,
}

impl Operands {
    fn of(binary: &GoBinary, name: &str) -> Result<Operands, String> {
        const MAX_CODE: usize = 1 << 16;
        let missing = || format!("no function `{name}`");
        let function = binary.function(name).ok_or_else(missing)?;
        let code = binary.code(&function).ok_or_else(missing)?;
        let code = &code[..code.len().min(MAX_CODE)];
        let mut operands = Operands {
            loads: Vec::new(),
            others: Vec::new(),
        };
        for instruction in Decoder::with_ip(64, code, function.entry, DecoderOptions::NONE).iter() {
            let memory = (0..instruction.op_count())
                .any(|operand| instruction.op_kind(operand) == OpKind::Memory);
            if !memory || instruction.memory_base() != Register::RIP {
                continue;
            }
            let address = instruction.ip_rel_memory_address();
            if !binary.elf.is_data(address) {
                continue;
            }
            if instruction.code() == Code::Mov_r64_rm64 {
                operands.loads.push(address);
            } else {
                operands.others.push(address);
            }
        }
        Ok(operands)
    }

    /// All of them, sorted, each once.
    fn addresses(&self) -> Vec<u64> {
        let mut all: Vec<u64> = self.loads.iter().chain(&self.others).copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}
