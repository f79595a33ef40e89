//! Values of options: durations, sizes, shares.

use std::time::Duration;

use jiff::SignedDuration;
use leaktrace::record;

/// `10s`, `5m`, `1h`, `1h30m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let parsed: SignedDuration = text
        .parse()
        .map_err(|_| "give a duration such as 10s, 5m or 1h".to_owned())?;
    match Duration::try_from(parsed) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("the duration must be longer than zero".to_owned()),
    }
}

pub(super) fn interval(text: &str) -> Result<Duration, String> {
    const SHORTEST: Duration = Duration::from_millis(10);
    duration(text).and_then(|interval| {
        (interval >= SHORTEST)
            .then_some(interval)
            .ok_or_else(|| "the interval must be at least 10ms".to_owned())
    })
}

/// Entries of a kernel map.
pub(super) fn entries() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=1 << 24)
}

/// `512KiB`, `2MiB`, `1GiB`, or bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u32); 4] = [("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];
    let (number, shift) = UNITS
        .iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)))
        .unwrap_or((text, 0));
    number
        .trim_end()
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| "give a size such as 512KiB or 2MiB".to_owned())
}

pub(super) fn ring_bytes(text: &str) -> Result<u32, String> {
    const RANGE: std::ops::RangeInclusive<u64> = 4096..=1 << 30;
    let bytes = size(text)?;
    if bytes.is_power_of_two() && RANGE.contains(&bytes) {
        Ok(bytes as u32)
    } else {
        Err("the size must be a power of two, from 4KiB to 1GiB".to_owned())
    }
}

pub(super) fn percent(text: &str) -> Result<f64, String> {
    let percent = text.strip_suffix('%').unwrap_or(text).trim().parse();
    percent
        .ok()
        .filter(|percent| (0.1..=50.0).contains(percent))
        .ok_or_else(|| "give a percentage from 0.1 to 50".to_owned())
}

pub(super) fn sample(text: &str) -> Result<record::Sample, String> {
    const RANGE: std::ops::RangeInclusive<u64> = 1024..=1 << 30;
    if text == "all" {
        return Ok(record::Sample::All);
    }
    match size(text)? {
        bytes if RANGE.contains(&bytes) => Ok(record::Sample::Bytes(bytes)),
        _ => Err("give a size from 1KiB to 1GiB, or `all`".to_owned()),
    }
}
