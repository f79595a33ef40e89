//! Flags of the system calls, from the kernel's headers.

/// `MAP_FIXED`, include/uapi/asm-generic/mman-common.h.
pub(super) const MAP_FIXED: u32 = 0x10;
/// `MAP_HUGETLB`: the length is rounded up to huge pages (mm/mmap.c, `ksys_mmap_pgoff`).
pub(super) const MAP_HUGETLB: u32 = 0x4_0000;
/// `MAP_FIXED_NOREPLACE` wins over `MAP_FIXED`: it fails where something is mapped.
pub(super) const MAP_FIXED_NOREPLACE: u32 = 0x10_0000;
/// Where the flags of `MAP_HUGETLB` hold the huge page size, as a power of two; 0 is the default.
pub(super) const MAP_HUGE_SHIFT: u32 = 26;
pub(super) const MAP_HUGE_MASK: u32 = 0x3f;
/// x86-64's and arm64's (4 KiB pages) default huge page.
pub(super) const DEFAULT_HUGE_PAGE: u64 = 2 << 20;
/// `MREMAP_FIXED`, include/uapi/linux/mman.h.
pub(super) const MREMAP_FIXED: u32 = 2;
pub(super) const MREMAP_DONTUNMAP: u32 = 4;
