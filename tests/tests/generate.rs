//! Manual pages and completions: they are made, complete, and what reads them finds no fault.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use leaktrace_tests::run;
use tempfile::TempDir;

fn generated() -> TempDir {
    let folder = TempDir::new().unwrap();
    let output = run([OsStr::new("generate"), folder.path().as_os_str()]);
    assert!(output.status.success(), "{output:?}");
    folder
}

/// The commands that the help lists.
fn commands() -> Vec<String> {
    let help = String::from_utf8(run(["--help"]).stdout).unwrap();
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = lines
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next());
    names
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

/// Runs a program that must be silent on its standard output and error.
fn silent(program: &str, args: &[&str], file: &Path) {
    let output = Command::new(program).args(args).arg(file).output();
    let output = output.unwrap_or_else(|error| panic!("`{program}`: {error}"));
    let said = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success() && said.is_empty(),
        "{program} {}: {}",
        file.display(),
        String::from_utf8_lossy(&said)
    );
}

#[test]
fn every_command_has_a_manual_page_without_a_fault() {
    let folder = generated();
    let man = folder.path().join("man");
    let commands = commands();
    assert!(commands.len() >= 5, "{commands:?}");
    for command in &commands {
        let page = man.join(format!("leaktrace-{command}.1"));
        assert!(page.is_file(), "no `{}`", page.display());
    }
    let pages: Vec<PathBuf> = fs::read_dir(&man)
        .unwrap()
        .map(|page| page.unwrap().path())
        .collect();
    // The pages of the commands, and that of leaktrace itself.
    assert_eq!(pages.len(), commands.len() + 1, "{pages:?}");
    for page in &pages {
        silent("mandoc", &["-T", "lint", "-W", "warning"], page);
        let read = Command::new("man").arg("-l").arg(page).output().unwrap();
        assert!(read.status.success(), "{read:?}");
        assert!(String::from_utf8_lossy(&read.stdout).contains("leaktrace"));
    }
}

#[test]
fn every_shell_reads_its_completion() {
    let folder = generated();
    let completions = folder.path().join("completions");
    silent("bash", &["-n"], &completions.join("leaktrace.bash"));
    silent("zsh", &["-n"], &completions.join("_leaktrace"));
    silent(
        "fish",
        &["--no-execute"],
        &completions.join("leaktrace.fish"),
    );

    // bash is asked as if Tab was pressed after `leaktrace re`.
    let script = format!(
        "source {}; COMP_WORDS=(leaktrace re); COMP_CWORD=1; _leaktrace leaktrace re leaktrace; \
         echo \"${{COMPREPLY[@]}}\"",
        completions.join("leaktrace.bash").display()
    );
    let output = Command::new("bash")
        .args(["--norc", "-c", &script])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "record report"
    );
    // And fish.
    let script = format!(
        "source {}; complete --do-complete 'leaktrace to'",
        completions.join("leaktrace.fish").display()
    );
    let output = Command::new("fish")
        .args(["--no-config", "-c", &script])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.starts_with("top\t"), "{said}");
}
