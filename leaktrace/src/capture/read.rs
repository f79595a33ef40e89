//! Reading a capture, or whatever is left of one.

use std::io::{self, Read};

use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use thiserror::Error;

use super::block::{
    BLOCK_CLOSE, BLOCK_HEADER, BLOCK_INTERVAL, BLOCK_RETENTION, BLOCK_SYMBOLS, FORMAT_VERSION,
    FRAME_LEN, Frame, MAGIC, PREAMBLE_LEN, checksum,
};
use super::coarsen::Joiner;
use super::pauses::Pauses;
use super::schema;

/// Largest zstd window accepted, as a power of two: 8 MiB.
const WINDOW_LOG_MAX: u32 = 23;
/// Most notes kept; more unknown blocks are counted only.
const MAX_NOTES: usize = 16;

/// Blocks of what keeps objects alive.
const MAX_RETENTION: usize = 4;

/// What reading may cost. A file that asks for more is read up to that point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one block in the file.
    pub block_bytes: u32,
    /// Bytes of one block after decompression.
    pub message_bytes: u64,
    /// Bytes of memory for everything decoded, by a count of what the messages hold made before
    /// they are decoded; it errs upwards.
    pub memory_bytes: u64,
    /// Intervals kept. Beyond, neighbours are joined, so that a capture of days keeps its totals and
    /// loses resolution only.
    pub intervals: usize,
}

impl Default for Limits {
    /// 64 MiB a block, 256 MiB a message, 4 GiB in all, 4096 intervals.
    fn default() -> Self {
        Self {
            block_bytes: 64 << 20,
            message_bytes: 256 << 20,
            memory_bytes: 4 << 30,
            intervals: 4096,
        }
    }
}

/// A decoded capture.
#[derive(Clone, Debug, PartialEq)]
pub struct Capture {
    /// The header block.
    pub header: schema::Header,
    /// The intervals, indexes rising; empty when the capture ended before the first. In a long
    /// capture several of the file's are joined in one, which has the last one's index and end: a
    /// cohort's births are in the first interval whose index is not below the cohort.
    pub intervals: Vec<schema::Interval>,
    /// How many intervals the file has.
    pub intervals_read: u64,
    /// Times in which the recorder did not run.
    pub pauses: Pauses,
    /// The last block of symbols; none in a capture that was not closed.
    pub symbols: Option<schema::Symbols>,
    /// What keeps objects alive, if that was asked for and found: of a Go heap, of native allocators.
    pub retention: Vec<schema::Retention>,
    /// How the file ended.
    pub how_it_ended: Ended,
    /// What the reader passed over, in words.
    pub notes: Vec<String>,
}

impl Capture {
    /// One of these intervals that was never in a file; without symbols.
    pub(crate) fn of(header: schema::Header, intervals: Vec<schema::Interval>) -> Self {
        Self {
            header,
            intervals_read: intervals.len() as u64,
            intervals,
            pauses: Pauses::default(),
            symbols: None,
            retention: Vec::new(),
            how_it_ended: Ended::Closed(schema::Close::default()),
            notes: Vec::new(),
        }
    }
}

/// How a capture ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// It was closed.
    Closed(schema::Close),
    /// It stops between two blocks, `at` bytes from the start: the recorder was killed, or could not write on.
    Truncated {
        /// Length of the file in bytes.
        at: u64,
    },
    /// A block is damaged; everything before it was read, nothing after it.
    Torn {
        /// Where that block begins, in bytes from the start of the file.
        at: u64,
        /// What is wrong with it.
        reason: Damage,
    },
}

/// What is wrong with a block.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Damage {
    /// The file ends inside the block: a recorder killed while it wrote, a full disk.
    #[error("the file ends {missing} bytes before the block does")]
    Cut {
        /// Bytes that are not there.
        missing: u64,
    },
    /// The contents are not what was written.
    #[error("the checksum does not match")]
    Checksum,
    /// The block asks for more than [`Limits`] allows.
    #[error("the block would take more than {limit} bytes of {what}")]
    TooLarge {
        /// Which limit.
        what: &'static str,
        /// Its value in bytes.
        limit: u64,
    },
    /// The payload does not decompress.
    #[error("the payload does not decompress")]
    Compression,
    /// The payload is not the message the block type says.
    #[error("the payload is not a valid message")]
    Message,
    /// A block stands where it cannot.
    #[error("{0}")]
    Order(&'static str),
}

/// Why a file cannot be read at all.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The input failed.
    #[error("failed to read the capture")]
    Input(#[from] io::Error),
    /// The file is something else.
    #[error("failed to read the capture: not a leaktrace capture")]
    NotACapture,
    /// The file is of a newer format than this program knows.
    #[error(
        "failed to read the capture: its format is version {found}, this leaktrace reads up to \
         version {FORMAT_VERSION}"
    )]
    NewerVersion {
        /// Version in the file.
        found: u32,
    },
    /// There is no usable header, so that nothing in the file can be understood.
    #[error("failed to read the capture: no header block: {0}")]
    NoHeader(Damage),
}

impl Capture {
    /// Reads everything up to the end or the first damage, within the default [`Limits`].
    ///
    /// Any prefix of a capture that holds the header block is a capture. Buffer `input` when it is
    /// a file.
    pub fn read<R: Read>(input: R) -> Result<Self, ReadError> {
        Self::read_within(input, Limits::default())
    }

    /// As [`read`](Self::read), with other limits.
    pub fn read_within<R: Read>(input: R, limits: Limits) -> Result<Self, ReadError> {
        Self::read_each(input, limits, |_| {})
    }

    /// As [`read_within`](Self::read_within), and hands each interval to `each` before it is kept: what
    /// that takes out of it costs no memory afterwards.
    pub fn read_each<R: Read>(
        input: R,
        limits: Limits,
        mut each: impl FnMut(&mut schema::Interval),
    ) -> Result<Self, ReadError> {
        let mut blocks = Blocks {
            input,
            at: 0,
            limits,
            memory_left: limits.memory_bytes,
            intervals_charge: 0,
            last_index: None,
        };
        blocks.preamble()?;
        let header = blocks.header()?;
        let mut capture = Self {
            header,
            intervals: Vec::new(),
            intervals_read: 0,
            pauses: Pauses::default(),
            symbols: None,
            retention: Vec::new(),
            how_it_ended: Ended::Truncated { at: blocks.at },
            notes: Vec::new(),
        };
        let mut joiner = Joiner::new(limits.intervals);
        let mut skipped = 0_u64;
        loop {
            let at = blocks.at;
            let step = match blocks.next()? {
                Next::Block(block_type, payload) => capture.take(
                    (block_type, &payload),
                    &mut skipped,
                    &mut blocks,
                    |mut interval| {
                        each(&mut interval);
                        joiner.push(interval)
                    },
                ),
                Next::End => {
                    capture.how_it_ended = Ended::Truncated { at };
                    break;
                }
                Next::Damaged(reason) => Err(reason),
            };
            match step {
                Ok(None) => {}
                Ok(Some(close)) => {
                    capture.how_it_ended = Ended::Closed(close);
                    if !matches!(blocks.next()?, Next::End) {
                        capture
                            .notes
                            .push(format!("bytes after the close at {}", blocks.at));
                    }
                    break;
                }
                Err(reason) => {
                    capture.how_it_ended = Ended::Torn { at, reason };
                    break;
                }
            }
        }
        capture.intervals = joiner.finish();
        if skipped > MAX_NOTES as u64 {
            capture.notes.push(format!(
                "{skipped} blocks of unknown types were skipped in all"
            ));
        }
        Ok(capture)
    }

    /// Takes in one block; gives the close when it was one. `keep` takes an interval and gives the
    /// memory that all of them need now, in bytes.
    fn take<R: Read>(
        &mut self,
        (block_type, payload): (u32, &[u8]),
        skipped: &mut u64,
        blocks: &mut Blocks<R>,
        keep: impl FnOnce(schema::Interval) -> u64,
    ) -> Result<Option<schema::Close>, Damage> {
        match block_type {
            BLOCK_HEADER => return Err(Damage::Order("a second header block")),
            BLOCK_INTERVAL => {
                let before = blocks.memory_left;
                let interval: schema::Interval = blocks.decode(payload)?;
                blocks.intervals_charge += before - blocks.memory_left;
                if blocks.last_index >= Some(interval.index) {
                    return Err(Damage::Order("the interval's index does not rise"));
                }
                blocks.last_index = Some(interval.index);
                self.pauses.interval(interval.t_ns, self.header.interval_ns);
                blocks.recharge(keep(interval));
                self.intervals_read += 1;
            }
            BLOCK_SYMBOLS => self.symbols = Some(blocks.decode(payload)?),
            BLOCK_RETENTION => {
                if self.retention.len() >= MAX_RETENTION {
                    return Err(Damage::Order(
                        "one block too many of what keeps objects alive",
                    ));
                }
                self.retention.push(blocks.decode(payload)?);
            }
            BLOCK_CLOSE => return Ok(Some(blocks.decode(payload)?)),
            unknown => {
                *skipped += 1;
                if *skipped <= MAX_NOTES as u64 {
                    self.notes.push(format!(
                        "a block of unknown type {unknown}, {} bytes, was skipped: written by a \
                         newer leaktrace",
                        payload.len()
                    ));
                }
            }
        }
        Ok(None)
    }
}

/// What stands at the current place.
enum Next {
    Block(u32, Vec<u8>),
    End,
    Damaged(Damage),
}

/// Cuts the input into blocks.
struct Blocks<R> {
    input: R,
    at: u64,
    limits: Limits,
    memory_left: u64,
    /// What of the memory is charged for intervals.
    intervals_charge: u64,
    /// Index of the last interval.
    last_index: Option<u32>,
}

impl<R: Read> Blocks<R> {
    fn preamble(&mut self) -> Result<(), ReadError> {
        let bytes = self.up_to(PREAMBLE_LEN as u64)?;
        let (magic, version) = bytes.split_at_checked(MAGIC.len()).unwrap_or((&bytes, &[]));
        let Ok(version) = <[u8; 4]>::try_from(version) else {
            return Err(ReadError::NotACapture);
        };
        if magic != MAGIC {
            return Err(ReadError::NotACapture);
        }
        match u32::from_le_bytes(version) {
            FORMAT_VERSION => Ok(()),
            0 => Err(ReadError::NotACapture),
            found => Err(ReadError::NewerVersion { found }),
        }
    }

    fn header(&mut self) -> Result<schema::Header, ReadError> {
        match self.next()? {
            Next::Block(BLOCK_HEADER, payload) => {
                self.decode(&payload).map_err(ReadError::NoHeader)
            }
            Next::Block(..) => Err(ReadError::NoHeader(Damage::Order(
                "another block stands in its place",
            ))),
            Next::End => Err(ReadError::NoHeader(Damage::Cut {
                missing: FRAME_LEN as u64,
            })),
            Next::Damaged(reason) => Err(ReadError::NoHeader(reason)),
        }
    }

    fn next(&mut self) -> Result<Next, ReadError> {
        let frame = self.up_to(FRAME_LEN as u64)?;
        if frame.is_empty() {
            return Ok(Next::End);
        }
        let Ok(frame) = <[u8; FRAME_LEN]>::try_from(frame.as_slice()) else {
            return Ok(Next::Damaged(Damage::Cut {
                missing: (FRAME_LEN - frame.len()) as u64,
            }));
        };
        let frame = Frame::from_bytes(frame);
        if frame.len > self.limits.block_bytes {
            return Ok(Next::Damaged(Damage::TooLarge {
                what: "file",
                limit: self.limits.block_bytes.into(),
            }));
        }
        let payload = self.up_to(frame.len.into())?;
        let missing = u64::from(frame.len) - payload.len() as u64;
        if missing > 0 {
            return Ok(Next::Damaged(Damage::Cut { missing }));
        }
        if checksum(frame.block_type, &payload) != frame.checksum {
            return Ok(Next::Damaged(Damage::Checksum));
        }
        Ok(Next::Block(frame.block_type, payload))
    }

    /// Reads `len` bytes, or fewer at the end of the input. Memory follows the bytes that are
    /// really there, not the length a block claims.
    fn up_to(&mut self, len: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.input.by_ref().take(len).read_to_end(&mut bytes)?;
        self.at += bytes.len() as u64;
        Ok(bytes)
    }

    /// Charges the intervals anew.
    fn recharge(&mut self, bytes: u64) {
        let bytes = bytes.min(self.intervals_charge);
        self.memory_left += self.intervals_charge - bytes;
        self.intervals_charge = bytes;
    }

    fn decode<M: Message + Default>(&mut self, payload: &[u8]) -> Result<M, Damage> {
        let limit = self.limits.message_bytes;
        let mut message = Vec::new();
        let mut decoder =
            zstd::stream::read::Decoder::with_buffer(payload).map_err(|_| Damage::Compression)?;
        decoder
            .window_log_max(WINDOW_LOG_MAX)
            .map_err(|_| Damage::Compression)?;
        decoder
            .take(limit.saturating_add(1))
            .read_to_end(&mut message)
            .map_err(|_| Damage::Compression)?;
        if message.len() as u64 > limit {
            return Err(Damage::TooLarge {
                what: "message",
                limit,
            });
        }
        let cost = decoded_size(&message).ok_or(Damage::Message)?;
        self.memory_left = self.memory_left.checked_sub(cost).ok_or(Damage::TooLarge {
            what: "memory",
            limit: self.limits.memory_bytes,
        })?;
        M::decode(message.as_slice()).map_err(|_| Damage::Message)
    }
}

/// At most how many bytes a message takes once decoded; none when it is not a protobuf message.
///
/// On the wire an empty sub-message takes two bytes, in memory up to 120 (`Site`, `GoroutineCount`,
/// whose channel is a block of its own): each top-level field is charged as one, doubled for the slack of a growing vector. Inside them the worst are
/// cohorts (2 bytes on the wire, 24 decoded) and packed code addresses (1 and 8).
fn decoded_size(mut message: &[u8]) -> Option<u64> {
    const FIELD: u64 = 2 * 120;
    const INSIDE: u64 = 2 * 12;
    let mut size = message.len() as u64 * INSIDE;
    while !message.is_empty() {
        let (tag, wire_type) = decode_key(&mut message).ok()?;
        if wire_type == WireType::LengthDelimited {
            size += FIELD;
            let len = usize::try_from(decode_varint(&mut message).ok()?).ok()?;
            message = message.get(len..)?;
        } else {
            skip_field(wire_type, tag, &mut message, DecodeContext::default()).ok()?;
        }
    }
    Some(size)
}

const _: () = {
    assert!(
        size_of::<schema::GoroutineGroup>() <= 120 && size_of::<schema::GoroutineCount>() <= 120,
        "decoded_size charges less than a group of goroutines takes"
    );
    // A channel takes two bytes more on the wire than its group does without it.
    assert!(
        size_of::<schema::GoroutineChannel>() + 16 <= 2 * 24 + 2 * (120 - 56),
        "decoded_size charges less than a channel takes"
    );
    assert!(
        size_of::<schema::Site>() <= 112,
        "decoded_size charges less than a site takes"
    );
    assert!(
        size_of::<schema::SiteDelta>() <= 112,
        "decoded_size charges less than a delta takes"
    );
    assert!(
        size_of::<schema::CohortFrees>() <= 24,
        "decoded_size charges less than cohorts take"
    );
};
