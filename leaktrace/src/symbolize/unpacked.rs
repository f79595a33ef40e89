//! How much memory the compressed sections of a file take once they are unpacked.
//!
//! blazesym takes as much as a section claims at once, and then as much as is in it: deflate makes a thousand bytes of
//! one (RFC 1951: 258 of two bits), so that a file of some megabytes may be all of a host's memory. So both are looked
//! at before, and where they are too much the file is not read.
//!
//! Contract: sections are found as blazesym 0.2 finds them, by the header in the byte order of this machine and
//! whatever else is wrong with the file.

use std::{
    io::{self, Read as _},
    path::Path,
};

use flate2::bufread::ZlibDecoder;
use object::{
    LittleEndian,
    elf::{self, FileHeader32, FileHeader64},
    pod,
    read::{
        ReadRef as _,
        elf::{CompressionHeader as _, FileHeader, SectionHeader as _},
    },
};

use crate::target::open_image;

/// Bytes that the compressed sections of a file may be unpacked to.
const MOST: u64 = 4 << 30;
/// What one byte of deflate's may become, at the most.
const RATIO: u64 = 1032;

/// Whether no more than [`MOST`] comes of a file.
pub(super) fn is_bounded(path: &Path) -> bool {
    // What cannot be opened, or is no ELF file, is not unpacked by anyone.
    open_image(path).map_or(true, |image| unpacked(&image, MOST).is_some())
}

/// How much comes of it, in bytes, as far as is known without unpacking; `None`: more than `most`, or its sections
/// cannot be told.
fn unpacked(bytes: &[u8], most: u64) -> Option<u64> {
    match bytes.get(..5) {
        Some([0x7f, b'E', b'L', b'F', elf::ELFCLASS32]) => {
            of_sections::<FileHeader32<_>>(bytes, most)
        }
        Some([0x7f, b'E', b'L', b'F', elf::ELFCLASS64]) => {
            of_sections::<FileHeader64<_>>(bytes, most)
        }
        _ => Some(0),
    }
}

fn of_sections<H: FileHeader<Endian = LittleEndian>>(bytes: &[u8], most: u64) -> Option<u64> {
    let (header, _) = pod::from_bytes::<H>(bytes).ok()?;
    let at = header.e_shoff(LittleEndian).into();
    let count = match header.e_shnum(LittleEndian) {
        0 => bytes
            .read_at::<H::SectionHeader>(at)
            .ok()?
            .sh_size(LittleEndian)
            .into(),
        count => count.into(),
    };
    let sections = bytes
        .read_slice_at::<H::SectionHeader>(at, count as usize)
        .ok()?;
    let mut sum = 0_u64;
    for section in sections {
        // Where it lies beyond the file blazesym fails, too.
        let Ok(Some((compression, offset, size))) = section.compression(LittleEndian, bytes) else {
            continue;
        };
        if compression.ch_type(LittleEndian) != elf::ELFCOMPRESS_ZLIB {
            continue;
        }
        let packed = bytes.read_bytes_at(offset, size).ok();
        let claimed: u64 = compression.ch_size(LittleEndian).into();
        let left = most.checked_sub(sum)?;
        let real = match packed {
            Some(packed) if size.saturating_mul(RATIO) > left => {
                let mut unpacked = ZlibDecoder::new(packed).take(left + 1);
                // An error is blazesym's as well, after as many bytes.
                let _ = io::copy(&mut unpacked, &mut io::sink());
                left + 1 - unpacked.limit()
            }
            _ => 0,
        };
        sum = sum.saturating_add(claimed.max(real));
    }
    (sum <= most).then_some(sum)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::ZlibEncoder};

    use super::{MOST, unpacked};

    const SECTIONS_AT: usize = 64;
    const DATA_AT: usize = SECTIONS_AT + 64;

    /// An ELF file with one section, compressed, at an odd place.
    fn file(claimed: u64, packed: &[u8]) -> Vec<u8> {
        let mut file = vec![0; DATA_AT + 1];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01\x01");
        put(0x28, &(SECTIONS_AT as u64).to_le_bytes());
        put(0x3c, &1_u16.to_le_bytes());
        put(SECTIONS_AT + 4, &1_u32.to_le_bytes());
        put(SECTIONS_AT + 8, &0x800_u64.to_le_bytes());
        put(SECTIONS_AT + 0x18, &(DATA_AT as u64 + 1).to_le_bytes());
        put(
            SECTIONS_AT + 0x20,
            &(24 + packed.len() as u64).to_le_bytes(),
        );
        file.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        file.extend(claimed.to_le_bytes());
        file.extend(1_u64.to_le_bytes());
        file.extend(packed);
        file
    }

    #[test]
    fn claims_are_added_up_wherever_they_lie() {
        assert_eq!(unpacked(&file(4711, b""), MOST), Some(4711));
        assert_eq!(unpacked(&file(MOST, b""), MOST), Some(MOST));
        assert_eq!(unpacked(&file(MOST + 1, b""), MOST), None);
        assert_eq!(unpacked(&file(u64::MAX, b""), MOST), None);
        assert_eq!(unpacked(b"\x7fELF\x02", MOST), None);
        assert_eq!(unpacked(b"#!/bin/sh", MOST), Some(0));
        assert_eq!(unpacked(b"", MOST), Some(0));
    }

    /// blazesym takes what lies at the beginning of the file for section headers then.
    #[test]
    fn headers_at_the_beginning_are_headers() {
        let mut file = file(4711, b"");
        file[0x28..0x30].fill(0);
        file[8..16].copy_from_slice(&0x800_u64.to_le_bytes());
        // The section's offset and size are the file's entry point and the place of its program headers.
        let data = file.len() as u64;
        file[0x18..0x20].copy_from_slice(&data.to_le_bytes());
        file[0x20..0x28].copy_from_slice(&24_u64.to_le_bytes());
        file.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        file.extend(u64::MAX.to_le_bytes());
        file.extend([0; 8]);
        assert_eq!(unpacked(&file, MOST), None);
    }

    #[test]
    fn what_claims_little_and_holds_much_is_told() {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&vec![0; 1 << 20]).unwrap();
        let packed = encoder.finish().unwrap();
        assert!(packed.len() < 2 << 10, "{}", packed.len());
        let file = file(1, &packed);
        assert_eq!(unpacked(&file, (1 << 20) - 1), None);
        assert_eq!(unpacked(&file, 1 << 20), Some(1 << 20));
        // That much cannot come of so little, whatever it is: it is not unpacked.
        assert_eq!(unpacked(&file, 2 << 20), Some(1));
    }
}
