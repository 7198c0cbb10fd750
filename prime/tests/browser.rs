//! Pages in a browser, used as a reader would: `tests/browser/drive.js` turns their controls and says what it saw.
//!
//! Needs Chromium, by the name `chromium` or that of `PRIME_BROWSER`, so it is run by name: `cargo test -p prime --test browser -- --ignored`.
//! `PRIME_SCREENSHOTS` names a folder in which pictures of the pages are left.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::{fixture, prime, qwen2};

/// A run that takes a moment, with some of everything: two minibatches, so that the policy moves within a step.
const RUN: [&str; 22] = [
    "model.hidden_size=16",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "model.head_dim=8",
    "model.intermediate_size=16",
    "sft.steps=40",
    "sft.batch_size=4",
    "train.steps=3",
    "train.record_update_every=1",
    "prm.warmup_batches=1",
    "prm.reference=frozen",
    "policy.minibatches=2",
    "rollout.prompts=4",
    "rollout.samples=3",
    "rollout.max_new_tokens=12",
    "filter.lower=0",
    "filter.upper=1",
    "filter.groups=3",
    "eval.problems=4",
    "eval.every=1",
    "task.arithmetic.max_operations=2",
];

fn browser(profile: &Path, size: &str, dark: bool, page: &Path, more: &[&str]) -> (String, String) {
    let program = std::env::var("PRIME_BROWSER").unwrap_or_else(|_| "chromium".to_owned());
    let flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--virtual-time-budget=20000",
    ];
    let output = Command::new(&program)
        .args(flags)
        .args(dark.then_some("--blink-settings=preferredColorScheme=0"))
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--window-size={size}"))
        .args(more)
        .arg(format!("file://{}", page.display()))
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| {
            panic!("{program} does not start: {error}; PRIME_BROWSER names another")
        });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (text(output.stdout), text(output.stderr))
}

/// Opens a page at a phone's and at a desk's width, light and dark, and uses it.
fn use_page(name: &str, folder: &Path, page: &Path) {
    let html = std::fs::read_to_string(page).unwrap();
    let listen = "<script data-test>window.errors = []; addEventListener('error', (e) => errors.push(e.message)); \
                  console.error = console.warn = (...all) => errors.push(all.join(' '));</script>";
    let drive = include_str!("browser/drive.js");
    let tested = html.replacen("<head>", &format!("<head>{listen}"), 1).replacen(
        "</body>",
        &format!("<script data-test>{drive}</script></body>"),
        1,
    );
    let copy = folder.join(format!("{name}-tested.html"));
    std::fs::write(&copy, tested).unwrap();
    let pictures =
        std::env::var_os("PRIME_SCREENSHOTS").map_or(folder.to_path_buf(), PathBuf::from);
    for (size, dark) in [("1280,900", false), ("390,844", true)] {
        let profile = tempfile::tempdir().unwrap();
        let (dom, console) = browser(profile.path(), size, dark, &copy, &["--dump-dom"]);
        let said: Vec<&str> = console.lines().filter(|line| line.contains("CONSOLE")).collect();
        assert!(said.is_empty(), "{name} at {size} says in the console: {said:?}");
        let checks =
            dom.split("<pre id=\"checks\"").nth(1).and_then(|rest| rest.split("</pre>").next());
        let checks =
            checks.unwrap_or_else(|| panic!("{name} at {size} was not used to its end: {console}"));
        let failed: Vec<&str> = checks.lines().filter(|line| line.contains("FAILED")).collect();
        assert!(
            failed.is_empty() && checks.contains("ok done"),
            "{name} at {size}: {failed:#?}\nof {checks}"
        );

        let picture =
            pictures.join(format!("{name}-{}.png", if dark { "phone-dark" } else { "desk-light" }));
        let shot = format!("--screenshot={}", picture.display());
        browser(profile.path(), size, dark, page, &[&shot]);
        // A page of one colour compresses to a few thousand bytes.
        let bytes = std::fs::metadata(&picture).unwrap().len();
        assert!(bytes > 12_000, "{} has {bytes} bytes", picture.display());
    }
}

#[test]
#[ignore = "needs a browser; .ci/run installs one where it can"]
fn the_report_of_a_run_works_in_a_browser() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let set = RUN.iter().flat_map(|setting| ["--set", setting]);
    let args: Vec<&str> =
        ["train", "--out", out.to_str().unwrap()].into_iter().chain(set).collect();
    prime(&args, "").expect(0);
    use_page("report", folder.path(), &out.join("report.html"));
}

#[test]
#[ignore = "needs a browser; .ci/run installs one where it can"]
fn scored_texts_work_in_a_browser_whatever_they_say() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("score.html");
    let hostile = "</script><script>hacked = 1</script><img src=x onerror='hacked = 2'> x + 3 = 7\n\u{202e}\u{0}\u{7} 中文 🙂 &amp; <!--";
    let input = serde_json::json!({"prompt": "<b>3 + 4</b> =", "response": hostile, "score": 1})
        .to_string()
        + "\n"
        + &serde_json::json!({"text": "3 + 4 = 7"}).to_string();
    let prm = fixture("qwen3-untied-bf16-sharded");
    let model = qwen2();
    let args = [
        "score",
        "--model",
        &model,
        "--prm",
        &prm,
        "--input",
        "-",
        "--html",
        page.to_str().unwrap(),
    ];
    prime(&args, &input).expect(0);
    use_page("score", folder.path(), &page);
}
