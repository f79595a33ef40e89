//! Debug information from debuginfod servers, if the user names any.
//!
//! By elfutils' own client, `debuginfod-find`, which has their protocol, TLS, the user's variables and the
//! cache that other tools share (debuginfod-find(1), debuginfod-client-config(7)). Contract: nobody is asked
//! unless `DEBUGINFOD_URLS` names a server, and then only for files whose debug information is not on this
//! machine; servers that do not answer are not asked again.

use std::{
    cell::Cell,
    env,
    ffi::OsString,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// The variables, and how long servers may be silent and may take, in seconds, where the user does not say.
const URLS: &str = "DEBUGINFOD_URLS";
const TIMEOUT: (&str, u64) = ("DEBUGINFOD_TIMEOUT", 15);
const TIME_OF_FILE: (&str, u64) = ("DEBUGINFOD_MAXTIME", 300);

/// Servers to ask.
pub struct Debuginfod {
    variables: Vec<(&'static str, OsString)>,
    timeout: Duration,
    is_silent: Cell<bool>,
}

impl Debuginfod {
    /// Those that the environment names, if it does.
    pub fn from_env() -> Option<Self> {
        let urls = env::var_os(URLS)?;
        let is_named = urls.to_string_lossy().split_whitespace().next().is_some();
        is_named.then(|| Self::new([(URLS, urls)]))
    }

    /// With these variables of debuginfod-client-config(7) besides those of the environment.
    pub fn new(variables: impl IntoIterator<Item = (&'static str, OsString)>) -> Self {
        let mut variables = Vec::from_iter(variables);
        let mut timeout = 0;
        for (name, default) in [TIMEOUT, TIME_OF_FILE] {
            let given = variables.iter().find(|variable| variable.0 == name);
            let value = given.map(|variable| variable.1.clone());
            let value = value.or_else(|| env::var_os(name));
            let value = value.unwrap_or_else(|| default.to_string().into());
            if name == TIMEOUT.0 {
                timeout = value.to_string_lossy().parse().unwrap_or(default);
            }
            variables.push((name, value));
        }
        Self {
            variables,
            timeout: Duration::from_secs(timeout.max(1)),
            is_silent: Cell::new(false),
        }
    }

    /// The file of debug information with that build id.
    ///
    /// # Errors
    ///
    /// Why there is none, in words.
    pub(super) fn find(&self, build_id: &str) -> Result<PathBuf, String> {
        // It becomes an argument, and a capture's is not trusted.
        if build_id.len() < 8 || !build_id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err("debuginfod knows files by their GNU build id only".to_owned());
        }
        if self.is_silent.get() {
            return Err("no debuginfod server answers".to_owned());
        }
        let start = Instant::now();
        let found = Command::new("debuginfod-find")
            .args(["debuginfo", build_id])
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .output()
            .map_err(|error| {
                format!("`{URLS}` is set, but failed to run `debuginfod-find`: {error}")
            })?;
        if found.status.success() {
            let path = String::from_utf8_lossy(&found.stdout);
            return Ok(PathBuf::from(path.trim_end()));
        }
        self.is_silent.set(start.elapsed() >= self.timeout);
        let said = String::from_utf8_lossy(&found.stderr);
        Err(format!("no debuginfod server has it: {}", said.trim()))
    }
}
