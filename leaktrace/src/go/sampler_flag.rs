//! Whether the linker has switched the heap sampler off: `runtime.disableMemoryProfiling`, a byte
//! that it sets to 1 when nothing in the program refers to the heap profile
//! (cmd/link/internal/ld/lib.go, Go 1.19 to 1.27).

use iced_x86::{Decoder, DecoderOptions, OpKind, Register};

use super::{GoBinary, GoVariable};

const FLAG: &[u8] = b"runtime.disableMemoryProfiling";

/// Where the runtime looks at the flag, just before it stores `runtime.MemProfileRate`: Go ≥ 1.21,
/// and before (runtime/proc.go `schedinit`; runtime/mprof.go `defaultMemProfileRate`, inlined into
/// the package's initialization).
const READERS: [&str; 2] = ["runtime.schedinit", "runtime.init"];

/// Instructions between the look at the flag and the store, at most.
const NEAR: usize = 8;

/// The flag's value in the file. The error says why it could not be found.
pub(super) fn is_linked_off(binary: &GoBinary) -> Result<bool, String> {
    let symbol = binary.elf.symbols().find(|symbol| symbol.name == FLAG);
    let address = match symbol {
        Some(symbol) => symbol.address,
        None => {
            let rate = binary.variable(GoVariable::MemProfileRate)?.address;
            let mut found = READERS
                .iter()
                .filter_map(|function| byte_before_store(binary, function, rate));
            found.next().ok_or_else(|| {
                "`runtime.disableMemoryProfiling` was not found in the code that reads it"
                    .to_owned()
            })?
        }
    };
    match binary.elf.read(address, 1) {
        Some([0]) => Ok(false),
        Some([1]) => Ok(true),
        // Zero for want of bytes in the file.
        None if binary.elf.is_data(address) => Ok(false),
        _ => Err("`runtime.disableMemoryProfiling` is neither 0 nor 1 in the file".to_owned()),
    }
}

/// The byte that `function` looks at last before it stores to the variable at `stored`.
fn byte_before_store(binary: &GoBinary, function: &str, stored: u64) -> Option<u64> {
    const MAX_CODE: usize = 1 << 16;
    let function = binary.function(function)?;
    let code = binary.code(&function)?;
    let code = &code[..code.len().min(MAX_CODE)];
    let mut byte = None;
    for (index, instruction) in Decoder::with_ip(64, code, function.entry, DecoderOptions::NONE)
        .iter()
        .enumerate()
    {
        if instruction.memory_base() != Register::RIP {
            continue;
        }
        let address = instruction.ip_rel_memory_address();
        if address == stored && instruction.op0_kind() == OpKind::Memory {
            return byte
                .filter(|(at, _)| index - at <= NEAR)
                .map(|(_, address)| address);
        }
        if instruction.memory_size().size() == 1 {
            byte = Some((index, address));
        }
    }
    None
}
