//! Services in Go: stripped, Go 1.19, their heaps sampled by the runtime.

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{
    daemon::{PLAIN, Ready, Service, Trial, Work},
    expectation::{Expectation, OF_THE_ATTACH, losses},
    load::Requests,
    names::Names,
};

/// Counts goroutines that ran on whenever they were read: under load there may be one now and then.
const TORN: &str = "goroutines_unstable";
/// At most one in so many goroutines that the censuses read.
const TORN_IN: u64 = 1000;
/// Of a hundred frames, so many at least have a name.
const NAMED: f64 = 99.0;

pub(super) const SERVICES: [Service; 5] = [
    Service {
        name: "prometheus",
        packages: &["prometheus"],
        program: "usr/bin/prometheus",
        arguments: &[
            "--config.file=$DIR/prometheus.yml",
            "--storage.tsdb.path=$DIR/data",
            "--web.listen-address=127.0.0.1:$PORT",
            "--log.level=warn",
        ],
        files: &[(
            "prometheus.yml",
            "global: {scrape_interval: 1s}\n\
             scrape_configs:\n- {job_name: self, static_configs: [{targets: ['127.0.0.1:$PORT']}]}\n",
        )],
        ready: Ready::Requests(Requests::Http(&[
            ("GET /metrics HTTP/1.1", ""),
            ("GET /api/v1/query?query=up HTTP/1.1", ""),
            (
                "GET /api/v1/query?query=rate(go_memstats_alloc_bytes_total[30s]) HTTP/1.1",
                "",
            ),
        ])),
        ..GO
    },
    Service {
        name: "etcd",
        packages: &["etcd-server"],
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
        ready: Ready::Requests(Requests::Http(&[
            // foo = bar
            (
                "POST /v3/kv/put HTTP/1.1",
                r#"{"key":"Zm9v","value":"YmFy"}"#,
            ),
            ("POST /v3/kv/range HTTP/1.1", r#"{"key":"Zm9v"}"#),
            ("GET /health HTTP/1.1", ""),
        ])),
        ..GO
    },
    Service {
        name: "caddy",
        packages: &["caddy"],
        program: "usr/bin/caddy",
        arguments: &[
            "file-server",
            "--listen",
            "127.0.0.1:$PORT",
            "--root",
            "$DIR",
        ],
        files: &[(
            "page.txt",
            "a page of some length, served again and again\n",
        )],
        ready: Ready::Requests(Requests::Http(&[("GET /page.txt HTTP/1.1", "")])),
        ..GO
    },
    Service {
        name: "syncthing",
        packages: &["syncthing"],
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
        ready: Ready::Requests(Requests::Http(&[
            (
                "GET /rest/system/status HTTP/1.1\r\nX-API-Key: leaktrace",
                "",
            ),
            ("GET /rest/config HTTP/1.1\r\nX-API-Key: leaktrace", ""),
            ("GET / HTTP/1.1\r\nX-API-Key: leaktrace", ""),
        ])),
        ..GO
    },
    Service {
        name: "nats-server",
        packages: &["nats-server"],
        program: "usr/sbin/nats-server",
        arguments: &["--addr", "127.0.0.1", "--port", "$PORT"],
        ready: Ready::Requests(Requests::Nats),
        ..GO
    },
];

/// What they have in common.
const GO: Service = Service {
    trials: &[Trial {
        name: "",
        work: Work::Ready,
        expected: Expectation::Go,
    }],
    ..PLAIN
};

/// A plan for a stripped Go program with a heap sampler: the three probes of the sampler, where the
/// kernel emulates the instruction, its two variables, and nothing that cannot be seen.
pub(super) fn plan_is_right(plan: &Value) -> Result<()> {
    ensure!(
        plan["target"]["stripped"] == true,
        "not stripped: {}",
        plan["target"]
    );
    for function in ["setprofilebucket", "freeSpecial", "gcMarkTermination"] {
        let mut probes = plan["probes"].as_array().into_iter().flatten();
        let probe = probes.find(|probe| probe["name"] == format!("runtime.{function}"));
        let text = probe.map(Value::to_string).unwrap_or_default();
        ensure!(
            text.contains("emulated"),
            "no cheap probe on `{function}`: {text}"
        );
    }
    for variable in ["mbuckets", "MemProfileRate"] {
        let mut reads = plan["reads"].as_array().into_iter().flatten();
        let is_read = reads.any(|read| read["name"] == format!("runtime.{variable}"));
        ensure!(is_read, "`{variable}` is not read: {}", plan["reads"]);
    }
    let limits = plan["limits"].as_array().is_some_and(Vec::is_empty);
    ensure!(limits, "not seen: {}", plan["limits"]);
    Ok(())
}

/// Every goroutine could be read.
pub(super) fn census_is_right(census: &Value) -> Result<()> {
    let goroutines = census["total"].as_u64().unwrap_or_default();
    ensure!(goroutines > 0, "no goroutine was found");
    ensure!(
        census["unreadable"] == 0,
        "{} goroutines could not be read",
        census["unreadable"]
    );
    Ok(())
}

/// The frames have names, and nothing was lost.
pub(super) fn report_is_right(report: &Value, names: &Names) -> Result<String> {
    names.are_at_least(NAMED, NAMED)?;
    let goroutines = &report["goroutines"];
    let total = goroutines["total"].as_u64().unwrap_or_default();
    let read = goroutines["censuses"].as_u64().unwrap_or_default() * total;
    for (cause, count) in losses(report) {
        let is_torn = cause == TORN && count * TORN_IN <= read;
        ensure!(
            is_torn || OF_THE_ATTACH.contains(&cause),
            "lost: {count} {cause}, of {read} goroutines read"
        );
    }
    Ok(format!(
        "; {}, {total} goroutines",
        report["target"]["go"]["version"].as_str().unwrap_or("?")
    ))
}
