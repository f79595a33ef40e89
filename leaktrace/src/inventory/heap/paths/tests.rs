use super::{super::Figures, super::Heap, super::tests::heap, *};

/// A list: each object is held by the one before, the first by a variable.
struct List(Heap);

const VARIABLE: Root = Root::Data(0x1000);
const NODES: u32 = 8192;

fn node(slot: u32) -> Object {
    Object { span: 0, slot }
}

impl List {
    fn new() -> Self {
        Self(heap(&[(
            0xc0_0000_0000,
            u64::from(NODES) * 64 / 8192,
            64,
            false,
        )]))
    }
}

impl Holders for List {
    fn heap(&self) -> &Heap {
        &self.0
    }

    fn holder(&self, object: Object) -> Option<Holder> {
        Some(match object.slot {
            0 => Holder::Root(VARIABLE),
            slot => Holder::Object(node(slot - 1)),
        })
    }

    fn is_unsure(&self) -> bool {
        false
    }

    fn figures(&self) -> Figures {
        Figures::default()
    }
}

/// The paths to these nodes, all of whose references hold but for those to `broken`.
fn paths<'a>(list: &'a List, watch: &'a Watch, targets: &[u32], broken: &[u32]) -> Paths<'a> {
    let mut paths = Paths::new(list, None, 1 << 20, watch);
    for slot in targets {
        paths.collect(node(*slot));
    }
    for (object, edge) in &mut paths.edges {
        edge.found = (!broken.contains(&object.slot)).then_some((0x1000, 0));
    }
    for edge in std::mem::take(&mut paths.pending) {
        assert_eq!(edge.0.slot + 1, edge.1.slot);
        if broken.contains(&edge.1.slot) {
            paths.broken.insert(edge.1);
        }
    }
    paths
}

fn slots(fate: Fate) -> (Vec<u32>, Option<(usize, u64)>) {
    let Fate::Held(path) = fate else {
        panic!("{fate:?}");
    };
    assert_eq!(path.root, VARIABLE);
    let slots = path.hops.iter().map(|hop| hop.object.slot).collect();
    (slots, path.gap)
}

/// Whichever of them is looked at first: near the root, near each other, and far from both.
const TARGETS: [u32; 9] = [8000, 5000, 4990, 100, 70, 63, 40, 31, 0];

#[test]
fn both_ends_of_a_long_path_are_told_and_how_much_is_between() {
    let (list, watch) = (List::new(), Watch::default());
    for from in 0..TARGETS.len() {
        let mut targets = TARGETS;
        targets.rotate_left(from);
        let mut paths = paths(&list, &watch, &targets, &[]);
        assert!(paths.count > 7000 && paths.edges.len() < 500);
        for slot in targets {
            let (found, gap) = slots(paths.fate(node(slot)));
            if slot < 64 {
                assert_eq!((found, gap), ((0..=slot).collect(), None));
            } else {
                let ends = (0..32).chain(slot - 31..=slot);
                assert_eq!(found, ends.collect::<Vec<_>>(), "{slot} of {targets:?}");
                assert_eq!(gap, Some((32, u64::from(slot) + 1 - 64)));
            }
        }
    }
}

#[test]
fn what_does_not_hold_in_the_middle_ends_all_paths_beyond() {
    let (list, watch) = (List::new(), Watch::default());
    // Between the ends, near one of those asked for, near the root; one that is asked for itself.
    for broken in [2500, 4980, 5000, 20] {
        let mut targets = TARGETS;
        for _ in 0..2 {
            targets.reverse();
            let mut paths = paths(&list, &watch, &targets, &[broken]);
            for slot in targets {
                let is_moved = paths.fate(node(slot)) == Fate::Moved;
                assert_eq!(is_moved, slot >= broken, "{slot} beyond {broken}");
            }
            let not_there: Vec<_> = paths.not_there().collect();
            let reference = (Holder::Object(node(broken - 1)), node(broken));
            assert!(not_there.contains(&reference), "{not_there:?}");
        }
    }
}

/// In memory that is not there.
#[test]
fn what_is_looked_for_between_the_ends_and_not_found_does_not_hold() {
    let (list, watch) = (List::new(), Watch::default());
    let mut paths = paths(&list, &watch, &[], &[]);
    paths.collect(node(8000));
    paths.look_between();
    assert_eq!(paths.broken.len() as u64, paths.count);
    assert!(paths.pending.is_empty() && paths.broken.contains(&node(4000)));
}

#[test]
fn a_path_that_is_not_followed_says_so() {
    let (list, watch) = (List::new(), Watch::default());
    let mut paths = paths(&list, &watch, &[100], &[]);
    assert_eq!(paths.fate(node(5000)), Fate::TooMany);
    // Somebody has said that it is enough: a short one is followed all the same.
    watch.stop();
    paths.collect(node(200));
    assert!(!paths.is_cut());
    paths.count = ENOUGH + 1;
    paths.collect(node(300));
    assert!(paths.is_cut());
    assert_eq!(paths.fate(node(300)), Fate::TooMany);
}
