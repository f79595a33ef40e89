//! Reads the target's memory without stopping it.

use std::io::IoSliceMut;

use nix::{
    errno::Errno,
    sys::uio::{RemoteIoVec, process_vm_readv},
    unistd::Pid,
};

/// IOV_MAX of Linux (uapi/linux/uio.h, UIO_MAXIOV).
const MAX_RANGES: usize = 1024;

/// The memory of one process, read with `process_vm_readv`.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pid: i32,
}

/// What [`Memory::read_each`] has read.
#[derive(Debug, Default)]
pub struct Ranges {
    bytes: Vec<u8>,
    at: Vec<Option<(usize, usize)>>,
}

impl Ranges {
    /// The bytes of range `index`, if they could be read.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let (from, len) = (*self.at.get(index)?)?;
        self.bytes.get(from..from + len)
    }
}

/// Whether the range at `address` is read in one piece with the `whole` bytes from `start` before it.
/// A gap of less than a page lies in pages that the ranges around it have bytes in.
fn joins(start: u64, whole: usize, address: u64, len: usize) -> bool {
    const GAP: u64 = 1024;
    const LONGEST: u64 = 1 << 20;
    let end = start.saturating_add(whole as u64);
    address <= end.saturating_add(GAP) && (address - start).saturating_add(len as u64) <= LONGEST
}

fn remote(address: u64, len: usize) -> RemoteIoVec {
    RemoteIoVec {
        base: address as usize,
        len,
    }
}

/// Why memory could not be read.
#[derive(Debug, thiserror::Error)]
#[error("failed to read {len} bytes at {address:#x} of process {pid}: {reason}")]
pub struct MemoryError {
    pid: i32,
    address: u64,
    len: usize,
    reason: String,
}

impl Memory {
    /// The memory of process `pid`.
    pub(crate) fn new(pid: i32) -> Self {
        Self { pid }
    }

    /// Fills `buffer` from `address`.
    ///
    /// # Errors
    ///
    /// Part of the range is not mapped, or the process is gone.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let len = buffer.len();
        match process_vm_readv(
            Pid::from_raw(self.pid),
            &mut [IoSliceMut::new(buffer)],
            &[remote(address, len)],
        ) {
            Ok(read) if read == len => Ok(()),
            Ok(read) => Err(self.error(address, len, format!("only {read} bytes are mapped"))),
            Err(errno) => Err(self.error(address, len, errno.desc().to_owned())),
        }
    }

    /// The word at `address`.
    ///
    /// # Errors
    ///
    /// As [`Memory::read`].
    pub fn read_u64(&self, address: u64) -> Result<u64, MemoryError> {
        let mut word = [0; 8];
        self.read(address, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    /// Reads `len` bytes at each of `addresses`, many ranges to a system call. The result has one
    /// block of `len` bytes for each address.
    ///
    /// # Errors
    ///
    /// As [`Memory::read`]; nothing is returned unless all could be read.
    pub fn read_blocks(&self, addresses: &[u64], len: usize) -> Result<Vec<u8>, MemoryError> {
        let mut blocks = vec![0; addresses.len() * len];
        for (addresses, blocks) in addresses
            .chunks(MAX_RANGES)
            .zip(blocks.chunks_mut(MAX_RANGES * len))
        {
            let remote: Vec<_> = addresses
                .iter()
                .map(|&address| remote(address, len))
                .collect();
            let whole = blocks.len();
            let read = process_vm_readv(
                Pid::from_raw(self.pid),
                &mut [IoSliceMut::new(blocks)],
                &remote,
            );
            let first = addresses.first().copied().unwrap_or(0);
            match read {
                Ok(read) if read == whole => {}
                Ok(read) => {
                    let failed = addresses.get(read / len).copied().unwrap_or(first);
                    return Err(self.error(failed, len, "it is not mapped".to_owned()));
                }
                Err(errno) => return Err(self.error(first, len, errno.desc().to_owned())),
            }
        }
        Ok(blocks)
    }

    /// Reads many ranges (address, length), in few system calls. One that cannot be read, or of
    /// length zero, gives `None`.
    ///
    /// Ranges that lie close to each other are read in one piece: the kernel takes longer to find a
    /// range than to copy some hundred bytes more.
    pub fn read_each(&self, ranges: &[(u64, usize)]) -> Ranges {
        let mut result = Ranges::default();
        self.read_each_into(ranges, &mut result);
        result
    }

    /// The same in place of what `result` had, in its memory: fresh pages for each batch of a long search would be
    /// an eighth of its time.
    pub fn read_each_into(&self, ranges: &[(u64, usize)], result: &mut Ranges) {
        let mut order: Vec<usize> = (0..ranges.len()).filter(|&i| ranges[i].1 > 0).collect();
        order.sort_unstable_by_key(|&index| ranges[index].0);
        result.at.clear();
        result.at.resize(ranges.len(), None);
        // Each piece: where it is, its length, and the place of its first range in `order`.
        let mut pieces: Vec<(u64, usize, usize)> = Vec::new();
        for (place, &index) in order.iter().enumerate() {
            let (address, len) = ranges[index];
            match pieces.last_mut() {
                Some((start, whole, _)) if joins(*start, *whole, address, len) => {
                    *whole = (*whole).max((address - *start) as usize + len);
                }
                _ => pieces.push((address, len, place)),
            }
        }
        let ends: Vec<usize> = pieces.iter().skip(1).map(|piece| piece.2).collect();
        let mut ends = ends.into_iter().chain([order.len()]);
        let mut base = 0;
        for pieces in pieces.chunks(MAX_RANGES) {
            let whole: usize = pieces.iter().map(|(_, len, _)| len).sum();
            if result.bytes.len() < base + whole {
                result.bytes.resize(base + whole, 0);
            }
            let remote: Vec<_> = pieces.iter().map(|&(at, len, _)| remote(at, len)).collect();
            let is_read = process_vm_readv(
                Pid::from_raw(self.pid),
                &mut [IoSliceMut::new(&mut result.bytes[base..base + whole])],
                &remote,
            ) == Ok(whole);
            let mut at = base;
            for &(start, len, first) in pieces {
                let end = ends.next().unwrap_or(order.len());
                for &index in &order[first..end] {
                    let (address, wanted) = ranges[index];
                    let from = at + (address - start) as usize;
                    let bytes = &mut result.bytes[from..from + wanted];
                    // If the whole failed, one of them is not mapped: only this way shows which.
                    if is_read || self.read(address, bytes).is_ok() {
                        result.at[index] = Some((from, wanted));
                    }
                }
                at += len;
            }
            base += whole;
        }
    }

    fn error(&self, address: u64, len: usize, reason: String) -> MemoryError {
        let reason = if reason == Errno::ESRCH.desc() {
            "the process is gone".to_owned()
        } else {
            reason
        };
        MemoryError {
            pid: self.pid,
            address,
            len,
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_come_in_the_order_asked_for() {
        let words: Vec<u64> = (0..4096).collect();
        let at = |index: usize| (words.as_ptr() as u64 + 8 * index as u64, 8);
        let ranges = [at(9), (8, 8), at(4000), (0, 0), at(1), at(9), (at(8).0, 24)];
        let read = Memory::new(std::process::id() as i32).read_each(&ranges);
        let word = |index: usize| {
            let bytes = read.get(index)?;
            bytes.first_chunk().map(|word| u64::from_le_bytes(*word))
        };
        let found: Vec<_> = (0..ranges.len()).map(word).collect();
        let expected = [Some(9), None, Some(4000), None, Some(1), Some(9), Some(8)];
        assert_eq!(found, expected);
        assert_eq!(read.get(6).map(<[u8]>::len), Some(24));
        assert_eq!(read.get(7), None);
    }
}
