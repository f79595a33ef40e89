//! Times in which the recorder did not run: between two intervals lies more than was planned.

/// How late an interval may be without a word, in nanoseconds: a busy machine, a slow disk.
const LATE_NS: u64 = 1_000_000_000;

/// The pauses of a recording.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pauses {
    /// How many there were.
    pub count: u32,
    /// What all of them took beyond the planned length of an interval, in nanoseconds.
    pub total_ns: u64,
    /// The longest: the ends of the intervals before and after it, in nanoseconds since the window opened.
    pub longest_ns: (u64, u64),
    /// End of the last interval; none before the first.
    last_ns: Option<u64>,
}

impl Pauses {
    /// Takes in that an interval, planned to be `planned_ns` long, ended at `t_ns`. Zero: it is not known
    /// how long it was to be.
    pub(super) fn interval(&mut self, t_ns: u64, planned_ns: u64) {
        let before = self.last_ns.replace(t_ns).unwrap_or(t_ns);
        let late = t_ns.saturating_sub(before).saturating_sub(planned_ns);
        if planned_ns == 0 || late <= LATE_NS.max(planned_ns / 2) {
            return;
        }
        self.count = self.count.saturating_add(1);
        self.total_ns = self.total_ns.saturating_add(late);
        if t_ns - before > self.longest_ns.1 - self.longest_ns.0 {
            self.longest_ns = (before, t_ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn pauses(planned_ns: u64, ends: &[u64]) -> Pauses {
        let mut pauses = Pauses::default();
        for end in ends {
            pauses.interval(*end, planned_ns);
        }
        pauses
    }

    #[test]
    fn a_late_interval_is_a_pause() {
        let seen = pauses(S, &[0, S, 2 * S, 7 * S, 8 * S, 11 * S, 12 * S]);
        assert_eq!((seen.count, seen.total_ns), (2, 6 * S));
        assert_eq!(seen.longest_ns, (2 * S, 7 * S));
    }

    #[test]
    fn some_delay_is_none_nor_what_was_not_planned() {
        assert_eq!(pauses(S, &[0, S, 3 * S, 3 * S + 1]).count, 0);
        assert_eq!(pauses(S / 10, &[0, S, 2 * S]).count, 0);
        assert_eq!(pauses(60 * S, &[0, 80 * S]).count, 0);
        assert_eq!(pauses(0, &[0, 80 * S]).count, 0);
        // Hostile: time that goes back, or to its end.
        assert_eq!(pauses(1, &[u64::MAX, 0, u64::MAX]).count, 1);
    }
}
