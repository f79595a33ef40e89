//! A mapping, as a line of `/proc/PID/maps` and `/proc/PID/smaps` tells it (fs/proc/task_mmu.c, `show_map_vma`).
//!
//! The path in it is the target's choice, byte by byte; procfs 0.18 panics on one that begins like a name of the
//! kernel's, as `/SYSV`.

/// What a mapping is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// A file, shared memory included; its path.
    File(String),
    /// The program break.
    Break,
    /// The stack of the first thread.
    Stack,
    /// Memory without a file.
    Anonymous,
    /// The kernel's own, as `[vdso]`.
    Kernel,
}

/// A mapping of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address, and one past the last.
    pub address: (u64, u64),
    /// Offset of its first byte in the file.
    pub offset: u64,
    /// Major and minor number of the file's device.
    pub device: (u32, u32),
    /// The file's inode; 0: it is no file's.
    pub inode: u64,
    /// The path, or what the kernel calls it; empty for memory without a name.
    pub name: String,
    /// `r`, `w`, `x` or `-`, and `p` for private or `s` for shared.
    permissions: String,
}

impl Mapping {
    /// `START-END PERMISSIONS OFFSET DEVICE INODE PATH`; none if it is no such line.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let mut words = line.trim_end_matches('\n').splitn(6, ' ');
        let (start, end) = words.next()?.split_once('-')?;
        let permissions = words.next()?.to_owned();
        let offset = hex(words.next()?)?;
        let (major, minor) = words.next()?.split_once(':')?;
        let device = |text| u32::from_str_radix(text, 16).ok();
        Some(Self {
            address: (hex(start)?, hex(end)?),
            offset,
            device: (device(major)?, device(minor)?),
            inode: words.next()?.parse().ok()?,
            name: words.next().unwrap_or_default().trim_start().to_owned(),
            permissions,
        })
    }

    /// All lines of `/proc/PID/maps`; the error is one that is none.
    pub(crate) fn parse_all(maps: &[u8]) -> Result<Vec<Self>, String> {
        let text = String::from_utf8_lossy(maps);
        let line = |line: &str| Self::parse(line).ok_or_else(|| line.to_owned());
        // A line feed in a path is escaped.
        text.split_terminator('\n').map(line).collect()
    }

    /// What it is of.
    pub fn backing(&self) -> Backing {
        match self.name.as_str() {
            path if self.inode != 0 => Backing::File(path.to_owned()),
            "[heap]" => Backing::Break,
            "[stack]" => Backing::Stack,
            // Anonymous memory may have a name: `[anon: Go: heap]`.
            name if name.is_empty() || name.starts_with("[anon") => Backing::Anonymous,
            _ => Backing::Kernel,
        }
    }

    /// Whether it can be read.
    pub fn is_readable(&self) -> bool {
        self.permissions.contains('r')
    }

    /// Whether it can be written.
    pub fn is_writable(&self) -> bool {
        self.permissions.contains('w')
    }

    /// Whether its code can be executed.
    pub fn is_executable(&self) -> bool {
        self.permissions.contains('x')
    }

    /// Whether what is written stays the process's own.
    pub fn is_private(&self) -> bool {
        self.permissions.contains('p')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_is_read() {
        let maps = "\
7f1c2a000000-7f1c2a021000 r-xp 00012000 fe:1f 1234                       /srv/a b:c (deleted)
7ffcbd5ae000-7ffcbd5cf000 rw-p 00000000 00:00 0 
7ffcbd5ff000-7ffcbd600000 r--s 00000000 00:00 0                          [anon: Go: heap]
";
        let mappings = Mapping::parse_all(maps.as_bytes()).unwrap();
        let [file, nameless, named] = &mappings[..] else {
            panic!("{mappings:?}");
        };
        assert_eq!(file.address, (0x7f1c_2a00_0000, 0x7f1c_2a02_1000));
        assert_eq!((file.offset, file.device), (0x12000, (0xfe, 0x1f)));
        assert_eq!(file.inode, 1234);
        let path = "/srv/a b:c (deleted)".to_owned();
        assert_eq!(file.backing(), Backing::File(path));
        assert!(file.is_readable() && file.is_executable() && file.is_private());
        assert!(!file.is_writable() && nameless.is_writable() && !named.is_private());
        assert_eq!(nameless.name, "");
        assert_eq!(named.backing(), Backing::Anonymous);
        assert_eq!(
            Mapping::parse_all(b"no mapping\n"),
            Err("no mapping".to_owned())
        );
    }

    /// Names that a file can have, and those that the kernel has given.
    #[test]
    fn any_name_is_read() {
        for name in ["/SYSV", "/SYSVé", "[stack:é", "[", "/ ", "/\u{fffd}"] {
            let line = format!("1000-2000 rw-p 00000000 08:01 7 {name}");
            assert_eq!(Mapping::parse(&line).unwrap().name, name);
        }
    }
}
