//! The services, and one of them at work.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::load::{self, Load, Requests};
use crate::{run, workspace};

/// How long a service may take to answer its first request, or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A service of the distribution.
pub(super) struct Service {
    /// What it is called here.
    pub(super) name: &'static str,
    package: &'static str,
    program: &'static str,
    /// `$DIR` is its folder, `$PORT` where it answers, `$OTHER` a second port.
    arguments: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
    /// Files that it needs in its folder, with the same placeholders.
    files: &'static [(&'static str, &'static str)],
    requests: Requests,
}

pub(super) const SERVICES: [Service; 5] = [
    Service {
        name: "prometheus",
        package: "prometheus",
        program: "usr/bin/prometheus",
        arguments: &[
            "--config.file=$DIR/prometheus.yml",
            "--storage.tsdb.path=$DIR/data",
            "--web.listen-address=127.0.0.1:$PORT",
            "--log.level=warn",
        ],
        environment: &[],
        files: &[(
            "prometheus.yml",
            "global: {scrape_interval: 1s}\n\
             scrape_configs:\n- {job_name: self, static_configs: [{targets: ['127.0.0.1:$PORT']}]}\n",
        )],
        requests: Requests::Http(&[
            ("GET /metrics HTTP/1.1", ""),
            ("GET /api/v1/query?query=up HTTP/1.1", ""),
            (
                "GET /api/v1/query?query=rate(go_memstats_alloc_bytes_total[30s]) HTTP/1.1",
                "",
            ),
        ]),
    },
    Service {
        name: "etcd",
        package: "etcd-server",
        program: "usr/bin/etcd",
        arguments: &[
            "--data-dir=$DIR/data",
            "--listen-client-urls=http://127.0.0.1:$PORT",
            "--advertise-client-urls=http://127.0.0.1:$PORT",
            "--listen-peer-urls=http://127.0.0.1:$OTHER",
            "--initial-advertise-peer-urls=http://127.0.0.1:$OTHER",
            "--initial-cluster=default=http://127.0.0.1:$OTHER",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ],
        environment: &[],
        files: &[],
        requests: Requests::Http(&[
            // foo = bar
            (
                "POST /v3/kv/put HTTP/1.1",
                r#"{"key":"Zm9v","value":"YmFy"}"#,
            ),
            ("POST /v3/kv/range HTTP/1.1", r#"{"key":"Zm9v"}"#),
            ("GET /health HTTP/1.1", ""),
        ]),
    },
    Service {
        name: "caddy",
        package: "caddy",
        program: "usr/bin/caddy",
        arguments: &[
            "file-server",
            "--listen",
            "127.0.0.1:$PORT",
            "--root",
            "$DIR",
        ],
        environment: &[],
        files: &[(
            "page.txt",
            "a page of some length, served again and again\n",
        )],
        requests: Requests::Http(&[("GET /page.txt HTTP/1.1", "")]),
    },
    Service {
        name: "syncthing",
        package: "syncthing",
        program: "usr/bin/syncthing",
        arguments: &[
            "serve",
            "--no-browser",
            "--no-upgrade",
            "--no-default-folder",
            "--home=$DIR",
        ],
        // Without the process that would start it again.
        environment: &[("STMONITORED", "yes"), ("STNOUPGRADE", "1")],
        files: &[(
            "config.xml",
            "<configuration version=\"35\">\
             <gui enabled=\"true\" tls=\"false\"><address>127.0.0.1:$PORT</address><apikey>leaktrace</apikey></gui>\
             <options><listenAddress>tcp://127.0.0.1:$OTHER</listenAddress>\
             <globalAnnounceEnabled>false</globalAnnounceEnabled><localAnnounceEnabled>false</localAnnounceEnabled>\
             <relaysEnabled>false</relaysEnabled><natEnabled>false</natEnabled><urAccepted>-1</urAccepted>\
             <autoUpgradeIntervalH>0</autoUpgradeIntervalH><crashReportingEnabled>false</crashReportingEnabled>\
             <startBrowser>false</startBrowser></options></configuration>\n",
        )],
        requests: Requests::Http(&[
            (
                "GET /rest/system/status HTTP/1.1\r\nX-API-Key: leaktrace",
                "",
            ),
            ("GET /rest/config HTTP/1.1\r\nX-API-Key: leaktrace", ""),
            ("GET / HTTP/1.1\r\nX-API-Key: leaktrace", ""),
        ]),
    },
    Service {
        name: "nats-server",
        package: "nats-server",
        program: "usr/sbin/nats-server",
        arguments: &["--addr", "127.0.0.1", "--port", "$PORT"],
        environment: &[],
        files: &[],
        requests: Requests::Nats,
    },
];

/// A running service. It ends when this is dropped.
pub(super) struct Daemon {
    child: Child,
    folder: PathBuf,
    address: SocketAddr,
    requests: Requests,
}

impl Daemon {
    /// Starts it in a folder of its own, which is emptied first, and waits until it answers.
    pub(super) fn start(service: &Service) -> Result<Self> {
        let package = super::unpack(service.package)?;
        let folder = workspace::target().join("services").join(service.name);
        if folder.exists() {
            run::run(run::as_root("rm").arg("-rf").arg(&folder))?;
        }
        fs::create_dir_all(&folder)
            .with_context(|| format!("failed to create `{}`", folder.display()))?;
        let (address, other) = (free_address()?, free_address()?);
        let filled = |text: &str| {
            text.replace("$DIR", &folder.to_string_lossy())
                .replace("$PORT", &address.port().to_string())
                .replace("$OTHER", &other.port().to_string())
        };
        for (name, text) in service.files {
            fs::write(folder.join(name), filled(text))?;
        }
        let output = File::create(folder.join("output"))?;
        let mut command = Command::new(package.join(service.program));
        command
            .args(service.arguments.iter().map(|argument| filled(argument)))
            .envs(service.environment.iter().copied())
            .env("HOME", &folder)
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_DATA_HOME")
            .current_dir(&folder)
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = command
            .spawn()
            .with_context(|| format!("failed to start `{}`", run::line(&command)))?;
        let mut daemon = Self {
            child,
            folder,
            address,
            requests: service.requests,
        };
        daemon.wait_until_it_answers()?;
        Ok(daemon)
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let answer = load::once(self.address, self.requests, 0);
            match answer {
                Ok(()) => return Ok(()),
                Err(_) if !self.is_running()? => bail!("it ended at once: {}", self.said()),
                Err(error) if Instant::now() > end => {
                    return Err(error.context(format!("it does not answer: {}", self.said())));
                }
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What is its own on disk.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// The end of what it has written.
    pub(super) fn said(&self) -> String {
        let text = fs::read_to_string(self.folder.join("output")).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
    }

    /// Begins to ask it.
    pub(super) fn load(&self) -> Load {
        Load::start(self.address, self.requests)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = run::run(Command::new("kill").arg(self.child.id().to_string()));
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(20)),
                _ => return,
            }
        }
        // It may have ended just now, and there is nobody to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address on loopback that nobody listens on now.
fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("failed to find a port")?;
    Ok(listener.local_addr()?)
}
