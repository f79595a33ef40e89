//! A census of goroutines: what each one does, where it stands, who started it and, if it is
//! blocked on a channel, on which. Read from `runtime.allgs` without stopping the process.
//!
//! A goroutine that moves while it is read is noticed (its structure is read again after its stack)
//! and read again; one that moves each time is counted without a stack. Those that run at the
//! moment cannot be walked. Memory is bounded: goroutines are read in chunks and kept as groups,
//! with 40 bytes for each of the first million.

mod seen;
mod census;
mod channels;
mod follow;
mod pins;

pub use census::{Census, Group, Key, Member, State};
pub use follow::{Follow, Progress};
pub use pins::{LiveSample, Pins};

use std::{cell::RefCell, collections::HashMap};

use self::seen::Seen;
use super::word;
use crate::{
    go::{GoVariable, layout::Layout},
    target::{GoTarget, Memory, MemoryError},
};

/// More goroutines than this are not read: the list is being misread.
const MAX_GOROUTINES: u64 = 1 << 24;
/// Goroutines read at a time.
const CHUNK: usize = 2048;
/// Bytes of a single stack that are read, from its innermost frame on; the runtime lets one grow to
/// 1 GiB.
pub const MAX_STACK: u64 = 64 << 20;
/// How often a goroutine that moves is read again.
const RETRIES: usize = 4;
/// Code addresses about which the binary's tables are asked once.
const MAX_FRAME_SIZES: usize = 1 << 16;

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
pub struct Goroutines<'a> {
    memory: Memory,
    go: &'a GoTarget,
    allgs: u64,
    layout: Layout,
    reasons: Vec<String>,
    /// By code address: bytes of the frame, and whether a function begins there.
    frames: RefCell<HashMap<u64, (Option<u64>, bool)>>,
}

impl<'a> Goroutines<'a> {
    /// Finds the list of goroutines of a Go process. The error says why it cannot be read.
    pub fn new(memory: Memory, go: &'a GoTarget) -> Result<Self, String> {
        let allgs = go.binary.variable(GoVariable::AllGs)?.address;
        Ok(Self {
            memory,
            go,
            allgs: allgs.wrapping_add(go.bias),
            layout: go
                .binary
                .layout()
                .map_err(|error| error.to_string())?
                .clone(),
            reasons: go.binary.wait_reasons()?,
            frames: RefCell::default(),
        })
    }

    /// Why goroutines with this `g.waitreason` wait, in the binary's own words; `None` if it has
    /// none.
    pub fn reason(&self, index: u8) -> Option<&str> {
        let reason = self.reasons.get(usize::from(index))?;
        Some(reason.as_str()).filter(|reason| !reason.is_empty())
    }

    /// Addresses of the `runtime.g`s of all goroutines, dead ones included, in the order of
    /// `runtime.allgs`, where each keeps its place for ever.
    ///
    /// # Errors
    ///
    /// The list cannot be read.
    pub fn addresses(&self) -> Result<Vec<u64>, CensusError> {
        let list = self.memory.read_u64(self.allgs)?;
        let len = self.memory.read_u64(self.allgs + 8)?;
        if len > MAX_GOROUTINES {
            return Err(CensusError::Nonsense(len));
        }
        let mut pointers = vec![0; len as usize * 8];
        self.memory.read(list, &mut pointers)?;
        Ok(pointers.chunks(8).map(|pointer| word(pointer, 0)).collect())
    }

    /// The stack of one goroutine as it is now, from its stack pointer up: where it is, its
    /// bytes, and where it stands, as a return address. `None`: it is another goroutine now, runs, or
    /// moves.
    pub fn stack(&self, address: u64, goid: u64) -> Option<(u64, Vec<u8>, u64)> {
        let g = &self.layout.g;
        let look = || {
            let mut bytes = vec![0; g.size as usize];
            self.memory.read(address, &mut bytes).ok()?;
            Seen::of(&bytes, g).filter(|seen| seen.goid == goid)
        };
        let seen = look()?;
        let mut stack = vec![0; seen.depth().min(MAX_STACK) as usize];
        self.memory.read(seen.sp, &mut stack).ok()?;
        let is_whole = look().is_some_and(|now| now.is_same(&seen)) && !stack.is_empty();
        is_whole.then_some((seen.sp, stack, seen.return_address(self.frame(seen.pc).1)))
    }

    /// Of each of these goroutines whether it stands where the census has seen it.
    pub fn stand_still(&self, of: &[(u64, Member)]) -> Vec<bool> {
        let g = &self.layout.g;
        let structures: Vec<_> = of.iter().map(|(at, _)| (*at, g.size as usize)).collect();
        let read = self.memory.read_each(&structures);
        let stands = |(index, (_, member)): (usize, &(u64, Member))| {
            let seen = read.get(index).and_then(|bytes| Seen::of(bytes, g));
            seen.is_some_and(|seen| {
                (seen.goid, seen.sp, seen.seq) == (member.goid, member.sp, member.seq)
                    && seen.state.can_be_walked()
            })
        };
        of.iter().enumerate().map(stands).collect()
    }

    /// Whether the goroutine has ended.
    pub fn is_gone(&self, address: u64, goid: u64) -> bool {
        let g = &self.layout.g;
        let mut bytes = vec![0; g.size as usize];
        let is_read = self.memory.read(address, &mut bytes).is_ok();
        is_read && Seen::of(&bytes, g).is_none_or(|seen| seen.goid != goid)
    }

    /// Takes the census.
    ///
    /// # Errors
    ///
    /// The list itself cannot be read.
    pub fn census(&self) -> Result<Census, CensusError> {
        let addresses = self.addresses()?;
        let mut census = Census::default();
        let mut first = 0;
        for chunk in addresses.chunks(CHUNK) {
            let mut left: Vec<(usize, u64)> = chunk
                .iter()
                .enumerate()
                .map(|(index, address)| (first + index, *address))
                .collect();
            first += left.len();
            for retry in 0..=RETRIES {
                left = self.chunk(&left, retry == RETRIES, &mut census);
                if left.is_empty() {
                    break;
                }
            }
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

    /// The stack of every goroutine of the census from its stack pointer up, as words, for
    /// `visit(group, words)`. At most `max_bytes` are read; gives the number of goroutines that
    /// were left out or could not be read.
    pub fn stacks(
        &self,
        census: &Census,
        max_bytes: u64,
        mut visit: impl FnMut(u32, &[u8]),
    ) -> u64 {
        let mut left_out = 0;
        let mut bytes = 0;
        for members in census.members.chunks(CHUNK) {
            let ranges: Vec<_> = members
                .iter()
                .map(|member| {
                    bytes += u64::from(member.depth);
                    let fits = member.goid != 0 && bytes <= max_bytes;
                    (member.sp, if fits { member.depth as usize } else { 0 })
                })
                .collect();
            let read = self.memory.read_each(&ranges);
            for (index, member) in members.iter().enumerate() {
                match read.get(index) {
                    Some(words) => visit(member.group, words),
                    None => left_out += u64::from(member.goid != 0 && member.depth > 0),
                }
            }
        }
        left_out
    }

    /// Reads the goroutines at these places of the list. Gives those that moved meanwhile; the
    /// `last` time they are counted instead.
    fn chunk(&self, places: &[(usize, u64)], last: bool, census: &mut Census) -> Vec<(usize, u64)> {
        let g = &self.layout.g;
        let structures = |places: &[(usize, u64)]| {
            let ranges: Vec<_> = places
                .iter()
                .map(|(_, at)| (*at, g.size as usize))
                .collect();
            self.memory.read_each(&ranges)
        };
        let structs = structures(places);
        let mut seen: Vec<((usize, u64), Seen)> = Vec::with_capacity(places.len());
        for (index, place) in places.iter().enumerate() {
            match structs.get(index) {
                Some(bytes) => seen.extend(Seen::of(bytes, g).map(|seen| (*place, seen))),
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
        let again_at: Vec<_> = seen.iter().map(|(place, _)| *place).collect();
        let again = structures(&again_at);
        // From Go 1.26 on nothing in a goroutine's structure tells one system call from the next.
        let in_syscall = |index: usize| seen[index].1.state == State::Syscall;
        let windows: Vec<_> = windows
            .iter()
            .enumerate()
            .map(|(index, &(at, len))| (at, if in_syscall(index) { len } else { 0 }))
            .collect();
        let stacks_again = self.memory.read_each(&windows);

        let mut moved = Vec::new();
        for (index, (place, seen)) in seen.iter().enumerate() {
            let now = again.get(index).and_then(|bytes| Seen::of(bytes, g));
            let window = stacks.get(index);
            let is_stable = now.as_ref().is_some_and(|now| now.is_same(seen))
                && (!in_syscall(index) || stacks_again.get(index) == window);
            if !is_stable && !last {
                moved.push(*place);
                continue;
            }
            let mut key = Key {
                state: seen.state,
                wait_reason: 0,
                pcs: Vec::new(),
                truncated: false,
                created_by: 0,
            };
            let mut channel = None;
            if is_stable {
                key.created_by = seen.created_by;
                if seen.state.is_blocked() {
                    key.wait_reason = seen.wait_reason;
                }
                if seen.state.can_be_walked() {
                    let frame = |pc| self.frame(pc);
                    (key.pcs, key.truncated) = seen.walk(window.unwrap_or_default(), frame);
                }
                channel = channels.get(index).map(|bytes| word(bytes, 0));
            }
            census.count(place.0, key, seen, is_stable, channel);
        }
        moved
    }

    /// Bytes of the frame at a code address of the process, and whether a function begins there.
    fn frame(&self, pc: u64) -> (Option<u64>, bool) {
        let mut frames = self.frames.borrow_mut();
        if let Some(frame) = frames.get(&pc) {
            return *frame;
        }
        let linked = pc.wrapping_sub(self.go.bias);
        let frame = (
            self.go.binary.frame_size(linked),
            self.go.binary.is_entry(linked),
        );
        if frames.len() < MAX_FRAME_SIZES {
            frames.insert(pc, frame);
        }
        frame
    }

    /// Where the channel of a goroutine's `sudog` is to be read; of length zero if it has none or
    /// does not wait on a channel.
    fn channel_word(&self, seen: &Seen) -> (u64, usize) {
        let reason = self.reason(seen.wait_reason);
        let is_on_channel = seen.state.is_blocked()
            && reason.is_some_and(|reason| reason.starts_with("chan "))
            && seen.waiting != 0;
        let address = seen.waiting.wrapping_add(self.layout.channel.sudog_c);
        (address, if is_on_channel { 8 } else { 0 })
    }
}
