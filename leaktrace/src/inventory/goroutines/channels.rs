//! The channels on which groups of goroutines wait.

use std::collections::{HashMap, HashSet};

use super::{Census, Goroutines, Group};
use crate::capture::schema;

impl Goroutines<'_> {
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
