//! Running the program as a person would, and reading what it answers.

// Not every file of tests uses all of it, and what runs use depends on the features.
#![allow(dead_code)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use prime_model::Config;
use serde_json::Value;

pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn lines(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    pub fn expect(self, code: i32) -> Ran {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.out, self.err);
        self
    }
}

/// The model of some thousand parameters that runs of tests train, after two steps of SFT.
const TINY: [&str; 8] = [
    "model.hidden_size=16",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "model.head_dim=8",
    "model.intermediate_size=16",
    "sft.steps=2",
    "eval.problems=4",
];

/// Arguments that set the tiny model, and more settings.
pub fn tiny<'a>(more: &[&'a str]) -> Vec<&'a str> {
    TINY.iter().chain(more).flat_map(|setting| ["--set", *setting]).collect()
}

pub fn prime_in(folder: &Path, args: &[&str], input: &str) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_prime"))
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses its flags does not read its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the program writes UTF-8");
    let ran = Ran {
        code: output.status.code().expect("no signal ends the program"),
        out: text(output.stdout),
        err: text(output.stderr),
    };
    assert!(!ran.err.contains("a fault in prime"), "{args:?}: {}", ran.err);
    ran
}

pub fn prime(args: &[&str], input: &str) -> Ran {
    prime_in(&repository(), args, input)
}

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

pub fn fixture(name: &str) -> String {
    repository().join("tests/fixtures/models").join(name).to_str().unwrap().to_string()
}

pub fn qwen2() -> String {
    fixture("qwen2-tied")
}

pub fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

/// As the floats they were written from: the shortest text of a float32 is another float64.
pub fn floats(value: &Value) -> Vec<f64> {
    numbers(value).into_iter().map(|x| f64::from(x as f32)).collect()
}

/// How far two float32 computations of a log-probability may be apart. Each is a chain of products, of which a sum of n terms is off by
/// about sqrt(n) roundings (half an ulp, 2^-24, each) of its magnitude; errors of independent steps add as squares. Logits and
/// log-probabilities of these models are below 16, and four standard deviations on both sides cover every number compared.
pub fn tolerance(config: &Config, tokens: usize) -> f64 {
    let q = config.num_heads * config.head_dim;
    let layer = 2 * config.hidden_size // into q, k, v and into gate, up
        + q // the output projection
        + config.intermediate_size
        + config.head_dim // scores
        + tokens // attended values
        + 2 * config.hidden_size; // the norms' sums of squares
    let terms = config.num_layers * layer + 2 * config.hidden_size + config.vocab_size;
    let roundings = (terms as f64).sqrt() * 2f64.powi(-24);
    2.0 * 4.0 * 16.0 * roundings
}
