//! Goroutines from one census to the next: which ones wait on without having run in between, how
//! many have come and gone.
//!
//! A worker that takes job after job stands at the same line with the same stack each time, so that
//! is no proof. What tells is `g.trackingSeq`: it counts up whenever the goroutine stops running. It
//! has eight bits, so one goroutine in 256 that did run looks, for one census, as if it had not.

use std::{collections::HashMap, iter};

use super::{Census, Member};

/// A goroutine that waits.
#[derive(Clone, Copy, Debug, Default)]
struct Stay {
    goid: u64,
    /// Since when at least, nanoseconds of `CLOCK_MONOTONIC`.
    since: u64,
    /// The row that it is counted in.
    row: u32,
    seq: u8,
    is_settled: bool,
}

/// The waiting goroutines of a row. Counts are since the first look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Looks found so many that had begun to wait since the look before.
    pub arrived: u64,
    /// Looks missed so many that had waited at the look before.
    pub left: u64,
    /// So many have been waiting for as long as makes them settled.
    pub settled: u64,
    /// So many had been settled and were missed at the next look.
    pub settled_left: u64,
    /// Since when the oldest has been waiting at least, nanoseconds of `CLOCK_MONOTONIC`; `None` if
    /// none waits.
    pub oldest: Option<u64>,
    /// Half of them have been waiting at least since then.
    pub median: Option<u64>,
}

/// Follows the goroutines of one process.
pub struct Follow {
    /// By place in `runtime.allgs`.
    stays: Vec<Stay>,
    rows: HashMap<u32, Progress>,
    settle_ns: u64,
    is_first: bool,
}

impl Follow {
    /// Nothing seen yet. A goroutine is settled once it has waited for `settle_ns` without running.
    pub fn new(settle_ns: u64) -> Self {
        Self {
            stays: Vec::new(),
            rows: HashMap::new(),
            settle_ns,
            is_first: true,
        }
    }

    /// Takes in a census of the moment `now` (nanoseconds of `CLOCK_MONOTONIC`), whose groups are
    /// counted in these `rows`; zero: in none. Gives every row that ever had a waiting goroutine.
    pub fn look(&mut self, now: u64, census: &Census, rows: &[u32]) -> &HashMap<u32, Progress> {
        for progress in self.rows.values_mut() {
            (progress.settled, progress.oldest, progress.median) = (0, None, None);
        }
        let mut since: HashMap<u32, Vec<u64>> = HashMap::new();
        let places = self.stays.len().max(census.members.len());
        self.stays.resize(places, Stay::default());
        // The last places of the list may be empty now.
        let empty = Member::default();
        let members = census.members.iter().chain(iter::repeat(&empty));
        for (stay, member) in self.stays.iter_mut().zip(members) {
            let row = rows.get(member.group as usize).copied().unwrap_or(0);
            let before = *stay;
            let stays_on = before.goid != 0
                && before.goid == member.goid
                && before.seq == member.seq
                && member.is_blocked
                && (before.row == row || member.is_unstable);
            if !stays_on {
                if before.goid != 0 {
                    let progress = self.rows.entry(before.row).or_default();
                    progress.left += 1;
                    progress.settled_left += u64::from(before.is_settled);
                }
                *stay = Stay::default();
                if !member.is_blocked || member.is_unstable || member.goid == 0 || row == 0 {
                    continue;
                }
                *stay = begin(member, row, now);
                let progress = self.rows.entry(row).or_default();
                progress.arrived += u64::from(!self.is_first);
            }
            stay.is_settled = now.saturating_sub(stay.since) >= self.settle_ns;
            let progress = self.rows.entry(stay.row).or_default();
            progress.settled += u64::from(stay.is_settled);
            since.entry(stay.row).or_default().push(stay.since);
        }
        self.is_first = false;
        for (row, mut since) in since {
            let middle = since.len() / 2;
            let progress = self.rows.entry(row).or_default();
            progress.oldest = since.iter().min().copied();
            let (_, median, _) = since.select_nth_unstable(middle);
            progress.median = Some(*median);
        }
        &self.rows
    }
}

fn begin(member: &Member, row: u32, now: u64) -> Stay {
    let known = Some(member.wait_since).filter(|since| (1..now).contains(since));
    Stay {
        goid: member.goid,
        since: known.unwrap_or(now),
        row,
        seq: member.seq,
        is_settled: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// A census of one group from (goid, seq); goid zero is an empty place.
    fn census(goroutines: &[(u64, u8)]) -> Census {
        let member = |&(goid, seq): &(u64, u8)| Member {
            goid,
            seq,
            is_blocked: goid != 0,
            ..Member::default()
        };
        Census {
            members: goroutines.iter().map(member).collect(),
            ..Census::default()
        }
    }

    fn look(follow: &mut Follow, second: u64, goroutines: &[(u64, u8)]) -> Progress {
        let rows = follow.look(second * SECOND, &census(goroutines), &[1]);
        rows.get(&1).copied().unwrap_or_default()
    }

    #[test]
    fn whoever_ran_in_between_has_left_and_come_again() {
        let mut follow = Follow::new(2 * SECOND);
        let first = look(&mut follow, 10, &[(1, 0), (2, 7)]);
        assert_eq!((first.arrived, first.left, first.settled), (0, 0, 0));
        // 2 has run and waits again, 3 is new.
        let second = look(&mut follow, 12, &[(1, 0), (2, 8), (3, 0)]);
        assert_eq!((second.arrived, second.left), (2, 1));
        assert_eq!((second.settled, second.settled_left), (1, 0));
        assert_eq!(second.oldest, Some(10 * SECOND));
        assert_eq!(second.median, Some(12 * SECOND));
        // 1 ends after it had settled; another takes its place in the list.
        let third = look(&mut follow, 13, &[(4, 0), (2, 8), (3, 0)]);
        assert_eq!((third.arrived, third.left), (3, 2));
        assert_eq!((third.settled, third.settled_left), (0, 1));
        let none = look(&mut follow, 14, &[]);
        assert_eq!((none.left, none.oldest, none.settled), (5, None, 0));
    }

    #[test]
    fn a_collection_knows_of_an_earlier_beginning() {
        let mut follow = Follow::new(2 * SECOND);
        let mut old = census(&[(1, 0), (2, 0)]);
        old.members[0].wait_since = SECOND;
        // Nonsense, as a torn read might give, is not taken.
        old.members[1].wait_since = 99 * SECOND;
        let rows = follow.look(10 * SECOND, &old, &[1]);
        assert_eq!((rows[&1].oldest, rows[&1].settled), (Some(SECOND), 1));
    }

    #[test]
    fn one_that_cannot_be_read_for_once_stays() {
        let mut follow = Follow::new(2 * SECOND);
        look(&mut follow, 10, &[(1, 0)]);
        let mut moving = census(&[(1, 0)]);
        (moving.members[0].is_unstable, moving.members[0].group) = (true, 1);
        let progress = follow.look(13 * SECOND, &moving, &[1, 2])[&1];
        assert_eq!((progress.left, progress.settled), (0, 1));
    }
}
