//! A headless Chromium, driven through its debugging pipe: no port is opened.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The longest that the browser may take for anything.
const PATIENCE: Duration = Duration::from_secs(120);

/// The switches of a browser that does nothing by itself.
const SWITCHES: [&str; 13] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
];

/// A running browser with one page. It is ended when this is dropped.
pub struct Browser {
    child: Child,
    stdin: ChildStdin,
    messages: Receiver<Value>,
    events: Vec<Value>,
    last_id: u64,
    session: String,
    _profile: TempDir,
}

impl Browser {
    /// Starts it, with a page of so many pixels.
    ///
    /// # Panics
    ///
    /// Chromium is not installed, or does not answer.
    pub fn start(width: u32, height: u32) -> Self {
        let profile = TempDir::new().expect("a temporary folder");
        // It listens on descriptor 3 and answers on 4.
        let mut child = Command::new("sh")
            .args([
                "-c",
                "exec chromium \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1",
                "sh",
            ])
            .args(SWITCHES)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(format!("--window-size={width},{height}"))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell starts");
        let stdin = child.stdin.take().expect("stdin is piped");
        let mut answers = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let (send, messages) = channel();
        thread::spawn(move || {
            let mut message = Vec::new();
            while answers
                .read_until(0, &mut message)
                .is_ok_and(|read| read > 1)
            {
                message.pop();
                let value = serde_json::from_slice(&message).expect("the browser writes JSON");
                if send.send(value).is_err() {
                    break;
                }
                message.clear();
            }
        });
        let mut browser = Self {
            child,
            stdin,
            messages,
            events: Vec::new(),
            last_id: 0,
            session: String::new(),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.call("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().expect("a session").to_owned();
        for domain in ["Page", "Runtime", "Network", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Sends a command of the DevTools protocol and waits for its answer.
    ///
    /// # Panics
    ///
    /// It fails.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let mut message = json!({"id": self.last_id, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        let mut line = message.to_string().into_bytes();
        line.push(0);
        self.stdin.write_all(&line).expect("the browser listens");
        loop {
            let message = self.receive();
            if message["id"] == self.last_id {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }

    fn receive(&self) -> Value {
        let message = self.messages.recv_timeout(PATIENCE);
        message.expect("the browser answers: is the package `chromium` installed?")
    }

    /// Opens a file and waits until it is loaded; scripts are off if `scripts` is false.
    ///
    /// # Panics
    ///
    /// It does not load.
    pub fn open(&mut self, page: &Path, scripts: bool) {
        let off = json!({"value": !scripts});
        self.call("Emulation.setScriptExecutionDisabled", off);
        self.events.clear();
        let url = format!("file://{}", page.display());
        self.call("Page.navigate", json!({"url": url}));
        loop {
            let is_loaded = |event: &Value| event["method"] == "Page.loadEventFired";
            if self.events.iter().any(is_loaded) {
                return;
            }
            let message = self.receive();
            self.events.push(message);
        }
    }

    /// The value of an expression on the page.
    ///
    /// # Panics
    ///
    /// It throws.
    pub fn eval(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", params);
        assert!(
            answer["exceptionDetails"].is_null(),
            "{expression}: {answer}"
        );
        answer["result"]["value"].clone()
    }

    /// The text of the element that a selector finds.
    pub fn text(&mut self, selector: &str) -> String {
        let text = self.eval(&format!("document.querySelector({selector:?}).innerText"));
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Presses a key, as `ArrowDown`.
    pub fn key(&mut self, key: &str) {
        let code = match key {
            "Enter" => 13,
            "Escape" => 27,
            "Tab" => 9,
            "ArrowLeft" => 37,
            "ArrowUp" => 38,
            "ArrowRight" => 39,
            "ArrowDown" => 40,
            _ => 0,
        };
        for kind in ["rawKeyDown", "keyUp"] {
            let params =
                json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code});
            self.call("Input.dispatchKeyEvent", params);
        }
    }

    /// Types a text.
    pub fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", json!({"text": text}));
    }

    /// Presses the mouse in the middle of an element.
    pub fn click(&mut self, selector: &str) {
        let script = format!(
            "{{ const e = document.querySelector({selector:?}); e.scrollIntoView({{block: 'center'}}); \
             const b = e.getBoundingClientRect(); [b.x + b.width / 2, b.y + b.height / 2] }}"
        );
        let at = self.eval(&script);
        self.drag((&at[0], &at[1]), (&at[0], &at[1]));
    }

    /// Presses the mouse at one point and lets it go at another.
    pub fn drag(&mut self, from: (&Value, &Value), to: (&Value, &Value)) {
        for (kind, (x, y)) in [
            ("mouseMoved", from),
            ("mousePressed", from),
            ("mouseMoved", to),
            ("mouseReleased", to),
        ] {
            let buttons = u8::from(kind == "mouseMoved" && from != to);
            let params = json!({"type": kind, "x": x, "y": y, "button": "left", "buttons": buttons, "clickCount": 1});
            self.call("Input.dispatchMouseEvent", params);
        }
    }

    /// Takes the page as dark, or light.
    pub fn prefer(&mut self, scheme: &str) {
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        self.call("Emulation.setEmulatedMedia", json!({"features": [feature]}));
    }

    /// Makes the page so many pixels wide and high.
    pub fn resize(&mut self, width: u32, height: u32) {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    /// Leaves what the page looks like, from top to bottom, as `target/screenshots/NAME.png`.
    ///
    /// # Panics
    ///
    /// It cannot be written.
    pub fn screenshot(&mut self, name: &str) {
        self.eval("scrollTo(0, 0)");
        let size = self.call("Page.getLayoutMetrics", json!({}))["cssContentSize"].clone();
        let height = size["height"].as_f64().unwrap_or(800.0).min(6000.0);
        let clip = json!({"x": 0, "y": 0, "width": size["width"], "height": height, "scale": 1});
        let params = json!({"captureBeyondViewport": true, "clip": clip});
        let taken = self.call("Page.captureScreenshot", params);
        let data = taken["data"].as_str().expect("a picture");
        let picture = BASE64_STANDARD.decode(data).expect("a picture in base64");
        std::fs::write(crate::screenshot(&format!("{name}.png")), picture)
            .expect("the screenshot can be written");
    }

    /// What the page has complained about, and what it has asked the network for, since it was opened.
    pub fn complaints(&mut self) -> Vec<String> {
        // Whatever happened before this answer has been told by then.
        self.call("Runtime.evaluate", json!({"expression": "0"}));
        let is_complaint = |event: &&Value| match event["method"].as_str() {
            Some("Runtime.exceptionThrown" | "Runtime.consoleAPICalled" | "Log.entryAdded") => true,
            Some("Network.requestWillBeSent") => event["params"]["type"] != "Document",
            _ => false,
        };
        self.events
            .iter()
            .filter(is_complaint)
            .map(Value::to_string)
            .collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Asked to close, it takes its own children along.
        let message = json!({"id": 0, "method": "Browser.close"}).to_string() + "\0";
        if self.stdin.write_all(message.as_bytes()).is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}
