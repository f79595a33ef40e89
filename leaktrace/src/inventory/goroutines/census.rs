//! What a census has counted: goroutines in groups, and each one by itself for the next census.

use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
};

use super::seen::Seen;

/// Groups kept; goroutines of further ones are counted.
const MAX_GROUPS: usize = 4096;
/// Distinct channels counted in each group.
const MAX_CHANNELS: usize = 4096;
/// Goroutines kept one by one.
const MAX_MEMBERS: usize = 1 << 20;
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
    pub(super) fn of(status: u32) -> Option<Self> {
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

    /// Whether it waits for another goroutine, a timer or the network.
    pub fn is_blocked(self) -> bool {
        matches!(self, Self::Waiting | Self::Leaked)
    }

    /// Whether `sched` says where it stands: in a system call too (runtime/proc.go, `save`).
    pub(super) fn can_be_walked(self) -> bool {
        self.is_blocked() || matches!(self, Self::Runnable | Self::Syscall)
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
    /// Outermost return addresses are missing.
    pub truncated: bool,
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

/// One goroutine, as far as the next census needs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// `g.goid`; zero: there is none at this place of the list.
    pub goid: u64,
    /// Its stack pointer.
    pub sp: u64,
    /// `g.waitsince`: since when it waits, at least, on `CLOCK_MONOTONIC`; zero unless a
    /// collection has found it waiting.
    pub wait_since: u64,
    /// Bytes between its stack pointer and the end of its stack; zero if it cannot be walked.
    pub depth: u32,
    /// Index of its group; [`Member::NO_GROUP`] if that was over the limit.
    pub group: u32,
    /// `g.trackingSeq`: changes each time it stops running.
    pub seq: u8,
    /// Whether it is blocked.
    pub is_blocked: bool,
    /// Whether it moved whenever it was read: its group has no stack then.
    pub is_unstable: bool,
}

impl Member {
    /// Its group was over the limit.
    pub const NO_GROUP: u32 = u32::MAX;
}

/// All goroutines at one moment.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// Goroutines that exist, dead ones kept for reuse left out.
    pub total: u64,
    /// Groups of them.
    pub groups: Vec<(Rc<Key>, Group)>,
    /// The goroutines by their place in `runtime.allgs`, where one keeps its place for ever.
    pub members: Vec<Member>,
    /// Goroutines that moved whenever they were read; they are in a group without a stack.
    pub unstable: u64,
    /// Goroutines of which nothing could be read; they are in no group.
    pub unreadable: u64,
    /// Goroutines in groups over the limit.
    pub ungrouped: u64,
    /// Goroutines over the limit of those kept one by one.
    pub not_followed: u64,
    pub(super) index: HashMap<Rc<Key>, u32>,
}

impl Census {
    /// Takes one in.
    pub(super) fn count(
        &mut self,
        place: usize,
        key: Key,
        seen: &Seen,
        is_stable: bool,
        channel: Option<u64>,
    ) {
        self.total += 1;
        let is_blocked = key.state.is_blocked();
        let is_unstable = !is_stable;
        self.unstable += u64::from(is_unstable);
        let group = self.group(key);
        match self.groups.get_mut(group as usize) {
            Some((_, group)) => {
                group.count += 1;
                group.stack_bytes += seen.stack_bytes();
                if let Some(channel) = channel
                    && (group.channels.len() < MAX_CHANNELS
                        || group.channels.contains_key(&channel))
                {
                    *group.channels.entry(channel).or_default() += 1;
                }
            }
            None => self.ungrouped += 1,
        }
        if place >= MAX_MEMBERS {
            self.not_followed += 1;
            return;
        }
        if self.members.len() <= place {
            self.members.resize(place + 1, Member::default());
        }
        self.members[place] = Member {
            goid: seen.goid,
            sp: seen.sp,
            wait_since: seen.wait_since,
            depth: seen.depth().min(u32::MAX.into()) as u32,
            group,
            seq: seen.seq,
            is_blocked,
            is_unstable,
        };
    }

    fn group(&mut self, key: Key) -> u32 {
        if let Some(index) = self.index.get(&key) {
            return *index;
        }
        if self.groups.len() >= MAX_GROUPS {
            return Member::NO_GROUP;
        }
        let index = self.groups.len() as u32;
        let key = Rc::new(key);
        self.index.insert(key.clone(), index);
        self.groups.push((key, Group::default()));
        index
    }

    /// How many goroutines wait on each of these channels, by channel and reason: from the whole
    /// census, so that a channel's other end is seen wherever it stands.
    pub fn waiting_on(&self, channels: &HashSet<u64>) -> HashMap<(u64, u8), u64> {
        let mut waiting = HashMap::new();
        for (key, group) in &self.groups {
            let of_group = group.channels.iter();
            for (channel, count) in of_group.filter(|(channel, _)| channels.contains(channel)) {
                *waiting.entry((*channel, key.wait_reason)).or_default() += count;
            }
        }
        waiting
    }
}
