//! Services in C. Debian has stripped them; what they export is left: for their plugins redis, PostgreSQL,
//! nginx and Python export most of their functions.
//!
//! Each is recorded twice: in one trial it does the same work again and again, in the other something is
//! never given back, for which a named function asks, or one of two.

use super::{
    daemon::{PLAIN, Ready, Recorded, Service, Trial, Work},
    expectation::Expectation,
    load::Requests,
};

pub(super) const SERVICES: [Service; 4] = [
    Service {
        name: "redis",
        packages: &["redis-server", "redis-tools", "libjemalloc2"],
        program: "usr/bin/redis-server",
        arguments: &[
            "--port",
            "$PORT",
            "--bind",
            "127.0.0.1",
            "--dir",
            "$DIR",
            "--save",
            "",
            "--appendonly",
            "no",
        ],
        // The keys of the steady trial, so that it only replaces them.
        ready: Ready::Program(&[
            "$PKG/usr/bin/redis-cli",
            "-e",
            "-p",
            "$PORT",
            "eval",
            "for i = 0, 999 do redis.call('set', string.format('key:%012d', i), 'xyz') end",
            "0",
        ]),
        trials: &[
            Trial {
                name: "steady",
                work: Work::Program {
                    arguments: &[
                        "$PKG/usr/bin/redis-benchmark",
                        "-q",
                        "-p",
                        "$PORT",
                        "-t",
                        "set",
                        "-n",
                        "2000000000",
                        "-c",
                        "8",
                        "-r",
                        "1000",
                    ],
                    rate: "rps=",
                },
                expected: Expectation::Steady,
            },
            Trial {
                name: "growing",
                // Keys that nobody deletes.
                work: Work::Program {
                    arguments: &[
                        "$PKG/usr/bin/redis-benchmark",
                        "-q",
                        "-p",
                        "$PORT",
                        "-t",
                        "set",
                        "-n",
                        "2000000000",
                        "-c",
                        "8",
                        "-r",
                        "1000000000",
                    ],
                    rate: "rps=",
                },
                // It enters the key; and what reads the command has made the value.
                expected: Expectation::Growth(&["setGenericCommand", "processMultibulkBuffer"]),
            },
        ],
        ..NATIVE
    },
    Service {
        name: "postgres",
        packages: &["postgresql-15", "postgresql-client-15", "libpq5"],
        program: "usr/lib/postgresql/15/bin/postgres",
        arguments: &[
            "-D",
            "$DIR/data",
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "port=$PORT",
            "-c",
            "unix_socket_directories=",
            "-c",
            "fsync=off",
            "-c",
            "jit=off",
        ],
        files: &[(
            // A name each time, and nobody deallocates it.
            "prepare.sql",
            "\\set id random(1, 1000000000)\n\
             PREPARE s:id AS SELECT abalance FROM pgbench_accounts WHERE aid = $1;\n",
        )],
        before: &[
            "$PKG/usr/lib/postgresql/15/bin/initdb",
            "-D",
            "$DIR/data",
            "-U",
            "leaktrace",
            "-A",
            "trust",
            "--locale=C",
            "--no-sync",
        ],
        ready: Ready::Program(&[
            "$PKG/usr/lib/postgresql/15/bin/pgbench",
            "-i",
            "-q",
            "-h",
            "127.0.0.1",
            "-p",
            "$PORT",
            "-U",
            "leaktrace",
            "postgres",
        ]),
        recorded: Recorded::Child("127.0.0.1("),
        trials: &[
            Trial {
                name: "steady",
                work: Work::Program {
                    arguments: &[
                        "$PKG/usr/lib/postgresql/15/bin/pgbench",
                        "-n",
                        "-P",
                        "1",
                        "-T",
                        "86400",
                        "-h",
                        "127.0.0.1",
                        "-p",
                        "$PORT",
                        "-U",
                        "leaktrace",
                        "postgres",
                    ],
                    rate: " s, ",
                },
                expected: Expectation::Steady,
            },
            Trial {
                name: "growing",
                work: Work::Program {
                    arguments: &[
                        "$PKG/usr/lib/postgresql/15/bin/pgbench",
                        "-n",
                        "-P",
                        "1",
                        "-T",
                        "86400",
                        "-h",
                        "127.0.0.1",
                        "-p",
                        "$PORT",
                        "-U",
                        "leaktrace",
                        "-f",
                        "$DIR/prepare.sql",
                        "-R",
                        "100",
                        "postgres",
                    ],
                    rate: " s, ",
                },
                expected: Expectation::Growth(&["PrepareQuery"]),
            },
        ],
        ..NATIVE
    },
    Service {
        name: "nginx",
        packages: &["nginx", "nginx-common"],
        program: "usr/sbin/nginx",
        arguments: &["-p", "$DIR", "-c", "$DIR/nginx.conf", "-e", "stderr"],
        files: &[
            (
                "nginx.conf",
                "daemon off; worker_processes 1; pid nginx.pid;\n\
                 events { worker_connections 900; }\n\
                 http {\n\
                   access_log off;\n\
                   client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;\n\
                   uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n\
                   server {\n\
                     listen 127.0.0.1:$PORT; root $DIR;\n\
                     location /upload { proxy_pass http://127.0.0.1:$OTHER; client_body_timeout 1h; }\n\
                   }\n\
                 }\n",
            ),
            (
                "page.txt",
                "a page of some length, served again and again\n",
            ),
        ],
        ready: Ready::Requests(Requests::Http(&[("GET /page.txt HTTP/1.1", "")])),
        recorded: Recorded::Child("nginx: worker process"),
        trials: &[
            Trial {
                name: "steady",
                work: Work::Ready,
                expected: Expectation::Steady,
            },
            Trial {
                name: "growing",
                // Clients that never send the rest of what they upload.
                work: Work::Requests(Requests::Held(
                    "POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 15000\r\n\r\nThe first",
                )),
                expected: Expectation::Growth(&["ngx_http_read_client_request_body"]),
            },
        ],
        ..NATIVE
    },
    Service {
        name: "python3",
        packages: &[
            "python3.11-minimal",
            "libpython3.11-minimal",
            "libpython3.11-stdlib",
            "python3.11-dbg",
        ],
        program: "usr/bin/python3.11",
        arguments: &["-u", "$DIR/service.py", "$PORT"],
        environment: &[("PYTHONHOME", "$PKG/usr"), ("PYTHONDONTWRITEBYTECODE", "1")],
        files: &[(
            "service.py",
            "import http.server, sys\n\
             kept = []\n\
             class Handler(http.server.BaseHTTPRequestHandler):\n    \
                 def do_GET(self):\n        \
                     rows = [{'row': n, 'text': str(n) * 8} for n in range(100)]\n        \
                     page = bytearray(2048 + len(kept) % 2048)\n        \
                     if self.path == '/keep':\n            \
                         kept.append(page)\n        \
                     self.send_response(200)\n        \
                     self.end_headers()\n        \
                     self.wfile.write(b'%d\\n' % len(rows))\n    \
                 def log_message(self, *arguments):\n        \
                     pass\n\
             http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()\n",
        )],
        ready: Ready::Requests(Requests::Http(&[("GET / HTTP/1.1", "")])),
        trials: &[
            Trial {
                name: "steady",
                work: Work::Ready,
                expected: Expectation::Steady,
            },
            Trial {
                name: "growing",
                work: Work::Requests(Requests::Http(&[("GET /keep HTTP/1.1", "")])),
                expected: Expectation::Growth(&["bytearray___init___impl"]),
            },
        ],
        ..NATIVE
    },
];

/// What they have in common.
const NATIVE: Service = Service {
    environment: &[("LD_LIBRARY_PATH", "$PKG/usr/lib/x86_64-linux-gnu")],
    as_nobody: true,
    ..PLAIN
};
