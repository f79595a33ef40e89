use std::collections::{BTreeMap, BTreeSet};

use leaktrace_common::EVENT_GC;
use proptest::prelude::*;

use super::*;

mod race;
use race::Race;

const PAGE: u64 = 4096;
const BASE: u64 = 0x7000_0000_0000;

/// What the changes add up to: live (objects, bytes) by stack, kind and cohort. Allocations are
/// booked to `cohort`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ledger {
    live: BTreeMap<(u64, u32, u32), (i64, i64)>,
    cohort: u32,
}

impl Ledger {
    fn book(&mut self, change: Change) {
        let (key, objects, bytes) = match change {
            Change::Alloc {
                stack,
                kind,
                objects,
                bytes,
            } => ((stack.0, kind, self.cohort), objects as i64, bytes as i64),
            Change::Free {
                stack,
                kind,
                objects,
                bytes,
                cohort,
            } => ((stack.0, kind, cohort), -(objects as i64), -(bytes as i64)),
        };
        let entry = self.live.entry(key).or_default();
        *entry = (entry.0 + objects, entry.1 + bytes);
        if *entry == (0, 0) {
            self.live.remove(&key);
        }
    }

    fn bytes_by_stack(&self) -> BTreeMap<u64, i64> {
        let mut sums = BTreeMap::new();
        for (&(stack, ..), &(_, bytes)) in &self.live {
            *sums.entry(stack).or_default() += bytes;
        }
        sums.retain(|_, &mut bytes| bytes != 0);
        sums
    }
}

/// An address space and its ledger; every call takes one tick to enter and one to return.
struct Replay {
    space: AddressSpace,
    ledger: Ledger,
    clock: u64,
}

impl Replay {
    fn new() -> Self {
        let ledger = Ledger {
            cohort: 1,
            ..Ledger::default()
        };
        Self {
            space: AddressSpace::new(PAGE),
            ledger,
            clock: 0,
        }
    }

    fn cohort(&mut self, cohort: u32) {
        self.space.set_cohort(cohort);
        self.ledger.cohort = cohort;
    }

    fn event(&mut self, event: VmEvent) {
        let ledger = &mut self.ledger;
        self.space.apply(&event, &mut |change| ledger.book(change));
    }

    fn now(&mut self, event: VmEvent) {
        self.clock += 2;
        self.event(VmEvent {
            entered: Ktime(self.clock - 1),
            returned: Ktime(self.clock),
            ..event
        });
    }

    /// Live (stack, objects, pages).
    fn live(&self) -> Vec<(u64, i64, i64)> {
        let page = PAGE as i64;
        self.ledger
            .live
            .iter()
            .map(|(k, v)| (k.0, v.0, v.1 / page))
            .collect()
    }
}

fn mmap(stack: u64, page: u64, pages: u64) -> VmEvent {
    let (addr, len) = (BASE + page * PAGE, pages * PAGE);
    VmEvent {
        event: EVENT_MMAP,
        stack: StackId(stack),
        addr,
        len,
        ..VmEvent::default()
    }
}

fn fixed(stack: u64, page: u64, pages: u64) -> VmEvent {
    VmEvent {
        flags: MAP_FIXED,
        ..mmap(stack, page, pages)
    }
}

fn munmap(page: u64, pages: u64) -> VmEvent {
    VmEvent {
        event: EVENT_MUNMAP,
        ..mmap(0, page, pages)
    }
}

fn mremap(stack: u64, old: (u64, u64), new: (u64, u64), flags: u32) -> VmEvent {
    let (old_addr, old_len) = (BASE + old.0 * PAGE, old.1 * PAGE);
    VmEvent {
        event: EVENT_MREMAP,
        old_addr,
        old_len,
        flags,
        ..mmap(stack, new.0, new.1)
    }
}

fn brk(stack: u64, addr: u64) -> VmEvent {
    VmEvent {
        event: EVENT_BRK,
        stack: StackId(stack),
        addr,
        ..VmEvent::default()
    }
}

fn at(event: VmEvent, entered: u64, returned: u64) -> VmEvent {
    VmEvent {
        entered: Ktime(entered),
        returned: Ktime(returned),
        ..event
    }
}

#[test]
fn lengths_are_rounded_up_to_pages() {
    let mut replay = Replay::new();
    replay.now(VmEvent {
        len: 1,
        ..mmap(7, 0, 0)
    });
    replay.now(VmEvent {
        len: PAGE + 1,
        ..mmap(8, 4, 0)
    });
    let huge = 1 << MAP_HUGE_SHIFT;
    replay.now(VmEvent {
        flags: MAP_HUGETLB,
        len: 1,
        ..mmap(9, 512, 0)
    });
    replay.now(VmEvent {
        flags: MAP_HUGETLB | (21 * huge),
        len: 1,
        ..mmap(10, 1024, 0)
    });
    assert_eq!(
        replay.live(),
        [(7, 1, 1), (8, 1, 2), (9, 1, 512), (10, 1, 512)]
    );
    replay.now(VmEvent {
        len: 1,
        ..munmap(0, 0)
    });
    assert_eq!(replay.live(), [(8, 1, 2), (9, 1, 512), (10, 1, 512)]);
}

#[test]
fn a_mapping_is_one_object_until_its_last_page_goes() {
    let mut replay = Replay::new();
    replay.now(mmap(7, 0, 4));
    replay.now(munmap(1, 2));
    assert_eq!(replay.live(), [(7, 1, 2)]);
    replay.now(munmap(0, 1));
    assert_eq!(replay.live(), [(7, 1, 1)]);
    replay.now(munmap(3, 1));
    assert_eq!(replay.live(), []);
}

#[test]
fn one_munmap_cuts_several_mappings() {
    let mut replay = Replay::new();
    for (stack, page) in [(7, 0), (8, 2), (9, 4)] {
        replay.now(mmap(stack, page, 2));
    }
    replay.now(munmap(1, 4));
    assert_eq!(replay.live(), [(7, 1, 1), (9, 1, 1)]);
}

#[test]
fn a_fixed_mapping_replaces() {
    let mut replay = Replay::new();
    replay.now(mmap(7, 0, 4));
    replay.now(fixed(8, 1, 2));
    assert_eq!(replay.live(), [(7, 1, 2), (8, 1, 2)]);
    replay.now(munmap(0, 4));
    assert_eq!(replay.live(), []);
}

#[test]
fn mremap_grows_and_shrinks_in_place() {
    let mut replay = Replay::new();
    replay.now(mmap(7, 0, 2));
    replay.now(mremap(8, (0, 2), (0, 5), 1));
    assert_eq!(replay.live(), [(7, 1, 2), (8, 1, 3)]);
    replay.now(mremap(9, (0, 5), (0, 1), 1));
    assert_eq!(replay.live(), [(7, 1, 1)]);
}

/// The bytes that move keep site and birth, the added ones are the mover's.
#[test]
fn mremap_moves_and_grows() {
    let mut replay = Replay::new();
    replay.now(mmap(7, 0, 2));
    replay.cohort(2);
    replay.now(mremap(8, (0, 2), (10, 3), 1));
    let live: Vec<_> = replay.ledger.live.clone().into_iter().collect();
    assert_eq!(
        live,
        [
            ((7, KIND_MMAP, 1), (1, 8192)),
            ((8, KIND_MMAP, 2), (1, 4096))
        ]
    );
    replay.now(munmap(0, 2));
    assert_eq!(
        replay.live(),
        [(7, 1, 2), (8, 1, 1)],
        "nothing is left at the old place"
    );
    replay.now(munmap(10, 3));
    assert_eq!(replay.live(), []);
}

#[test]
fn mremap_fixed_frees_the_destination() {
    let mut replay = Replay::new();
    replay.now(mmap(7, 0, 3));
    replay.now(mmap(8, 10, 4));
    replay.now(mremap(9, (0, 3), (11, 2), 1 | MREMAP_FIXED));
    assert_eq!(replay.live(), [(7, 1, 2), (8, 1, 2)]);
}

#[test]
fn mremap_dontunmap_and_duplicate_map_twice() {
    let mut replay = Replay::new();
    replay.now(mmap(7, 0, 2));
    replay.now(mremap(8, (0, 2), (10, 2), 1 | MREMAP_DONTUNMAP));
    assert_eq!(replay.live(), [(7, 1, 2), (8, 1, 2)]);
    replay.now(munmap(0, 2));
    assert_eq!(replay.live(), [(7, 1, 2)], "the old range was the mover's");
    replay.now(mremap(9, (10, 0), (20, 2), 1));
    assert_eq!(replay.live(), [(7, 1, 2), (9, 1, 2)]);
}

/// Bytes that were never counted in do not appear by moving.
#[test]
fn an_unknown_mapping_may_move() {
    let mut replay = Replay::new();
    replay.now(mremap(8, (0, 2), (10, 3), 1));
    assert_eq!(replay.live(), [(8, 1, 1)]);
    replay.now(munmap(10, 3));
    assert_eq!(replay.live(), []);
}

#[test]
fn the_break_moves_in_whole_pages() {
    let mut replay = Replay::new();
    replay.now(brk(6, 0x100_0800));
    assert_eq!(replay.live(), [], "where it stood before is not known");
    replay.now(brk(7, 0x100_0900));
    assert_eq!(replay.live(), [], "within the page");
    replay.now(brk(7, 0x100_3001));
    assert_eq!(replay.live(), [(7, 1, 3)]);
    replay.now(brk(8, 0x100_5000));
    assert_eq!(replay.live(), [(7, 1, 3), (8, 1, 1)]);
    replay.now(brk(8, 0x100_2000));
    assert_eq!(replay.live(), [(7, 1, 1)]);
}

#[test]
fn what_was_there_before_is_freed_as_such() {
    let mut replay = Replay::new();
    let space = &mut replay.space;
    assert_eq!(space.preexisting(BASE, BASE + 4 * PAGE, false), 4 * PAGE);
    assert_eq!(
        space.preexisting(BASE + 2 * PAGE, BASE + 6 * PAGE, false),
        2 * PAGE,
        "overlap"
    );
    assert_eq!(space.preexisting(BASE, BASE + PAGE, false), 0);
    assert_eq!(space.preexisting(0x100_0000, 0x100_2000, true), 2 * PAGE);
    space.program_break(0x100_1800);
    assert_eq!(space.live_bytes(), 8 * PAGE);
    let mut frees = Vec::new();
    let mut apply = |event| replay.space.apply(&event, &mut |change| frees.push(change));
    apply(at(munmap(0, 6), 1, 2));
    apply(at(brk(7, 0x100_1000), 3, 4));
    let free = |kind, objects, pages| {
        let (stack, bytes) = (StackId(0), pages * PAGE);
        Change::Free {
            stack,
            kind,
            objects,
            bytes,
            cohort: 0,
        }
    };
    assert_eq!(
        frees,
        [
            free(KIND_MMAP, 1, 4),
            free(KIND_MMAP, 1, 2),
            free(KIND_BRK, 0, 1)
        ]
    );
}

/// Thread A unmaps; before its call returns, thread B is given the same address.
#[test]
fn an_unmapping_under_way_leaves_the_newer_mapping_alone() {
    let mut replay = Replay::new();
    replay.event(at(mmap(7, 0, 2), 1, 2));
    replay.event(at(mmap(8, 0, 2), 4, 5));
    assert_eq!(
        replay.live(),
        [(8, 1, 2)],
        "the kernel gave the place away: it was free"
    );
    replay.event(at(munmap(0, 2), 3, 6));
    assert_eq!(replay.live(), [(8, 1, 2)]);
    replay.event(at(munmap(0, 2), 7, 8));
    assert_eq!(replay.live(), []);
}

/// The same, with an mremap that moves the first mapping away.
#[test]
fn a_move_under_way_keeps_its_bytes() {
    let mut replay = Replay::new();
    replay.event(at(mmap(7, 0, 2), 1, 2));
    replay.event(at(mmap(8, 1, 1), 4, 5));
    replay.event(at(mremap(9, (0, 2), (10, 2), 1), 3, 6));
    assert_eq!(
        replay.ledger.bytes_by_stack(),
        [(7, 8192), (8, 4096)].into()
    );
    replay.event(at(munmap(10, 2), 7, 8));
    assert_eq!(replay.live(), [(8, 1, 1)]);
}

/// Two mappings have stood at the old place since the move began; only the first one was moved.
#[test]
fn a_move_under_way_brings_back_only_what_it_moved() {
    let mut replay = Replay::new();
    replay.event(at(mmap(7, 0, 2), 1, 2));
    replay.event(at(mmap(8, 0, 2), 4, 5));
    replay.event(at(mmap(6, 0, 2), 7, 8));
    replay.event(at(mremap(9, (0, 2), (10, 2), 1), 3, 9));
    replay.event(at(munmap(0, 2), 6, 10));
    assert_eq!(replay.live(), [(6, 1, 2), (7, 1, 2)]);
}

#[test]
fn a_shrink_under_way_leaves_the_newer_mapping_alone() {
    let mut replay = Replay::new();
    replay.event(at(mmap(7, 0, 4), 1, 2));
    replay.event(at(mmap(8, 2, 2), 4, 5));
    replay.event(at(mremap(9, (0, 4), (0, 2), 1), 3, 6));
    assert_eq!(replay.live(), [(7, 1, 2), (8, 1, 2)]);
}

#[test]
fn a_mapping_over_known_pieces_frees_them_when_their_unmapping_was_lost() {
    let mut replay = Replay::new();
    replay.now(mmap(7, 0, 4));
    replay.now(mmap(8, 1, 2));
    replay.now(VmEvent {
        flags: MAP_FIXED | MAP_FIXED_NOREPLACE,
        ..mmap(9, 0, 1)
    });
    assert_eq!(replay.live(), [(7, 1, 1), (8, 1, 2), (9, 1, 1)]);
}

#[test]
fn too_many_pieces_are_merged_or_counted() {
    let mut replay = Replay::new();
    replay.space.max_pieces = 2;
    replay.now(mmap(7, 0, 1));
    replay.now(mmap(7, 1, 1));
    replay.now(mmap(7, 2, 1));
    assert_eq!(replay.live(), [(7, 3, 3)]);
    replay.now(mmap(7, 10, 1));
    replay.now(mmap(8, 3, 1));
    assert_eq!(
        (replay.live(), replay.space.untracked()),
        (vec![(7, 3, 3)], 2)
    );
    replay.now(munmap(0, 20));
    assert_eq!(replay.live(), []);
}

#[test]
fn senseless_events_are_survived() {
    let mut replay = Replay::new();
    let max = VmEvent {
        addr: u64::MAX,
        len: u64::MAX,
        ..VmEvent::default()
    };
    for event in [
        EVENT_MMAP,
        EVENT_MUNMAP,
        EVENT_MREMAP,
        EVENT_BRK,
        EVENT_GC,
        0,
        u32::MAX,
    ] {
        replay.now(VmEvent {
            event,
            old_addr: 1,
            old_len: u64::MAX,
            flags: u32::MAX,
            ..max
        });
        replay.now(VmEvent {
            event,
            addr: 1,
            old_addr: u64::MAX,
            ..max
        });
    }
}

/// The address space page by page: page → object; object → site and birth.
#[derive(Default)]
struct Model {
    pages: BTreeMap<u64, usize>,
    objects: Vec<(u64, u32, u32)>,
}

impl Model {
    fn map(&mut self, stack: u64, kind: u32, cohort: u32, pages: impl Iterator<Item = u64>) {
        let id = self.objects.len();
        self.objects.push((stack, kind, cohort));
        self.pages.extend(pages.map(|page| (page, id)));
    }

    fn live(&self) -> BTreeMap<(u64, u32, u32), (i64, i64)> {
        let mut live: BTreeMap<_, (i64, i64)> = BTreeMap::new();
        for object in self.pages.values().collect::<BTreeSet<_>>() {
            live.entry(self.objects[*object]).or_default().0 += 1;
        }
        for object in self.pages.values() {
            live.entry(self.objects[*object]).or_default().1 += PAGE as i64;
        }
        live
    }
}

#[derive(Clone, Debug)]
enum Op {
    Mmap {
        page: u64,
        pages: u64,
        fixed: bool,
    },
    Munmap {
        page: u64,
        pages: u64,
    },
    Mremap {
        old: u64,
        old_pages: u64,
        new: u64,
        new_pages: u64,
        fixed: bool,
        keep: bool,
    },
    Brk {
        page: u64,
    },
    NextInterval,
}

fn op() -> impl Strategy<Value = Op> {
    let place = 0..40_u64;
    let size = 1..12_u64;
    prop_oneof![
        3 => (place.clone(), size.clone(), any::<bool>())
            .prop_map(|(page, pages, fixed)| Op::Mmap { page, pages, fixed }),
        3 => (place.clone(), size.clone()).prop_map(|(page, pages)| Op::Munmap { page, pages }),
        3 => (place, 0..12_u64, 0..80_u64, size, any::<bool>(), any::<bool>()).prop_map(
            |(old, old_pages, new, new_pages, fixed, keep)| {
                Op::Mremap { old, old_pages, new, new_pages, fixed, keep }
            }
        ),
        1 => (0..20_u64).prop_map(|page| Op::Brk { page }),
        1 => Just(Op::NextInterval),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Any sequence of calls of one thread, held against the page-by-page model: the same live
    /// objects and bytes for every site and birth, after every call.
    #[test]
    fn agrees_with_a_page_by_page_model(ops in prop::collection::vec(op(), 1..60)) {
        let mut replay = Replay::new();
        let mut model = Model::default();
        let heap = BASE / PAGE + 1000;
        let mut program_break = heap;
        replay.space.program_break(heap * PAGE);
        let base = BASE / PAGE;
        let mut cohort = 1;
        for (index, op) in ops.into_iter().enumerate() {
            let stack = 1 + index as u64 % 5;
            match op {
                Op::Mmap { page, pages, fixed: is_fixed } => {
                    let make = if is_fixed { fixed } else { mmap };
                    replay.now(make(stack, page, pages));
                    model.map(stack, KIND_MMAP, cohort, base + page..base + page + pages);
                }
                Op::Munmap { page, pages } => {
                    replay.now(munmap(page, pages));
                    model.pages.retain(|p, _| !(base + page..base + page + pages).contains(p));
                }
                Op::Mremap { old, old_pages, new, new_pages, fixed, keep } => {
                    let new_pages = if keep { old_pages.max(1) } else { new_pages };
                    let keep = keep && old_pages > 0 && old != new;
                    let flags = 1
 | (u32::from(fixed) * MREMAP_FIXED)
 | (u32::from(keep) * MREMAP_DONTUNMAP);
                    if old == new && (fixed || old_pages == 0) {
                        continue; // EINVAL, or nowhere to duplicate to
                    }
                    if old < new + new_pages && new < old + old_pages && old != new {
                        continue;
                    }
                    replay.now(mremap(stack, (old, old_pages), (new, new_pages), flags));
                    let kept = old_pages.min(new_pages);
                    let content: Vec<_> =
                        (0..kept).map(|i| model.pages.get(&(base + old + i)).copied()).collect();
                    for page in 0..old_pages {
                        model.pages.remove(&(base + old + page));
                    }
                    for page in 0..new_pages {
                        model.pages.remove(&(base + new + page));
                    }
                    for (i, object) in content.into_iter().enumerate() {
                        if let Some(object) = object {
                            model.pages.insert(base + new + i as u64, object);
                        }
                    }
                    if keep {
                        model.map(stack, KIND_MMAP, cohort, base + old..base + old + kept);
                    }
                    if kept < new_pages {
                        model.map(stack, KIND_MMAP, cohort, base + new + kept..base + new + new_pages);
                    }
                }
                Op::Brk { page } => {
                    replay.now(brk(stack, (heap + page) * PAGE - PAGE / 2));
                    let new = heap + page;
                    model.pages.retain(|&p, _| p < new || p < heap);
                    if new > program_break {
                        model.map(stack, KIND_BRK, cohort, program_break..new);
                    }
                    program_break = new;
                }
                Op::NextInterval => {
                    cohort += 1;
                    replay.cohort(cohort);
                }
            }
            prop_assert_eq!(&replay.ledger.live, &model.live());
            let bytes: i64 = model.live().values().map(|live| live.1).sum();
            prop_assert_eq!(replay.space.live_bytes() as i64, bytes);
        }
    }

    /// Threads that map, unmap, shrink, grow and move their own mappings at the same time, in a
    /// kernel that reuses addresses at once. Events come in the order of return; when all calls
    /// have returned, every site has its true bytes.
    #[test]
    fn threads_race_and_the_books_balance(choices in prop::collection::vec(any::<u32>(), 50..400)) {
        let mut race = Race::default();
        for choice in choices {
            race.step(choice);
        }
        race.finish();
        prop_assert_eq!(race.replay.ledger.bytes_by_stack(), race.truth());
    }
}
