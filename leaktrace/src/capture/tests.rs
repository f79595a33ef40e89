use std::io::{self, Write};

use proptest::prelude::*;

use super::block::{Frame, MAGIC, checksum};
use super::schema::{
    Close, CohortFrees, End, GoBucket, GoClass, GoOwnSampling, Header, Interval, Kind, Memory,
    Site, SiteDelta, Symbols, Target,
};
use super::{Capture, CaptureWriter, Damage, Ended, Limits, ReadError, WriteError};

fn header() -> Header {
    let target = Target {
        pid: 42,
        comm: "app".into(),
        ..Target::default()
    };
    Header {
        tool_version: "0.1.0".into(),
        target: Some(target),
        ..Header::default()
    }
}

fn interval(index: u32) -> Interval {
    let site = Site {
        id: index + 1,
        kind: Kind::Mmap.into(),
        pcs: (0..8).map(|pc| 0x40_0000 + pc * u64::from(index)).collect(),
        ..Site::default()
    };
    let delta = SiteDelta {
        site: index + 1,
        allocs: 1,
        alloc_bytes: 4096,
        ..SiteDelta::default()
    };
    Interval {
        index,
        t_ns: u64::from(index) * 1_000_000_000,
        sites: vec![site],
        deltas: vec![delta],
        memory: Some(Memory {
            rss: Some(1 << 20),
            ..Memory::default()
        }),
        ..Interval::default()
    }
}

fn close() -> Close {
    Close {
        end: End::Signal.into(),
        intervals: 3,
        events: 3,
        ..Close::default()
    }
}

/// A capture with three intervals, and the offsets at which its blocks end.
fn written() -> (Vec<u8>, Vec<u64>) {
    let mut writer = CaptureWriter::new(Vec::new()).unwrap();
    let mut ends = vec![writer.bytes_written()];
    writer.header(&header()).unwrap();
    ends.push(writer.bytes_written());
    for index in 0..3 {
        writer.interval(&interval(index)).unwrap();
        ends.push(writer.bytes_written());
    }
    let symbols = Symbols {
        strings: vec![String::new(), "main".into()],
        ..Symbols::default()
    };
    writer.symbols(&symbols).unwrap();
    ends.push(writer.bytes_written());
    let bytes = writer.close(&close()).unwrap();
    ends.push(bytes.len() as u64);
    (bytes, ends)
}

fn raw_block(block_type: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    let frame = Frame {
        len,
        block_type,
        checksum: checksum(block_type, payload),
    };
    [frame.to_bytes().as_slice(), payload].concat()
}

#[test]
fn reads_what_was_written() {
    let capture = Capture::read(written().0.as_slice()).unwrap();
    assert_eq!(capture.header, header());
    assert_eq!(capture.intervals, (0..3).map(interval).collect::<Vec<_>>());
    assert_eq!(capture.symbols.unwrap().strings[1], "main");
    assert_eq!(capture.how_it_ended, Ended::Closed(close()));
    assert_eq!(capture.notes, Vec::<String>::new());
}

/// Every prefix gives exactly the blocks that are whole in it, and says where it stops.
#[test]
fn any_prefix_reads() {
    let (bytes, ends) = written();
    for len in 0..bytes.len() {
        let whole = ends.iter().filter(|&&end| end <= len as u64).count();
        match Capture::read(&bytes[..len]) {
            Err(ReadError::NotACapture) => assert_eq!(whole, 0, "{len} bytes"),
            Err(ReadError::NoHeader(_)) => assert_eq!(whole, 1, "{len} bytes"),
            Err(error) => panic!("{len} bytes: {error}"),
            Ok(capture) => {
                assert_eq!(capture.intervals.len(), (whole - 2).min(3), "{len} bytes");
                assert_eq!(capture.symbols.is_some(), whole == 6, "{len} bytes");
                match capture.how_it_ended {
                    Ended::Truncated { at } => assert_eq!(at, len as u64),
                    Ended::Torn {
                        at,
                        reason: Damage::Cut { missing },
                    } => {
                        assert_eq!(at, ends[whole - 1]);
                        assert!(missing > 0);
                    }
                    other => panic!("{len} bytes: {other:?}"),
                }
            }
        }
    }
}

#[test]
fn a_newer_format_is_named() {
    let mut bytes = written().0;
    bytes[8] = 2;
    let error = Capture::read(bytes.as_slice()).unwrap_err();
    assert!(
        matches!(error, ReadError::NewerVersion { found: 2 }),
        "{error}"
    );
    assert!(error.to_string().contains("version 2"), "{error}");
}

#[test]
fn another_file_is_refused() {
    for bytes in [b"".as_slice(), b"\x7fELF\x02\x01\x01\0\0\0\0\0\0", &MAGIC] {
        assert!(matches!(Capture::read(bytes), Err(ReadError::NotACapture)));
    }
}

/// A newer leaktrace may add block types; they are passed over with a note, not read as damage.
#[test]
fn unknown_blocks_are_skipped_with_a_note() {
    let (mut bytes, ends) = written();
    let after_header = usize::try_from(ends[1]).unwrap();
    bytes.splice(
        after_header..after_header,
        raw_block(77, b"from the future"),
    );
    let capture = Capture::read(bytes.as_slice()).unwrap();
    assert_eq!(capture.intervals.len(), 3);
    assert!(matches!(capture.how_it_ended, Ended::Closed(_)));
    assert!(
        capture.notes[0].contains("unknown type 77, 15 bytes"),
        "{:?}",
        capture.notes
    );
}

#[test]
fn intervals_out_of_order_end_the_capture() {
    let mut writer = CaptureWriter::new(Vec::new()).unwrap();
    writer.header(&header()).unwrap();
    writer.interval(&interval(1)).unwrap();
    writer.interval(&interval(1)).unwrap();
    let capture = Capture::read(writer.close(&close()).unwrap().as_slice()).unwrap();
    assert_eq!(capture.intervals.len(), 1);
    assert!(matches!(
        capture.how_it_ended,
        Ended::Torn {
            reason: Damage::Order(_),
            ..
        }
    ));
}

/// A block that claims 4 GiB, one that inflates without end, and one whose two-byte records take
/// a hundred bytes each in memory.
#[test]
fn bombs_cost_bounded_memory() {
    let (bytes, ends) = written();
    let prefix = &bytes[..usize::try_from(ends[1]).unwrap()];
    let limits = Limits {
        block_bytes: 1 << 20,
        message_bytes: 1 << 20,
        memory_bytes: 8 << 20,
        ..Limits::default()
    };
    let zeros = zstd::bulk::compress(&vec![0; 4 << 20], 3).unwrap();
    let empty_deltas = zstd::bulk::compress(&[0x32, 0].repeat(400_000), 3).unwrap();
    let claim = Frame {
        len: u32::MAX,
        block_type: 2,
        checksum: 0,
    }
    .to_bytes()
    .to_vec();
    let cases = [
        (claim, "file"),
        (raw_block(2, &zeros), "message"),
        (raw_block(2, &empty_deltas), "memory"),
    ];
    for (block, expected) in cases {
        let capture = Capture::read_within([prefix, &block].concat().as_slice(), limits).unwrap();
        let Ended::Torn {
            at,
            reason: Damage::TooLarge { what, .. },
        } = capture.how_it_ended
        else {
            panic!("{expected}: {:?}", capture.how_it_ended);
        };
        assert_eq!((at, what), (ends[1], expected));
    }
}

/// Takes `room` bytes, in small pieces, then fails like a full disk.
struct Disk {
    stored: Vec<u8>,
    room: usize,
    writes: usize,
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writes += 1;
        let len = bytes.len().min(self.room - self.stored.len());
        if len == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.stored.extend_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn one_write_for_each_block() {
    let disk = Disk {
        stored: Vec::new(),
        room: 1 << 20,
        writes: 0,
    };
    let mut writer = CaptureWriter::new(disk).unwrap();
    writer.header(&header()).unwrap();
    writer.interval(&interval(0)).unwrap();
    let disk = writer.close(&close()).unwrap();
    assert_eq!(disk.writes, 4, "preamble, header, interval, close");
}

/// After a full disk nothing more is appended, and what is there reads up to the last interval.
#[test]
fn a_full_disk_leaves_a_capture() {
    let (_, ends) = written();
    let room = usize::try_from(ends[3]).unwrap() + 5;
    let mut disk = Disk {
        stored: Vec::new(),
        room,
        writes: 0,
    };
    let mut writer = CaptureWriter::new(&mut disk).unwrap();
    writer.header(&header()).unwrap();
    writer.interval(&interval(0)).unwrap();
    writer.interval(&interval(1)).unwrap();
    assert!(matches!(
        writer.interval(&interval(2)),
        Err(WriteError::Output { .. })
    ));
    assert!(matches!(
        writer.close(&close()),
        Err(WriteError::Broken { .. })
    ));
    let capture = Capture::read(disk.stored.as_slice()).unwrap();
    assert_eq!(capture.intervals.len(), 2);
    let Ended::Torn {
        at,
        reason: Damage::Cut { .. },
    } = capture.how_it_ended
    else {
        panic!("{:?}", capture.how_it_ended);
    };
    assert_eq!(at, ends[3]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// One flipped bit never panics, and never changes an interval that is still read.
    #[test]
    fn a_flipped_bit_is_noticed(position in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let (mut bytes, _) = written();
        let position = position.index(bytes.len());
        bytes[position] ^= 1 << bit;
        if let Ok(capture) = Capture::read(bytes.as_slice()) {
            prop_assert!(!matches!(capture.how_it_ended, Ended::Closed(_)));
            for (index, read) in capture.intervals.iter().enumerate() {
                prop_assert_eq!(read, &interval(u32::try_from(index).unwrap()));
            }
        }
    }

    /// Damage behind a valid checksum, i.e. made on purpose, never panics either.
    #[test]
    fn a_forged_message_is_survived(
        block_type in 1..6_u32,
        message in prop::collection::vec(any::<u8>(), 0..200),
        compressed in any::<bool>(),
    ) {
        let (bytes, ends) = written();
        let prefix = &bytes[..usize::try_from(ends[1]).unwrap()];
        let payload =
            if compressed { zstd::bulk::compress(&message, 3).unwrap() } else { message };
        let forged = [prefix, &raw_block(block_type, &payload)].concat();
        let capture = Capture::read(forged.as_slice());
        prop_assert!(capture.is_ok(), "the header is intact: {:?}", capture.err());
    }
}

/// A long capture is joined into fewer intervals, keeps every total, and stays within a memory that
/// its intervals would exceed many times.
#[test]
fn long_captures_are_joined() {
    let mut writer = CaptureWriter::new(Vec::new()).unwrap();
    writer.header(&header()).unwrap();
    for index in 0..10_000_u32 {
        let freed = CohortFrees {
            cohort: index.saturating_sub(3),
            objects: 1,
            bytes: 64,
        };
        let delta = |site| SiteDelta {
            site,
            allocs: 2,
            alloc_bytes: 128,
            frees: 1,
            free_bytes: 64,
            freed: vec![freed],
            repeats: 1,
        };
        let bucket = GoBucket {
            site: 7,
            allocs: index.into(),
            ..GoBucket::default()
        };
        let interval = Interval {
            deltas: (0..20).map(delta).collect(),
            go_buckets: vec![bucket],
            go_classes: vec![GoClass {
                object_size: 64,
                alloc_bytes: 64 * u64::from(index),
            }],
            go_own_sampling: Some(GoOwnSampling {
                hits: 3,
                ..GoOwnSampling::default()
            }),
            ..interval(index)
        };
        writer
            .interval(&Interval {
                sites: Vec::new(),
                ..interval
            })
            .unwrap();
    }
    let bytes = writer.close(&close()).unwrap();
    let limits = Limits {
        intervals: 100,
        memory_bytes: 8 << 20,
        ..Limits::default()
    };
    let capture = Capture::read_within(bytes.as_slice(), limits).unwrap();
    assert_eq!(capture.how_it_ended, Ended::Closed(close()));
    assert_eq!(capture.intervals_read, 10_000);
    assert!(
        (50..=101).contains(&capture.intervals.len()),
        "{}",
        capture.intervals.len()
    );
    assert_eq!(capture.intervals[0].index, 0);
    assert_eq!(
        capture.intervals[0].deltas[0].allocs, 2,
        "the attach stays by itself"
    );
    assert_eq!(capture.intervals.last().unwrap().index, 9_999);
    assert_eq!(
        capture.intervals.last().unwrap().go_buckets[0].allocs,
        9_999
    );
    let indexes = capture.intervals.iter().map(|interval| interval.index);
    let indexes: Vec<_> = indexes.skip(1).collect();
    let mut steps = indexes.windows(2).map(|pair| pair[1] - pair[0]);
    let first = steps.next();
    steps.next_back();
    assert!(steps.all(|step| Some(step) == first), "{indexes:?}");
    let deltas = || {
        capture
            .intervals
            .iter()
            .flat_map(|i| &i.deltas)
            .filter(|d| d.site == 3)
    };
    assert_eq!(deltas().map(|delta| delta.allocs).sum::<u64>(), 20_000);
    assert_eq!(deltas().map(|delta| delta.repeats).sum::<u64>(), 10_000);
    let last = capture.intervals.last().unwrap();
    assert_eq!(last.go_classes[0].alloc_bytes, 64 * 9_999);
    assert_eq!(last.go_classes.len(), 1);
    let sampling = capture.intervals.iter().map(|i| i.go_own_sampling.unwrap());
    assert_eq!(sampling.map(|sampling| sampling.hits).sum::<u64>(), 30_000);
    assert_eq!(
        deltas()
            .flat_map(|d| &d.freed)
            .map(|freed| freed.objects)
            .sum::<u64>(),
        10_000
    );
    let listed = deltas().map(|delta| delta.freed.len()).max();
    assert!(listed < Some(20), "cohorts are joined too: {listed:?}");
    let small = Limits {
        intervals: 20_000,
        ..limits
    };
    let capture = Capture::read_within(bytes.as_slice(), small).unwrap();
    assert!(matches!(
        capture.how_it_ended,
        Ended::Torn {
            reason: Damage::TooLarge { what: "memory", .. },
            ..
        }
    ));
}
