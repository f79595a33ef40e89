//! Groups of goroutines with names: those that stand at the same line for the same reason, and were
//! made by the same go statement, are one.

use std::collections::HashMap;

use crate::{
    inventory::goroutines::{Census, Goroutines},
    report::{
        Frame,
        goroutines::{GoroutineGroup, blocked_at, channel},
    },
    symbolize::{PcKind, Symbolizer},
};

/// The groups of a census, named.
pub(super) struct Groups {
    /// By index of the census's group: index in `named`.
    of: Vec<usize>,
    named: Vec<GoroutineGroup>,
    /// By place in `runtime.allgs`: index of the census's group.
    members: Vec<u32>,
}

/// A frame without the address it was found at.
type FrameName = (Option<String>, Option<String>, Option<u32>);

/// What the goroutines of a group have in common: state, reason to wait, where, made by.
type Key = (String, Option<String>, Option<FrameName>, Option<FrameName>);

impl Groups {
    pub(super) fn name(
        reader: &Goroutines<'_>,
        census: &Census,
        symbolizer: &Symbolizer<'_>,
    ) -> Self {
        let mut addresses: Vec<_> = census
            .groups
            .iter()
            .flat_map(|(key, _)| key.pcs.iter().copied().chain([key.created_by]))
            .map(|pc| (pc, PcKind::Return))
            .collect();
        addresses.sort_unstable_by_key(|(pc, _)| *pc);
        addresses.dedup();
        let frames: HashMap<u64, Vec<Frame>> = symbolizer
            .symbolize(&addresses)
            .into_iter()
            .zip(&addresses)
            .map(|(frames, (pc, _))| (*pc, frames.into_iter().map(|f| Frame::at(*pc, f)).collect()))
            .collect();
        let frames_at = |pc: &u64| frames.get(pc).cloned().unwrap_or_default();
        let channels = reader.busiest_channels(census);
        let mut groups = Self {
            of: Vec::new(),
            named: Vec::new(),
            members: census.members.iter().map(|member| member.group).collect(),
        };
        let mut index: HashMap<Key, usize> = HashMap::new();
        for (place, (key, group)) in census.groups.iter().enumerate() {
            let stack: Vec<Frame> = key.pcs.iter().flat_map(frames_at).collect();
            let at = blocked_at(stack.iter().map(|frame| frame.function.as_deref()));
            let blocked_at = at.and_then(|at| stack.get(at).cloned());
            let created_by = frames_at(&key.created_by).into_iter().next();
            let created_by = created_by.filter(|_| key.created_by != 0);
            let reason = reader.reason(key.wait_reason);
            let wait_reason = reason.filter(|_| key.wait_reason != 0).map(str::to_owned);
            let state = key.state.name().to_owned();
            let name = |frame: &Frame| (frame.function.clone(), frame.file.clone(), frame.line);
            let common = (
                state.clone(),
                wait_reason.clone(),
                blocked_at.as_ref().map(name),
                created_by.as_ref().map(name),
            );
            let named = *index.entry(common).or_insert_with(|| {
                groups.named.push(GoroutineGroup {
                    state,
                    wait_reason,
                    blocked_at,
                    created_by,
                    stack,
                    stack_truncated: key.truncated,
                    ..GoroutineGroup::default()
                });
                groups.named.len() - 1
            });
            groups.of.push(named);
            let named = &mut groups.named[named];
            named.count += group.count;
            named.stacks += 1;
            named.stack_bytes += group.stack_bytes;
            let own = channels.get(&place).map(channel);
            let waiting = named.channel.as_ref().map_or(0, |channel| channel.waiting);
            if own.as_ref().is_some_and(|own| own.waiting > waiting) {
                named.channel = own;
            }
        }
        groups
    }

    /// The group of the goroutine at a place of `runtime.allgs`: its number and what it is.
    pub(super) fn of(&self, place: u32) -> Option<(usize, &GoroutineGroup)> {
        let group = *self.members.get(place as usize)?;
        let index = *self.of.get(group as usize)?;
        Some((index, self.named.get(index)?))
    }
}
