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
        let remote = RemoteIoVec {
            base: address as usize,
            len,
        };
        match process_vm_readv(
            Pid::from_raw(self.pid),
            &mut [IoSliceMut::new(buffer)],
            &[remote],
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
                .map(|&address| RemoteIoVec {
                    base: address as usize,
                    len,
                })
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

    /// Reads many ranges (address, length), in few system calls. A range that cannot be read, or of
    /// length zero, gives `None`.
    pub fn read_each(&self, ranges: &[(u64, usize)]) -> Vec<Option<Vec<u8>>> {
        let mut result = Vec::with_capacity(ranges.len());
        for ranges in ranges.chunks(MAX_RANGES) {
            let whole: usize = ranges.iter().map(|(_, len)| len).sum();
            let mut buffer = vec![0; whole];
            let remote: Vec<_> = ranges
                .iter()
                .filter(|(_, len)| *len > 0)
                .map(|&(address, len)| RemoteIoVec {
                    base: address as usize,
                    len,
                })
                .collect();
            let is_read = process_vm_readv(
                Pid::from_raw(self.pid),
                &mut [IoSliceMut::new(&mut buffer)],
                &remote,
            ) == Ok(whole);
            let mut at = 0;
            result.extend(ranges.iter().map(|&(address, len)| {
                let bytes = &buffer[at..at + len];
                at += len;
                if len == 0 {
                    None
                } else if is_read {
                    Some(bytes.to_vec())
                } else {
                    // One of them is not mapped: only this way shows which.
                    let mut bytes = vec![0; len];
                    self.read(address, &mut bytes).is_ok().then_some(bytes)
                }
            }));
        }
        result
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
