//! Tools around the project: nothing that is built, run or tested needs them.
//!
//! - The program `cuda` (`tools/cuda`) is the CUDA compilers without a GPU: `cargo run -p prime-tools --bin cuda -- install` fetches them,
//!   `... -- compile` compiles every kernel for every chip and prints registers, occupancy and spills.
//! - The program `compare` (`tools/compare`) runs every estimator and every loss from the same starts and writes one table with intervals:
//!   `cargo run --release -p prime-tools --bin compare -- estimators --out docs/results/estimators.json`.
//! - `peers/compare.py` runs this project and PyTorch in turn on the same work and prints the ratio of their speeds; `peers/rounds.py`,
//!   `peers/train_step.py`, `peers/decode.py` and `peers/matmul.py` are PyTorch's side of it, `bench/examples/step.rs` is ours.
//! - `peers/check_transformers.py` prints what transformers computes from a model folder, or compares two folders.
//! - `peers/make_fixtures.py` writes the models of `tests/fixtures/models` and what transformers computes from them.
//! - `fixtures/algorithm_small.py` writes `tests/fixtures/algorithm_small.json`: the algorithm in plain Python, apart from the Rust one.
