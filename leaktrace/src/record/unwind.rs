//! The unwind tables of a process: those of its files, at the addresses at which they are mapped.

use std::collections::{BTreeMap, HashMap};

use leaktrace_common::{UNWIND_CHUNK, UNWIND_PAGE, UnwindPage};

use crate::{
    capture::schema,
    loader::{LoadError, MapSizes, UnwindMaps},
    plan::{
        cgo::crossings,
        frame_rule::FrameRule,
        frame_table::{FrameTable, NoFrameTable, Page},
    },
    target::{
        AddressMap, Target,
        maps::{Module, Modules},
        open_image,
    },
};

/// Room that is kept for files that will be mapped later: 2 MiB of kernel memory for rows, 650 KiB for
/// pages.
const LATER_CHUNKS: u32 = 4;
const LATER_PAGES: u32 = 1 << 13;

/// The frame tables of the mapped files, and where they are mapped. A file without call frame information
/// (Go, or built so) is left to frame pointers, and each stack that breaks there says so.
pub(super) struct Unwind {
    /// For single return addresses of the executable, by link-time address.
    crossings: Vec<(u64, FrameRule)>,
    exe: String,
    sizes: MapSizes,
    /// By index of the module: tables that were read and are not in the kernel yet.
    waiting: HashMap<usize, FrameTable>,
    /// Pages of those that are, their first rows as in the kernel; none for a file without a table.
    placed: HashMap<usize, Vec<Page>>,
    /// Mappings whose pages lead to rows, by first address.
    mapped: BTreeMap<u64, Mapping>,
    limits: Vec<schema::Limit>,
    pages_left_out: u64,
}

/// Code of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Mapping {
    end: u64,
    file_offset: u64,
    module: usize,
}

impl Unwind {
    /// Reads the tables of everything that is mapped now, as far as `sizes` allows.
    pub(super) fn prepare(
        target: &Target,
        map: &AddressMap,
        modules: &mut Modules,
        sizes: MapSizes,
    ) -> Self {
        let go = target.go.as_ref().and_then(|go| go.as_ref().ok());
        let mut unwind = Self {
            crossings: go.map_or_else(Vec::new, |go| crossings(&go.binary)),
            exe: target.exe.clone(),
            sizes,
            waiting: HashMap::new(),
            placed: HashMap::new(),
            mapped: BTreeMap::new(),
            limits: Vec::new(),
            pages_left_out: 0,
        };
        let (mut rows, mut pages) = (0, 0);
        for mapping in code(map, modules).into_values() {
            if unwind.waiting.contains_key(&mapping.module) {
                continue;
            }
            let room = (sizes.unwind_rows() as usize).saturating_sub(rows);
            if let Some(module) = modules.get(mapping.module)
                && let Some(table) = unwind.read(module, room)
            {
                rows += table.rows.len();
                pages += table.pages.len();
                unwind.waiting.insert(mapping.module, table);
            }
        }
        // A chunk is not filled to the last row.
        let chunks = rows.div_ceil(UNWIND_CHUNK as usize - UNWIND_PAGE as usize) as u32;
        unwind.sizes.unwind_chunks = sizes.unwind_chunks.min(chunks + LATER_CHUNKS);
        unwind.sizes.unwind_pages = sizes.unwind_pages.min(pages as u32 + LATER_PAGES);
        unwind
    }

    /// The sizes that the kernel's maps need for it.
    pub(super) fn sizes(&self) -> MapSizes {
        self.sizes
    }

    /// Brings the kernel's tables in line with what is mapped now.
    ///
    /// # Errors
    ///
    /// The kernel's tables cannot be written.
    pub(super) fn update(
        &mut self,
        maps: &mut UnwindMaps,
        map: &AddressMap,
        modules: &mut Modules,
    ) -> Result<(), LoadError> {
        let now = code(map, modules);
        let before = std::mem::take(&mut self.mapped);
        for (start, mapping) in &before {
            if now.get(start) != Some(mapping) {
                self.pages(*start, mapping)
                    .for_each(|(number, _)| maps.remove_page(number));
            }
        }
        for (start, mapping) in &now {
            if before.get(start) == Some(mapping) {
                continue;
            }
            if !self.placed.contains_key(&mapping.module) {
                let placed = self
                    .place(maps, modules, mapping.module)
                    .unwrap_or_default();
                self.placed.insert(mapping.module, placed);
            }
            let mut left_out = 0;
            for (number, page) in self.pages(*start, mapping) {
                left_out += u64::from(!maps.set_page(number, page)?);
            }
            self.pages_left_out += left_out;
        }
        self.mapped = now;
        Ok(())
    }

    /// What is walked by frame pointers though it has call frame information.
    pub(super) fn limits(&self) -> impl Iterator<Item = schema::Limit> {
        let pages = (self.pages_left_out > 0).then(|| schema::Limit {
            what: "stacks through some code without frame pointers".to_owned(),
            reason: format!(
                "{} pages of code found no room in the unwind tables",
                self.pages_left_out
            ),
        });
        self.limits.iter().cloned().chain(pages)
    }

    /// Puts the table of a module into the kernel.
    fn place(
        &mut self,
        maps: &mut UnwindMaps,
        modules: &Modules,
        index: usize,
    ) -> Option<Vec<Page>> {
        let table = match self.waiting.remove(&index) {
            Some(table) => table,
            None => self.read(modules.get(index)?, maps.room())?,
        };
        let mut pages = Vec::with_capacity(table.pages.len());
        for page in table.pages {
            let rows = &table.rows[page.first as usize..][..page.rows as usize];
            match maps.add_rows(rows) {
                Some(first) => pages.push(Page { first, ..page }),
                None => self.pages_left_out += 1,
            }
        }
        Some(pages)
    }

    fn read(&mut self, module: &Module, room: usize) -> Option<FrameTable> {
        let path = &module.path;
        let rules = match *path == self.exe {
            true => &self.crossings[..],
            false => &[],
        };
        match FrameTable::new(&open_image(&module.open_path()?).ok()?, rules, room) {
            Ok(table) => Some(table),
            Err(error @ NoFrameTable::TooLarge) => {
                self.limits.push(schema::Limit {
                    what: format!("stacks through code of `{path}` without frame pointers"),
                    reason: error.to_string(),
                });
                None
            }
            Err(NoFrameTable::Elf(_) | NoFrameTable::NoFrames) => None,
        }
    }

    /// The pages of a mapping that have rows: their addresses divided by the size, and where the rows are.
    fn pages(&self, start: u64, mapping: &Mapping) -> impl Iterator<Item = (u64, UnwindPage)> {
        const SIZE: u64 = UNWIND_PAGE as u64;
        let from = mapping.file_offset / SIZE;
        let to = from + (mapping.end - start).div_ceil(SIZE);
        let pages = self
            .placed
            .get(&mapping.module)
            .map_or(&[][..], Vec::as_slice);
        let index = |number| pages.partition_point(|page| u64::from(page.number) < number);
        let pages = &pages[index(from)..index(to)];
        let lead = move |Page {
                             number,
                             first,
                             rows,
                         }| {
            let number = start / SIZE + (u64::from(number) - from);
            (number, UnwindPage { first, rows })
        };
        pages.iter().copied().map(lead)
    }
}

/// The executable mappings of files, by first address.
fn code(map: &AddressMap, modules: &mut Modules) -> BTreeMap<u64, Mapping> {
    let files = map
        .executable()
        .filter(|mapping| AddressMap::file_id(mapping).is_some());
    files
        .map(|mapping| {
            let (start, end) = mapping.address;
            let module = modules.intern(map, mapping);
            let file_offset = mapping.offset;
            let mapping = Mapping {
                end,
                file_offset,
                module,
            };
            (start, mapping)
        })
        .collect()
}
