//! The capabilities that leaktrace runs with: at first those that attaching takes, later those that are left to do.
//!
//! Contract: what is given up is gone from every set of the calling thread, and nothing that is executed gets any
//! back. The sets belong to a thread; one that is started later has those of its maker. docs/security.md has them by
//! phase.

use rustix::{
    process::{DumpableBehavior, set_dumpable_behavior},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
    },
};

/// What a recording cannot do without, and by what the one that is in two of them can be replaced.
const NEEDED: [(&str, CapabilitySet); 3] = [
    ("CAP_SYS_ADMIN", CapabilitySet::SYS_ADMIN),
    ("CAP_SYS_PTRACE", CapabilitySet::SYS_PTRACE),
    (
        "CAP_DAC_READ_SEARCH",
        CapabilitySet::DAC_READ_SEARCH.union(CapabilitySet::DAC_OVERRIDE),
    ),
];

/// To read the target: its memory, `/proc/PID`, the files that it has mapped.
const LOOK: CapabilitySet = CapabilitySet::SYS_PTRACE
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::CHECKPOINT_RESTORE);

/// What is still to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Everything: files are made, probes attached.
    Attach,
    /// Probes come and go, the kernel's maps and the target are read.
    Probe,
    /// No probe comes any more, the kernel's maps and the target are read.
    Read,
    /// Nothing is attached. The target is read.
    Look,
    /// Files are read: a capture, or those that were opened to name addresses.
    Name,
    /// The same, and files may be made.
    NameAndSave,
    /// Nothing that takes a privilege.
    Nothing,
}

impl Phase {
    /// What it takes, of what there is.
    fn kept(self, held: CapabilitySet) -> CapabilitySet {
        // Linux before 5.19 lets only those read a map who may use BPF.
        let bpf = match held.contains(CapabilitySet::BPF) {
            true => CapabilitySet::BPF,
            false => CapabilitySet::SYS_ADMIN,
        };
        let kept = match self {
            Self::Attach => {
                LOOK | CapabilitySet::SYS_ADMIN
                    | CapabilitySet::BPF
                    | CapabilitySet::PERFMON
                    | CapabilitySet::DAC_OVERRIDE
                    | CapabilitySet::SYS_RESOURCE
            }
            Self::Probe => LOOK | CapabilitySet::SYS_ADMIN | CapabilitySet::BPF,
            Self::Read => LOOK | bpf,
            Self::Look => LOOK,
            Self::Name => CapabilitySet::DAC_READ_SEARCH,
            Self::NameAndSave => CapabilitySet::DAC_READ_SEARCH | CapabilitySet::DAC_OVERRIDE,
            Self::Nothing => CapabilitySet::empty(),
        };
        kept & held
    }
}

/// Gives up, for the calling thread, what this phase does not take. Without privileges there is nothing to give up.
pub fn keep(phase: Phase) {
    // Nobody may look into a process that knows another's memory, nor may the kernel write it to a file.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let _ = set_no_new_privs(true);
    let Ok(sets) = capabilities(None) else {
        return;
    };
    // Refused to those without CAP_SETPCAP, for whom the one before is enough.
    for capability in CapabilitySet::all().iter() {
        let _ = remove_capability_from_bounding_set(capability);
    }
    let _ = clear_ambient_capability_set();
    let kept = phase.kept(sets.permitted);
    // To have less is always allowed.
    let _ = set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    );
}

/// What a recording needs and the calling thread has not, in words.
pub fn missing() -> Option<String> {
    let held = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let missing = NEEDED.iter().filter(|(_, any)| !held.intersects(*any));
    let missing: Vec<_> = missing.map(|(name, _)| *name).collect();
    (!missing.is_empty()).then(|| missing.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_phases_keep_less() {
        let all = CapabilitySet::all();
        let phases = [
            Phase::Attach,
            Phase::Probe,
            Phase::Read,
            Phase::Look,
            Phase::Name,
            Phase::Nothing,
        ];
        for pair in phases.windows(2) {
            let [before, after] = [pair[0], pair[1]].map(|phase| phase.kept(all));
            assert!(before.contains(after) && before != after, "{pair:?}");
        }
        assert_eq!(
            Phase::Name.kept(CapabilitySet::SYS_ADMIN),
            CapabilitySet::empty()
        );
    }

    #[test]
    fn without_cap_bpf_maps_are_read_by_cap_sys_admin() {
        let held = CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE;
        assert_eq!(Phase::Read.kept(held), held);
        let more = held | CapabilitySet::BPF;
        assert_eq!(
            Phase::Read.kept(more),
            CapabilitySet::SYS_PTRACE | CapabilitySet::BPF
        );
    }
}
