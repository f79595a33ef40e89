//! Packages of any release of Debian, past this machine's own lists. They are unpacked, never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::run;

/// Whose signatures are believed: those of the machine's own distribution.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Lists of packages in a folder of their own: apt removes what it does not know beside its lists.
pub(crate) struct Archive {
    folder: PathBuf,
}

impl Archive {
    /// The archive as its lists in `folder` have it; there may be none yet.
    ///
    /// # Errors
    ///
    /// When the folder cannot be made.
    pub(crate) fn at(folder: &Path) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = folder.join(part);
            fs::create_dir_all(&part)
                .with_context(|| format!("failed to create `{}`", part.display()))?;
        }
        let folder = folder.to_path_buf();
        Ok(Self { folder })
    }

    /// Fetches the lists of `suites`, each an archive and a release of it.
    ///
    /// # Errors
    ///
    /// When one cannot be had.
    pub(crate) fn update(&self, suites: &[(&str, &str)]) -> Result<()> {
        let line = |(archive, suite): &(&str, &str)| {
            format!("deb [signed-by={KEYS}] http://deb.debian.org/{archive} {suite} main\n")
        };
        fs::write(self.sources(), suites.iter().map(line).collect::<String>())?;
        // An update that reaches nothing is only a warning to apt.
        let mut update = self.apt("apt-get");
        run::fetch(update.args(["-qq", "-oAPT::Update::Error-Mode=any", "update"]))
    }

    /// The packages whose names begin so.
    ///
    /// # Errors
    ///
    /// When there are no lists.
    pub(crate) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = run::output(self.apt("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Puts the newest version of each of `packages` into `folder`, as `.deb`.
    ///
    /// # Errors
    ///
    /// When one cannot be had.
    pub(crate) fn download(&self, packages: &[&str], folder: &Path) -> Result<()> {
        let mut download = self.apt("apt-get");
        download.current_dir(folder).args(["-qq", "download"]);
        run::fetch(download.args(packages))
    }

    fn sources(&self) -> PathBuf {
        self.folder.join("sources.list")
    }

    fn apt(&self, program: &str) -> Command {
        let folder = |name: &str| self.folder.join(name).display().to_string();
        let mut command = Command::new(program);
        command.args([
            format!("-oDir::Etc::sourcelist={}", self.sources().display()),
            "-oDir::Etc::sourceparts=/dev/null".to_owned(),
            format!("-oDir::State::lists={}", folder("lists")),
            format!("-oDir::Cache={}", folder("cache")),
            "-oAPT::Sandbox::User=root".to_owned(),
            // Neither descriptions nor icons.
            "-oAcquire::Languages=none".to_owned(),
            "-oAcquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        ]);
        command
    }
}

/// The packages in `folder` that were downloaded.
///
/// # Errors
///
/// When it cannot be read.
pub(crate) fn packages_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)
        .with_context(|| format!("failed to read `{}`", folder.display()))?
        .collect::<Result<Vec<_>, _>>()?;
    let paths = entries.into_iter().map(|entry| entry.path());
    let is_package = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
    Ok(paths.filter(is_package).collect())
}

/// Unpacks a package into `folder`.
///
/// # Errors
///
/// When it is none.
pub(crate) fn unpack(package: &Path, folder: &Path) -> Result<()> {
    run::run(Command::new("dpkg").arg("-x").arg(package).arg(folder))
}
