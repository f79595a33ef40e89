//! `record --retention` for native allocators: which of the blocks that are alive at the end something still
//! points to. It is done while their frees are still seen, so that what is freed meanwhile is not called lost.

use std::{collections::HashMap, io};

use anyhow::{Result, bail};

use super::{Recorder, Session, limit, overhead::Overhead, retention};
use crate::{
    go::{DataSymbols, Place},
    inventory::Watch,
    inventory::references::{self, Block, Fate, Found, Root},
    overhead::Family,
    report::{
        LimitReport, human,
        why::{Amount, Holder, Pass, RootKind, SCHEMA, Why, WhySite, WhyTarget},
    },
    stop_signals::{StopSignals, watched},
    target::{AddressMap, AreaKind, Backing, Target, open_image},
};

/// What a limit calls it.
const WHAT: &str = "what still points to native blocks";
/// Sites that are told at most, those with the most bytes.
const SITES: usize = 256;
/// Holders told of each.
const HOLDERS: usize = 8;

impl Session<'_> {
    /// Looks what still points to the blocks that are alive, in so many bytes of memory at most. A signal ends
    /// it early. What cannot be told becomes a limit.
    pub(super) async fn look_for_references(
        &mut self,
        max_memory: u64,
        in_windows: bool,
        signals: &mut StopSignals,
        recorder: &mut dyn Recorder,
    ) {
        let overhead = self.overhead.as_ref();
        let are_gone = overhead.is_some_and(|overhead| !overhead.has(Family::Malloc));
        if !self.drain.follows_malloc() && !in_windows && !are_gone {
            return;
        }
        let found = self.references(max_memory, in_windows, are_gone, signals, recorder);
        match found.await.and_then(|mut why| retention::block(&mut why)) {
            Ok(found) => self.retention = Some(found),
            Err(error) => self.limits.push(limit(WHAT, &format!("{error:#}"))),
        }
    }

    async fn references(
        &mut self,
        max_memory: u64,
        in_windows: bool,
        are_gone: bool,
        signals: &mut StopSignals,
        recorder: &mut dyn Recorder,
    ) -> Result<Why> {
        if in_windows {
            bail!("their frees between windows are not seen, so nobody knows which of them live");
        }
        if self.forks.is_some() {
            bail!("it is told of one process, not of those that it makes");
        }
        if are_gone {
            bail!("their probes have been taken away");
        }
        let mut blocks = Vec::new();
        self.drain.each_live_block(|block, _| blocks.push(block))?;
        blocks.sort_unstable();
        let needed = references::needed(&blocks);
        if needed > max_memory {
            bail!(
                "{} live: {needed} bytes of memory are needed, {max_memory} are allowed (--max-memory)",
                human::count(blocks.len() as u64, "block")
            );
        }
        let (areas, present) = (self.target.writable()?, self.target.present()?);
        let memory = self.target.memory;
        let watch = Watch::within(self.overhead.as_ref().and_then(Overhead::bound));
        let registers = self.drain.thread_registers().transpose();
        let registers = registers.map_err(anyhow::Error::new);
        let registers = move || match &registers {
            Ok(Some(registers)) => registers.read(),
            Ok(None) => Ok(Vec::new()),
            Err(reason) => Err(io::Error::other(format!("{reason:#}"))),
        };
        let search = move |watch: &Watch| {
            references::find(memory, &present, &areas, &registers, blocks, watch)
        };
        let found = watched(watch, search, signals, |watch| recorder.looking(watch)).await?;
        let mut tally = Tally::new(&found);
        self.drain
            .each_live_block(|block, stands_for| tally.add(&block, stands_for))?;
        let names = Names::new(self.target)?;
        Ok(tally.report(self.target, names))
    }
}

/// What was found, by site.
struct Tally<'a> {
    found: &'a Found,
    sites: HashMap<u32, Of>,
}

#[derive(Default)]
struct Of {
    site: WhySite,
    /// By kind, and for variables by address.
    holders: HashMap<Root, Amount>,
}

impl<'a> Tally<'a> {
    fn new(found: &'a Found) -> Self {
        Self {
            found,
            sites: HashMap::new(),
        }
    }

    /// Takes in a block that is alive now; one that was not looked at is younger, and left out.
    fn add(&mut self, block: &Block, stands_for: f64) {
        let Some(fate) = self.found.fate(block) else {
            return;
        };
        let of = self.sites.entry(block.site).or_default();
        let bytes = block.size as f64 * stands_for;
        of.site.total.add(stands_for, bytes);
        let amount = match fate {
            Fate::Held(root) => {
                let told = match root {
                    Root::Word(AreaKind::Data, _) | Root::Register => root,
                    Root::Word(kind, _) => Root::Word(kind, 0),
                };
                of.holders.entry(told).or_default()
            }
            _ if self.found.looked.is_cut => &mut of.site.unchecked,
            Fate::Lost => &mut of.site.lost,
            Fate::LostBehind => &mut of.site.lost_behind,
        };
        amount.add(stands_for, bytes);
    }

    fn report(self, target: &Target, mut names: Names) -> Why {
        let (looked, blocks) = (&self.found.looked, &self.found.blocks);
        let mut sites: Vec<(u32, Of)> = self.sites.into_iter().collect();
        let size = |of: &Of| of.site.total.bytes;
        sites.sort_by(|(a, of_a), (b, of_b)| size(of_b).total_cmp(&size(of_a)).then(a.cmp(b)));
        let sites_total = sites.len() as u64;
        sites.truncate(SITES);
        let sites = sites.into_iter().zip(1..).map(|((number, of), rank)| {
            let held = of.holders.into_iter();
            let holders = held.map(|(root, amount)| names.holder(root, amount));
            let mut site = WhySite {
                rank,
                capture_sites: vec![number],
                holders: holders.collect(),
                ..of.site
            };
            site.merge_holders(HOLDERS);
            site
        });
        let unread = (looked.unread_bytes > 0).then(|| {
            let bytes = human::bytes(looked.unread_bytes as f64);
            format!("{bytes} could not be read or were swapped out: what only they point to is called lost")
        });
        let no_registers = self.found.no_registers.as_ref().map(|reason| {
            format!("registers of threads could not be read: {reason}; what only they point to is called lost")
        });
        let limits = unread.into_iter().chain(no_registers);
        let limits = limits.map(|reason| LimitReport {
            what: WHAT.to_owned(),
            reason,
        });
        Why {
            schema: SCHEMA,
            target: WhyTarget {
                pid: target.pid,
                comm: target.comm.clone(),
                exe: target.exe.clone(),
                runtime: "native".to_owned(),
                ..WhyTarget::default()
            },
            sites: sites.collect(),
            sites_total,
            pass: Pass {
                heap_bytes: blocks.iter().map(|block| block.size).sum(),
                scanned_bytes: looked.scanned_bytes,
                unread_bytes: looked.unread_bytes,
                reached_objects: blocks.len() as u64,
                passes: looked.passes,
                stopped: looked.is_cut,
                took_ms: looked.took_ms,
                ..Pass::default()
            },
            limits: limits.collect(),
        }
    }
}

/// Names of variables, by the files that they are of.
struct Names {
    map: AddressMap,
    /// By path: its variables, and the load bias.
    files: HashMap<String, Option<(DataSymbols, u64)>>,
}

impl Names {
    fn new(target: &Target) -> Result<Self> {
        Ok(Self {
            map: target.address_map()?,
            files: HashMap::new(),
        })
    }

    fn holder(&mut self, root: Root, amount: Amount) -> Holder {
        let mut holder = Holder {
            kind: match root {
                Root::Word(AreaKind::Data, _) => RootKind::Variable,
                Root::Word(AreaKind::Stack, _) => RootKind::Stack,
                Root::Word(AreaKind::Memory, _) => RootKind::Memory,
                Root::Register => RootKind::Registers,
            },
            amount,
            ..Holder::default()
        };
        if let Root::Word(AreaKind::Data, at) = root {
            let (module, place) = self.place(at).unwrap_or_default();
            holder.module = Some(module).filter(|module| !module.is_empty());
            let is_named = place.section.is_some() || place.symbol.is_some();
            holder.offset = Some(if is_named { place.offset } else { at });
            holder.section = place.section;
            holder.symbol = place.symbol;
        }
        holder
    }

    /// The file whose data an address is in, and where in it.
    fn place(&mut self, at: u64) -> Option<(String, Place)> {
        let (mapping, start) = self.map.data_of(at)?;
        let Backing::File(path) = mapping.backing() else {
            return None;
        };
        let file = self.files.entry(path.clone()).or_insert_with(|| {
            let module = self.map.open_module(mapping);
            let image = open_image(&module.open_path()?).ok()?;
            let (symbols, first) = DataSymbols::of_file(image)?;
            Some((symbols, start.wrapping_sub(first)))
        });
        let place = file
            .as_ref()
            .map(|(symbols, bias)| symbols.place(at.wrapping_sub(*bias)));
        Some((path, place.unwrap_or_default()))
    }
}
