//! Where the kernel keeps the thread pointer of a task, from its type information.
//!
//! aya reads that information, but does not give out what is in a structure; the format is simple
//! (Documentation/bpf/btf.rst of Linux 6.18).

use std::{collections::HashMap, fs};

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;

/// How many bytes `thread.fsbase` of `struct task_struct` lies from its beginning; none if the kernel does not say.
pub(super) fn offset() -> Option<u32> {
    offset_in(&fs::read(VMLINUX).ok()?)
}

fn offset_in(btf: &[u8]) -> Option<u32> {
    let structures = structures(btf, &["task_struct", "thread_struct"])?;
    let member = |structure, member| structures.get(structure)?.get(member).copied();
    Some(member("task_struct", "thread")? + member("thread_struct", "fsbase")?)
}

/// The structures of these names, with the offsets in bytes of their members.
fn structures<'a>(
    btf: &'a [u8],
    wanted: &[&'a str],
) -> Option<HashMap<&'a str, HashMap<&'a str, u32>>> {
    let word = |bytes: &[u8], at: usize| {
        let word = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(word))
    };
    if word(btf, 0)? as u16 != MAGIC {
        return None;
    }
    let part = |at: usize| {
        let start = (word(btf, 4)? as usize).checked_add(word(btf, at)? as usize)?;
        btf.get(start..start.checked_add(word(btf, at + 4)? as usize)?)
    };
    let (mut types, names) = (part(8)?, part(16)?);
    let name = |at: u32| {
        let name = names.get(at as usize..)?;
        str::from_utf8(name.split(|byte| *byte == 0).next()?).ok()
    };
    let mut found = HashMap::new();
    while !types.is_empty() {
        let info = word(types, 4)?;
        let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        // How much follows the three words that each type has, by `BTF_KIND_…`.
        let rest = match kind {
            // INT, VAR, DECL_TAG
            1 | 14 | 17 => 4,
            // ARRAY
            3 => 12,
            // STRUCT, UNION, DATASEC, ENUM64
            4 | 5 | 15 | 19 => 12 * count,
            // ENUM, FUNC_PROTO
            6 | 13 => 8 * count,
            // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
            2 | 7..=12 | 16 | 18 => 0,
            _ => return None,
        };
        let (this, next) = types.split_at_checked(12 + rest)?;
        if kind == 4
            && let Some(name_of_it) = name(word(this, 0)?)
            && wanted.contains(&name_of_it)
        {
            let has_bit_fields = info >> 31 != 0;
            let members = this[12..].chunks_exact(12).filter_map(|member| {
                let bits = word(member, 8)?;
                let bits = if has_bit_fields {
                    bits & 0xff_ffff
                } else {
                    bits
                };
                Some((name(word(member, 0)?)?, bits / 8))
            });
            found.insert(name_of_it, members.collect());
        }
        types = next;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types behind one another, and their names.
    fn btf(types: &[&[u32]], names: &[u8]) -> Vec<u8> {
        let types: Vec<u8> = types
            .concat()
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let (types_size, names_size) = (types.len() as u32, names.len() as u32);
        let header = [MAGIC.into(), 24, 0, types_size, types_size, names_size];
        let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(types);
        bytes.extend(names);
        bytes
    }

    #[test]
    fn members_are_found_whatever_stands_before_them() {
        const INT: u32 = 1 << 24;
        const STRUCT: u32 = 4 << 24;
        const BIT_FIELDS: u32 = 1 << 31;
        let names = b"\0task_struct\0thread\0thread_struct\0fsbase\0";
        let types: [&[u32]; 4] = [
            &[0, INT, 8, 64],
            // A bit field of three bits, and the thread's part at 3,088 bytes.
            &[
                1,
                STRUCT | BIT_FIELDS | 2,
                4096,
                0,
                1,
                3 << 24 | 5,
                13,
                3,
                3088 * 8,
            ],
            &[20, STRUCT | 1, 152, 34, 1, 40 * 8],
            &[0, 2 << 24, 2],
        ];
        let bytes = btf(&types, names);
        assert_eq!(offset_in(&bytes), Some(3128));
        // Cut anywhere, or of a kind that is not known: nothing.
        for end in 0..bytes.len() - names.len() {
            assert_eq!(offset_in(&bytes[..end]), None, "{end}");
        }
        let unknown: [&[u32]; 1] = [&[0, 30 << 24, 0]];
        assert_eq!(offset_in(&btf(&unknown, names)), None);
    }

    #[test]
    fn this_kernel_says_it() {
        let offset = offset().expect("a kernel with type information");
        assert!(offset > 0 && offset.is_multiple_of(8), "{offset}");
    }
}
