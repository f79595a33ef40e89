//! `leaktrace goroutines`: one look at the goroutines of a process. Attaches nothing.

use std::collections::HashMap;

use anyhow::Result;

use crate::{
    go::GoVariable,
    inventory::goroutines::{Census, Goroutines as Reader, Key},
    report::{
        self,
        goroutines::{ChannelReport, GoroutineGroup, Goroutines, blocked_at},
    },
    symbolize::{self, PcKind, Symbolizer},
    target::{GoTarget, Target, TargetError, maps::Modules},
};

/// Takes a census of process `pid` and names what is in it.
///
/// # Errors
///
/// The process cannot be looked at, or is not a Go program whose layout is known.
pub fn look(pid: i32) -> Result<Goroutines> {
    let target = Target::open(pid)?;
    let unsupported = |reason: String| TargetError::Unsupported { pid, reason };
    let go = match &target.go {
        Some(Ok(go)) => go,
        Some(Err(reason)) => return Err(unsupported(reason.clone()).into()),
        None => return Err(unsupported("it is not a Go program".to_owned()).into()),
    };
    let reasons = go.binary.wait_reasons().map_err(unsupported)?;
    let reader = reader(&target, go, &reasons).map_err(unsupported)?;
    let census = reader.census()?;
    name(&target, &census, &reasons, &reader)
}

fn reader(target: &Target, go: &GoTarget, reasons: &[String]) -> Result<Reader, String> {
    let layout = go
        .binary
        .layout()
        .map_err(|error| error.to_string())?
        .clone();
    let allgs = go.binary.variable(GoVariable::AllGs)?.address;
    let allgs = allgs.wrapping_add(go.bias);
    Ok(Reader::new(target.memory, allgs, layout, reasons))
}

/// Turns a census into a report: addresses into frames, channels into their state.
fn name(
    target: &Target,
    census: &Census,
    reasons: &[String],
    reader: &Reader,
) -> Result<Goroutines> {
    let map = target.address_map()?;
    let mut modules = Modules::default();
    let mappings = map
        .executable()
        .map(|mapping| symbolize::Mapping {
            start: mapping.address.0,
            end: mapping.address.1,
            file_offset: mapping.offset,
            module: modules.intern(&map, mapping),
        })
        .collect();
    let named = modules.iter().map(|module| symbolize::Module {
        path: module.path.clone(),
        build_id: module.build_id.clone(),
    });
    let symbolizer = Symbolizer::new(named.collect(), mappings, |wanted| {
        modules.open_path(&wanted.path, wanted.build_id.as_deref())
    });
    let pcs = |key: &Key| key.pcs.clone().into_iter().chain([key.created_by]);
    let addresses: Vec<_> = census
        .groups
        .keys()
        .flat_map(pcs)
        .map(|pc| (pc, PcKind::Return))
        .collect();
    let frames: HashMap<u64, Vec<report::Frame>> = addresses
        .iter()
        .zip(symbolizer.symbolize(&addresses))
        .map(|(&(pc, _), frames)| {
            let frames = frames.into_iter().map(|frame| report::Frame::at(pc, frame));
            (pc, frames.collect())
        })
        .collect();
    let frames_at = |pc: u64| frames.get(&pc).cloned().unwrap_or_default();

    let mut groups: Vec<GoroutineGroup> = census
        .groups
        .iter()
        .map(|(key, group)| {
            let stack: Vec<_> = key.pcs.iter().flat_map(|pc| frames_at(*pc)).collect();
            let reason = reasons.get(usize::from(key.wait_reason));
            GoroutineGroup {
                count: group.count,
                state: key.state.name().to_owned(),
                wait_reason: reason.filter(|reason| !reason.is_empty()).cloned(),
                growth_per_s: None,
                blocked_at: blocked_at(&stack).cloned(),
                created_by: frames_at(key.created_by)
                    .into_iter()
                    .next()
                    .filter(|_| key.created_by != 0),
                stack,
                stack_bytes: group.stack_bytes,
                channel: channel(census, reader, reasons, group),
            }
        })
        .collect();
    groups.sort_by(|a, b| {
        let line = |group: &GoroutineGroup| group.blocked_at.clone().map(|frame| frame.function);
        b.count.cmp(&a.count).then_with(|| line(a).cmp(&line(b)))
    });
    Ok(Goroutines {
        total: census.total,
        growth_per_s: None,
        groups,
        unstable: census.unstable,
        unreadable: census.unreadable,
    })
}

/// The channel on which most of a group wait; `None` if they do not wait on one, or if it could
/// not be read.
fn channel(
    census: &Census,
    reader: &Reader,
    reasons: &[String],
    group: &crate::inventory::goroutines::Group,
) -> Option<ChannelReport> {
    let (&address, &waiting) = group.channels.iter().max_by_key(|(_, count)| **count)?;
    let channel = reader.channel(address).ok()?;
    let by_reason = census.waiting_on(address);
    let count = |what: &str| -> u64 {
        let reason = |index: &u8| reasons.get(usize::from(*index)).map(String::as_str);
        let of = by_reason
            .iter()
            .filter(|(index, _)| reason(index) == Some(what));
        of.map(|(_, count)| count).sum()
    };
    let (senders, receivers) = (count("chan send"), count("chan receive"));
    Some(ChannelReport {
        address,
        waiting,
        distinct: group.channels.len() as u64,
        capacity: channel.capacity,
        queued: channel.queued,
        element_size: u64::from(channel.element_size),
        closed: channel.closed,
        senders,
        receivers,
        sender_in_select: channel.has_senders && senders == 0,
        receiver_in_select: channel.has_receivers && receivers == 0,
    })
}
