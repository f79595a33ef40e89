//! Packages of the distribution, unpacked and not installed.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{run, workspace};

/// Downloads and unpacks `packages`, and what they need that is not installed here, unless that is done;
/// gives the folder that holds their files.
pub(super) fn unpack(packages: &[&str]) -> Result<PathBuf> {
    let cache = workspace::cache()?.join("services");
    let [first, ..] = packages else {
        bail!("no package is named");
    };
    let folder = cache.join(packages.join("+"));
    if folder.is_dir() {
        return Ok(folder);
    }
    let unfinished = cache.join(format!(".{first}.{}", std::process::id()));
    fs::create_dir_all(&unfinished)
        .with_context(|| format!("failed to create `{}`", unfinished.display()))?;
    let wanted = with_what_they_need(packages)?;
    eprintln!("services: unpacks into the cache: {}", wanted.join(", "));
    let result = (|| {
        run::fetch(
            Command::new("apt-get")
                .args(["-qq", "download"])
                .args(&wanted)
                .current_dir(&unfinished),
        )?;
        let entries: Vec<_> = fs::read_dir(&unfinished)?.flatten().collect();
        for archive in entries.iter().map(fs::DirEntry::path) {
            run::run(
                Command::new("dpkg")
                    .arg("-x")
                    .arg(&archive)
                    .arg(&unfinished),
            )?;
            fs::remove_file(&archive)?;
        }
        fs::rename(&unfinished, &folder)
            .with_context(|| format!("failed to create `{}`", folder.display()))
    })();
    // Gone already when all went well.
    let _ = fs::remove_dir_all(&unfinished);
    result.map(|()| folder)
}

/// Those packages, and those that apt would install for them.
fn with_what_they_need(packages: &[&str]) -> Result<Vec<String>> {
    let plan = run::output(
        Command::new("apt-get")
            .args(["-qq", "--simulate", "--no-install-recommends", "install"])
            .args(packages),
    )?;
    let mut all: Vec<_> = packages.iter().map(|&name| name.to_owned()).collect();
    for line in plan.lines() {
        let name = line
            .strip_prefix("Inst ")
            .and_then(|rest| rest.split(' ').next());
        all.extend(name.map(str::to_owned));
    }
    all.sort();
    all.dedup();
    Ok(all)
}
