//! The container: magic, version, and how a block is framed.

/// First eight bytes of every capture. The high bit of the first and the line feed at the end
/// show a transfer that took the file for text.
pub const MAGIC: [u8; 8] = *b"\x89LTRACE\n";

/// Version of the container and of the meaning of its messages. A new block type or a new field
/// does not change it: readers skip both.
pub const FORMAT_VERSION: u32 = 1;

/// Bytes of the magic and the version in front of the first block.
pub(super) const PREAMBLE_LEN: usize = 12;

/// Bytes of length, type and checksum in front of every payload.
pub(super) const FRAME_LEN: usize = 12;

/// `schema::Header`.
pub(super) const BLOCK_HEADER: u32 = 1;
/// `schema::Interval`.
pub(super) const BLOCK_INTERVAL: u32 = 2;
/// `schema::Symbols`.
pub(super) const BLOCK_SYMBOLS: u32 = 3;
/// `schema::Close`.
pub(super) const BLOCK_CLOSE: u32 = 4;
/// `schema::Retention`.
pub(super) const BLOCK_RETENTION: u32 = 5;

/// The fixed part of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Bytes of payload that follow.
    pub(super) len: u32,
    /// One of the `BLOCK_…` constants, or one this version does not know.
    pub(super) block_type: u32,
    /// CRC32C of the type, little endian, and the payload.
    pub(super) checksum: u32,
}

impl Frame {
    pub(super) fn to_bytes(self) -> [u8; FRAME_LEN] {
        let mut bytes = [0; FRAME_LEN];
        bytes[..4].copy_from_slice(&self.len.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.block_type.to_le_bytes());
        bytes[8..].copy_from_slice(&self.checksum.to_le_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: [u8; FRAME_LEN]) -> Self {
        let [l0, l1, l2, l3, t0, t1, t2, t3, c0, c1, c2, c3] = bytes;
        Self {
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            block_type: u32::from_le_bytes([t0, t1, t2, t3]),
            checksum: u32::from_le_bytes([c0, c1, c2, c3]),
        }
    }
}

/// CRC32C over the block's type and payload. The length needs no checksum of its own: a wrong one
/// makes the payload a wrong one.
pub(super) fn checksum(block_type: u32, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block_type.to_le_bytes()), payload)
}
