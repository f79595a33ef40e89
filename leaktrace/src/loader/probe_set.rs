//! Many probes attached at once and taken away at once.
//!
//! A probe of its own perf event takes the kernel a grace period to open and three to close, one after the
//! other; the probes of one `uprobe_multi` link (Linux 6.6) are all gone before the first such period is
//! waited for. aya 0.14 has no such link, so the programs are loaded here, for that kind of link, with
//! the maps that it has made.

use std::{
    collections::HashMap,
    ffi::CString,
    fs,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use aya_obj::{Object, generated::bpf_insn};
use nix::libc;

use super::{
    LoadError, Loaded, OBJECT, check_code,
    code::check_reached,
    links::{self, Told, are_links_known},
};
use crate::{plan::Uprobe, target::Target};

/// `BPF_LD | BPF_DW | BPF_IMM` and, in its source register, what says that the number is a map's.
const LOAD_WORD: u8 = 0x18;
const BPF_PSEUDO_MAP_FD: u8 = 1;

/// The map that keeps our programs on the stack of their thread (leaktrace-ebpf/src/private_stack.rs). One serves
/// programs for one kind of link only.
const NO_PRIVATE_STACK: &str = "NO_PRIVATE_STACK";

/// The programs of the object, for such links.
pub(super) struct Programs {
    loaded: HashMap<&'static str, Arc<OwnedFd>>,
    instructions: HashMap<String, Vec<bpf_insn>>,
    /// Its number is in the instructions.
    no_private_stack: OwnedFd,
    /// The same for the program of a session.
    no_private_stack_of_session: OwnedFd,
}

/// Probes that are attached together.
#[derive(Default)]
pub struct ProbeSet {
    groups: Vec<Group>,
    probes: Vec<Uprobe>,
}

/// Those of one program in one file: a link.
struct Group {
    program: &'static str,
    loaded: Arc<OwnedFd>,
    path: CString,
    offsets: Vec<u64>,
    addresses: Vec<u64>,
}

/// All probes of a set, attached.
pub struct OpenSet(Vec<Link>);

/// The probes of one program in one file, attached as long as this lives.
pub(super) struct Link {
    pub(super) program: &'static str,
    /// What runs.
    pub(super) loaded: Arc<OwnedFd>,
    /// Where the probes stand in the target.
    pub(super) addresses: Vec<u64>,
    _fd: OwnedFd,
}

/// Probes that are being taken away: a thread for each link.
#[derive(Default)]
pub struct Closing(Vec<JoinHandle<()>>);

impl Programs {
    /// None is loaded yet; they will use the maps of `ebpf`, of which none may have been taken out. None if the kernel
    /// has no such links.
    ///
    /// # Errors
    ///
    /// The object cannot be read.
    pub(super) fn find(ebpf: &Ebpf) -> Result<Option<Self>, LoadError> {
        are_links_known().then(|| Self::new(ebpf)).transpose()
    }

    fn new(ebpf: &Ebpf) -> Result<Self, LoadError> {
        let failed = |error: &dyn std::error::Error| {
            LoadError::other("read the BPF object", error.to_string())
        };
        let mut object = Object::parse(OBJECT).map_err(|error| failed(&error))?;
        let sections = object.functions.keys().map(|(section, _)| *section);
        let sections = sections.collect();
        let described = std::mem::take(&mut object.maps);
        let no_private_stack = empty_program_array()?;
        let maps = described.iter().map(|(name, described)| {
            let fd = match name.as_str() {
                NO_PRIVATE_STACK => Some(no_private_stack.as_fd()),
                name => ebpf.map(name).and_then(fd),
            };
            let fd = fd
                .ok_or_else(|| LoadError::other("find a map in the BPF object", name.to_owned()))?;
            Ok((name.as_str(), fd.as_raw_fd(), described))
        });
        let maps = maps.collect::<Result<Vec<_>, LoadError>>()?;
        object
            .relocate_maps(maps.into_iter(), &sections)
            .map_err(|error| failed(&error))?;
        object
            .relocate_calls(&sections)
            .map_err(|error| failed(&error))?;
        let programs = object.programs.iter().filter_map(|(name, program)| {
            let function = object.functions.get(&program.function_key())?;
            Some((name.clone(), function.instructions.clone()))
        });
        Ok(Self {
            loaded: HashMap::new(),
            instructions: programs.collect(),
            no_private_stack,
            no_private_stack_of_session: empty_program_array()?,
        })
    }

    /// Loads a program, once.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub(super) fn load(&mut self, program: &'static str) -> Result<Arc<OwnedFd>, LoadError> {
        if let Some(fd) = self.loaded.get(program) {
            return Ok(Arc::clone(fd));
        }
        let instructions = self
            .instructions
            .get_mut(program)
            .ok_or_else(|| LoadError::other("find a program in the BPF object", program))?;
        let told = told(program);
        if told == Told::Calls {
            let (of_links, of_session) = (
                self.no_private_stack.as_raw_fd(),
                self.no_private_stack_of_session.as_raw_fd(),
            );
            let uses = instructions.iter_mut().filter(|instruction| {
                (instruction.code, instruction.src_reg(), instruction.imm)
                    == (LOAD_WORD, BPF_PSEUDO_MAP_FD, of_links)
            });
            uses.for_each(|instruction| instruction.imm = of_session);
        }
        let fd = links::load(program, told, instructions)
            .map_err(|error| LoadError::other(&format!("load `{program}`"), error))?;
        let fd = Arc::new(fd);
        self.loaded.insert(program, Arc::clone(&fd));
        Ok(fd)
    }
}

impl ProbeSet {
    /// Adds probes, which are attached from the next time on.
    ///
    /// # Errors
    ///
    /// The kernel refuses a program, or knows no such links.
    pub fn add(
        &mut self,
        probes: &[Uprobe],
        loaded: &mut Loaded,
        target: &Target,
    ) -> Result<(), LoadError> {
        for probe in probes {
            check_code(probe, target, |address| loaded.stands_at(address))?;
            loaded.set_calls(probe)?;
            let fd = loaded.programs()?.load(probe.program)?;
            let path = path_of(probe, target)?;
            let group = self.groups.iter_mut();
            let mut group =
                group.filter(|group| (group.program, &group.path) == (probe.program, &path));
            match group.next() {
                Some(group) => {
                    group.offsets.push(probe.file_offset);
                    group.addresses.push(probe.address);
                }
                None => self.groups.push(Group {
                    program: probe.program,
                    loaded: fd,
                    path,
                    offsets: vec![probe.file_offset],
                    addresses: vec![probe.address],
                }),
            }
            self.probes.push(probe.clone());
        }
        Ok(())
    }

    /// Attaches all of them.
    ///
    /// # Errors
    ///
    /// The first that could not be attached; none is then.
    pub fn open(&self, target: &Target) -> Result<OpenSet, LoadError> {
        for probe in &self.probes {
            check_code(probe, target, |_| false)?;
        }
        self.open_now(target)
    }

    /// The same when they have just been added.
    pub(super) fn open_now(&self, target: &Target) -> Result<OpenSet, LoadError> {
        let open = self.open_in(target.pid)?;
        for probe in &self.probes {
            check_reached(probe, target)?;
        }
        Ok(open)
    }

    /// Attaches all of them in a process that the target has made: it has the target's code, in which these
    /// probes are.
    ///
    /// # Errors
    ///
    /// As of [`ProbeSet::open`].
    pub fn open_in(&self, pid: i32) -> Result<OpenSet, LoadError> {
        let links = self.groups.iter().map(|group| {
            let link = links::attach(
                &group.loaded,
                told(group.program),
                &group.path,
                &group.offsets,
                pid,
            );
            // A file that is named by its process goes with that.
            let is_there = || fs::exists(format!("/proc/{pid}/exe")).unwrap_or(false);
            let link = link.map_err(|error| match error.raw_os_error() {
                Some(libc::ESRCH) => LoadError::Gone { pid },
                _ if !is_there() => LoadError::Gone { pid },
                _ => LoadError::other(&format!("attach `{}`", group.program), error),
            })?;
            Ok(Link {
                program: group.program,
                loaded: Arc::clone(&group.loaded),
                addresses: group.addresses.clone(),
                _fd: link,
            })
        });
        links.collect::<Result<_, _>>().map(OpenSet)
    }
}

impl OpenSet {
    /// Its links, each to be held by itself.
    pub(super) fn into_links(self) -> Vec<Link> {
        self.0
    }

    /// Takes them away.
    pub fn close(self) -> Closing {
        let mut closing = Closing::default();
        closing.add(self);
        closing
    }
}

impl Closing {
    /// Takes the probes of one more set away: at once, each link on a thread of its own, since the kernel lets
    /// each wait until nobody uses its probes any more.
    pub fn add(&mut self, open: OpenSet) {
        let links = open.0.into_iter();
        self.0
            .extend(links.map(|link| thread::spawn(move || drop(link))));
    }

    /// Whether the kernel has done.
    pub fn is_over(&mut self) -> bool {
        self.0.retain(|thread| !thread.is_finished());
        self.0.is_empty()
    }

    /// Waits until it has.
    pub fn wait(self) {
        for thread in self.0 {
            // It can only have panicked, which it has said itself.
            let _ = thread.join();
        }
    }
}

fn told(program: &str) -> Told {
    match program {
        "malloc_returned" => Told::Returns,
        "malloc_call" => Told::Calls,
        _ => Told::Hits,
    }
}

fn empty_program_array() -> Result<OwnedFd, LoadError> {
    links::empty_program_array().map_err(|error| LoadError::other("make a BPF map", error))
}

fn path_of(probe: &Uprobe, target: &Target) -> Result<CString, LoadError> {
    let executable = format!("/proc/{}/exe", target.pid);
    let path = probe
        .file
        .as_ref()
        .map_or(Path::new(&executable), |file| &file.open_path);
    CString::new(path.as_os_str().as_bytes())
        .map_err(|error| LoadError::other("name a file", error))
}

fn fd(map: &Map) -> Option<BorrowedFd<'_>> {
    let data: &MapData = match map {
        Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::HashMap(data)
        | Map::PerCpuHashMap(data)
        | Map::Queue(data)
        | Map::RingBuf(data) => data,
        _ => return None,
    };
    Some(data.fd().as_fd())
}

#[cfg(test)]
mod tests {
    use aya_obj::ProgramSection;

    use super::*;

    /// `BPF_JMP | BPF_CALL`, and the number of the helper `bpf_tail_call`.
    const CALL: u8 = 0x85;
    const TAIL_CALL: i32 = 12;

    /// One without a tail call may be given a stack that it shares with another thread
    /// (leaktrace-ebpf/src/private_stack.rs).
    #[test]
    fn uprobe_programs_keep_the_stack_of_their_thread() {
        let mut object = Object::parse(OBJECT).unwrap();
        let sections = object.functions.keys().map(|(section, _)| *section);
        let sections = sections.collect();
        object.relocate_calls(&sections).unwrap();
        let mut seen = 0;
        for (name, program) in &object.programs {
            let is_uprobe = matches!(
                program.section,
                ProgramSection::UProbe { .. } | ProgramSection::URetProbe { .. }
            );
            let function = &object.functions[&program.function_key()];
            let mut instructions = function.instructions.iter();
            let calls = instructions.any(|instruction| {
                (instruction.code, instruction.imm) == (CALL, TAIL_CALL)
                    && instruction.src_reg() == 0
            });
            assert_eq!(calls, is_uprobe, "{name}");
            seen += u32::from(is_uprobe);
        }
        assert!(seen >= 13, "{seen}");
    }
}
