//! Real programs, built here: C with an inlined function, stripped with its debug information
//! elsewhere, libc, Go plain, stripped and with C inside.

use std::path::Path;
use std::process::Command;

use super::*;
use crate::go::testing::{self, Mode, PPROF_PROGRAM};

/// `main` calls `outer`, into which `middle` and `innermost` are inlined; line numbers matter.
const C_PROGRAM: &str = r#"#include <stdio.h>
#include <stdlib.h>
volatile int sink;
static inline __attribute__((always_inline)) void innermost(int n) {
	sink = n;
	puts("in");
}
static inline __attribute__((always_inline)) void middle(int n) {
	innermost(n + 1);
	sink++;
}
__attribute__((noinline)) void outer(int n) {
	middle(n);
	sink--;
}
int main(int argc, char **argv) {
	outer(argc);
	return 0;
}
"#;

fn run(program: &str, arguments: &[&str], directory: &Path) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The program as `app`, unstripped, in a directory of its own.
fn c_program() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("app.c"), C_PROGRAM).unwrap();
    let arguments = ["-g", "-O1", "-Wl,--build-id", "-o", "app", "app.c"];
    run("gcc", &arguments, directory.path());
    directory
}

/// File offset of `name`'s call of `callee`: the offset of the call and the one after it.
fn call_in(binary: &Path, name: &str, callee: &str) -> (u64, u64) {
    let option = format!("--disassemble={name}");
    let text = run(
        "objdump",
        &["-d", &option, binary.to_str().unwrap()],
        Path::new("/"),
    );
    let mut lines = text
        .lines()
        .skip_while(|line| !line.contains(&format!("<{callee}")) || line.ends_with(">:"));
    let address =
        |line: &str| u64::from_str_radix(line.trim().split(':').next().unwrap(), 16).unwrap();
    let call = lines.next().unwrap();
    (address(call), address(lines.next().unwrap()))
}

/// One executable mapping of the whole file, as the kernel would map it.
fn mapped(path: &Path, bias: u64) -> (Vec<Module>, Vec<Mapping>) {
    let text = run("readelf", &["-nW", path.to_str().unwrap()], Path::new("/"));
    let build_id = text
        .lines()
        .find_map(|line| Some(line.split_once("Build ID: ")?.1.trim().to_owned()));
    let path_text = path.to_str().unwrap().to_owned();
    let modules = vec![Module {
        path: path_text,
        build_id,
    }];
    let text = run("readelf", &["-lW", path.to_str().unwrap()], Path::new("/"));
    let mappings = text
        .lines()
        .filter(|line| line.trim().starts_with("LOAD") && line.contains("R E"))
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let hex = |index: usize| u64::from_str_radix(&words[index][2..], 16).unwrap();
            let (offset, address, size) = (hex(1), hex(2), hex(4));
            let slack = address & 0xfff;
            Mapping {
                start: bias + address - slack,
                end: bias + address + size,
                file_offset: offset - slack,
                module: 0,
            }
        })
        .collect();
    (modules, mappings)
}

fn itself(module: &Module) -> Option<PathBuf> {
    Some(PathBuf::from(&module.path))
}

const BIAS: u64 = 0x5555_5555_4000;

fn assert_inlined(frames: &[Frame], lines: [u32; 3]) {
    let got: Vec<_> = frames
        .iter()
        .map(|frame| {
            (
                frame.function.as_deref().unwrap_or("?"),
                frame.line,
                frame.inlined,
            )
        })
        .collect();
    let expected = [
        ("innermost", Some(lines[0]), true),
        ("middle", Some(lines[1]), true),
        ("outer", Some(lines[2]), false),
    ];
    assert_eq!(got, expected, "{frames:#?}");
    assert!(
        frames
            .iter()
            .all(|frame| frame.file.as_ref().unwrap().ends_with("app.c"))
    );
    assert!(
        frames
            .iter()
            .all(|frame| frame.reason.is_none() && frame.build_id.is_some())
    );
}

#[test]
fn inlined_calls_of_a_c_program() {
    let directory = c_program();
    let app = directory.path().join("app");
    let (modules, mappings) = mapped(&app, BIAS);
    let symbolizer = Symbolizer::new(modules, mappings, itself);
    let (call, after) = call_in(&app, "outer", "puts");
    let frames = symbolizer.frames(BIAS + after, PcKind::Return);
    assert_inlined(&frames, [6, 9, 13]);
    assert_eq!(frames[0].offset, after);
    assert_inlined(
        &symbolizer.frames(BIAS + call, PcKind::Instruction),
        [6, 9, 13],
    );
    let (_, after) = call_in(&app, "main", "outer");
    let frames = symbolizer.frames(BIAS + after, PcKind::Return);
    assert_eq!(frames.len(), 1);
    assert_eq!(
        (frames[0].function.as_deref(), frames[0].line),
        (Some("main"), Some(17))
    );
}

#[test]
fn a_stripped_c_program_and_its_debug_directory() {
    let directory = c_program();
    let path = |name: &str| directory.path().join(name);
    let (_, after) = call_in(&path("app"), "outer", "puts");
    let (modules, mappings) = mapped(&path("app"), BIAS);
    let id = modules[0].build_id.clone().unwrap();
    run(
        "objcopy",
        &["--only-keep-debug", "app", "app.debug"],
        directory.path(),
    );
    run("strip", &["app"], directory.path());
    let symbolizer = |open: fn(&Module) -> Option<PathBuf>, debug: &str| {
        let symbolizer = Symbolizer::new(modules.clone(), mappings.clone(), open);
        symbolizer.with_debug_dirs((!debug.is_empty()).then(|| path(debug)))
    };
    let address = (BIAS + after, PcKind::Return);

    let frame = &symbolizer(itself, "").frames(address.0, address.1)[0];
    assert_eq!(frame.function, None);
    assert!(
        frame.reason.as_ref().unwrap().contains("is stripped"),
        "{frame:?}"
    );

    // By build id, by name; with the program and without it.
    let by_id = path("by-id").join(".build-id").join(&id[..2]);
    std::fs::create_dir_all(&by_id).unwrap();
    std::fs::copy(path("app.debug"), by_id.join(format!("{}.debug", &id[2..]))).unwrap();
    std::fs::create_dir(path("by-name")).unwrap();
    std::fs::copy(path("app.debug"), path("by-name/app.debug")).unwrap();
    for debug in ["by-id", "by-name"] {
        for open in [itself, |_: &Module| None] {
            let frames = symbolizer(open, debug).frames(address.0, address.1);
            assert_inlined(&frames, [6, 9, 13]);
        }
    }

    // The debug information of another program of that name.
    std::fs::create_dir(path("wrong")).unwrap();
    let other = C_PROGRAM.replace("\"in\"", "\"out\"");
    std::fs::write(path("other.c"), other).unwrap();
    run(
        "gcc",
        &["-g", "-Wl,--build-id", "-o", "wrong/app.debug", "other.c"],
        directory.path(),
    );
    let frame = &symbolizer(itself, "wrong").frames(address.0, address.1)[0];
    assert_eq!(frame.function, None);
    let reason = frame.reason.as_ref().unwrap();
    assert!(
        reason.contains("is stripped") && reason.contains("has build id"),
        "{reason}"
    );

    // The program itself replaced by another.
    std::fs::rename(path("wrong/app.debug"), path("app")).unwrap();
    let frame = &symbolizer(itself, "").frames(address.0, address.1)[0];
    assert!(
        frame.reason.as_ref().unwrap().contains("was replaced"),
        "{frame:?}"
    );
}

/// A debuginfod server on loopback: has `file` for `build_id`, nothing else, and counts what it is asked.
fn debuginfod_server(build_id: &str, file: Vec<u8>) -> (String, std::sync::mpsc::Receiver<String>) {
    use std::io::{BufRead as _, BufReader, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let wanted = format!("GET /buildid/{build_id}/debuginfo HTTP/1.1");
    let (asked, questions) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let question = lines.next().unwrap().unwrap();
            while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
            let (status, body) = match question == wanted {
                true => ("200 OK", &file[..]),
                false => ("404 Not Found", &[][..]),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            // Who has the answer finds the question told.
            let is_over = asked.send(question).is_err();
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(body).unwrap();
            if is_over {
                break;
            }
        }
    });
    (url, questions)
}

#[test]
fn a_stripped_c_program_and_a_debuginfod_server() {
    let directory = c_program();
    let path = |name: &str| directory.path().join(name);
    let (_, after) = call_in(&path("app"), "outer", "puts");
    let (modules, mappings) = mapped(&path("app"), BIAS);
    let id = modules[0].build_id.clone().unwrap();
    let debug = ["--only-keep-debug", "app", "app.debug"];
    run("objcopy", &debug, directory.path());
    run("strip", &["app"], directory.path());
    let (url, questions) = debuginfod_server(&id, std::fs::read(path("app.debug")).unwrap());
    let frames = |urls: &str, cache: &str| {
        let cache = path(cache).into_os_string();
        let variables = [
            ("DEBUGINFOD_URLS", urls.into()),
            ("DEBUGINFOD_CACHE_PATH", cache),
        ];
        Symbolizer::new(modules.clone(), mappings.clone(), itself)
            .with_debuginfod(Some(Debuginfod::new(variables)))
            .frames(BIAS + after, PcKind::Return)
    };
    // One server does not have it, another does; afterwards the cache has it.
    let (other, _questions) = debuginfod_server("0123456789abcdef", Vec::new());
    assert_inlined(&frames(&format!("{other} {url}"), "cache"), [6, 9, 13]);
    assert_eq!(questions.try_iter().count(), 1);
    assert_inlined(&frames(&url, "cache"), [6, 9, 13]);
    assert_eq!(questions.try_iter().count(), 0);

    // Nobody has it; what answers is another file; nobody answers.
    let reason = |urls: &str, cache: &str| frames(urls, cache)[0].reason.clone().unwrap();
    let missing = reason(&other, "none");
    assert!(missing.contains("no debuginfod server has it"), "{missing}");
    let (wrong, _questions) = debuginfod_server(&id, std::fs::read("/proc/self/exe").unwrap());
    let refused = reason(&wrong, "wrong");
    assert!(refused.contains("is not of build id"), "{refused}");
    let silent = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let silent = reason(&format!("http://{silent}"), "silent");
    assert!(
        silent.contains("is stripped") && silent.contains("debuginfod"),
        "{silent}"
    );
}

#[test]
fn libc_of_this_process() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut modules = Vec::new();
    let mut mappings = Vec::new();
    for line in maps.lines().filter(|line| line.contains("r-xp")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (start, end) = words[0].split_once('-').unwrap();
        let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
        let mapping = Mapping {
            start: hex(start),
            end: hex(end),
            file_offset: hex(words[2]),
            module: modules.len(),
        };
        mappings.push(mapping);
        modules.push(Module {
            path: words.get(5).unwrap_or(&"").to_string(),
            build_id: None,
        });
    }
    let vdso = modules
        .iter()
        .position(|module| module.path == "[vdso]")
        .unwrap();
    let vdso = mappings[vdso].start + 16;
    let symbolizer = Symbolizer::new(modules, mappings, itself);
    let malloc = nix::libc::malloc as *const () as u64;
    let frames = symbolizer.frames(malloc, PcKind::Instruction);
    let name = frames.last().unwrap().function.clone().unwrap();
    assert!(name.contains("malloc"), "{frames:?}");
    assert!(frames[0].module.contains("libc"));

    let own = c_program_address as *const () as u64;
    let frames = symbolizer.frames(own, PcKind::Instruction);
    let name = frames.last().unwrap().function.clone().unwrap();
    assert!(
        name.ends_with("symbolize::tests::c_program_address"),
        "{name}"
    );
    assert!(
        frames
            .last()
            .unwrap()
            .file
            .as_ref()
            .unwrap()
            .ends_with("tests.rs")
    );

    let reason = |address| {
        symbolizer.frames(address, PcKind::Instruction)[0]
            .reason
            .clone()
            .unwrap()
    };
    assert!(reason(vdso).contains("`[vdso]` is code of the kernel"));
    assert!(reason(8).contains("no mapping"));
}

#[inline(never)]
fn c_program_address() -> u64 {
    std::hint::black_box(7)
}

#[test]
fn go_programs_with_and_without_symbols() {
    for toolchain in testing::toolchains() {
        for mode in Mode::all() {
            let path = testing::build(&toolchain, mode, PPROF_PROGRAM);
            let go = crate::go::GoBinary::parse(std::fs::read(&path).unwrap().into())
                .unwrap()
                .unwrap();
            let bias = if go.pie() { BIAS } else { 0 };
            let (modules, mappings) = mapped(&path, bias);
            let symbolizer = Symbolizer::new(modules, mappings, itself);
            let function = go.function("main.main").unwrap();
            let address = (function.entry..function.end)
                .find(|address| go.frames(*address, PcKind::Return).len() > 1);
            for link in [function.entry + 1].into_iter().chain(address) {
                let frames = symbolizer.frames(link + bias, PcKind::Return);
                let expected = go.frames(link, PcKind::Return);
                assert_eq!(frames.len(), expected.len());
                for (frame, expected) in frames.iter().zip(&expected) {
                    assert_eq!(frame.function, expected.function);
                    assert_eq!((&frame.file, frame.line), (&expected.file, expected.line));
                    assert_eq!(frame.inlined, expected.inlined);
                }
                assert_eq!(
                    frames.last().unwrap().function.as_deref(),
                    Some("main.main")
                );
                assert_eq!(symbolizer.frames(link + bias, PcKind::Logical).len(), 1);
            }
        }
        if !testing::has_c_compiler() {
            continue;
        }
        // C code in a Go program is named by its DWARF or symbols.
        let path = testing::build(&toolchain, Mode::Cgo, PPROF_PROGRAM);
        let Some((address, _)) = testing::symbol_code(&path, "x_cgo_thread_start") else {
            panic!("cgo program without x_cgo_thread_start")
        };
        let (modules, mappings) = mapped(&path, 0);
        let frames =
            Symbolizer::new(modules, mappings, itself).frames(address, PcKind::Instruction);
        assert_eq!(
            frames.last().unwrap().function.as_deref(),
            Some("x_cgo_thread_start")
        );
    }
}

#[test]
fn symbols_survive_the_capture() {
    let directory = c_program();
    let app = directory.path().join("app");
    let (modules, mappings) = mapped(&app, BIAS);
    let module = schema::Module {
        id: 7,
        path: modules[0].path.clone(),
        build_id: modules[0].build_id.clone().unwrap(),
    };
    let mapping: Vec<_> = mappings
        .iter()
        .map(|m| schema::Mapping {
            start: m.start,
            end: m.end,
            file_offset: m.file_offset,
            module: 7,
        })
        .collect();
    let symbolizer = Symbolizer::from_capture([&module], &mapping, itself);
    let (call, after) = call_in(&app, "outer", "puts");
    let addresses = [
        (BIAS + after, PcKind::Return),
        (BIAS + after, PcKind::Return),
        (BIAS + call, PcKind::Instruction),
        (3, PcKind::Logical),
    ];
    let symbols = symbolizer.symbols(&addresses);
    assert_eq!(symbols.addresses.len(), 3);
    let mut strings = symbols.strings.clone();
    strings.sort();
    strings.dedup();
    assert_eq!(strings.len(), symbols.strings.len());
    let table = SymbolTable::from_schema(symbols.clone()).unwrap();
    assert_eq!(table.len(), 3);
    assert_inlined(
        &table.lookup(BIAS + after, false, false).unwrap(),
        [6, 9, 13],
    );
    assert_eq!(
        table.lookup(BIAS + call, false, true).unwrap(),
        symbolizer.frames(BIAS + call, PcKind::Instruction)
    );
    assert_eq!(
        table.lookup(3, true, false).unwrap(),
        symbolizer.frames(3, PcKind::Logical)
    );
    assert_eq!(table.lookup(BIAS + call, false, false), None);

    let mut damaged = symbols.clone();
    damaged.frames[0].function = 9999;
    assert_eq!(
        SymbolTable::from_schema(damaged).unwrap_err(),
        SymbolsError::String(0)
    );
    let mut damaged = symbols;
    damaged.addresses[0].frames = vec![u32::MAX];
    assert!(matches!(
        SymbolTable::from_schema(damaged),
        Err(SymbolsError::Frame(_))
    ));
    assert!(
        SymbolTable::from_schema(schema::Symbols::default())
            .unwrap()
            .is_empty()
    );
}

#[test]
fn files_that_cannot_be_read_are_reasons() {
    let directory = tempfile::tempdir().unwrap();
    let text = directory.path().join("text");
    std::fs::write(&text, "no ELF file").unwrap();
    let fifo = directory.path().join("fifo");
    run("mkfifo", &["fifo"], directory.path());
    let reason = |path: &Path, open: fn(&Module) -> Option<PathBuf>| {
        let modules = vec![Module {
            path: path.to_str().unwrap().to_owned(),
            build_id: None,
        }];
        let mappings = vec![Mapping {
            start: 0x1000,
            end: 0x2000,
            file_offset: 0,
            module: 0,
        }];
        let frames = Symbolizer::new(modules, mappings, open).frames(0x1800, PcKind::Return);
        assert_eq!((frames.len(), frames[0].offset), (1, 0x800));
        frames[0].reason.clone().unwrap()
    };
    assert!(reason(&text, itself).contains("no 64-bit little-endian ELF header"));
    assert!(reason(&fifo, itself).contains("not a regular file"));
    assert!(reason(Path::new("/nowhere/app"), itself).contains("No such file"));
    assert!(reason(Path::new("/nowhere/app"), |_| None).contains("not at hand"));
    assert!(reason(Path::new("[anon:v8]"), itself).contains("code made at run time"));
    assert!(reason(Path::new(""), itself).contains("code made at run time"));
}

/// Found as a distribution lays it out, by the program's own link: first its debug information, from there by
/// another link what dwz has moved to a file common to several programs.
#[test]
fn links_to_debug_information_are_followed() {
    let directory = c_program();
    let path = |name: &str| directory.path().join(name);
    let run = |program: &str, arguments: &[&str]| run(program, arguments, directory.path());
    let (_, after) = call_in(&path("app"), "outer", "puts");
    let other = C_PROGRAM.replace("\"in\"", "\"out\"");
    std::fs::write(path("other.c"), other).unwrap();
    run("gcc", &["-g", "-O1", "-o", "other", "other.c"]);
    let common = path("common.debug");
    let arguments = ["-m", "common.debug", "-M", common.to_str().unwrap()];
    run("dwz", &[&arguments[..], &["app", "other"]].concat());
    let sections = run("readelf", &["-SW", "app"]);
    assert!(sections.contains(".gnu_debugaltlink"), "{sections}");
    run("objcopy", &["--only-keep-debug", "app", "linked.debug"]);
    run("strip", &["app"]);
    run("objcopy", &["--add-gnu-debuglink=linked.debug", "app"]);

    let (modules, mappings) = mapped(&path("app"), BIAS);
    let symbolizer = || Symbolizer::new(modules.clone(), mappings.clone(), itself);
    let frames = || {
        let symbolizer = symbolizer().following_links();
        symbolizer.frames(BIAS + after, PcKind::Return)
    };
    assert_inlined(&frames(), [6, 9, 13]);
    // Not where the program is a process's.
    let own = &symbolizer().frames(BIAS + after, PcKind::Return)[0];
    assert_eq!(own.function, None, "{own:?}");
    assert!(own.reason.as_ref().unwrap().contains("stripped"));

    // The link leads to another program's.
    run("gcc", &["-g", "-o", "linked.debug", "other.c"]);
    let refused = &frames()[0];
    assert_eq!(refused.function, None, "{refused:?}");
    assert!(refused.reason.is_some());
}
