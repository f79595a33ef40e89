//! Writing a capture.

use std::io::{self, Write};

use prost::Message;
use thiserror::Error;

use super::block::{
    BLOCK_CLOSE, BLOCK_HEADER, BLOCK_INTERVAL, BLOCK_RETENTION, BLOCK_SYMBOLS, FORMAT_VERSION,
    Frame, MAGIC, checksum,
};
use super::schema;

/// zstd's default: a window of 2 MiB, well under what readers accept.
const COMPRESSION_LEVEL: i32 = 3;

/// Why a block could not be written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The output refused the bytes: a full disk, a closed pipe.
    #[error("failed to write the {what} of the capture")]
    Output {
        /// Which part.
        what: &'static str,
        /// What the output said.
        #[source]
        source: io::Error,
    },
    /// The block is longer than its length field can say.
    #[error("failed to write the {what} of the capture: {len} bytes do not fit one block")]
    TooLong {
        /// Which part.
        what: &'static str,
        /// Compressed size in bytes.
        len: usize,
    },
    /// An earlier write failed. A reader stops there, so nothing may follow.
    #[error("failed to write the {what} of the capture: an earlier write failed")]
    Broken {
        /// Which part.
        what: &'static str,
    },
}

/// Appends blocks to `W`. Each call compresses its message and passes the whole block to one
/// `write_all`, then flushes; it does not sync to disk.
///
/// Blocks are expected in the order header, intervals, symbols, close. A capture whose writer is
/// dropped before [`close`](Self::close) reads as [`super::Ended::Truncated`].
#[derive(Debug)]
pub struct CaptureWriter<W: Write> {
    out: W,
    bytes: u64,
    broken: bool,
}

impl<W: Write> CaptureWriter<W> {
    /// Writes magic and version.
    pub fn new(out: W) -> Result<Self, WriteError> {
        let mut writer = Self {
            out,
            bytes: 0,
            broken: false,
        };
        let mut preamble = MAGIC.to_vec();
        preamble.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        writer.put("preamble", &preamble)?;
        Ok(writer)
    }

    /// Writes the first block.
    pub fn header(&mut self, header: &schema::Header) -> Result<(), WriteError> {
        self.block("header", BLOCK_HEADER, header)
    }

    /// Writes one interval. Their indexes must rise; readers stop at one that does not.
    pub fn interval(&mut self, interval: &schema::Interval) -> Result<(), WriteError> {
        self.block("interval", BLOCK_INTERVAL, interval)
    }

    /// Writes the symbols. When there are several symbol blocks, the last one counts.
    pub fn symbols(&mut self, symbols: &schema::Symbols) -> Result<(), WriteError> {
        self.block("symbols", BLOCK_SYMBOLS, symbols)
    }

    /// Writes what keeps objects alive. At most four.
    pub fn retention(&mut self, retention: &schema::Retention) -> Result<(), WriteError> {
        self.block("retention", BLOCK_RETENTION, retention)
    }

    /// Writes the last block and hands the output back.
    pub fn close(mut self, close: &schema::Close) -> Result<W, WriteError> {
        self.block("close", BLOCK_CLOSE, close)?;
        Ok(self.out)
    }

    /// Bytes written so far.
    pub fn bytes_written(&self) -> u64 {
        self.bytes
    }

    /// The output, e.g. to sync it to disk. Writing through it breaks the capture.
    pub fn get_ref(&self) -> &W {
        &self.out
    }

    fn block(
        &mut self,
        what: &'static str,
        block_type: u32,
        message: &impl Message,
    ) -> Result<(), WriteError> {
        let payload = zstd::bulk::compress(&message.encode_to_vec(), COMPRESSION_LEVEL)
            .map_err(|source| WriteError::Output { what, source })?;
        let len = u32::try_from(payload.len()).map_err(|_| WriteError::TooLong {
            what,
            len: payload.len(),
        })?;
        let frame = Frame {
            len,
            block_type,
            checksum: checksum(block_type, &payload),
        };
        let mut block = frame.to_bytes().to_vec();
        block.extend_from_slice(&payload);
        self.put(what, &block)
    }

    fn put(&mut self, what: &'static str, bytes: &[u8]) -> Result<(), WriteError> {
        if self.broken {
            return Err(WriteError::Broken { what });
        }
        self.out
            .write_all(bytes)
            .and_then(|()| self.out.flush())
            .map_err(|source| {
                self.broken = true;
                WriteError::Output { what, source }
            })?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}
