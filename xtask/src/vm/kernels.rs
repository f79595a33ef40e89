//! Kernels as Debian ships them for virtual machines, the newest of a series, kept in the cache folder.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::say;
use crate::{
    debian::{self, Archive},
    workspace,
};

/// Where Debian has kernels of more than one series.
const SUITES: [(&str, &str); 9] = [
    ("debian", "bullseye"),
    ("debian-security", "bullseye-security"),
    ("debian", "bookworm"),
    ("debian-security", "bookworm-security"),
    ("debian", "bookworm-backports"),
    ("debian", "trixie"),
    ("debian-security", "trixie-security"),
    ("debian", "trixie-backports"),
    ("debian", "sid"),
];

/// The kernels with few drivers, which are small: `linux-image-6.12.118+deb13-cloud-amd64`.
const FLAVOUR: &str = "-cloud-amd64";
/// Those that preempt nearly all of their own code (PREEMPT_RT), and how a series of them is named: `6.1-rt`.
const FLAVOUR_RT: &str = "-rt-amd64";
const FLAVOURS: [&str; 2] = [FLAVOUR, FLAVOUR_RT];
const RT: &str = "-rt";
/// In this order: since 6.19 `linux-image` is empty. Old packages go from the archive one by one, while its lists
/// still have them.
const PACKAGES: [(&str, &str); 3] = [
    ("linux-binary-", ""),
    ("linux-image-", ""),
    ("linux-image-", "-unsigned"),
];

/// How old lists may be.
const A_DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A kernel that can be booted.
pub(super) struct Kernel {
    /// As `uname -r` says.
    pub(super) release: String,
    /// What QEMU boots.
    pub(super) image: PathBuf,
}

/// Kernels that are here or in the archive.
pub(super) struct Kernels {
    folder: PathBuf,
    archive: Archive,
    /// Of the lists, which have a release under more than one.
    packages: Vec<String>,
}

impl Kernels {
    /// Fetches the archive's lists if they are older than a day. Without a network what was kept must do, and
    /// that is said.
    ///
    /// # Errors
    ///
    /// When there are no lists at all.
    pub(super) fn look() -> Result<Self> {
        let folder = workspace::cache()?.join("kernels");
        let archive = Archive::at(&folder)?;
        let fetched = folder.join("fetched");
        let age = fs::metadata(&fetched)
            .and_then(|stamp| stamp.modified())
            .ok()
            .and_then(|time| time.elapsed().ok());
        if age.is_none_or(|age| age > A_DAY) {
            say("fetches the lists of nine suites of Debian: 70 MB, about 20 s");
            match archive.update(&SUITES) {
                Ok(()) => fs::write(&fetched, "")?,
                Err(error) => say(&format!("THE LISTS OF KERNELS ARE NOT NEW: {error:#}")),
            }
        }
        let mut packages = Vec::new();
        for prefix in ["linux-binary-", "linux-image-"] {
            packages.extend(archive.names(prefix)?);
        }
        ensure!(!packages.is_empty(), "there are no lists of kernels");
        Ok(Self {
            folder,
            archive,
            packages,
        })
    }

    /// The newest kernel of a series; if that cannot be had, which is said, an older one. None if the archive has
    /// no such series, and nothing was kept.
    ///
    /// # Errors
    ///
    /// When there are some, and none can be had.
    pub(super) fn newest(&self, series: &str) -> Result<Option<Kernel>> {
        let mut releases: Vec<_> = self.packages.iter().filter_map(|p| release(p)).collect();
        let kept = fs::read_dir(&self.folder)?.flatten();
        let kept: Vec<_> = kept
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        releases.extend(kept.iter().filter_map(|name| name.strip_prefix("vmlinuz-")));
        releases.retain(|release| is_of(release, series));
        releases.sort_by_key(|release| numbers(release));
        releases.dedup();
        if releases.is_empty() {
            return Ok(None);
        }
        for release in releases.into_iter().rev() {
            let image = self.folder.join(format!("vmlinuz-{release}"));
            let fetched = match image.is_file() {
                true => Ok(()),
                false => self.fetch(release, &image),
            };
            match fetched {
                Ok(()) => {
                    let release = release.to_owned();
                    return Ok(Some(Kernel { release, image }));
                }
                Err(error) => say(&format!("{release} IS NOT TO BE HAD: {error:#}")),
            }
        }
        bail!("Debian's lists have kernels of this series, its archive has none any more")
    }

    /// Takes the image out of the first of its packages that is there.
    fn fetch(&self, release: &str, image: &Path) -> Result<()> {
        let names = PACKAGES.map(|(before, after)| format!("{before}{release}{after}"));
        let names = names.iter().filter(|name| self.packages.contains(name));
        let folder = self.folder.join(format!("unpacked-{}", std::process::id()));
        let mut last = None;
        for name in names {
            say(&format!("fetches {name}: 15 to 40 MB"));
            fs::create_dir_all(&folder)?;
            let result = self.fetch_package(name, &folder, image);
            fs::remove_dir_all(&folder)?;
            match result {
                Ok(()) => return Ok(()),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("the archive has none")?)
    }

    fn fetch_package(&self, name: &str, folder: &Path, image: &Path) -> Result<()> {
        self.archive.download(&[name], folder)?;
        for package in debian::packages_in(folder)? {
            debian::unpack(&package, folder)?;
        }
        let found = find_image(folder).with_context(|| format!("`{name}` has no kernel"))?;
        fs::rename(&found, image).with_context(|| format!("failed to keep `{}`", found.display()))
    }
}

/// `boot/vmlinuz-RELEASE`, and since 7.2 `usr/lib/modules/RELEASE/vmlinuz`.
fn find_image(folder: &Path) -> Option<PathBuf> {
    let entries = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten();
    let old = entries(folder.join("boot")).map(|entry| entry.path());
    let new = entries(folder.join("usr/lib/modules")).map(|entry| entry.path().join("vmlinuz"));
    let is_image = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with("vmlinuz") && path.is_file()
    };
    old.chain(new).find(is_image)
}

/// Of which kernel a package is, by its name.
fn release(package: &str) -> Option<&str> {
    let rest = PACKAGES
        .iter()
        .find_map(|(before, _)| package.strip_prefix(before))?;
    let release = rest.strip_suffix("-unsigned").unwrap_or(rest);
    // Others name no release, but whatever is the newest: `linux-image-6.12-cloud-amd64`.
    let has_flavour = FLAVOURS.iter().any(|of| release.ends_with(of));
    (has_flavour && numbers(release).len() > 3).then_some(release)
}

fn is_of(release: &str, series: &str) -> bool {
    let (series, flavour) = match series.strip_suffix(RT) {
        Some(series) => (series, FLAVOUR_RT),
        None => (series, FLAVOUR),
    };
    release.ends_with(flavour) && numbers(release).starts_with(&numbers(series))
}

/// The numbers of `6.12.118+deb13-cloud-amd64`, by which releases are in order: 6, 12, 118, 13.
fn numbers(release: &str) -> Vec<u32> {
    let mut flavours = FLAVOURS.iter();
    let version = flavours.find_map(|of| release.strip_suffix(of));
    let parts = version
        .unwrap_or(release)
        .split(|c: char| !c.is_ascii_digit());
    parts.filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::{is_of, numbers, release};

    #[test]
    fn releases_are_told_from_names_and_are_in_order() {
        let newest = "6.12.118+deb13-cloud-amd64";
        for (package, of) in [
            (
                "linux-image-6.12.118+deb13-cloud-amd64-unsigned",
                Some(newest),
            ),
            ("linux-binary-6.12.118+deb13-cloud-amd64", Some(newest)),
            (
                "linux-image-6.1.0-56-rt-amd64-unsigned",
                Some("6.1.0-56-rt-amd64"),
            ),
            ("linux-image-6.12-cloud-amd64", None),
            ("linux-image-6.12.118+deb13-amd64", None),
            ("linux-image-cloud-amd64-dbg", None),
        ] {
            assert_eq!(release(package), of, "{package}");
        }
        assert!(numbers("6.12.90+deb13.1-cloud-amd64") > numbers("6.12.90+deb12.1-cloud-amd64"));
        assert!(numbers("6.12.118+deb12-cloud-amd64") > numbers("6.12.90+deb13-cloud-amd64"));
        assert!(numbers("6.1.0-56-cloud-amd64") > numbers("6.1.0-0.deb11.52-cloud-amd64"));
        assert!(is_of("6.1.0-56-cloud-amd64", "6.1") && !is_of(newest, "6.1"));
        assert!(is_of("6.1.0-56-rt-amd64", "6.1-rt") && !is_of("6.1.0-56-rt-amd64", "6.1"));
    }
}
