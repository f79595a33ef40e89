//! `leaktrace check` says what `record` then does, and does nothing itself.

use std::{
    fs::{self, File},
    io::BufReader,
    os::unix::fs::FileExt as _,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use leaktrace::capture::Capture;
use leaktrace_tests::{Leaktrace, Service, assert_nothing_left, leaktrace_binary, run};
use nix::{
    sys::{
        ptrace,
        signal::{self, Signal},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};
use serde_json::Value;

fn check(pid: i32) -> Value {
    let output = run(["check", "-p", &pid.to_string(), "--format", "json"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Name and file offset of every probe.
fn planned(check: &Value) -> Vec<(String, u64)> {
    let probes = check["probes"].as_array().unwrap().iter();
    let probe = |probe: &Value| {
        let offset = probe["at"]["file_offset"].as_u64().unwrap_or(0);
        (probe["name"].as_str().unwrap().to_owned(), offset)
    };
    probes.map(probe).collect()
}

/// The probes and limits that a recording has written down are those that were announced.
fn announces_what_record_does(service: &Service) -> Value {
    let before = check(service.pid());
    assert_nothing_left();
    let recorded = Leaktrace::record(service.pid(), ["-d", "1s"]).wait();
    let file = File::open(&recorded.file).unwrap();
    let capture = Capture::read(BufReader::new(file)).unwrap();
    let attached: Vec<_> = capture
        .header
        .probes
        .iter()
        .map(|probe| (probe.name.clone(), probe.file_offset))
        .collect();
    assert_eq!(planned(&before), attached);
    let limits = before["limits"].as_array().unwrap();
    for limit in &capture.header.limits {
        assert!(
            limits
                .iter()
                .any(|said| said["reason"] == limit.reason.as_str()),
            "{limit:?}"
        );
    }
    assert_eq!(limits.len(), capture.header.limits.len());
    before
}

fn go_service(name: &str) -> Service {
    let mut service = Service::start(name, [""; 0]);
    service.wait_for("leaked_bytes", 1.0);
    service
}

#[test]
fn go_programs_stripped_and_not() {
    for release in ["1.19.8", "1.27.3"] {
        for (suffix, by, variables_by, types_by) in [
            ("", "symtab", "symtab", "DWARF".to_owned()),
            (
                "-stripped",
                "pclntab",
                "code operands",
                format!("table for Go {release}"),
            ),
        ] {
            let service = go_service(&format!("reload-{release}{suffix}"));
            let said = announces_what_record_does(&service);
            let target = &said["target"];
            assert_eq!(target["runtime"], format!("go{release}"));
            assert_eq!(target["stripped"], !suffix.is_empty());
            assert_eq!(
                (&target["pie"], &target["static"]),
                (&false.into(), &true.into())
            );
            assert_eq!(target["seccomp"], "disabled");
            assert!(target["threads"].as_u64().unwrap() > 1);
            let go = &target["go"];
            assert_eq!(
                (&go["heap_profiling"], &go["sample_rate"]),
                (&true.into(), &524_288.into())
            );
            assert_eq!(go["cgo"], false);
            assert!(go["layouts"].as_str().unwrap().contains(&types_by), "{go}");
            let probes = said["probes"].as_array().unwrap();
            let uprobes: Vec<_> = probes.iter().filter(|p| p["kind"] == "uprobe").collect();
            assert_eq!(uprobes.len(), 3);
            for probe in uprobes {
                assert_eq!(probe["at"]["found_by"], by, "{probe}");
                assert!(probe["at"]["cost"].as_str().unwrap().contains("µs"));
            }
            let reads = said["reads"].as_array().unwrap();
            assert!(reads.iter().any(|read| read["name"] == "runtime.mbuckets"));
            assert!(reads.iter().any(|read| read["name"] == "runtime.allgs"));
            for read in reads {
                // An array of strings is known by what it holds.
                let is_array = read["name"] == "runtime.waitReasonStrings";
                let by = match is_array && suffix == "-stripped" {
                    true => "content",
                    false => variables_by,
                };
                assert_eq!(read["found_by"], by, "{read}");
            }
        }
    }
}

#[test]
fn a_go_program_without_its_sampler() {
    let said = announces_what_record_does(&go_service("reload-1.27.3-nopprof"));
    assert_eq!(said["target"]["go"]["heap_profiling"], false);
    let reads = said["reads"].as_array().unwrap();
    assert!(reads.iter().any(|read| read["name"] == "runtime.mheap_"));
    let probes = said["probes"].as_array().unwrap();
    let in_windows = probes
        .iter()
        .filter(|probe| probe["at"]["in_windows"] == true);
    assert_eq!(in_windows.count(), 1);
    let limits = said["limits"].as_array().unwrap();
    assert!(
        limits
            .iter()
            .any(|limit| limit["reason"].as_str().unwrap().contains("off"))
    );
}

#[test]
fn a_native_program_in_text() {
    let service = Service::sleeper();
    announces_what_record_does(&service);
    let output = run(["check", "-p", &service.pid().to_string()]);
    let text = String::from_utf8(output.stdout).unwrap();
    for words in [
        "has all that leaktrace needs",
        "\n  ok      BPF ring buffer: yes\n",
        "native, stripped, position-independent, dynamically linked",
        "1 threads, seccomp disabled",
        "`leaktrace record` would attach ",
        "tracepoint syscalls:sys_exit_mmap: changes of the address space",
        "uprobe malloc+0x",
        "/libc.so.6: a block is allocated",
        "emulated by the kernel, about 0.5 µs a hit; found by dynsym",
    ] {
        assert!(text.contains(words), "`{words}` is not in:\n{text}");
    }
}

/// Whether a signal has stopped every thread: `kill` does not wait for that.
fn stands_still(pid: i32) -> bool {
    let mut tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    tasks.all(|task| {
        // `TID (NAME) STATE …`
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

/// Another tool has changed the code, or a debugger has a breakpoint there: the process is stopped meanwhile, so that
/// it does not run it.
#[test]
fn code_that_is_not_the_files_is_refused_here_and_by_record() {
    let mut service = go_service("reload-1.27.3-stripped");
    let pid = service.pid();
    let said = check(pid);
    let probes = said["probes"].as_array().unwrap();
    let at = &probes.last().unwrap()["at"];
    let entry = at["address"].as_u64().unwrap() - at["offset"].as_u64().unwrap();
    signal::kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    while !stands_still(pid) {
        thread::sleep(Duration::from_millis(1));
    }
    let memory = File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/{pid}/mem"))
        .unwrap();
    let mut original = [0];
    memory.read_exact_at(&mut original, entry).unwrap();
    let refused = |changed: [u8; 1]| {
        memory.write_all_at(&changed, entry).unwrap();
        let pid = pid.to_string();
        for arguments in [vec!["check"], vec!["record", "-d", "1s"]] {
            let output = run(arguments.into_iter().chain(["-p", &pid]));
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(6), "{stderr}");
            assert!(
                stderr.contains("differs from the executable file"),
                "{stderr}"
            );
        }
        let mut left = [0];
        memory.read_exact_at(&mut left, entry).unwrap();
        assert_eq!(left, changed);
        memory.write_all_at(&original, entry).unwrap();
    };
    refused([!original[0]]);
    const INT3: u8 = 0xcc;
    let debugged = Pid::from_raw(pid);
    ptrace::seize(debugged, ptrace::Options::empty()).unwrap();
    refused([INT3]);
    // It has stopped already.
    waitpid(debugged, Some(WaitPidFlag::WSTOPPED)).unwrap();
    ptrace::detach(debugged, None).unwrap();
    signal::kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    announces_what_record_does(&service);
    assert!(service.is_running());
}

#[test]
fn what_is_missing_is_listed_and_is_the_exit_code() {
    // In a pid namespace of its own: everything else is there.
    let output = Command::new("unshare")
        .args(["--fork", "--pid", "--mount-proc"])
        .arg(leaktrace_binary())
        .arg("check")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(6));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("lacks one thing"), "{text}");
    assert!(
        text.contains("  MISSING the host's pid namespace: "),
        "{text}"
    );
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("on the host")
    );
}

#[test]
fn processes_that_cannot_be_targets() {
    for (pid, code) in [("4194305", 4), ("2", 6)] {
        let output = run(["check", "-p", pid]);
        assert_eq!(output.status.code(), Some(code));
        assert!(output.stdout.is_empty());
    }
    // Others than root are told so, here and for every feature that they may not ask for.
    let folder = tempfile::TempDir::with_prefix_in("leaktrace", "/tmp").unwrap();
    let binary = folder.path().join("leaktrace");
    fs::copy(leaktrace_binary(), &binary).unwrap();
    use std::os::unix::{fs::PermissionsExt as _, process::CommandExt as _};
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let output = Command::new(&binary)
        .args(["check", "--format", "json"])
        .current_dir("/tmp")
        .stdin(Stdio::null())
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let features = said["features"].as_array().unwrap();
    assert_eq!(
        (&features[0]["name"], &features[0]["ok"]),
        (&"capabilities".into(), &false.into())
    );
    for feature in features.iter().filter(|feature| feature["ok"] == false) {
        assert!(
            feature["found"].as_str().unwrap().contains("as root"),
            "{feature}"
        );
    }
}
