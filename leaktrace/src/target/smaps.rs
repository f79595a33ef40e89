//! `/proc/PID/smaps`: how much of each mapping is resident. The kernel walks the page tables for it
//! while it holds the target's memory lock mapping by mapping, so it is asked for rarely, and with a
//! bound on the time.

use std::{
    io::{self, BufRead, BufReader},
    time::{Duration, Instant},
};

use super::{Backing, Mapping, Target};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SmapsError {
    /// It would have taken too long.
    #[error("reading /proc/PID/smaps took longer than {0:?}")]
    TooSlow(Duration),
    /// It could not be read.
    #[error("failed to read /proc/PID/smaps: {0}")]
    Io(#[from] io::Error),
}

/// How much of a mapping is where, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resident {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Whether it can be written.
    pub writable: bool,
    /// What it is of.
    pub backing: Backing,
    /// Resident.
    pub rss: u64,
    /// Of the resident memory, what is not a file's: for a private mapping of a file, the pages that
    /// were written.
    pub anonymous: u64,
}

impl Target {
    /// What of each mapping is resident: the kernel walks the page tables for it, so that it costs
    /// about two milliseconds for each 100 MiB in pages of 4 KiB.
    ///
    /// # Errors
    ///
    /// It cannot be read, or not within that time.
    pub fn smaps(&self, within: Duration) -> Result<Vec<Resident>, SmapsError> {
        let start = Instant::now();
        let file = self.process.open_relative("smaps");
        let file = file.map_err(|error| io::Error::other(error.to_string()))?;
        parse(BufReader::with_capacity(1 << 16, file), || {
            if start.elapsed() > within {
                Err(SmapsError::TooSlow(within))
            } else {
                Ok(())
            }
        })
    }
}

/// Calls `go_on` at each mapping.
pub(crate) fn parse(
    mut lines: impl BufRead,
    go_on: impl Fn() -> Result<(), SmapsError>,
) -> Result<Vec<Resident>, SmapsError> {
    let mut mappings: Vec<Resident> = Vec::new();
    let mut line = Vec::new();
    while {
        line.clear();
        lines.read_until(b'\n', &mut line)? > 0
    } {
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end_matches('\n');
        if let Some(mapping) = header(line) {
            go_on()?;
            mappings.push(mapping);
        } else if let (Some(mapping), Some((key, value))) =
            (mappings.last_mut(), line.split_once(':'))
        {
            let field = match key {
                "Rss" => &mut mapping.rss,
                "Anonymous" => &mut mapping.anonymous,
                _ => continue,
            };
            let kib = value.trim_end_matches("kB").trim().parse::<u64>();
            *field = kib.unwrap_or(0).saturating_mul(1024);
        }
    }
    Ok(mappings)
}

/// A line that begins a mapping.
fn header(line: &str) -> Option<Resident> {
    let mapping = Mapping::parse(line)?;
    Some(Resident {
        start: mapping.address.0,
        end: mapping.address.1,
        writable: mapping.is_writable(),
        backing: mapping.backing(),
        rss: 0,
        anonymous: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
00400000-004e1000 r-xp 00000000 fe:00 1234                               /srv/a b:c (deleted)
Size:                900 kB
Rss:                 612 kB
Pss_Dirty:             4 kB
Anonymous:             4 kB
VmFlags: rd ex mr mw me sd
0061c000-00640000 rw-p 00000000 00:00 0 
Rss:                  80 kB
Anonymous:            80 kB
01f3a000-01f5b000 rw-p 00000000 00:00 0                                  [heap]
Rss:                   8 kB
Anonymous:             8 kB
c000000000-c004000000 rw-p 00000000 00:00 0                              [anon: Go: heap]
Rss:               65536 kB
Anonymous:         65536 kB
7ffd5b1c0000-7ffd5b1e1000 rw-p 00000000 00:00 0                          [stack]
Rss:                  16 kB
Anonymous:            16 kB
7ffd5b1f8000-7ffd5b1fa000 r-xp 00000000 00:00 0                          [vdso]
Rss:                   8 kB
Anonymous:             0 kB
";

    #[test]
    fn mappings_and_what_is_resident() {
        let mappings = parse(TEXT.as_bytes(), || Ok(())).unwrap();
        let told: Vec<_> = mappings
            .iter()
            .map(|m| (m.backing.clone(), m.rss >> 10, m.anonymous >> 10))
            .collect();
        let expected = [
            (Backing::File("/srv/a b:c (deleted)".to_owned()), 612, 4),
            (Backing::Anonymous, 80, 80),
            (Backing::Break, 8, 8),
            (Backing::Anonymous, 65536, 65536),
            (Backing::Stack, 16, 16),
            (Backing::Kernel, 8, 0),
        ];
        assert_eq!(told, expected);
        assert_eq!(
            (mappings[3].start, mappings[3].end),
            (0xc0_0000_0000, 0xc0_0400_0000)
        );
        assert!(!mappings[0].writable && mappings[1].writable);
    }

    #[test]
    fn one_that_takes_too_long_is_given_up() {
        let slow = || Err(SmapsError::TooSlow(Duration::from_secs(1)));
        assert!(matches!(
            parse(TEXT.as_bytes(), slow),
            Err(SmapsError::TooSlow(_))
        ));
    }
}
