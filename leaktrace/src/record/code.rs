//! The target's code: its executable mappings, the files behind them, and the addresses seen.

use std::{collections::HashSet, path::PathBuf};

use crate::{
    capture::schema,
    symbolize::{self, Debuginfod, PcKind, Symbolizer},
    target::{Target, maps::Modules},
};

/// What is executable in the target. The files stay open, so that they can be read after they were
/// replaced or deleted, and after the target has ended.
pub struct Code {
    modules: Modules,
    schema_modules: Vec<schema::Module>,
    mappings: Vec<schema::Mapping>,
    addresses: HashSet<(u64, PcKind)>,
}

impl Code {
    pub(super) fn new(modules: Modules) -> Self {
        Self {
            modules,
            schema_modules: Vec::new(),
            mappings: Vec::new(),
            addresses: HashSet::new(),
        }
    }

    /// Keeps the addresses that an interval names, and adds the mappings to it that are new; they are
    /// looked for at the attach, and when an address is in none that is known. Gives whether they were.
    pub(super) fn take(&mut self, interval: &mut schema::Interval, target: &Target) -> bool {
        self.addresses.extend(symbolize::addresses_in(interval));
        let looks = interval.index == 0 || self.misses(interval);
        if looks {
            self.find_mappings(interval, target);
        }
        looks
    }

    /// The files that are open.
    pub(super) fn modules(&mut self) -> &mut Modules {
        &mut self.modules
    }

    /// A path under which this process can open a module's file, while `self` lives.
    pub fn open_path(&self, module: &symbolize::Module) -> Option<PathBuf> {
        self.modules
            .open_path(&module.path, module.build_id.as_deref())
    }

    /// The name of every address seen, or why it has none.
    pub fn symbols(&self) -> schema::Symbols {
        let addresses: Vec<_> = self.addresses.iter().copied().collect();
        Symbolizer::from_capture(&self.schema_modules, &self.mappings, |module| {
            self.open_path(module)
        })
        .with_debuginfod(Debuginfod::from_env())
        .symbols(&addresses)
    }

    fn misses(&self, interval: &schema::Interval) -> bool {
        let known = |(pc, _): (u64, PcKind)| {
            let mut mappings = self.mappings.iter();
            mappings.any(|m| (m.start..m.end).contains(&pc))
        };
        !symbolize::addresses_in(interval).all(known)
    }

    fn find_mappings(&mut self, interval: &mut schema::Interval, target: &Target) {
        let Ok(map) = target.address_map() else {
            return;
        };
        for mapping in map.executable() {
            let (start, end) = mapping.address;
            if self
                .mappings
                .iter()
                .any(|m| (m.start, m.end) == (start, end))
            {
                continue;
            }
            let index = self.modules.intern(&map, mapping);
            let id = index as u32 + 1;
            let is_new = self.schema_modules.iter().all(|module| module.id != id);
            if is_new && let Some(module) = self.modules.get(index) {
                let module = schema::Module {
                    id,
                    path: module.path.clone(),
                    build_id: module.build_id.clone().unwrap_or_default(),
                };
                self.schema_modules.push(module.clone());
                interval.modules.push(module);
            }
            let mapping = schema::Mapping {
                start,
                end,
                file_offset: mapping.offset,
                module: id,
            };
            self.mappings.push(mapping);
            interval.mappings.push(mapping);
        }
    }
}
