//! Writing: what is written is what the reference implementation writes, or nothing is.

use std::fs;
use std::io;
use std::path::Path;

use prime_runtime::safetensors::{Dtype, File, Folder, Source, write, write_sharded};
use prime_runtime::{DType, Element, Tensor, View, bf16};

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn the_header_is_padded_so_that_the_data_is_aligned() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    for length in 1..20 {
        let name = "n".repeat(length);
        write(&path, [Source::view(name, View::from_slice(&[1.0f32], &[1]))], &[]).unwrap();
        let bytes = fs::read(&path).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        assert_eq!(header % 8, 0);
        assert!(File::open(&path).unwrap().view(&"n".repeat(length)).is_some());
    }
}

#[test]
fn wider_elements_come_first_so_that_every_tensor_is_aligned() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let sources = [
        Source::bytes("flag", Dtype::Bool, &[1], &[1]),
        Source::view("b", View::from_slice(&[bf16::ONE; 3], &[3])),
        Source::view("f2", View::from_slice(&[1.0f32], &[1])),
        Source::view("f1", View::from_slice(&[1.0f32], &[1])),
        Source::bytes("ids", Dtype::I64, &[1], &[0; 8]),
    ];
    write(&path, sources, &[]).unwrap();
    let file = File::open(&path).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["ids", "f2", "f1", "b", "flag"]);
    assert!(["f2", "f1", "b"].iter().all(|name| file.view(name).is_some()));
}

#[test]
fn views_are_converted_and_spread_rows_joined_while_they_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    // More than one chunk of the conversion.
    let values: Vec<f32> = (0..3 * 5000).map(|i| (i % 256) as f32).collect();
    let tensor = Tensor::from_slice(&values, &[3, 5000]).unwrap();
    let block = tensor.view().columns(100..4900);
    let sources = [
        Source::view("same", block),
        Source::view_as("bf16", block, DType::BF16),
        Source::view_as("f16", tensor.view(), DType::F16),
    ];
    write(&path, sources, &[]).unwrap();
    let file = File::open(&path).unwrap();
    assert_eq!(file.tensor("bf16").unwrap().dtype, Dtype::BF16);
    assert_eq!(file.tensor("f16").unwrap().dtype, Dtype::F16);
    // Integers up to 256 are exact in both.
    assert_eq!(file.read_f32("same").unwrap(), block.to_f32_vec());
    assert_eq!(file.read_f32("bf16").unwrap(), block.to_f32_vec());
    assert_eq!(file.read_f32("f16").unwrap(), values);
}

#[test]
fn conversion_rounds_ties_to_even() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let ties = [1.0f32 + 1.0 / 256.0, 1.0 + 3.0 / 256.0];
    let view = View::from_slice(&ties, &[2]);
    write(&path, [Source::view_as("x", view, DType::BF16)], &[]).unwrap();
    let file = File::open(&path).unwrap();
    let read: Vec<f32> =
        file.view("x").unwrap().as_slice::<bf16>().iter().map(|x| Element::to_f32(*x)).collect();
    assert_eq!(read, [1.0, 1.0 + 2.0 / 128.0]);
}

/// Writes over an older file; the error must leave it, and nothing else.
#[track_caller]
fn refused(sources: Vec<Source<'_>>, parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    fs::write(&path, "older").unwrap();
    let error = write(&path, sources, &[]).unwrap_err().to_string();
    for part in ["x.safetensors"].iter().chain(parts) {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
    assert_eq!(names_in(folder.path()), ["x.safetensors"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), "older");
}

#[test]
fn a_source_that_gives_too_much_too_little_or_fails_leaves_nothing() {
    let sound = || Source::bytes("sound", Dtype::U8, &[1], &[1]);
    let source = |bytes: &'static [u8]| Source::bytes("w", Dtype::F32, &[1], bytes);
    refused(vec![sound(), source(&[0; 5])], &["`w` gave more than its 4 bytes"]);
    refused(vec![sound(), source(&[0; 3])], &["`w` gave 3 bytes, expected 4"]);
    let full = Source::stream("w", Dtype::F32, &[1], |_| Err(io::ErrorKind::StorageFull.into()));
    refused(vec![sound(), full], &["cannot write", "no storage space"]);
}

#[test]
fn names_that_cannot_be_are_refused_before_anything_is_written() {
    let source = |name: &str| Source::bytes(name, Dtype::U8, &[0], &[]);
    refused(vec![source("w"), source("v"), source("w")], &["`w` was to be written twice"]);
    refused(vec![source("__metadata__")], &["reserves"]);
    let huge = Source::bytes("w", Dtype::F32, &[usize::MAX, 2], &[]);
    refused(vec![huge], &["`w`", "no countable number of bytes"]);
    // Eight of them have just under as many bytes as can be counted.
    let eighth = |i: usize| Source::bytes(format!("t{i}"), Dtype::U8, &[usize::MAX / 8], &[]);
    refused((0..9).map(eighth).collect(), &["`t8`", "no countable number of bytes"]);
}

#[test]
fn a_path_that_cannot_be_written_is_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let source = || [Source::bytes("w", Dtype::U8, &[1], &[1])];
    let below = folder.path().join("file").join("x.safetensors");
    let error = write(&below, source(), &[]).unwrap_err().to_string();
    assert!(error.contains("cannot create") && error.contains("x.safetensors"), "{error}");
    let error = write(folder.path(), source(), &[]).unwrap_err().to_string();
    assert!(error.contains("this is a folder"), "{error}");
    assert_eq!(names_in(folder.path()), ["file"]);
}

fn three<'a>(values: &'a [f32; 6]) -> Vec<Source<'a>> {
    ["c", "a", "b"].map(|name| Source::view(name, View::from_slice(values, &[6]))).into()
}

#[test]
fn shards_are_filled_in_order_and_indexed() {
    let values = [1.0f32; 6];
    // 24 bytes each.
    for (limit, files) in [(72, 1), (71, 2), (48, 2), (47, 3), (1, 3)] {
        let folder = tempfile::tempdir().unwrap();
        write_sharded(folder.path(), "model", three(&values), &[("format", "pt")], limit).unwrap();
        let weights = Folder::open(folder.path()).unwrap();
        assert_eq!(weights.files().len(), files, "limit {limit}");
        assert_eq!(weights.names().collect::<Vec<_>>(), ["c", "a", "b"]);
        assert!(weights.files().iter().all(|file| file.metadata()["format"] == "pt"));
    }
}

#[test]
fn the_index_is_as_transformers_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    write_sharded(folder.path(), "model", three(&[1.0; 6]), &[], 48).unwrap();
    let text = fs::read(folder.path().join("model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let expected = serde_json::json!({
        "metadata": { "total_size": 72 },
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
            "c": "model-00001-of-00002.safetensors",
        },
    });
    assert_eq!(index, expected);
}

#[test]
fn a_shard_that_fails_takes_the_written_ones_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut sources = three(&[1.0; 6]);
    sources.push(Source::stream("d", Dtype::U8, &[9], |_| Err(io::ErrorKind::StorageFull.into())));
    let error = write_sharded(folder.path(), "model", sources, &[], 30).unwrap_err().to_string();
    assert!(error.contains("model-00004-of-00004.safetensors"), "{error}");
    assert!(names_in(folder.path()).is_empty());
}

#[test]
fn weights_of_an_earlier_write_are_not_mixed_with_new_ones() {
    let values = [1.0f32; 6];
    for limit in [u64::MAX, 30] {
        let folder = tempfile::tempdir().unwrap();
        write_sharded(folder.path(), "model", three(&values), &[], limit).unwrap();
        let before = names_in(folder.path());
        let error =
            write_sharded(folder.path(), "model", three(&values), &[], 48).unwrap_err().to_string();
        assert!(error.contains("already holds weights"), "{error}");
        assert_eq!(names_in(folder.path()), before);
        write_sharded(folder.path(), "optimizer", three(&values), &[], 48).unwrap();
    }
}
