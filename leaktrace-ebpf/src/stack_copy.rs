//! A copy of a part of the target's stack, so that a walk reads the target's memory once for several frames:
//! a call of the helper costs more than what it copies.

use aya_ebpf::helpers::bpf_probe_read_user_buf;

use crate::unwind::read;

/// Words that are copied at a time. The frames of most functions are smaller than a tenth of it.
const WORDS: usize = 64;

/// The words from `base` on.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct StackCopy {
    /// Zero: none.
    base: u64,
    words: [u64; WORDS],
}

impl StackCopy {
    /// Forgets what was copied; the target has run since.
    #[inline(always)]
    pub fn forget(&mut self) {
        self.base = 0;
    }

    /// The word at `address`. The one above it need not be readable.
    #[inline(always)]
    pub fn word(&mut self, address: u64) -> Option<u64> {
        match self.pair(address) {
            Some((word, _)) => Some(word),
            None => read(address as *const u64),
        }
    }

    /// The word at `address`, and the one above it.
    #[inline(always)]
    pub fn pair(&mut self, address: u64) -> Option<(u64, u64)> {
        const LAST: u64 = 8 * (WORDS as u64 - 2);
        let mut at = address.wrapping_sub(self.base);
        if at > LAST {
            // SAFETY: the words are as many bytes, each of which may have any value.
            let bytes = unsafe {
                core::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast::<u8>(), 8 * WORDS)
            };
            // SAFETY: the helper copies from the target's memory and fails rather than faults.
            if unsafe { bpf_probe_read_user_buf(address as *const u8, bytes) }.is_err() {
                // The stack ends sooner.
                self.base = 0;
                return read(address as *const (u64, u64));
            }
            self.base = address;
            at = 0;
        }
        if !at.is_multiple_of(8) {
            return read(address as *const (u64, u64));
        }
        let at = (at / 8) as usize;
        Some((self.words[at % WORDS], self.words[(at + 1) % WORDS]))
    }
}
