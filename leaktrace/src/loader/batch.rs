//! Reads a whole hash map in few system calls.

use std::{io, os::fd::AsRawFd as _, os::fd::BorrowedFd};

use nix::libc;

/// `BPF_MAP_LOOKUP_BATCH` of `enum bpf_cmd` (uapi/linux/bpf.h; Linux 5.6, 05799638).
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// The `batch` member of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Calls `visit` with the key and the value of every entry of the hash map `map`. `value_size` is what the kernel
/// returns for one key: for a per-CPU map the value rounded up to eight bytes, for each possible
/// CPU. Entries written or deleted meanwhile may or may not be there; no entry comes twice.
///
/// # Errors
///
/// The kernel refuses; `ENOSPC` when one hash chain is longer than the whole buffer.
pub fn for_each_entry(
    map: BorrowedFd<'_>,
    key_size: usize,
    value_size: usize,
    max_entries: usize,
    mut visit: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    let chunk = max_entries.clamp(64, 4096);
    let mut keys = vec![0u8; chunk * key_size];
    let mut values = vec![0u8; chunk * value_size];
    // For hash maps the cursor is a 32-bit bucket number, whatever the key's size.
    let mut cursor = [0u8; 8];
    let mut first = true;
    loop {
        let mut next = [0u8; 8];
        let mut attr = BatchAttr {
            in_batch: if first { 0 } else { cursor.as_ptr() as u64 },
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: chunk as u32,
            map_fd: map.as_raw_fd() as u32,
            ..BatchAttr::default()
        };
        // SAFETY: `attr` is the start of `union bpf_attr`; its pointers lead to live buffers that
        // hold `count` keys and values of this map, and eight bytes for a cursor.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_MAP_LOOKUP_BATCH,
                &raw mut attr,
                size_of::<BatchAttr>(),
            )
        };
        let at_end = if result < 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::ENOENT) {
                return Err(error);
            }
            true
        } else {
            false
        };
        let count = (attr.count as usize).min(chunk);
        for (key, value) in keys
            .chunks(key_size)
            .zip(values.chunks(value_size))
            .take(count)
        {
            visit(key, value);
        }
        if at_end {
            return Ok(());
        }
        cursor = next;
        first = false;
    }
}
