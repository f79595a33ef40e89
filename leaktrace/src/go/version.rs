//! The Go version a binary was built with: `.go.buildinfo`.
//!
//! Format: debug/buildinfo/buildinfo.go, Go 1.19 to 1.27. Go ≥ 1.18 writes the strings inline,
//! earlier versions (and `-linkmode=external` of some) write pointers to string headers.

use super::elf::Elf;

const MAGIC: &[u8] = b"\xff Go buildinf:";
/// Flags byte: bit 1 says that the strings follow inline.
const FLAG_INLINE: u8 = 2;
const MAX_VERSION: u64 = 256;

/// A Go release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoVersion {
    /// 1.
    pub major: u32,
    /// 27 for Go 1.27.3.
    pub minor: u32,
    /// 3 for Go 1.27.3; absent for betas, release candidates and development versions.
    pub patch: Option<u32>,
    /// As the binary has it, e.g. `go1.27.3` or `devel go1.24-abcdef`.
    pub text: String,
}

impl GoVersion {
    /// Understands `go1.27.3`, `go1.22.1 X:experiment`, `go1.26rc1` and `devel go1.24-abcdef`.
    pub fn parse(text: &str) -> Option<GoVersion> {
        let numbers = &text[text.find("go")? + 2..];
        let (major, rest) = number(numbers)?;
        let (minor, rest) = number(rest.strip_prefix('.')?)?;
        let patch = rest
            .strip_prefix('.')
            .and_then(number)
            .map(|(patch, _)| patch);
        Some(GoVersion {
            major,
            minor,
            patch,
            text: text.to_owned(),
        })
    }
}

impl GoVersion {
    /// Whether it is a release: no beta, release candidate or development version. What follows the
    /// number after a space or a dash is a distributor's or names experiments.
    pub(super) fn is_release(&self) -> bool {
        let number = self.text.strip_prefix("go").unwrap_or_default();
        let end = number.find([' ', '-', '+']).unwrap_or(number.len());
        let mut parts = number[..end].split('.');
        self.text.starts_with("go") && parts.all(|part| part.parse::<u32>().is_ok())
    }

    /// The GOEXPERIMENTs it was built with that differ from the release's own (`X:a,b`).
    pub(super) fn experiments(&self) -> impl Iterator<Item = &str> {
        let experiments = self
            .text
            .split(' ')
            .find_map(|word| word.strip_prefix("X:"));
        experiments.into_iter().flat_map(|names| names.split(','))
    }
}

fn number(text: &str) -> Option<(u32, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

/// The version text of a Go binary. `None`: there is no build info, so it is not Go.
pub(super) fn read(elf: &Elf) -> Option<Option<String>> {
    let address = find(elf)?;
    Some(read_at(elf, address))
}

/// The section, or else the magic in the first mebibyte of a writable segment.
fn find(elf: &Elf) -> Option<u64> {
    let is_magic = |address| elf.read(address, MAGIC.len() as u64) == Some(MAGIC);
    if let Some(section) = elf.section(".go.buildinfo")
        && is_magic(section.address)
    {
        return Some(section.address);
    }
    elf.segments
        .iter()
        .filter(|segment| segment.writable)
        .find_map(|segment| {
            let bytes = elf.read(segment.address, segment.file_size.min(1 << 20))?;
            let at = bytes
                .chunks(16)
                .position(|chunk| chunk.starts_with(MAGIC))?;
            segment.address.checked_add(16 * at as u64)
        })
}

fn read_at(elf: &Elf, address: u64) -> Option<String> {
    let header = elf.read(address, 32)?;
    let bytes = if header.get(15)? & FLAG_INLINE != 0 {
        let at = address.checked_add(32)?;
        let length = elf.read(at, 2)?;
        // A version is shorter than 2^14 bytes: the length is a varint of one or two bytes.
        let (length, skip) = match length {
            [low, _] if *low < 0x80 => (u64::from(*low), 1),
            [low, high] if *high < 0x80 => (u64::from(*low & 0x7f) | u64::from(*high) << 7, 2),
            _ => return None,
        };
        elf.read(at.checked_add(skip)?, length.min(MAX_VERSION))?
    } else {
        if *header.get(14)? != 8 {
            return None;
        }
        // In a position-independent file the pointers are relocations.
        let string = *elf.words(address.checked_add(16)?, 1)?.first()?;
        let words = elf.words(string, 2)?;
        let length = words.get(1)?.min(&MAX_VERSION);
        elf.read(*words.first()?, *length)?
    };
    String::from_utf8(bytes.to_vec()).ok()
}

/// The Go build id and the GNU build id, the latter in hex.
pub(crate) fn build_ids(elf: &Elf) -> (Option<String>, Option<String>) {
    let go = elf
        .note(".note.go.buildid", b"Go\0\0", 4)
        .and_then(|id| String::from_utf8(id.to_vec()).ok());
    let gnu = elf.note(".note.gnu.build-id", b"GNU\0", 3).map(|id| {
        id.iter()
            .take(64)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    });
    (go, gnu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let parsed = |text| GoVersion::parse(text).map(|v| (v.major, v.minor, v.patch));
        assert_eq!(parsed("go1.27.3"), Some((1, 27, Some(3))));
        assert_eq!(parsed("go1.22.1 X:boringcrypto"), Some((1, 22, Some(1))));
        assert_eq!(parsed("go1.26rc1"), Some((1, 26, None)));
        assert_eq!(parsed("devel go1.24-abcdef Mon"), Some((1, 24, None)));
        assert_eq!(parsed("go"), None);
        assert_eq!(parsed("gox.y"), None);
        assert_eq!(parsed("go1.99999999999"), None);
    }
}
