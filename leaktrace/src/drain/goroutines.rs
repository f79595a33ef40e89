//! From censuses of goroutines to rows of the capture: groups are numbered once, and written again
//! only when they have changed.
//!
//! Contract: a census takes at most a tenth of the time, else it is taken less often; the rows are
//! bounded. Whatever is over a bound is counted.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use leaktrace_common::SiteCounters;

use crate::{
    capture::schema,
    inventory::goroutines::{
        Census, Follow, Goroutines as Reader, Key, LiveSample, Pins, Progress, State,
    },
    loss,
};

/// Groups numbered in a capture.
const MAX_ROWS: usize = 1 << 14;
/// Shortest wait without running after which a goroutine counts as settled.
const SETTLED: Duration = Duration::from_secs(2);
/// A census is taken when at least so many times its length have passed.
const PACE: u32 = 10;
/// Bytes of stacks that are searched for heap objects at most.
const SEARCHED_BYTES: u64 = 1 << 30;

/// When a census is taken, and what for.
#[derive(Clone, Debug)]
pub enum Purpose {
    /// At an interval: skipped if the last one took too long.
    Interval,
    /// The last one: these live heap objects are searched for in the stacks.
    Last(Vec<LiveSample>),
}

/// The goroutines of one run.
pub struct Goroutines<'a> {
    reader: Reader<'a>,
    follow: Follow,
    /// `CLOCK_MONOTONIC` at the opening of the window.
    opened: u64,
    /// Whether goroutines that run or are about to are told apart by their stacks.
    running_stacks: bool,
    ids: HashMap<Key, u32>,
    creation_ids: HashMap<u64, u32>,
    /// What the probes had counted at the first interval: they go live one after the other.
    created_before: Option<BTreeMap<u64, SiteCounters>>,
    written: HashMap<u32, schema::GoroutineCount>,
    losses: BTreeMap<&'static str, u64>,
    not_before: Option<Instant>,
    taken: u32,
    skipped: u32,
    longest: Duration,
}

impl<'a> Goroutines<'a> {
    /// Nothing read yet. `opened` is `CLOCK_MONOTONIC` at the opening of the window, in nanoseconds.
    pub fn new(reader: Reader<'a>, opened: u64, interval: Duration) -> Self {
        let settled = SETTLED.max(interval * 2);
        Self {
            reader,
            follow: Follow::new(settled.as_nanos() as u64),
            opened,
            running_stacks: false,
            ids: HashMap::new(),
            creation_ids: HashMap::new(),
            created_before: None,
            written: HashMap::new(),
            losses: BTreeMap::new(),
            not_before: None,
            taken: 0,
            skipped: 0,
            longest: Duration::ZERO,
        }
    }

    /// For a single look: goroutines that run or are about to are told apart by their stacks.
    pub fn with_running_stacks(mut self) -> Self {
        self.running_stacks = true;
        self
    }

    /// Takes a census at `now` (nanoseconds of `CLOCK_MONOTONIC`) and adds what is new of it to
    /// `interval`.
    pub fn interval(&mut self, interval: &mut schema::Interval, now: u64, purpose: &Purpose) {
        let started = Instant::now();
        let is_due = self.not_before.is_none_or(|moment| moment <= started);
        if !is_due && matches!(purpose, Purpose::Interval) {
            self.skipped += 1;
            return;
        }
        let before = self.losses.clone();
        match self.reader.census() {
            Ok(census) => self.rows(&census, interval, now, purpose),
            Err(_) => self.lose(loss::GOROUTINE_CENSUS_FAILED, 1),
        }
        let changed = self
            .losses
            .iter()
            .filter(|(c, n)| before.get(*c) != Some(n));
        interval.losses.extend(changed.map(to_schema));
        let took = started.elapsed();
        interval.census_us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        self.taken += 1;
        self.longest = self.longest.max(took);
        self.not_before = Some(started + took * PACE);
    }

    /// Adds what has changed of the goroutines made and ended since the attach, by the return address
    /// of their go statement.
    pub fn creations(
        &mut self,
        interval: &mut schema::Interval,
        counts: BTreeMap<u64, SiteCounters>,
    ) {
        let before = self
            .created_before
            .get_or_insert_with(|| counts.clone())
            .clone();
        for (created_by, counters) in counts {
            let before = before.get(&created_by).copied().unwrap_or_default();
            let id = match self.creation_ids.get(&created_by) {
                Some(id) => *id,
                None => {
                    let Some(id) = self.free_id() else { continue };
                    interval.goroutine_groups.push(schema::GoroutineGroup {
                        id,
                        state: schema::GoroutineState::Created.into(),
                        created_by,
                        ..schema::GoroutineGroup::default()
                    });
                    self.creation_ids.insert(created_by, id);
                    id
                }
            };
            let row = schema::GoroutineCount {
                group: id,
                arrived: counters.allocs - before.allocs,
                left: counters.frees - before.frees,
                ..schema::GoroutineCount::default()
            };
            if self.written.get(&id) != Some(&row) {
                interval.goroutines.push(row.clone());
                self.written.insert(id, row);
            }
        }
    }

    /// The next number for a row, if there is one more.
    fn free_id(&self) -> Option<u32> {
        let used = self.ids.len() + self.creation_ids.len();
        (used < MAX_ROWS).then_some(used as u32 + 1)
    }

    /// Losses since the attach, by cause.
    pub fn losses(&self) -> Vec<schema::Loss> {
        self.losses.iter().map(to_schema).collect()
    }

    /// What to say if censuses were taken less often than asked for.
    pub fn limit(&self) -> Option<schema::Limit> {
        (self.skipped > 0).then(|| schema::Limit {
            what: "goroutines at every interval".to_owned(),
            reason: format!(
                "{} censuses were taken and {} left out: one took up to {} ms, and no more than a \
                 tenth of the time is spent on them",
                self.taken,
                self.skipped,
                self.longest.as_millis()
            ),
        })
    }

    fn lose(&mut self, cause: &'static str, count: u64) {
        if count > 0 {
            *self.losses.entry(cause).or_default() += count;
        }
    }

    fn rows(
        &mut self,
        census: &Census,
        interval: &mut schema::Interval,
        now: u64,
        purpose: &Purpose,
    ) {
        let ids: Vec<u32> = census
            .groups
            .iter()
            .map(|(key, _)| self.row_of(key, &mut interval.goroutine_groups))
            .collect();
        let channels = self.reader.busiest_channels(census);
        let mut rows: BTreeMap<u32, schema::GoroutineCount> = BTreeMap::new();
        // Those that are gone.
        for group in self.written.values().filter(|row| row.count > 0) {
            rows.insert(group.group, schema::GoroutineCount::default());
        }
        let mut ungrouped = census.ungrouped;
        for (index, (_, group)) in census.groups.iter().enumerate() {
            let id = ids[index];
            if id == 0 {
                ungrouped += group.count;
                continue;
            }
            let row = rows.entry(id).or_default();
            row.count += group.count;
            row.stack_bytes += group.stack_bytes;
            row.channel = channels.get(&index).cloned().map(Box::new);
        }
        for (id, progress) in self.follow.look(now, census, &ids) {
            if rows.contains_key(id) || progress.left > 0 {
                add_progress(rows.entry(*id).or_default(), progress, self.opened);
            }
        }
        if let Purpose::Last(samples) = purpose {
            self.pins(census, &ids, samples.clone(), &mut rows);
        }
        let total = rows.entry(0).or_default();
        total.count = census.total;
        total.stack_bytes = census.groups.iter().map(|(_, g)| g.stack_bytes).sum();
        for (id, mut row) in rows {
            row.group = id;
            if id == 0 || self.written.get(&id) != Some(&row) {
                interval.goroutines.push(row.clone());
                self.written.insert(id, row);
            }
        }
        self.lose(loss::GOROUTINES_UNSTABLE, census.unstable);
        self.lose(loss::GOROUTINES_UNREADABLE, census.unreadable);
        self.lose(loss::GOROUTINES_UNGROUPED, ungrouped);
        self.lose(loss::GOROUTINES_NOT_FOLLOWED, census.not_followed);
    }

    /// The number of a group's row; zero if there is no more room.
    fn row_of(&mut self, key: &Key, fresh: &mut Vec<schema::GoroutineGroup>) -> u32 {
        let has_place = key.state.is_blocked() || key.state == State::Syscall;
        let key = Key {
            pcs: match has_place || self.running_stacks {
                true => key.pcs.clone(),
                false => Vec::new(),
            },
            truncated: key.truncated && (has_place || self.running_stacks),
            ..key.clone()
        };
        if let Some(id) = self.ids.get(&key) {
            return *id;
        }
        let Some(id) = self.free_id() else { return 0 };
        fresh.push(schema::GoroutineGroup {
            id,
            state: schema_state(key.state).into(),
            wait_reason: self
                .reader
                .reason(key.wait_reason)
                .unwrap_or_default()
                .to_owned(),
            pcs: key.pcs.clone(),
            truncated: key.truncated,
            created_by: key.created_by,
        });
        self.ids.insert(key, id);
        id
    }

    fn pins(
        &mut self,
        census: &Census,
        ids: &[u32],
        samples: Vec<LiveSample>,
        rows: &mut BTreeMap<u32, schema::GoroutineCount>,
    ) {
        if samples.is_empty() {
            return;
        }
        let mut pins = Pins::new(samples);
        let unsearched = self.reader.stacks(census, SEARCHED_BYTES, |group, words| {
            let row = ids.get(group as usize).copied().unwrap_or(0);
            if row != 0 {
                pins.stack(row, words);
            }
        });
        self.lose(loss::GOROUTINE_STACKS_UNSEARCHED, unsearched);
        let found = pins.by_group();
        for (id, row) in rows.iter_mut().filter(|(_, row)| row.count > 0) {
            let bytes = found.get(id).map_or(0.0, |(_, bytes)| *bytes);
            row.pinned_bytes = Some(bytes.round() as u64);
        }
    }
}

fn add_progress(row: &mut schema::GoroutineCount, progress: &Progress, opened: u64) {
    row.arrived = progress.arrived;
    row.left = progress.left;
    row.settled = progress.settled;
    row.settled_left = progress.settled_left;
    let oldest = progress.oldest;
    row.oldest_ns = oldest.map(|since| since as i64 - opened as i64);
    row.median_after_ns = progress
        .median
        .zip(oldest)
        .map_or(0, |(median, oldest)| median.saturating_sub(oldest));
}

fn schema_state(state: State) -> schema::GoroutineState {
    match state {
        State::Runnable => schema::GoroutineState::Runnable,
        State::Running => schema::GoroutineState::Running,
        State::Syscall => schema::GoroutineState::Syscall,
        State::Waiting => schema::GoroutineState::Waiting,
        State::Stopped => schema::GoroutineState::Stopped,
        State::Leaked => schema::GoroutineState::Leaked,
        State::Unknown => schema::GoroutineState::Unspecified,
    }
}

fn to_schema((cause, count): (&&'static str, &u64)) -> schema::Loss {
    schema::Loss {
        cause: (*cause).to_owned(),
        count: *count,
    }
}
