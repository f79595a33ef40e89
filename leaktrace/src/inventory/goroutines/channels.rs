//! The channels on which groups of goroutines wait.

use std::collections::{HashMap, HashSet};

use super::{CHUNK, Census, Goroutines, Group, Member, seen::Seen};
use crate::{capture::schema, inventory::word};

impl Goroutines<'_> {
    /// Goroutines that wait to send or to receive, not in a select: by place in `runtime.allgs`, the channel.
    pub fn waiting(&self, census: &Census, addresses: &[u64]) -> HashMap<u32, u64> {
        let g = &self.layout.g;
        let blocked = census.members.iter().zip(addresses).zip(0..);
        let blocked: Vec<_> = blocked
            .filter(|((member, _), _)| member.is_blocked && !member.is_unstable)
            .collect();
        let mut waiting = HashMap::new();
        for blocked in blocked.chunks(CHUNK) {
            let structures = blocked.iter().map(|((_, at), _)| (**at, g.size as usize));
            let read = self.memory.read_each(&structures.collect::<Vec<_>>());
            let word_of = |(index, ((member, _), _)): (usize, &((&Member, &u64), u32))| {
                let seen = read.get(index).and_then(|bytes| Seen::of(bytes, g));
                let seen = seen.filter(|seen| seen.goid == member.goid);
                seen.map_or((0, 0), |seen| self.channel_word(&seen))
            };
            let words: Vec<_> = blocked.iter().enumerate().map(word_of).collect();
            let words = self.memory.read_each(&words);
            for (index, (_, place)) in blocked.iter().enumerate() {
                if let Some(bytes) = words.get(index) {
                    waiting.insert(*place, word(bytes, 0));
                }
            }
        }
        waiting
    }

    /// By index of the group: the channel on which most of it wait.
    pub fn busiest_channels(&self, census: &Census) -> HashMap<usize, schema::GoroutineChannel> {
        let groups = census.groups.iter().enumerate();
        let most: Vec<(usize, &Group, u64)> = groups
            .filter_map(|(index, (_, group))| {
                // Among equals the same one each time.
                let most = group.channels.iter().max_by_key(|(at, n)| (**n, **at))?;
                Some((index, group, *most.0))
            })
            .collect();
        let wanted: HashSet<u64> = most.iter().map(|(_, _, address)| *address).collect();
        let waiting = census.waiting_on(&wanted);
        let on = |address: u64, reason: &str| -> u64 {
            let of_channel = waiting.iter().filter(|((channel, index), _)| {
                *channel == address && self.reason(*index) == Some(reason)
            });
            of_channel.map(|(_, count)| count).sum()
        };
        let mut found = HashMap::new();
        for (index, group, address) in most {
            let Ok(channel) = self.channel(address) else {
                continue;
            };
            let (senders, receivers) = (on(address, "chan send"), on(address, "chan receive"));
            let channel = schema::GoroutineChannel {
                address,
                waiting: group.channels.get(&address).copied().unwrap_or(0),
                distinct: group.channels.len() as u64,
                capacity: channel.capacity,
                queued: channel.queued,
                element_size: channel.element_size.into(),
                closed: channel.closed,
                senders,
                receivers,
                sender_in_select: channel.has_senders && senders == 0,
                receiver_in_select: channel.has_receivers && receivers == 0,
            };
            found.insert(index, channel);
        }
        found
    }
}
