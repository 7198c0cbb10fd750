//! Tuning on the emulated device: every way is checked, one is kept, and a later run takes it. Preferences are of the process, so this file is one of its own,
//! and a test that chooses the chip runs in a process of its own.

use std::path::Path;
use std::process::Command;

use prime::bench::tune::{self, Entry, Problem, attention, decode, products};
use prime_kernels::attention::tuning as passes;
use prime_kernels::attention::tuning::decode as steps;
use prime_kernels::attention::{self as kernels, Mask};
use prime_kernels::matmul::tuning;
use prime_runtime::{DType, Device, Tensor, bf16};
use serde_json::Value;

#[test]
fn what_was_found_is_kept_and_preferred_by_later_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tuned.json");
    let device = Device::Emulated;
    let linear = products::named("NT:16x48x512", DType::BF16).unwrap();
    let problems = [
        linear,
        products::named("TN:24x16x40", DType::BF16).unwrap(),
        tuning::Problem { n: 96, k: 32, swiglu: true, ..linear },
    ];
    let mut found = Vec::new();
    let wanted = problems.map(Problem::Product);
    tune::tune_into(&path, device, &wanted, |entry| found.push(entry.clone())).unwrap();
    assert_eq!(found.len(), problems.len());
    for (problem, entry) in problems.iter().zip(&found) {
        let variants = tuning::variants(device, *problem).unwrap();
        // None computed something else than the launcher's own choice.
        assert_eq!(entry.ran, variants.len(), "{}", entry.problem);
        assert!(entry.seconds <= entry.seconds_by_itself, "{entry:?}");
        let kept = tuning::preferred(problem).unwrap();
        assert_eq!(kept.to_string(), entry.variant);
    }

    // A later process begins without preferences and reads the file; products of about as many rows take it too.
    let forget = |problem: &tuning::Problem| {
        tuning::prefer(*problem, None);
        tuning::prefer(problem.class(), None);
    };
    problems.iter().for_each(forget);
    assert_eq!(tuning::preferred(&linear), None);
    tune::use_table(device, &path);
    assert_eq!(tuning::preferred(&linear).unwrap().to_string(), found[0].variant);
    let similar = tuning::Problem { m: 9, ..linear };
    assert_eq!(tuning::preferred(&similar).unwrap().to_string(), found[0].variant);
    assert_eq!(tuning::preferred(&tuning::Problem { m: 17, ..linear }), None);

    // Neither a file that is not there nor a damaged one is in the way of a run.
    problems.iter().for_each(forget);
    std::fs::write(&path, "half of a fi").unwrap();
    tune::use_table(device, &path);
    tune::use_table(device, &folder.path().join("none"));
    assert_eq!(tuning::preferred(&linear), None);
}

/// Runs a test's body in a process whose emulated device stands for a chip.
fn on_chip(chip: &str, test: &str, body: impl FnOnce()) {
    const CHILD: &str = "PRIME_TEST_OF_TUNING";
    if std::env::var(CHILD).is_ok_and(|child| child == test) {
        return body();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, test)
        .env("PRIME_EMULATOR", format!("chip={chip}"))
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{}\n{out}{err}", output.status);
}

/// The bits of a pass.
fn attend(problem: &passes::Problem) -> Vec<u32> {
    let &passes::Problem { tokens, sequences, heads, kv_heads, head_dim, .. } = problem;
    let values = |heads: usize, step: usize| {
        let count = tokens * heads * head_dim;
        let values = (0..count).map(|i| bf16::from_f32(((i * step) % 97) as f32 / 31.0 - 1.5));
        let values: Vec<bf16> = values.collect();
        let host = Tensor::from_slice(&values, &[tokens, heads, head_dim]).unwrap();
        host.to(Device::Emulated).unwrap()
    };
    let starts: Vec<u32> = (0..=sequences).map(|i| (i * tokens / sequences) as u32).collect();
    let starts = Tensor::from_slice(&starts, &[starts.len()]).unwrap();
    let starts = starts.to(Device::Emulated).unwrap();
    let (q, k, v) = (values(heads, 37), values(kv_heads, 41), values(kv_heads, 59));
    let zeros = |dtype, dims: &[usize]| Tensor::zeros(Device::Emulated, dtype, dims).unwrap();
    let mut out = zeros(DType::BF16, q.dims());
    let mut lse = zeros(DType::F32, &[tokens, heads]);
    let (to, lse) = (out.view_mut(), lse.view_mut());
    kernels::forward(to, lse, q.view(), k.view(), v.view(), starts.view(), 0.2, Mask::Causal)
        .unwrap();
    out.view().to_f32_vec().into_iter().map(f32::to_bits).collect()
}

/// Tunes a pass, and gives back what was kept and the names of its kernels.
fn tuned(path: &Path, problem: passes::Problem) -> (Entry, Vec<String>) {
    let mut found = Vec::new();
    let wanted = [Problem::Attention(problem)];
    tune::tune_into(path, Device::Emulated, &wanted, |entry| found.push(entry.clone())).unwrap();
    let [entry] = &found[..] else { panic!("{found:?}") };
    let variants = passes::variants(Device::Emulated, problem).unwrap();
    let names: Vec<String> = variants.iter().map(ToString::to_string).collect();
    // None computed anything but attention.
    assert_eq!((entry.kernel.as_str(), entry.ran), ("attention", variants.len()), "{entry:?}");
    assert!(names.contains(&entry.variant), "{entry:?}");
    assert_eq!(passes::preferred(&problem).unwrap().to_string(), entry.variant);
    passes::prefer(problem, None);
    passes::prefer(problem.class(), None);
    (entry.clone(), names)
}

/// Has a file name other kernels, or other problems.
fn rewrite(path: &Path, change: impl FnOnce(&mut Vec<Value>)) {
    let mut table: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(table["entries"].as_array_mut().unwrap());
    std::fs::write(path, table.to_string()).unwrap();
}

#[test]
fn attention_on_hopper_takes_the_kernel_that_was_kept() {
    on_chip("9.0", "attention_on_hopper_takes_the_kernel_that_was_kept", || {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuned.json");
        let problem = attention::named("causal:2x100:2/1x64", DType::BF16).unwrap();
        let similar = passes::Problem { tokens: 195, ..problem };
        let other = passes::Problem { tokens: 130, sequences: 1, ..problem };
        let unforced = [problem, similar, other].map(|problem| attend(&problem));
        let (_, names) = tuned(&path, problem);
        assert_eq!(names.len(), 3, "{names:?}");

        // The launcher takes whatever the file names, for the pass and for its class.
        let mut seen = Vec::new();
        for name in &names {
            rewrite(&path, |entries| entries[0]["variant"] = Value::from(name.as_str()));
            tune::use_table(Device::Emulated, &path);
            assert_eq!(passes::preferred(&similar).unwrap().to_string(), *name);
            let bits = [problem, similar, other].map(|problem| attend(&problem));
            assert!(bits[2] == unforced[2], "{name} is taken for sequences of another length");
            seen.push([bits[0].clone(), bits[1].clone()]);
        }
        assert!(seen[0] == unforced[..2], "{} is what is taken by itself", names[0]);
        let portable = names.iter().position(|name| !name.contains("sm90")).unwrap();
        for (bits, unforced) in seen[portable].iter().zip(&unforced) {
            assert!(bits != unforced, "the portable kernel adds in another order");
        }

        // What this program does not know is passed over, and what was measured itself comes before its class.
        passes::prefer(problem, None);
        passes::prefer(problem.class(), None);
        rewrite(&path, |entries| {
            let own = entries.remove(0);
            let with = |key: &str, value: &str| {
                let mut entry = own.clone();
                entry[key] = Value::from(value);
                entry
            };
            entries.push(with("kernel", "attention backward"));
            entries.push(with("variant", "attention_forward_sm100<64>"));
            entries.push(with("problem", "casual 200 tokens in 2 sequences"));
            let none = "causal 200 tokens in 2 sequences, 2/1 heads of 512, bfloat16";
            entries.push(with("problem", none));
        });
        tune::use_table(Device::Emulated, &path);
        assert_eq!(passes::preferred(&problem), None);
        rewrite(&path, |entries| {
            entries.truncate(1);
            entries[0]["kernel"] = Value::from("attention");
            for (tokens, name) in [(256, &names[1]), (200, &names[portable])] {
                let mut entry = entries[0].clone();
                entry["problem"] = Value::from(format!(
                    "causal {tokens} tokens in 2 sequences, 2/1 heads of 64, bfloat16"
                ));
                entry["variant"] = Value::from(name.as_str());
                entries.push(entry);
            }
            entries.remove(0);
        });
        tune::use_table(Device::Emulated, &path);
        let class = passes::Problem { tokens: 256, ..problem };
        assert_eq!(class, problem.class());
        assert_eq!(passes::preferred(&class).unwrap().to_string(), names[1]);
        assert_eq!(passes::preferred(&problem).unwrap().to_string(), names[portable]);
    });
}

/// The bits of a decode step whose sequences have filled their caches.
fn step(problem: &steps::Problem) -> Vec<u32> {
    let &steps::Problem { sequences, keys, heads, kv_heads, head_dim, .. } = problem;
    let values = |rows: usize, heads: usize, step: usize| {
        let count = rows * heads * head_dim;
        let values = (0..count).map(|i| bf16::from_f32(((i * step) % 97) as f32 / 31.0 - 1.5));
        let host = Tensor::from_slice(&values.collect::<Vec<_>>(), &[rows, heads, head_dim]);
        host.unwrap().to(Device::Emulated).unwrap()
    };
    let spans = (0..sequences).flat_map(|i| [i, 1, i * keys, keys].map(|number| number as u32));
    let spans = Tensor::from_slice(&spans.collect::<Vec<_>>(), &[sequences, 4]).unwrap();
    let spans = spans.to(Device::Emulated).unwrap();
    let (q, k, v) = (
        values(sequences, heads, 37),
        values(sequences * keys, kv_heads, 41),
        values(sequences * keys, kv_heads, 59),
    );
    let mut out = Tensor::zeros(Device::Emulated, DType::BF16, q.dims()).unwrap();
    kernels::decode(out.view_mut(), q.view(), k.view(), v.view(), spans.view(), 0.2).unwrap();
    out.view().to_f32_vec().into_iter().map(f32::to_bits).collect()
}

/// Tunes a decode step, has the launcher take each way that the file names, and says which ways there are.
fn every_way_of_decoding_is_taken() -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tuned.json");
    let problem = decode::named("2x600:4/2x64", DType::BF16).unwrap();
    let similar = steps::Problem { keys: 700, ..problem };
    let other = steps::Problem { keys: 300, ..problem };
    let unforced = [problem, similar, other].map(|problem| step(&problem));
    let mut found = Vec::new();
    let wanted = [Problem::Decode(problem)];
    tune::tune_into(&path, Device::Emulated, &wanted, |entry| found.push(entry.clone())).unwrap();
    let ways = steps::variants(Device::Emulated, problem).unwrap();
    let names: Vec<String> = ways.iter().map(ToString::to_string).collect();
    // None computed anything but attention.
    assert_eq!((found[0].kernel.as_str(), found[0].ran), ("attention decode", ways.len()));
    assert!(names.contains(&found[0].variant), "{found:?}");
    assert_eq!(steps::preferred(&problem).unwrap().to_string(), found[0].variant);

    let mut seen = Vec::new();
    for name in &names {
        steps::prefer(problem, None);
        steps::prefer(problem.class(), None);
        rewrite(&path, |entries| entries[0]["variant"] = Value::from(name.as_str()));
        tune::use_table(Device::Emulated, &path);
        assert_eq!(steps::preferred(&similar).unwrap().to_string(), *name);
        let bits = [problem, similar, other].map(|problem| step(&problem));
        assert!(bits[2] == unforced[2], "{name} is taken for fewer keys");
        seen.push([bits[0].clone(), bits[1].clone()]);
    }
    assert!(seen[0] == unforced[..2], "{} is what is taken by itself", names[0]);
    let splits = |count: usize| {
        let end = format!(" in {count}");
        let at = names.iter().position(|name| name.ends_with(&end));
        &seen[at.unwrap_or_else(|| panic!("{names:?}"))]
    };
    for (few, many) in splits(1).iter().zip(splits(3)) {
        assert!(few != many, "parts are added in another order");
    }
    names
}

#[test]
fn decoding_takes_the_kernel_and_the_splits_that_were_kept() {
    const NAME: &str = "decoding_takes_the_kernel_and_the_splits_that_were_kept";
    on_chip("8.0", NAME, || {
        let names = every_way_of_decoding_is_taken();
        assert!(names.iter().all(|name| !name.contains("sm90")), "{names:?}");
    });
}

#[test]
fn decoding_on_hopper_takes_the_kernel_and_the_splits_that_were_kept() {
    const NAME: &str = "decoding_on_hopper_takes_the_kernel_and_the_splits_that_were_kept";
    on_chip("9.0", NAME, || {
        let names = every_way_of_decoding_is_taken();
        let portable = names.iter().filter(|name| !name.contains("sm90")).count();
        assert_eq!(2 * portable, names.len(), "{names:?}");
    });
}

#[test]
fn attention_on_older_chips_has_one_kernel_which_is_checked_and_kept() {
    on_chip("8.0", "attention_on_older_chips_has_one_kernel_which_is_checked_and_kept", || {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuned.json");
        for (text, dtype) in [("causal:3x41:3/3x20", DType::F32), ("full:1x70:4/2x64", DType::BF16)]
        {
            let (entry, names) = tuned(&path, attention::named(text, dtype).unwrap());
            assert_eq!(names, [entry.variant.as_str()]);
            assert_eq!(entry.seconds, entry.seconds_by_itself);
        }
        let kept: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(kept["entries"].as_array().unwrap().len(), 2);

        // A head that no kernel holds is said before anything is timed.
        let [good, wide] = ["causal:1x8:1/1x8", "causal:1x8:1/1x264"]
            .map(|text| Problem::Attention(attention::named(text, DType::BF16).unwrap()));
        let timed = |_: &Entry| panic!("something was timed");
        let error = tune::tune_into(&path, Device::Emulated, &[good, wide], timed).unwrap_err();
        assert!(format!("{error:#}").contains("a head has 264 elements"), "{error:#}");
    });
}
