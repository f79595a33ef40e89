//! A capture in memory that goes on: what a live view looks at and saves.

use std::io::Write;

use super::{
    Capture, CaptureWriter, Ended, Pauses, WriteError, coarsen,
    schema::{Close, End, Header, Interval, Limit, Loss, Symbols},
};

/// Intervals kept; beyond, neighbours are joined, as in a long capture that is read.
const MAX_INTERVALS: usize = 512;
/// Bytes of memory for intervals from which on they are joined earlier; a count that errs upwards.
const MAX_BYTES: u64 = 128 << 20;
/// So many stay whatever they take: what they hold is bounded by the kernel's maps then.
const FEW: usize = 16;

/// The intervals of a recording that goes on, in bounded memory. At any moment it is a whole capture,
/// which ends now ([`End::Live`]).
#[derive(Debug)]
pub struct LiveCapture {
    capture: Capture,
    close: Close,
    /// How many of the recording's intervals make one.
    stride: usize,
    /// How many of them the last one has.
    in_last: usize,
}

impl LiveCapture {
    /// Begins with the header.
    pub fn new(header: Header) -> Self {
        let mut close = Close::default();
        close.set_end(End::Live);
        Self {
            capture: Capture {
                header,
                intervals: Vec::new(),
                intervals_read: 0,
                pauses: Pauses::default(),
                symbols: None,
                retention: Vec::new(),
                how_it_ended: Ended::Closed(close.clone()),
                notes: Vec::new(),
            },
            close,
            stride: 1,
            in_last: 0,
        }
    }

    /// Adds an interval. `events` are the records taken from the kernel since the attach, `limits` what
    /// cannot be seen as of now, beyond what the header tells.
    pub fn push(&mut self, mut interval: Interval, events: u64, limits: Vec<Limit>) {
        self.close.t_ns = interval.t_ns;
        self.close.intervals += 1;
        self.close.events = events;
        self.close.limits = limits;
        for loss in &interval.losses {
            keep_last(&mut self.close.losses, loss);
        }
        self.capture.how_it_ended = Ended::Closed(self.close.clone());
        self.capture.intervals_read += 1;
        let planned_ns = self.capture.header.interval_ns;
        self.capture.pauses.interval(interval.t_ns, planned_ns);
        coarsen::shrink(&mut interval);
        let intervals = &mut self.capture.intervals;
        let begins = self.in_last == 0 || self.in_last == self.stride;
        // The attach stays by itself.
        self.in_last = match (interval.index, begins) {
            (0, _) => 0,
            (_, true) => 1,
            (_, false) => self.in_last + 1,
        };
        intervals.push(interval);
        coarsen::join_last(intervals, if begins { 1 } else { 2 });

        let bytes: u64 = intervals.iter().map(coarsen::held).sum();
        if intervals.len() > MAX_INTERVALS || (bytes > MAX_BYTES && intervals.len() > FEW) {
            let joinable = intervals.iter().filter(|interval| interval.index > 0);
            if joinable.count() % 2 == 0 {
                self.in_last += self.stride;
            }
            coarsen::join_in_pairs(intervals);
            self.stride *= 2;
        }
    }

    /// The recording is over, and its last block is known.
    pub fn end(&mut self, close: Close) {
        self.close = close.clone();
        self.capture.how_it_ended = Ended::Closed(close);
    }

    /// The capture as of now.
    pub fn capture(&self) -> &Capture {
        &self.capture
    }

    /// Writes what is held, with these symbols, and hands the output back. Several intervals may be
    /// joined in one; their number is that of those that are written.
    ///
    /// # Errors
    ///
    /// The output refuses.
    pub fn write<W: Write>(&self, symbols: &Symbols, out: W) -> Result<W, WriteError> {
        let mut writer = CaptureWriter::new(out)?;
        let mut header = self.capture.header.clone();
        // Of those in the file.
        header.interval_ns = header.interval_ns.saturating_mul(self.stride as u64);
        writer.header(&header)?;
        for interval in &self.capture.intervals {
            writer.interval(interval)?;
        }
        writer.symbols(symbols)?;
        let mut close = self.close.clone();
        close.intervals = self.capture.intervals.len() as u32;
        writer.close(&close)
    }
}

fn keep_last(losses: &mut Vec<Loss>, new: &Loss) {
    match losses.iter_mut().find(|loss| loss.cause == new.cause) {
        Some(loss) => loss.count = new.count,
        None => losses.push(new.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::schema::SiteDelta;
    use super::*;

    fn interval(index: u32) -> Interval {
        Interval {
            index,
            t_ns: u64::from(index) * 1_000_000_000,
            deltas: vec![SiteDelta {
                site: 1,
                allocs: 1,
                alloc_bytes: 64,
                ..SiteDelta::default()
            }],
            losses: vec![Loss {
                cause: "ring_buffer_full".to_owned(),
                count: index.into(),
            }],
            ..Interval::default()
        }
    }

    #[test]
    fn a_long_recording_keeps_its_totals_in_bounded_memory_and_is_saved_whole() {
        let mut live = LiveCapture::new(Header::default());
        for index in 0..5000 {
            let limits = vec![Limit::default(); 1 + usize::from(index == 7)];
            live.push(interval(index), 2 * u64::from(index), limits);
            assert!(live.capture().intervals.len() <= MAX_INTERVALS);
        }
        let bytes = live.write(&Symbols::default(), Vec::new()).unwrap();
        let read = Capture::read(bytes.as_slice()).unwrap();
        let allocs = |capture: &Capture| -> u64 {
            let deltas = capture
                .intervals
                .iter()
                .flat_map(|interval| &interval.deltas);
            deltas.map(|delta| delta.allocs).sum()
        };
        assert_eq!((allocs(&read), allocs(live.capture())), (5000, 5000));
        let Ended::Closed(close) = &read.how_it_ended else {
            panic!("{:?}", read.how_it_ended);
        };
        assert_eq!(close.end(), End::Live);
        assert_eq!((close.t_ns, close.events), (4_999_000_000_000, 9998));
        assert_eq!(close.losses[0].count, 4999);
        assert_eq!(close.limits, [Limit::default()]);
        assert_eq!(close.intervals as usize, read.intervals.len());
        // 5000 intervals of one second: the attach, those of sixteen, and the last one.
        let ends: Vec<u64> = read
            .intervals
            .iter()
            .map(|i| i.t_ns / 1_000_000_000)
            .collect();
        let mut lengths = ends.windows(2).map(|pair| pair[1] - pair[0]);
        let last = lengths.next_back();
        assert!(
            lengths.all(|length| length == 16) && last <= Some(16),
            "{ends:?}"
        );
    }
}
