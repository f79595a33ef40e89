//! From a capture to its goroutines: groups put together, named, judged and ranked.

use std::collections::HashMap;

use super::{ChannelReport, CreationSite, GoroutineGroup, Goroutines, blocked_at};
use crate::{
    capture::{
        Capture, Ended,
        schema::{self, GoroutineChannel, GoroutineGroup as Group, GoroutineState},
    },
    goroutine_history::{GoroutineHistory, GroupHistory},
    goroutine_verdict::{Doing, Facts, judge},
    loss,
    report::{
        Summary,
        schema::Frame,
        symbols::{FrameKey, FrameRef, SymbolTable},
    },
    series,
    verdict::Verdict,
};

/// Points of a group's series in the report.
const SERIES_POINTS: usize = 120;
/// Go statements listed.
const CREATION_SITES: usize = 100;

/// Two groups are one if they do the same, for the same reason, at the same line, and were made by
/// the same go statement: the rest of the stack may differ.
#[derive(PartialEq, Eq, Hash)]
struct Key<'a> {
    state: GoroutineState,
    wait_reason: &'a str,
    blocked_at: Option<FrameKey>,
    created_by: Option<FrameKey>,
}

/// The goroutines of a capture; `None` if it has none. A capture with a single census gives them as
/// they stood, without growth and verdicts.
pub fn build(capture: &Capture, symbols: Option<&schema::Symbols>) -> Option<Goroutines> {
    let history = GoroutineHistory::from_capture(capture)?;
    let table = SymbolTable::new(capture, symbols);
    let namer = Namer {
        table: &table,
        history: &history,
    };
    let is_single = history.censuses == 1 && capture.intervals_read == 1;
    let siblings: HashMap<_, _> = history
        .merge(|group| Some(namer.creator_key(group)))
        .into_iter()
        .map(|(creator, history)| (creator, history.counts))
        .collect();
    let mut groups: Vec<GoroutineGroup> = history
        .merge(|group| history.group(group.id).map(|group| namer.key(group)))
        .iter()
        .filter(|(_, merged)| merged.counts.iter().any(|count| *count > 0.0))
        .filter_map(|(key, merged)| {
            let siblings = siblings.get(&key.created_by).map_or(&[][..], Vec::as_slice);
            namer.group(merged, siblings, is_single)
        })
        .collect();
    groups.sort_by(|a, b| {
        let growth = |group: &GoroutineGroup| group.growth_per_s.unwrap_or(0.0);
        a.verdict
            .cmp(&b.verdict)
            .then_with(|| growth(b).total_cmp(&growth(a)))
            .then_with(|| b.count.cmp(&a.count))
    });
    let points: Vec<_> = history
        .times
        .iter()
        .copied()
        .zip(history.total.iter().copied())
        .collect();
    let creations = history.creations();
    let sum = |count: fn(&crate::goroutine_history::Creations) -> u64| {
        (!creations.is_empty()).then(|| creations.iter().map(count).fold(0, u64::saturating_add))
    };
    let took = capture.intervals.iter().map(|interval| interval.census_us);
    let longest = took.max().filter(|took| *took > 0);
    let creation_sites = creations.iter().take(CREATION_SITES);
    Some(Goroutines {
        total: history.total.last().map_or(0, |total| *total as u64),
        growth_per_s: (!is_single).then(|| milli(series::slope(&points))),
        censuses: history.censuses as u64,
        census_ms: longest.map(|took| f64::from(took) / 1000.0),
        summary: (!is_single).then(|| summary(&groups)),
        groups,
        unstable: lost(capture, loss::GOROUTINES_UNSTABLE),
        unreadable: lost(capture, loss::GOROUTINES_UNREADABLE),
        created: sum(|site| site.created),
        exited: sum(|site| site.exited),
        creation_sites: creation_sites
            .map(|site| CreationSite {
                created_by: namer
                    .creator(site.created_by)
                    .map(|frame| table.frame(frame)),
                created: site.created,
                exited: site.exited,
            })
            .collect(),
    })
}

struct Namer<'a> {
    table: &'a SymbolTable<'a>,
    history: &'a GoroutineHistory<'a>,
}

impl<'a> Namer<'a> {
    fn key(&self, group: &'a Group) -> Key<'a> {
        let stack = self.table.at_returns(&group.pcs);
        let state = match group.state() {
            // What the runtime has found to be leaked was waiting before.
            GoroutineState::Leaked => GoroutineState::Waiting,
            state => state,
        };
        Key {
            state,
            wait_reason: &group.wait_reason,
            blocked_at: self.blocked_at(&stack).map(|at| self.table.key(stack[at])),
            created_by: self.creator_key(group),
        }
    }

    fn creator_key(&self, group: &Group) -> Option<FrameKey> {
        Some(self.table.key(self.creator(group.created_by)?))
    }

    /// The frame of a go statement.
    fn creator(&self, pc: u64) -> Option<FrameRef> {
        let frames = self.table.at_returns(&[pc]);
        frames.first().copied().filter(|_| pc != 0)
    }

    fn blocked_at(&self, stack: &[FrameRef]) -> Option<usize> {
        blocked_at(stack.iter().map(|&frame| self.table.function(frame)))
    }

    fn group(
        &self,
        merged: &GroupHistory,
        siblings: &[f64],
        is_single: bool,
    ) -> Option<GoroutineGroup> {
        let largest = self.history.group(*merged.groups.first()?)?;
        let stack = self.table.at_returns(&largest.pcs);
        let frame = |frame: FrameRef| self.table.frame(frame);
        let created_by = self.creator(largest.created_by);
        let is_runtimes_own = created_by
            .and_then(|frame| self.table.function(frame))
            .is_some_and(|function| function.starts_with("runtime."));
        let wait_reason = Some(largest.wait_reason.clone()).filter(|reason| !reason.is_empty());
        let mut group = GoroutineGroup {
            count: merged.count() as u64,
            state: state_name(largest.state()).to_owned(),
            wait_reason,
            blocked_at: self.blocked_at(&stack).map(|at| frame(stack[at])),
            created_by: created_by.map(frame),
            stack: stack.iter().copied().map(frame).collect::<Vec<Frame>>(),
            stack_truncated: largest.truncated,
            stacks: merged.groups.len() as u64,
            stack_bytes: merged.stack_bytes,
            channel: merged.channel.as_ref().map(channel),
            // A wait that began with the first census is not known.
            oldest_wait_s: merged.oldest_wait_s.filter(|wait| *wait > 0.0).map(milli),
            median_wait_s: merged.median_wait_s.filter(|wait| *wait > 0.0).map(milli),
            pinned_bytes: merged.pinned_bytes,
            ..GoroutineGroup::default()
        };
        if is_single {
            return Some(group);
        }
        let doing = match largest.state() {
            GoroutineState::Waiting | GoroutineState::Leaked if !largest.pcs.is_empty() => {
                Doing::Waiting(&largest.wait_reason)
            }
            _ => Doing::Other,
        };
        let judgement = judge(&Facts {
            group: merged,
            times: &self.history.times,
            siblings,
            doing,
            is_runtimes_own,
        });
        group.verdict = Some(judgement.verdict);
        group.evidence = judgement.evidence;
        group.growth_per_s = Some(milli(judgement.growth_per_s));
        group.growth = Some(merged.growth() as i64);
        if doing != Doing::Other {
            (group.arrived, group.left) = (Some(merged.arrived), Some(merged.left));
        }
        let series = self.history.times.iter().zip(&merged.counts);
        let series: Vec<_> = series.map(|(t, n)| (milli(*t), *n as u64)).collect();
        group.series = series::thin(&series, SERIES_POINTS);
        Some(group)
    }
}

/// A channel as the report has it.
pub(crate) fn channel(channel: &GoroutineChannel) -> ChannelReport {
    ChannelReport {
        address: channel.address,
        waiting: channel.waiting,
        distinct: channel.distinct,
        capacity: channel.capacity,
        queued: channel.queued,
        element_size: channel.element_size.into(),
        closed: channel.closed,
        senders: channel.senders,
        receivers: channel.receivers,
        sender_in_select: channel.sender_in_select,
        receiver_in_select: channel.receiver_in_select,
    }
}

fn state_name(state: GoroutineState) -> &'static str {
    match state {
        GoroutineState::Runnable => "runnable",
        GoroutineState::Running => "running",
        GoroutineState::Syscall => "syscall",
        GoroutineState::Waiting => "waiting",
        GoroutineState::Stopped => "stopped",
        GoroutineState::Leaked => "leaked",
        GoroutineState::Unspecified | GoroutineState::Created => "unknown",
    }
}

fn summary(groups: &[GoroutineGroup]) -> Summary {
    let count = |verdict| groups.iter().filter(|g| g.verdict == Some(verdict)).count();
    Summary {
        leak: count(Verdict::Leak),
        growing: count(Verdict::Growing),
        unknown: count(Verdict::Unknown),
        steady: count(Verdict::Steady),
    }
}

/// The last count of a cause of loss.
fn lost(capture: &Capture, cause: &str) -> u64 {
    let close = match &capture.how_it_ended {
        Ended::Closed(close) => close.losses.as_slice(),
        _ => &[],
    };
    let recorded = capture.intervals.iter().flat_map(|i| &i.losses);
    let mut counts = recorded.chain(close).filter(|loss| loss.cause == cause);
    counts.next_back().map_or(0, |loss| loss.count)
}

/// Rounded to thousandths: what lies below is noise.
fn milli(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
