//! Goroutines by what they do and where they stand: the part of the report on them.

mod build;
mod text;

use serde::{Deserialize, Serialize};

use super::{human, schema::Frame};
use crate::verdict::Verdict;

pub use build::build;
pub(crate) use build::channel;
pub(super) use text::part;
pub(crate) use text::rate;
pub use text::write_text;

/// All goroutines of a process, at one moment or over a window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Goroutines {
    /// How many there are (at the end).
    pub total: u64,
    /// How many come in a second; null after a single look.
    pub growth_per_s: Option<f64>,
    /// Censuses taken.
    #[serde(default)]
    pub censuses: u64,
    /// The longest that one census took, in milliseconds; absent where the file does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub census_ms: Option<f64>,
    /// Groups that stand at the same place for the same reason, by verdict and growth; after a single
    /// look the largest first.
    pub groups: Vec<GoroutineGroup>,
    /// How many groups have which verdict, before any filter; absent after a single look.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<super::Summary>,
    /// Goroutines that moved whenever they were read, summed over the censuses; they are in a group
    /// without a stack.
    pub unstable: u64,
    /// Goroutines of which nothing could be read, summed over the censuses; they are in no group.
    pub unreadable: u64,
    /// Goroutines made since the attach, by the probes; absent without them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<u64>,
    /// Goroutines that ended since the attach, by the probes; absent without them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exited: Option<u64>,
    /// The same by go statement, the busiest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub creation_sites: Vec<CreationSite>,
}

/// Goroutines with one state, one reason to wait, one blocked line and one creator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GoroutineGroup {
    /// How many (at the end).
    pub count: u64,
    /// `runnable`, `running`, `syscall`, `waiting`, `stopped`, `leaked` or `unknown`.
    pub state: String,
    /// Why they wait, in the runtime's words.
    pub wait_reason: Option<String>,
    /// How many come in a second: robust slope; null after a single look.
    pub growth_per_s: Option<f64>,
    /// How many more than at the first census; absent after a single look.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub growth: Option<i64>,
    /// The judgement; absent after a single look.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Its reasons in words, strongest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<String>,
    /// The innermost frame outside the runtime and the packages that block for others.
    pub blocked_at: Option<Frame>,
    /// The go statement that made them.
    pub created_by: Option<Frame>,
    /// The whole stack of most of them, innermost first.
    pub stack: Vec<Frame>,
    /// Outermost frames of it are missing: it is deeper than what is read of each stack.
    #[serde(default)]
    pub stack_truncated: bool,
    /// How many different stacks they have.
    #[serde(default)]
    pub stacks: u64,
    /// Bytes of their stacks.
    pub stack_bytes: u64,
    /// The channel that most of them wait on.
    pub channel: Option<ChannelReport>,
    /// How long one of them has been waiting, without having run: at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_wait_s: Option<f64>,
    /// How long half of them have been waiting, without having run: at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub median_wait_s: Option<f64>,
    /// How many came to wait since the attach, as far as censuses show it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arrived: Option<u64>,
    /// How many left since the attach, as far as censuses show it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left: Option<u64>,
    /// Estimate of the heap objects that their stacks point to; absent if nobody looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pinned_bytes: Option<u64>,
    /// Their number over time: `[t_s, count]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub series: Vec<(f64, u64)>,
}

/// What a go statement has made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CreationSite {
    /// The go statement.
    pub created_by: Option<Frame>,
    /// Goroutines made since the attach.
    pub created: u64,
    /// Goroutines of it that ended since the attach, older ones included.
    pub exited: u64,
}

/// A channel on which goroutines are blocked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChannelReport {
    /// Its address.
    pub address: u64,
    /// How many of the group wait on it.
    pub waiting: u64,
    /// Distinct channels in the group.
    pub distinct: u64,
    /// Elements it can buffer; zero: unbuffered.
    pub capacity: u64,
    /// Elements in its buffer.
    pub queued: u64,
    /// Bytes of an element.
    pub element_size: u64,
    /// Whether it has been closed.
    pub closed: bool,
    /// Goroutines that wait to send on it, selects left out.
    pub senders: u64,
    /// Goroutines that wait to receive from it, selects left out.
    pub receivers: u64,
    /// Whether a sender waits in a select.
    pub sender_in_select: bool,
    /// Whether a receiver waits in a select.
    pub receiver_in_select: bool,
}

impl ChannelReport {
    /// Its state in words.
    pub fn in_words(&self) -> String {
        let waiting = |count: u64, in_select: bool, what: &str| match (count, in_select) {
            (0, false) => format!("no {what}"),
            (0, true) => format!("a {what} in a select"),
            (1, _) => format!("1 {what}"),
            (count, _) => format!("{} {what}s", human::thousands(count)),
        };
        let buffer = match self.capacity {
            0 => "unbuffered".to_owned(),
            capacity => format!("{} of {capacity} buffered", self.queued),
        };
        format!(
            "{}, {}, {buffer}, {}",
            waiting(self.senders, self.sender_in_select, "sender"),
            waiting(self.receivers, self.receiver_in_select, "receiver"),
            if self.closed {
                "closed"
            } else {
                "never closed"
            }
        )
    }
}

/// Index of the innermost frame that is not the runtime's, nor of a package whose business is to
/// block; for a goroutine of the runtime's own of the innermost that is not the parking itself.
/// `functions` are the names of the frames, innermost first.
pub(crate) fn blocked_at<'a>(
    functions: impl Iterator<Item = Option<&'a str>> + Clone,
) -> Option<usize> {
    const BLOCKERS: [&str; 9] = [
        "runtime.",
        "sync.",
        "internal/",
        "time.",
        "syscall.",
        "os.",
        "io.",
        "bufio.",
        "net.",
    ];
    let is_own = |function: Option<&str>| {
        function.is_some_and(|name| !BLOCKERS.iter().any(|prefix| name.starts_with(prefix)))
    };
    let is_park = |function: Option<&str>| {
        function.is_some_and(|function| function.starts_with("runtime.gopark"))
    };
    functions
        .clone()
        .position(is_own)
        .or_else(|| functions.clone().position(|function| !is_park(function)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_told_in_words() {
        let mut channel = ChannelReport {
            senders: 12_000,
            ..ChannelReport::default()
        };
        assert_eq!(
            channel.in_words(),
            "12,000 senders, no receiver, unbuffered, never closed"
        );
        channel.receiver_in_select = true;
        channel.capacity = 8;
        channel.queued = 8;
        assert_eq!(
            channel.in_words(),
            "12,000 senders, a receiver in a select, 8 of 8 buffered, never closed"
        );
    }

    #[test]
    fn the_blocked_line_is_the_programs_own() {
        let at = |stack: &[&'static str]| blocked_at(stack.iter().copied().map(Some));
        let stack = [
            "runtime.gopark",
            "runtime.chansend",
            "sync.(*Map).Store",
            "main.filter",
        ];
        assert_eq!(at(&stack), Some(3));
        assert_eq!(at(&["runtime.gopark", "runtime.bgsweep"]), Some(1));
        assert_eq!(at(&["runtime.gopark", "net/http.(*conn).serve"]), Some(1));
        assert_eq!(at(&[]), None);
    }
}
