//! Which of the integration tests a guest runs: what depends on the kernel, as few as show it, and none that wants a
//! machine's own speed, since the guests are interpreted.

/// Tests of one program of `tests/tests`.
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) tests: &'static [&'static str],
}

/// What is run on a kernel.
pub(super) struct List {
    /// By which the guest finds it.
    pub(super) name: &'static str,
    pub(super) programs: &'static [Program],
}

impl List {
    /// How many tests it has.
    pub(super) fn count(&self) -> u64 {
        let tests = self.programs.iter().map(|program| program.tests.len());
        tests.sum::<usize>() as u64
    }

    /// Whether that test of that program is in it.
    pub(super) fn has(&self, program: &str, test: &str) -> bool {
        let mut programs = self.programs.iter();
        programs.any(|of| of.name == program && of.tests.contains(&test))
    }

    /// As the guest reads it: a program and its tests a line.
    pub(super) fn text(&self) -> String {
        let line = |program: &Program| format!("{} {}\n", program.name, program.tests.join(" "));
        self.programs.iter().map(line).collect()
    }
}

const ADDRESS_SPACE: Program = Program {
    name: "address_space",
    tests: &["every_site_is_exact"],
};
const ALLOCATORS: Program = Program {
    name: "allocators",
    tests: &[
        "a_sandbox_is_not_harmed_and_all_is_counted",
        "calls_that_are_left_do_not_pair_wrongly",
    ],
};
const GO_OBJECTS: Program = Program {
    name: "losses",
    tests: &["live_object_map"],
};
const GO_PROFILE: Program = Program {
    name: "go_profile",
    tests: &["in_use_equals_what_the_program_serves"],
};
const REFERENCES: Program = Program {
    name: "references",
    tests: &["lost_blocks_are_told_from_kept_ones_and_by_what_these_are_kept"],
};
const ENDINGS: Program = Program {
    name: "endings",
    tests: &["killed"],
};
const MACHINE: Program = Program {
    name: "machine",
    tests: &["the_clock_is_set_back", "the_machine_is_suspended"],
};
const REFUSALS: Program = Program {
    name: "refusals",
    tests: &[
        "kernels_before_5_15",
        "in_a_pid_namespace_of_our_own",
        "kernel_thread",
        "no_such_process",
        "not_root",
    ],
};

/// Kernels that leaktrace runs on: all calls of `mmap` and `brk` to the byte, all blocks of a C library with threads
/// and under seccomp, each object that a Go program keeps, what still points to blocks, registers of threads
/// included, and that nothing is left behind, `kill -9` included; and what is done to no other machine.
pub(super) const ALL: List = List {
    name: "all",
    programs: &[
        ADDRESS_SPACE,
        ALLOCATORS,
        GO_OBJECTS,
        GO_PROFILE,
        REFERENCES,
        ENDINGS,
        REFUSALS,
        MACHINE,
    ],
};

/// Kernels that are too old: that is said in one line, before anything else.
pub(super) const OLD: List = List {
    name: "old",
    programs: &[Program {
        name: "refusals",
        tests: &["kernels_before_5_15", "not_root"],
    }],
};

/// The lists, all of which are in every guest.
pub(super) const LISTS: [List; 2] = [ALL, OLD];

/// Sample programs that the tests start.
pub(super) const TARGETS: [&str; 6] = [
    "vm",
    "allocs",
    "hoard",
    "kept",
    "reload-1.27.3",
    "objects-1.27.3",
];
