//! Reading: each way a file or a folder can be wrong has its sentence, and sound ones are read without a copy.

use std::fs;
use std::path::{Path, PathBuf};

use prime_runtime::safetensors::{Dtype, File, Folder, Source, write, write_sharded};
use prime_runtime::{DType, Device, Element, Tensor, View, ViewMut, bf16, f16};

/// A file of this header and this many bytes of data.
fn file_of(folder: &Path, header: impl AsRef<[u8]>, data: usize) -> PathBuf {
    let header = header.as_ref();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(vec![0; data]);
    let path = folder.join("case.safetensors");
    fs::write(&path, bytes).unwrap();
    path
}

#[track_caller]
fn refused(header: impl AsRef<[u8]>, data: usize, parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let error = File::open(file_of(folder.path(), header, data)).unwrap_err().to_string();
    for part in ["case.safetensors"].iter().chain(parts) {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

#[test]
fn a_file_shorter_than_its_length_field_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("short.safetensors");
    for length in 0..8 {
        fs::write(&path, vec![0; length]).unwrap();
        let error = File::open(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("{length} bytes long")), "{error}");
    }
}

#[test]
fn header_lengths_beyond_the_limit_or_the_file_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("long.safetensors");
    for (length, part) in [
        (u64::MAX, "over the limit of 100000000"),
        (1 << 63, "over the limit"),
        (100_000_001, "over the limit"),
        (100_000_000, "only 2 bytes follow"),
        (3, "only 2 bytes follow"),
    ] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(b"{}");
        fs::write(&path, bytes).unwrap();
        let error = File::open(&path).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_header_that_is_not_an_object_of_utf8_json_is_refused() {
    refused([b'{', 0xff, b'}'], 0, &["not UTF-8", "byte 1"]);
    refused("[]", 0, &["must begin with `{`"]);
    refused("", 0, &["must begin with `{`"]);
    refused(" {}", 0, &["must begin with `{`"]);
    refused("{", 0, &["cannot be read", "EOF"]);
    refused("{} x", 0, &["cannot be read", "trailing"]);
}

#[test]
fn names_that_stand_twice_are_refused() {
    let tensor = r#""w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
    refused(format!("{{{tensor},{tensor}}}"), 0, &["`w` twice"]);
    refused(r#"{"__metadata__":{},"__metadata__":{}}"#, 0, &["`__metadata__` stands twice"]);
    refused(r#"{"__metadata__":{"a":"1","a":"2"}}"#, 0, &["__metadata__", "`a` stands twice"]);
    refused(
        r#"{"w":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
        0,
        &["`w`", "duplicate field `dtype`"],
    );
}

#[test]
fn entries_that_are_not_tensors_are_refused_by_name() {
    refused(r#"{"w":7}"#, 0, &["tensor `w`", "`dtype`"]);
    refused(r#"{"w":{"dtype":"F32","shape":[1]}}"#, 0, &["`w`", "missing field `data_offsets`"]);
    refused(r#"{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4, &["`w`", "-1"]);
    refused(r#"{"w":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}"#, 4, &["`w`", "1.0"]);
    refused(r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}"#, 8, &["`w`"]);
    refused(
        r#"{"w":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#,
        4,
        &["`w`", "`F33`", "none of BOOL"],
    );
    refused(r#"{"__metadata__":{"a":1}}"#, 0, &["`__metadata__` must be", "strings"]);
    refused(r#"{"__metadata__":null}"#, 0, &["`__metadata__` must be", "strings"]);
}

#[test]
fn sizes_that_overflow_or_do_not_match_their_offsets_are_refused() {
    refused(
        r#"{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#,
        0,
        &["`w`", "overflows"],
    );
    refused(
        r#"{"w":{"dtype":"F32","shape":[9223372036854775807],"data_offsets":[0,4]}}"#,
        4,
        &["`w`", "overflows"],
    );
    refused(r#"{"w":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#, 1, &["within a byte"]);
    refused(
        r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
        4,
        &["`w`", "[2] needs 8 bytes", "hold 4"],
    );
}

#[test]
fn offsets_that_run_backwards_or_out_of_the_file_are_refused() {
    refused(r#"{"w":{"dtype":"U8","shape":[0],"data_offsets":[2,1]}}"#, 4, &["`w`", "[2, 1]"]);
    refused(
        r#"{"w":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}"#,
        4,
        &["`w` ends at byte 8", "only 4 bytes"],
    );
    refused(
        r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551615,18446744073709551615]}}"#,
        4,
        &["`w` ends at byte 18446744073709551615"],
    );
}

#[test]
fn data_that_belongs_to_two_tensors_or_to_none_is_refused() {
    let two = |a: &str, b: &str| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{a}}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#
        )
    };
    refused(two("[0,4]", "[2,6]"), 6, &["`b` begins at byte 2", "inside tensor `a`", "ends at 4"]);
    refused(two("[0,4]", "[0,4]"), 4, &["overlap"]);
    refused(two("[0,4]", "[5,9]"), 9, &["bytes 4..5", "before tensor `b`", "holes"]);
    refused(two("[5,9]", "[1,5]"), 9, &["bytes 0..1", "before tensor `b`"]);
    refused(two("[0,4]", "[4,8]"), 9, &["9 bytes of data", "cover 8"]);
}

#[test]
fn what_is_not_a_file_is_refused_without_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let error = File::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("this is a folder"), "{error}");
    let error = File::open(folder.path().join("none.safetensors")).unwrap_err().to_string();
    assert!(error.contains("cannot read") && error.contains("none.safetensors"), "{error}");
    if cfg!(unix) {
        let error = File::open("/dev/null").unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }
}

#[test]
fn names_come_in_the_order_of_their_data_and_metadata_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let header = r#"{"z":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]},"__metadata__":{"format":"pt"},"m":{"dtype":"U8","shape":[],"data_offsets":[1,2]},"empty":{"dtype":"F64","shape":[3,0],"data_offsets":[4,4]}}"#;
    let file = File::open(file_of(folder.path(), header, 4)).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["z", "m", "a", "empty"]);
    assert_eq!(file.metadata()["format"], "pt");
    assert_eq!(file.tensor("empty").unwrap().dims, [3, 0]);
    assert_eq!(file.tensor("m").unwrap().elements(), 1);
    assert!(file.tensor("none").is_none() && file.tensor("__metadata__").is_none());
}

/// A file whose one tensor, six values of 0.5 steps, begins `shift` bytes after an aligned address.
fn values_file(folder: &Path, dtype: Dtype, bytes: &[u8], shift: usize) -> File {
    let before = Source::bytes("before", Dtype::U8, &[shift], &[0; 8][..shift]);
    let path = folder.join("values.safetensors");
    let after = Source::bytes("values", dtype, &[2, 3], bytes);
    // The writer would put the wider tensor first; the crate of the reference implementation would too.
    if shift == 0 {
        write(&path, [before, after], &[]).unwrap();
    } else {
        let header = format!(
            r#"{{"before":{{"dtype":"U8","shape":[{shift}],"data_offsets":[0,{shift}]}},"values":{{"dtype":"{dtype}","shape":[2,3],"data_offsets":[{shift},{}]}}}}"#,
            shift + bytes.len()
        );
        let header = format!("{header:width$}", width = header.len().next_multiple_of(8));
        let mut all = (header.len() as u64).to_le_bytes().to_vec();
        all.extend(header.bytes());
        all.extend(&vec![0; shift]);
        all.extend(bytes);
        fs::write(&path, all).unwrap();
    }
    File::open(path).unwrap()
}

fn steps<E: Element>() -> Vec<E> {
    // All exact in every float type.
    [0.5, -1.0, 1.5, 2.0, -2.5, 3.0].map(E::from_f32).to_vec()
}

fn read_and_convert<E: Element>(dtype: Dtype) {
    let folder = tempfile::tempdir().unwrap();
    let values = steps::<E>();
    let expected = steps::<f32>();
    for shift in 0..5 {
        let file = values_file(folder.path(), dtype, bytemuck::cast_slice(&values), shift);
        assert_eq!(file.read_f32("values").unwrap(), expected);

        let mut narrow = [bf16::ZERO; 6];
        file.read_into("values", &mut ViewMut::from_slice(&mut narrow, &[2, 3])).unwrap();
        assert_eq!(narrow.map(|x| x.to_f32()), expected[..]);

        // Rows of three in a buffer of rows of five.
        let mut spread = Tensor::from_slice(&[9.0f32; 10], &[2, 5]).unwrap();
        file.read_into("values", &mut spread.view_mut().into_columns(1..4)).unwrap();
        assert_eq!(spread.as_slice::<f32>()[..5], [9.0, 0.5, -1.0, 1.5, 9.0]);
        assert_eq!(spread.as_slice::<f32>()[5..], [9.0, 2.0, -2.5, 3.0, 9.0]);

        let view = file.view("values");
        if shift % size_of::<E>() != 0 {
            assert!(view.is_none(), "an unaligned tensor was viewed");
            continue;
        }
        let view: View<'_> = view.unwrap();
        assert_eq!(view.as_slice::<E>(), values);
        let place = file.tensor("values").unwrap().bytes.as_ptr();
        assert_eq!(view.as_ptr::<E>().cast::<u8>(), place, "the view is a copy");
    }
}

#[test]
fn floats_are_viewed_where_aligned_and_converted_wherever_they_lie() {
    read_and_convert::<f32>(Dtype::F32);
    read_and_convert::<bf16>(Dtype::BF16);
    read_and_convert::<f16>(Dtype::F16);
}

#[test]
fn a_copy_in_the_same_type_keeps_every_bit_of_a_nan() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nan.safetensors");
    let signalling = [bf16::from_bits(0x7f81), bf16::from_bits(0xff81)];
    write(&path, [Source::view("x", View::from_slice(&signalling, &[2]))], &[]).unwrap();
    let mut read = [bf16::ZERO; 2];
    File::open(path).unwrap().read_into("x", &mut ViewMut::from_slice(&mut read, &[2])).unwrap();
    assert_eq!(read.map(bf16::to_bits), [0x7f81, 0xff81]);
}

#[test]
fn conversion_to_bf16_rounds_ties_to_even() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ties.safetensors");
    // One unit in the last place of bfloat16 at 1 is 2^-7; the first value lies half-way above 1, the second half-way above 1 + 2^-7.
    let ties = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0];
    write(&path, [Source::view("x", View::from_slice::<f32>(&ties, &[2]))], &[]).unwrap();
    let mut read = [bf16::ZERO; 2];
    File::open(path).unwrap().read_into("x", &mut ViewMut::from_slice(&mut read, &[2])).unwrap();
    assert_eq!(read.map(|x| x.to_f32()), [1.0, 1.0 + 2.0 / 128.0]);
}

#[test]
fn scalars_and_empty_tensors_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.safetensors");
    let none: [f32; 0] = [];
    let sources = [
        Source::view("scalar", View::from_slice(&[4.5f32], &[])),
        Source::view("empty", View::from_slice(&none, &[3, 0])),
        Source::bytes("deep", Dtype::F32, &[1, 1, 1, 1, 1], bytemuck::bytes_of(&2.5f32)),
    ];
    write(&path, sources, &[]).unwrap();
    let file = File::open(path).unwrap();
    assert_eq!(file.read_f32("scalar").unwrap(), [4.5]);
    assert_eq!(file.view("scalar").unwrap().as_slice::<f32>(), [4.5]);
    let mut scalar = [0.0f32];
    file.read_into("scalar", &mut ViewMut::from_slice(&mut scalar, &[])).unwrap();
    assert_eq!(scalar, [4.5]);
    assert_eq!(file.read_f32("empty").unwrap(), none);
    assert_eq!(file.view("empty").unwrap().dims(), [3, 0]);
    let mut wide = Tensor::zeros(Device::Cpu, DType::F32, &[3, 2]).unwrap();
    file.read_into("empty", &mut wide.view_mut().into_columns(1..1)).unwrap();
    assert!(file.view("deep").is_none(), "more dimensions than a view has");
    assert_eq!(file.read_f32("deep").unwrap(), [2.5]);
}

#[test]
fn reading_what_is_not_there_or_not_a_float_is_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ids.safetensors");
    let ids = 7i64.to_le_bytes();
    write(&path, [Source::bytes("ids", Dtype::I64, &[1], &ids)], &[]).unwrap();
    let file = File::open(&path).unwrap();
    assert_eq!(file.tensor("ids").unwrap().bytes, ids);
    assert!(file.view("ids").is_none());
    let error = file.read_f32("ids").unwrap_err().to_string();
    assert!(
        error.contains("ids.safetensors: tensor `ids` is I64, expected F32, BF16 or F16"),
        "{error}"
    );
    let error = file.read_f32("weights").unwrap_err().to_string();
    assert!(error.contains("no tensor `weights`") && error.contains("such as `ids`"), "{error}");
}

#[test]
fn reading_into_another_shape_or_an_integer_is_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    write(&path, [Source::view("x", View::from_slice(&[1.0f32, 2.0], &[2]))], &[]).unwrap();
    let file = File::open(&path).unwrap();
    let mut output = [0.0f32; 2];
    let error = file.read_into("x", &mut ViewMut::from_slice(&mut output, &[1, 2])).unwrap_err();
    assert!(error.to_string().contains("`x` has shape [2], expected [1, 2]"), "{error}");
    let mut output = [0u32; 2];
    let error = file.read_into("x", &mut ViewMut::from_slice(&mut output, &[2])).unwrap_err();
    assert!(error.to_string().contains("`x` is F32, but was to be read as U32"), "{error}");
}

fn sharded(folder: &Path) {
    let values: Vec<f32> = (0..6).map(|i| i as f32).collect();
    let sources = ["a", "b", "c"].map(|name| Source::view(name, View::from_slice(&values, &[6])));
    // 24 bytes each: two to a shard.
    write_sharded(folder, "model", sources, &[("format", "pt")], 50).unwrap();
}

fn edit_index(folder: &Path, from: &str, to: &str) {
    let path = folder.join("model.safetensors.index.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from));
    fs::write(path, text.replace(from, to)).unwrap();
}

#[track_caller]
fn folder_refused(folder: &Path, parts: &[&str]) {
    let error = Folder::open(folder).unwrap_err().to_string();
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

#[test]
fn shards_are_read_as_one() {
    let folder = tempfile::tempdir().unwrap();
    sharded(folder.path());
    let weights = Folder::open(folder.path()).unwrap();
    assert_eq!(weights.files().len(), 2);
    assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(weights.view("c").unwrap().as_slice::<f32>()[5], 5.0);
    assert_eq!(weights.tensor("b").unwrap().dims, [6]);
    assert_eq!(weights.read_f32("a").unwrap()[1], 1.0);
    let error = weights.read_f32("d").unwrap_err().to_string();
    assert!(error.contains("no tensor `d` in this checkpoint of 3 tensors"), "{error}");
}

#[test]
fn a_single_file_is_preferred_to_an_index() {
    let folder = tempfile::tempdir().unwrap();
    sharded(folder.path());
    let path = folder.path().join("model.safetensors");
    write(&path, [Source::view("only", View::from_slice(&[1.0f32], &[1]))], &[]).unwrap();
    let weights = Folder::open(folder.path()).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["only"]);
}

#[test]
fn shard_names_that_leave_the_folder_are_refused() {
    for name in ["../x", "/etc/passwd", "a/b", "", ".", "..", "./x", "x/", "a\\\\b"] {
        let folder = tempfile::tempdir().unwrap();
        sharded(folder.path());
        edit_index(folder.path(), "model-00001-of-00002.safetensors", name);
        folder_refused(folder.path(), &["index.json", "is not the name of a file in this folder"]);
    }
}

#[test]
fn an_index_that_disagrees_with_its_shards_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    sharded(folder.path());
    edit_index(folder.path(), "\"a\"", "\"x\"");
    folder_refused(folder.path(), &["`x` should be in shard `model-00001-of-00002.safetensors`"]);
    edit_index(folder.path(), "\"x\"", "\"b\"");
    folder_refused(folder.path(), &["index.json", "`b` stands twice"]);

    let folder = tempfile::tempdir().unwrap();
    sharded(folder.path());
    fs::remove_file(folder.path().join("model-00001-of-00002.safetensors")).unwrap();
    folder_refused(
        folder.path(),
        &["shard `model-00001-of-00002.safetensors` with 2 tensors", "not in the folder"],
    );

    let folder = tempfile::tempdir().unwrap();
    sharded(folder.path());
    fs::copy(
        folder.path().join("model-00001-of-00002.safetensors"),
        folder.path().join("model-00002-of-00002.safetensors"),
    )
    .unwrap();
    folder_refused(folder.path(), &["tensor `a` is also in", "model-00001-of-00002.safetensors"]);
}

#[test]
fn an_index_that_is_no_index_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for text in ["", "[]", "{}", r#"{"weight_map":[]}"#, r#"{"weight_map":{"a":1}}"#] {
        fs::write(folder.path().join("model.safetensors.index.json"), text).unwrap();
        folder_refused(folder.path(), &["model.safetensors.index.json", "`weight_map`"]);
    }
}

#[test]
fn a_folder_without_weights_is_told_what_it_holds_instead() {
    let folder = tempfile::tempdir().unwrap();
    folder_refused(folder.path(), &["neither model.safetensors nor model.safetensors.index.json"]);
    fs::write(folder.path().join("pytorch_model.bin"), "").unwrap();
    folder_refused(folder.path(), &["pytorch_model.bin", "safe_serialization=True"]);
    fs::write(folder.path().join("model-00001-of-00002.safetensors"), "").unwrap();
    folder_refused(folder.path(), &["shards need their index"]);
    let file = folder.path().join("pytorch_model.bin");
    folder_refused(&file, &["this is a file"]);
    folder_refused(&folder.path().join("none"), &["cannot read"]);
}
