//! A control group with a limit on its memory, of either version.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
    thread::sleep,
    time::Duration,
};

/// A control group below the root. It is removed when this is dropped; whatever is in it must have ended.
pub struct MemoryCgroup(PathBuf);

impl MemoryCgroup {
    /// A new one, in which all processes together can have `limit` bytes.
    ///
    /// # Panics
    ///
    /// Neither version of control groups counts memory here, or it cannot be made.
    pub fn new(limit: u64) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (group, file) = Self::make(&format!("leaktrace-test-{}-{number}", process::id()));
        fs::write(group.0.join(file), limit.to_string()).expect("its memory can be limited");
        group
    }

    /// A new one without a limit, called as a container's is.
    ///
    /// # Panics
    ///
    /// As of [`MemoryCgroup::new`].
    pub fn of_container(name: &str) -> Self {
        Self::make(name).0
    }

    fn make(name: &str) -> (Self, &'static str) {
        let (root, file) = place().expect("a mounted control group file system that counts memory");
        let folder = root.join(name);
        fs::create_dir(&folder).expect("root can make a control group");
        (Self(folder), file)
    }

    /// Moves a process into it. What that has already stays where it was counted.
    ///
    /// # Panics
    ///
    /// The process is gone.
    pub fn take(&self, pid: i32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("the process can be moved");
    }

    /// Its file for processes, for a shell that is to go there itself.
    pub fn processes(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // A process that has ended leaves it a moment later.
        for _ in 0..100 {
            match fs::remove_dir(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    sleep(Duration::from_millis(50));
                }
                _ => return,
            }
        }
    }
}

/// The root of the hierarchy that counts memory, and the name of the file with the limit.
fn place() -> Option<(PathBuf, &'static str)> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mut mounts = mounts.lines().filter_map(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        Some((
            PathBuf::from(fields.get(1)?),
            *fields.get(2)?,
            *fields.get(3)?,
        ))
    });
    mounts.find_map(|(folder, kind, options)| match kind {
        "cgroup" if options.split(',').any(|option| option == "memory") => {
            Some((folder, "memory.limit_in_bytes"))
        }
        "cgroup2" if counts_memory(&folder) => Some((folder, "memory.max")),
        _ => None,
    })
}

/// Has version 2 count memory below its root, if it can.
fn counts_memory(root: &Path) -> bool {
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let can = controllers.split_whitespace().any(|name| name == "memory");
    can && fs::write(root.join("cgroup.subtree_control"), "+memory").is_ok()
}
