//! Goroutines by what they do and where they stand.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use super::{human, schema::Frame};

/// All goroutines of a process at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Goroutines {
    /// How many there are.
    pub total: u64,
    /// How many come in a second; absent after a single look.
    pub growth_per_s: Option<f64>,
    /// Groups that cannot be told apart, the largest first.
    pub groups: Vec<GoroutineGroup>,
    /// Goroutines that moved while they were read; they are in a group without a stack.
    pub unstable: u64,
    /// Goroutines of which nothing could be read; they are in no group.
    pub unreadable: u64,
}

/// Goroutines with one state, one stack and one creator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GoroutineGroup {
    /// How many.
    pub count: u64,
    /// `runnable`, `running`, `syscall`, `waiting`, `stopped`, `leaked` or `unknown`.
    pub state: String,
    /// Why they wait, in the runtime's words.
    pub wait_reason: Option<String>,
    /// How many come in a second; absent after a single look.
    pub growth_per_s: Option<f64>,
    /// The innermost frame outside the runtime and the packages that block for others.
    pub blocked_at: Option<Frame>,
    /// The go statement that made them.
    pub created_by: Option<Frame>,
    /// The whole stack, innermost first.
    pub stack: Vec<Frame>,
    /// Bytes of their stacks.
    pub stack_bytes: u64,
    /// The channel that most of them wait on.
    pub channel: Option<ChannelReport>,
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

/// The innermost frame that is not the runtime's, nor of a package whose business is to block; for
/// a goroutine of the runtime's own the innermost that is not the parking itself.
pub fn blocked_at(stack: &[Frame]) -> Option<&Frame> {
    const BLOCKERS: [&str; 7] = [
        "runtime.",
        "sync.",
        "internal/",
        "time.",
        "syscall.",
        "os.",
        "net.",
    ];
    let is_own = |frame: &&Frame| {
        frame
            .function
            .as_deref()
            .is_some_and(|function| !BLOCKERS.iter().any(|prefix| function.starts_with(prefix)))
    };
    let is_park = |frame: &&Frame| {
        frame
            .function
            .as_deref()
            .is_some_and(|function| function.starts_with("runtime.gopark"))
    };
    let runtimes_own = || stack.iter().find(|frame| !is_park(frame));
    stack.iter().find(is_own).or_else(runtimes_own)
}

/// Writes the groups as text, at most `top` of them.
///
/// # Errors
///
/// `out` fails.
pub fn write_text<W: Write>(goroutines: &Goroutines, top: usize, mut out: W) -> io::Result<()> {
    let number = |count: u64| human::thousands(count);
    writeln!(
        out,
        "{} goroutines in {} groups",
        number(goroutines.total),
        number(goroutines.groups.len() as u64)
    )?;
    for group in goroutines.groups.iter().take(top) {
        let doing = match &group.wait_reason {
            Some(reason) => reason.escape_debug().to_string(),
            None => group.state.clone(),
        };
        writeln!(
            out,
            "\n{} {doing} · {} of stacks",
            number(group.count),
            human::bytes(group.stack_bytes as f64)
        )?;
        if let Some(frame) = &group.blocked_at {
            writeln!(out, "  at {}", line(frame))?;
        }
        if let Some(channel) = &group.channel {
            writeln!(out, "  channel: {}", channel.in_words())?;
            if channel.distinct > 1 {
                writeln!(
                    out,
                    "    {} wait on it; in all the group waits on {} channels",
                    number(channel.waiting),
                    number(channel.distinct)
                )?;
            }
        }
        if let Some(frame) = &group.created_by {
            writeln!(out, "  created by {}", line(frame))?;
        }
        for frame in &group.stack {
            writeln!(out, "     {}", line(frame))?;
        }
    }
    let hidden = goroutines.groups.len().saturating_sub(top);
    if hidden > 0 {
        writeln!(out, "\nand {hidden} groups not shown")?;
    }
    for (count, what) in [
        (goroutines.unstable, "moved while they were read: no stack"),
        (goroutines.unreadable, "could not be read"),
    ] {
        if count > 0 {
            writeln!(out, "\n{} {what}", number(count))?;
        }
    }
    Ok(())
}

fn line(frame: &Frame) -> String {
    let name = match (&frame.function, &frame.reason) {
        (Some(function), _) => function.escape_debug().to_string(),
        (None, reason) => format!(
            "{:#x} ({})",
            frame.address,
            reason.as_deref().unwrap_or("no name")
        ),
    };
    match (&frame.file, frame.line) {
        (Some(file), Some(line)) => format!("{name} {}:{line}", file.escape_debug()),
        _ => name,
    }
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
        let frame = |function: &str| Frame {
            function: Some(function.to_owned()),
            ..Frame::default()
        };
        let stack = [
            "runtime.gopark",
            "runtime.chansend",
            "sync.(*Map).Store",
            "main.filter",
        ];
        let stack = stack.map(frame);
        assert_eq!(blocked_at(&stack), Some(&stack[3]));
        let own = ["runtime.gopark", "runtime.bgsweep"].map(frame);
        assert_eq!(blocked_at(&own), Some(&own[1]));
        assert_eq!(blocked_at(&[]), None);
    }
}
