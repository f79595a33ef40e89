//! The kernel side's unwind tables, written while it reads them.

use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::{HashMap, Map, MapData, MapError};
use leaktrace_common::{UNWIND_CHUNK, UnwindPage, UnwindRow};
use memmap2::{MmapMut, MmapOptions};

use super::{LoadError, Loaded, MapSizes};

/// The tables of a loaded kernel side. Rows are only ever added: whoever reads sees a page with all its
/// rows or not at all.
pub struct UnwindMaps {
    rows: MmapMut,
    used: u32,
    sizes: MapSizes,
    pages: HashMap<MapData, u64, UnwindPage>,
    /// Keeps the rows' map open until all programs are loaded.
    _map: Map,
}

impl UnwindMaps {
    /// Takes the tables out of `loaded`, which was loaded with these sizes.
    ///
    /// # Errors
    ///
    /// The object lacks a map, or it cannot be mapped.
    pub fn take(loaded: &mut Loaded, sizes: MapSizes) -> Result<Self, LoadError> {
        let mut take = |name: &str| {
            let map = loaded.ebpf.take_map(name);
            map.ok_or_else(|| LoadError::other("find a map in the BPF object", name.to_owned()))
        };
        let pages = HashMap::try_from(take("UNWIND_PAGES")?)
            .map_err(|error| LoadError::other("use a map", error))?;
        let map = take("UNWIND_ROWS")?;
        let Map::Array(data) = &map else {
            return Err(LoadError::other("use a map", "it is no array".to_owned()));
        };
        let len = sizes.unwind_rows() as usize * size_of::<UnwindRow>();
        // SAFETY: the memory is the map's: it does not shrink, nobody but this process writes it, and the
        // kernel side reads a row only after it was written, when a page leads to it.
        let rows = unsafe {
            MmapOptions::new()
                .len(len)
                .map_mut(data.fd().as_fd().as_raw_fd())
        }
        .map_err(|error| LoadError::other("map the unwind tables", error))?;
        Ok(Self {
            rows,
            used: 0,
            sizes,
            pages,
            _map: map,
        })
    }

    /// Rows for which there is room yet.
    pub fn room(&self) -> usize {
        (self.sizes.unwind_rows() - self.used) as usize
    }

    /// Adds the rows of a page, all in one chunk; gives the index of the first. `None`: there is no room
    /// for so many.
    pub fn add_rows(&mut self, rows: &[UnwindRow]) -> Option<u32> {
        const SIZE: usize = size_of::<UnwindRow>();
        let len = rows.len() as u32;
        let mut first = self.used;
        if first % UNWIND_CHUNK + len > UNWIND_CHUNK {
            first = first.next_multiple_of(UNWIND_CHUNK);
        }
        if first + len > self.sizes.unwind_rows() {
            return None;
        }
        let places = self.rows[first as usize * SIZE..].chunks_exact_mut(SIZE);
        for (row, place) in rows.iter().zip(places) {
            place[..4].copy_from_slice(&row.cfa.to_ne_bytes());
            place[4..6].copy_from_slice(&row.saved_bp.to_ne_bytes());
            place[6..].copy_from_slice(&row.at.to_ne_bytes());
        }
        self.used = first + len;
        Some(first)
    }

    /// Leads from a page of code, by its address divided by its size, to its rows. Gives whether there
    /// was room.
    ///
    /// # Errors
    ///
    /// The map cannot be written.
    pub fn set_page(&mut self, number: u64, page: UnwindPage) -> Result<bool, LoadError> {
        const E2BIG: i32 = nix::libc::E2BIG;
        match self.pages.insert(number, page, 0) {
            Ok(()) => Ok(true),
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(E2BIG) => {
                Ok(false)
            }
            Err(error) => Err(LoadError::other("write the unwind tables", error)),
        }
    }

    /// Forgets the rows of a page of code, if it has any: it is not mapped any more.
    pub fn remove_page(&mut self, number: u64) {
        let _ = self.pages.remove(&number);
    }
}
