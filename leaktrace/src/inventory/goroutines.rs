//! A census of goroutines: what each one does, where it stands, who started it and, if it is
//! blocked on a channel, on which. Read from `runtime.allgs` without stopping the process.
//!
//! A goroutine that moves while it is read is noticed (its status and stack pointer are read again
//! after its stack) and counted without a stack. Those that run at the moment cannot be walked.
//! Memory is bounded: goroutines are read in chunks and kept only as groups.

use std::collections::{BTreeMap, HashMap};

use super::word;
use crate::{
    go::layout::Layout,
    target::{Memory, MemoryError},
};

/// More goroutines than this are not read: the list is being misread.
const MAX_GOROUTINES: u64 = 1 << 24;
/// Goroutines read at a time.
const CHUNK: usize = 2048;
/// Bytes of each stack that are read, from the stack pointer up.
const STACK_WINDOW: u64 = 4096;
/// Frames kept of each stack.
const MAX_FRAMES: usize = 64;
/// Distinct channels counted in each group.
const MAX_CHANNELS: usize = 4096;
/// Set in `atomicstatus` while a collection scans the stack (runtime/runtime2.go).
const SCAN: u32 = 0x1000;

/// What a goroutine does: `runtime.g.atomicstatus` (runtime/runtime2.go, Go 1.19 to 1.27).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Ready to run.
    Runnable,
    /// On a thread.
    Running,
    /// In a system call.
    Syscall,
    /// Blocked.
    Waiting,
    /// Stopped for a moment by the scheduler or for its stack to be moved.
    Stopped,
    /// Blocked for ever, as the runtime itself has found (Go 1.26 and later).
    Leaked,
    /// A status that this version does not know.
    Unknown,
}

impl State {
    /// `None` for one that does not exist any more or not yet.
    fn of(status: u32) -> Option<Self> {
        Some(match status & !SCAN {
            0 | 6 | 11 => return None,
            1 => Self::Runnable,
            2 => Self::Running,
            3 => Self::Syscall,
            4 => Self::Waiting,
            8 | 9 => Self::Stopped,
            10 => Self::Leaked,
            _ => Self::Unknown,
        })
    }

    /// Its name, as Go's own tracebacks have it where they have one.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runnable => "runnable",
            Self::Running => "running",
            Self::Syscall => "syscall",
            Self::Waiting => "waiting",
            Self::Stopped => "stopped",
            Self::Leaked => "leaked",
            Self::Unknown => "unknown",
        }
    }

    /// Whether `sched` says where it stands.
    fn can_be_walked(self) -> bool {
        matches!(self, Self::Runnable | Self::Waiting | Self::Leaked)
    }
}

/// What the goroutines of a group have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// What they do.
    pub state: State,
    /// `g.waitreason`, an index into the binary's own table; zero unless they wait.
    pub wait_reason: u8,
    /// Return addresses, innermost first; empty if they could not be walked.
    pub pcs: Vec<u64>,
    /// Return address of the go statement that made them.
    pub created_by: u64,
}

/// Goroutines that cannot be told apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// How many.
    pub count: u64,
    /// Bytes of their stacks.
    pub stack_bytes: u64,
    /// The channels they wait on, by address, with the number of goroutines; at most
    /// 4,096 of them.
    pub channels: HashMap<u64, u64>,
}

/// A channel (runtime/chan.go, `hchan`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channel {
    /// Its address.
    pub address: u64,
    /// Elements it can buffer; zero: unbuffered.
    pub capacity: u64,
    /// Elements in the buffer.
    pub queued: u64,
    /// Bytes of an element.
    pub element_size: u16,
    /// Whether it has been closed.
    pub closed: bool,
    /// Whether any goroutine waits to send, in a select too.
    pub has_senders: bool,
    /// Whether any goroutine waits to receive, in a select too.
    pub has_receivers: bool,
}

/// All goroutines at one moment.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// Goroutines that exist, dead ones kept for reuse left out.
    pub total: u64,
    /// Groups of them.
    pub groups: HashMap<Key, Group>,
    /// Goroutines that moved while they were read; they are in a group without a stack.
    pub unstable: u64,
    /// Goroutines of which nothing could be read; they are in no group.
    pub unreadable: u64,
}

/// Why there is no census.
#[derive(Debug, thiserror::Error)]
pub enum CensusError {
    /// The target's memory could not be read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// What was read cannot be the list of goroutines.
    #[error("runtime.allgs makes no sense: {0} goroutines")]
    Nonsense(u64),
}

/// Reads the goroutines of one process.
#[derive(Clone, Debug)]
pub struct Goroutines {
    memory: Memory,
    allgs: u64,
    layout: Layout,
    blocks_on_channel: Vec<bool>,
}

impl Goroutines {
    /// `allgs` is the address of `runtime.allgs` in the process, `reasons` the binary's table of
    /// wait reasons.
    pub fn new(memory: Memory, allgs: u64, layout: Layout, reasons: &[String]) -> Self {
        Self {
            memory,
            allgs,
            layout,
            blocks_on_channel: reasons.iter().map(|r| r.starts_with("chan ")).collect(),
        }
    }

    /// Takes the census.
    ///
    /// # Errors
    ///
    /// The list itself cannot be read.
    pub fn census(&self) -> Result<Census, CensusError> {
        let list = self.memory.read_u64(self.allgs)?;
        let len = self.memory.read_u64(self.allgs + 8)?;
        if len > MAX_GOROUTINES {
            return Err(CensusError::Nonsense(len));
        }
        let mut pointers = vec![0; len as usize * 8];
        self.memory.read(list, &mut pointers)?;
        let mut census = Census::default();
        for chunk in pointers.chunks(CHUNK * 8) {
            let addresses: Vec<u64> = chunk.chunks(8).map(|pointer| word(pointer, 0)).collect();
            self.chunk(&addresses, &mut census);
        }
        Ok(census)
    }

    /// The state of a channel.
    ///
    /// # Errors
    ///
    /// The target's memory cannot be read.
    pub fn channel(&self, address: u64) -> Result<Channel, MemoryError> {
        let recvq = self.layout.channel.recvq;
        let mut bytes = vec![0; recvq as usize + 32];
        self.memory.read(address, &mut bytes)?;
        let sized = word(&bytes, 24);
        Ok(Channel {
            address,
            queued: word(&bytes, 0),
            capacity: word(&bytes, 8),
            element_size: sized as u16,
            closed: sized >> 32 != 0,
            has_receivers: word(&bytes, recvq) != 0,
            has_senders: word(&bytes, recvq + 16) != 0,
        })
    }

    fn chunk(&self, addresses: &[u64], census: &mut Census) {
        let g = &self.layout.g;
        let read = |of: &[u64]| {
            let ranges: Vec<_> = of.iter().map(|a| (*a, g.size as usize)).collect();
            self.memory.read_each(&ranges)
        };
        let structs = read(addresses);
        let mut seen: Vec<(u64, Seen)> = Vec::new();
        for (address, bytes) in addresses.iter().zip(structs) {
            match bytes {
                Some(bytes) => seen.extend(Seen::of(&bytes, g).map(|seen| (*address, seen))),
                None => census.unreadable += 1,
            }
        }
        let windows: Vec<_> = seen.iter().map(|(_, seen)| seen.window()).collect();
        let stacks = self.memory.read_each(&windows);
        let sudogs: Vec<_> = seen
            .iter()
            .map(|(_, seen)| self.channel_word(seen))
            .collect();
        let channels = self.memory.read_each(&sudogs);
        // Whatever has moved since its structure was read may have been walked on another's stack.
        let again_at: Vec<u64> = seen.iter().map(|(address, _)| *address).collect();
        let again = read(&again_at);
        for ((((_, seen), stack), channel), again) in
            seen.iter().zip(stacks).zip(channels).zip(again)
        {
            census.total += 1;
            let is_stable = again.is_some_and(|bytes| Seen::of(&bytes, g).as_ref() == Some(seen));
            let mut pcs = Vec::new();
            if !is_stable {
                census.unstable += 1;
            } else if seen.state.can_be_walked() {
                pcs = seen.walk(&stack.unwrap_or_default());
            }
            let is_waiting = matches!(seen.state, State::Waiting | State::Leaked);
            let key = Key {
                state: seen.state,
                wait_reason: if is_waiting { seen.wait_reason } else { 0 },
                pcs,
                created_by: seen.created_by,
            };
            let group = census.groups.entry(key).or_default();
            group.count += 1;
            group.stack_bytes += seen.stack.1.saturating_sub(seen.stack.0);
            if let Some(channel) = channel.filter(|_| is_stable) {
                let channel = word(&channel, 0);
                if group.channels.len() < MAX_CHANNELS || group.channels.contains_key(&channel) {
                    *group.channels.entry(channel).or_default() += 1;
                }
            }
        }
    }

    /// Where the channel of a goroutine's `sudog` is to be read; of length zero if it has none or
    /// does not wait on a channel.
    fn channel_word(&self, seen: &Seen) -> (u64, usize) {
        let is_on_channel = matches!(seen.state, State::Waiting | State::Leaked)
            && self.blocks_on_channel.get(usize::from(seen.wait_reason)) == Some(&true)
            && seen.waiting != 0;
        let address = seen.waiting.wrapping_add(self.layout.channel.sudog_c);
        (address, if is_on_channel { 8 } else { 0 })
    }
}

impl Census {
    /// How many goroutines wait on each of these channels for each reason: from the whole census,
    /// so that a channel's other end is seen wherever it stands.
    pub fn waiting_on(&self, channel: u64) -> BTreeMap<u8, u64> {
        let mut waiting = BTreeMap::new();
        for (key, group) in &self.groups {
            if let Some(count) = group.channels.get(&channel) {
                *waiting.entry(key.wait_reason).or_default() += count;
            }
        }
        waiting
    }
}

/// One goroutine as it was read.
#[derive(PartialEq, Eq)]
struct Seen {
    state: State,
    stack: (u64, u64),
    sp: u64,
    pc: u64,
    bp: u64,
    wait_reason: u8,
    created_by: u64,
    waiting: u64,
}

impl Seen {
    fn of(bytes: &[u8], g: &crate::go::layout::G) -> Option<Self> {
        Some(Self {
            state: State::of(word(bytes, g.status) as u32)?,
            stack: (word(bytes, g.stack), word(bytes, g.stack + 8)),
            sp: word(bytes, g.sched),
            pc: word(bytes, g.sched + 8),
            bp: word(bytes, g.sched_bp),
            wait_reason: bytes.get(g.waitreason as usize).copied().unwrap_or(0),
            created_by: word(bytes, g.gopc),
            waiting: word(bytes, g.waiting),
        })
    }

    /// The part of its stack to read.
    fn window(&self) -> (u64, usize) {
        let is_inside = self.stack.0 <= self.sp && self.sp < self.stack.1;
        let len = match self.state.can_be_walked() && is_inside {
            true => (self.stack.1 - self.sp).min(STACK_WINDOW),
            false => 0,
        };
        (self.sp, len as usize)
    }

    /// Return addresses by frame pointers through the window of its stack.
    fn walk(&self, window: &[u8]) -> Vec<u64> {
        let mut pcs = vec![self.pc];
        let mut bp = self.bp;
        while pcs.len() < MAX_FRAMES {
            let Some(at) = bp
                .checked_sub(self.sp)
                .filter(|at| at + 16 <= window.len() as u64)
            else {
                break;
            };
            let (next, ret) = (word(window, at), word(window, at + 8));
            if ret == 0 {
                break;
            }
            pcs.push(ret);
            if next <= bp {
                break;
            }
            bp = next;
        }
        pcs
    }
}
