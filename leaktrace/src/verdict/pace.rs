//! Whether what comes goes on coming, by its spread over time.

use crate::series::Spread;

/// How far before the middle the centre of the births may lie, and by how many deviations.
const SLOWING_CENTRE: f64 = 0.07;
const SLOWING_Z: f64 = 2.5;
/// The same told by the outer thirds: last against first.
const SLOWING_THIRDS: f64 = 0.5;
const SLOWING_THIRDS_Z: f64 = 2.0;
/// Last third against first that counts as having stopped, and the objects it takes: of fewer, none
/// may fall into a third by chance (9: one time in forty).
const STOPPED_THIRDS: f64 = 0.1;
const STOPPED_ARRIVALS: f64 = 9.0;

/// Nothing, or hardly anything, comes any more.
pub(super) fn stopped(spread: &Spread) -> bool {
    let (first, last) = spread.outer_thirds();
    let middle = spread.total - first - last;
    spread.arrivals >= STOPPED_ARRIVALS && last <= STOPPED_THIRDS * first.max(middle)
}

/// It came all through the time.
pub(super) fn sustained(spread: &Spread) -> bool {
    spread.filled() * 5 >= spread.parts.len() * 3
}

/// Less and less comes.
pub(super) fn slowing(spread: &Spread) -> bool {
    let (first, last) = spread.outer_thirds();
    let per_arrival = spread.total / spread.arrivals.max(1.0);
    let thirds_z = (first - last) / ((first + last) * per_arrival).max(f64::MIN_POSITIVE).sqrt();
    let centre = 0.5 - spread.centre;
    (centre >= SLOWING_CENTRE && spread.slowing() >= SLOWING_Z)
        || (last < SLOWING_THIRDS * first && thirds_z >= SLOWING_THIRDS_Z)
}
