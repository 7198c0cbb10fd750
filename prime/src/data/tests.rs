//! Files of every format read alike, and faulty ones refused with their places.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::parquet::basic::{Compression, GzipLevel};
use ::parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, FloatType, Int64Type};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Row, rows};

/// A column's leaf values with its definition and repetition levels.
pub(crate) enum Leaf<'a> {
    Text(Vec<&'a str>, Option<Vec<i16>>, Option<Vec<i16>>),
    Bytes(Vec<Vec<u8>>),
    Long(Vec<i64>, Option<Vec<i16>>),
    Double(Vec<f64>, Option<Vec<i16>>, Option<Vec<i16>>),
    Float(Vec<f32>),
    Bool(Vec<bool>),
}

/// Writes row groups, each a list of the schema's leaves.
pub(crate) fn write_parquet(
    path: &Path,
    schema: &str,
    compression: Compression,
    groups: &[Vec<Leaf<'_>>],
) {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
    for group in groups {
        let mut group_writer = writer.next_row_group().unwrap();
        for leaf in group {
            let mut column = group_writer.next_column().unwrap().expect("a leaf of the schema");
            match leaf {
                Leaf::Text(values, definition, repetition) => {
                    let values: Vec<ByteArray> = values.iter().map(|&x| x.into()).collect();
                    let column = column.typed::<ByteArrayType>();
                    column.write_batch(&values, definition.as_deref(), repetition.as_deref())
                }
                Leaf::Bytes(values) => {
                    let values: Vec<ByteArray> = values.iter().map(|x| x.clone().into()).collect();
                    column.typed::<ByteArrayType>().write_batch(&values, None, None)
                }
                Leaf::Long(values, definition) => {
                    column.typed::<Int64Type>().write_batch(values, definition.as_deref(), None)
                }
                Leaf::Double(values, definition, repetition) => {
                    let column = column.typed::<DoubleType>();
                    column.write_batch(values, definition.as_deref(), repetition.as_deref())
                }
                Leaf::Float(values) => column.typed::<FloatType>().write_batch(values, None, None),
                Leaf::Bool(values) => column.typed::<BoolType>().write_batch(values, None, None),
            }
            .unwrap();
            column.close().unwrap();
        }
        group_writer.close().unwrap();
    }
    writer.close().unwrap();
}

/// The columns of the published RL data, as `datasets` writes them.
pub(crate) const EURUS: &str = "message schema {
    optional binary data_source (UTF8);
    optional group prompt (LIST) { repeated group list { optional group element {
        optional binary content (UTF8); optional binary role (UTF8); } } }
    optional binary ability (UTF8);
    optional group reward_model { optional binary ground_truth (UTF8); optional binary style (UTF8); }
    optional group extra_info { optional int64 index; optional binary split (UTF8); }
}";

/// Two rows of [`EURUS`]: a system and a user's message each.
pub(crate) fn eurus_rows<'a>(
    sources: [&'a str; 2],
    users: [&'a str; 2],
    answers: [&'a str; 2],
) -> Vec<Leaf<'a>> {
    let all = |level| Some(vec![level; 2]);
    let (content, role) =
        (vec!["S", users[0], "S", users[1]], vec!["system", "user", "system", "user"]);
    let turns = || (Some(vec![4; 4]), Some(vec![0, 1, 0, 1]));
    let ((d1, r1), (d2, r2)) = (turns(), turns());
    vec![
        Leaf::Text(sources.to_vec(), all(1), None),
        Leaf::Text(content, d1, r1),
        Leaf::Text(role, d2, r2),
        Leaf::Text(vec!["math"; 2], all(1), None),
        Leaf::Text(answers.to_vec(), all(2), None),
        Leaf::Text(vec!["rule"; 2], all(2), None),
        Leaf::Long(vec![7, 8], all(2)),
        Leaf::Text(vec!["train"; 2], all(2), None),
    ]
}

fn write(folder: &tempfile::TempDir, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn all(path: &Path) -> Vec<Value> {
    rows(path).unwrap().map(|row| Value::Object(row.unwrap().fields)).collect()
}

fn failure(path: &Path) -> String {
    let error = match rows(path) {
        Err(error) => error,
        Ok(rows) => rows.collect::<anyhow::Result<Vec<Row>>>().expect_err("a fault"),
    };
    format!("{error:#}")
}

#[test]
fn the_published_columns_are_read_from_parquet_in_every_compression() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("eurus.parquet");
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
    ] {
        let first = eurus_rows(["numina_olympiads", "taco"], ["One?", "Two?"], ["1", "{}"]);
        let second = eurus_rows(["numina_cn_k12", "apps"], ["é?", ""], ["3", "4"]);
        write_parquet(&path, EURUS, compression, &[first, second]);
        let found = all(&path);
        assert_eq!(found.len(), 4, "{compression:?}");
        let expected = json!({
            "data_source": "numina_olympiads",
            "prompt": [{"content": "S", "role": "system"}, {"content": "One?", "role": "user"}],
            "ability": "math",
            "reward_model": {"ground_truth": "1", "style": "rule"},
            "extra_info": {"index": 7, "split": "train"},
        });
        assert_eq!(found[0], expected);
        assert_eq!(found[2]["prompt"][1]["content"], "é?");
        let row = rows(&path).unwrap().nth(3).unwrap().unwrap();
        assert!(row.place().ends_with("eurus.parquet, row 4"), "{}", row.place());
        assert_eq!(row.text("reward_model.ground_truth").unwrap(), "4");
        assert_eq!(row.text("prompt.1.content").unwrap(), "");
        let missing = format!("{:#}", row.text("reward_model.ground_trut").unwrap_err());
        assert!(missing.contains("nearest present one is \"ground_truth\""), "{missing}");
    }
}

#[test]
fn rollouts_of_an_implicit_prm_with_nulls_and_empty_lists_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rollouts.parquet");
    let schema = "message schema {
        required binary dataset (UTF8);
        optional binary prompt (UTF8);
        required group completions (LIST) { repeated group list { required binary element (UTF8); } }
        optional group correctness (LIST) { repeated group list { optional double element; } }
        required boolean done; required float score; required binary raw;
    }";
    // The second prompt is null, with no completions and a null list; the third's last correctness is null.
    let group = vec![
        Leaf::Text(vec!["a", "b", "c"], None, None),
        Leaf::Text(vec!["p", "q"], Some(vec![1, 0, 1]), None),
        Leaf::Text(vec!["x", "y", "z"], Some(vec![1, 1, 0, 1]), Some(vec![0, 1, 0, 0])),
        Leaf::Double(vec![1.0, 0.0], Some(vec![3, 3, 0, 2]), Some(vec![0, 1, 0, 0])),
        Leaf::Bool(vec![true, false, true]),
        Leaf::Float(vec![0.1, f32::NAN, -2.0]),
        Leaf::Bytes(vec![b"one".to_vec(), vec![], "drei".into()]),
    ];
    write_parquet(&path, schema, Compression::SNAPPY, &[group]);
    let expected = [
        json!({"dataset": "a", "prompt": "p", "completions": ["x", "y"], "correctness": [1.0, 0.0],
            "done": true, "score": 0.1, "raw": "one"}),
        json!({"dataset": "b", "prompt": null, "completions": [], "correctness": null,
            "done": false, "score": null, "raw": ""}),
        json!({"dataset": "c", "prompt": "q", "completions": ["z"], "correctness": [null],
            "done": true, "score": -2.0, "raw": "drei"}),
    ];
    assert_eq!(all(&path), expected);
    let row = rows(&path).unwrap().nth(1).unwrap().unwrap();
    let null = row.checked(row.text("prompt")).unwrap_err();
    let null = format!("{null:#}");
    assert!(
        null.ends_with("rollouts.parquet, row 2: the field \"prompt\" must be text, and is null"),
        "{null}"
    );
    assert!(row.list("dataset").unwrap_err().to_string().contains("must be a list, and is text"));
}

#[test]
fn lines_lists_and_columns_of_json_are_the_same_rows() {
    let folder = tempfile::tempdir().unwrap();
    let expected = vec![json!({"q": "a", "n": 1}), json!({"q": "b", "n": 2})];
    for (name, text) in [
        ("a.jsonl", "\u{feff}{\"q\":\"a\",\"n\":1}\n\n {\"q\":\"b\",\"n\":2}"),
        ("b.json", "{\"q\":\"a\",\"n\":1}\n{\"q\":\"b\",\"n\":2}\n"),
        ("c.json", "\n[{\"q\":\"a\",\"n\":1},\n{\"q\":\"b\",\"n\":2}]\n"),
        ("d.jsonl", "[{\"q\":\"a\",\"n\":1},{\"q\":\"b\",\"n\":2}]"),
        ("e.json", "{\"q\":[\"a\",\"b\"],\"n\":[1,2]}"),
        ("f.json", "{\"q\":{\"7\":\"a\",\"x\":\"b\"},\"n\":{\"x\":2,\"7\":1}}"),
    ] {
        assert_eq!(all(&write(&folder, name, text)), expected, "{name}");
    }
    assert_eq!(all(&write(&folder, "one.json", "{\"q\":\"a\"}")), [json!({"q": "a"})]);
    for name in ["empty.jsonl", "empty.json"] {
        assert!(all(&write(&folder, name, " \n")).is_empty());
    }
}

#[test]
fn faults_are_sentences_with_file_and_row() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text, fault) in [
        ("a.jsonl", "{}\n{", "a.jsonl, line 2: the line is not JSON"),
        ("b.jsonl", "{}\n\n3", "b.jsonl, line 3: the line must be a JSON object, and is a number"),
        ("c.json", "[{},4]", "row 2 must be a JSON object, and is a number"),
        ("d.json", "[{}", "the file is not JSON (EOF"),
        ("e.json", "[] []", "something follows the JSON list"),
        ("f.json", "{\"a\":[1],\"b\":[]}", "the column \"b\" has 0 rows, others have 1"),
        ("g.json", "{\"a\":{\"x\":1},\"b\":{\"y\":2}}", "the column \"b\" has no row \"x\""),
        ("h.parquet", "PAR1PAR1", "the Parquet file is damaged"),
        ("i.parquet", "PAR1 is not enough", "the Parquet file is damaged"),
    ] {
        let message = failure(&write(&folder, name, text));
        assert!(message.contains(fault) && message.contains(name), "{message}");
    }
    let latin = write(&folder, "latin.jsonl", b"{\"q\":\"\xe9\"}");
    assert!(failure(&latin).contains("latin.jsonl, line 1: the line is not UTF-8"));
    assert!(failure(&folder.path().join("none.jsonl")).contains("cannot be opened"));
    assert!(failure(folder.path()).contains("is a folder, expected a file"));

    let path = folder.path().join("bytes.parquet");
    let schema = "message schema { required binary raw; }";
    let leaf = || vec![Leaf::Bytes(vec![b"fine".to_vec(), vec![0xff]])];
    write_parquet(&path, schema, Compression::UNCOMPRESSED, &[leaf()]);
    let message = failure(&path);
    assert!(
        message.contains("row 2: the column \"raw\": it holds bytes that are not UTF-8"),
        "{message}"
    );
}

/// A file whose metadata name a compression that is not read: its one byte in the footer is changed from that of snappy.
#[test]
fn a_compression_that_is_not_read_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    let schema = "message schema { required binary a (UTF8); }";
    let leaf = vec![Leaf::Text(vec!["text"], None, None)];
    write_parquet(&path, schema, Compression::SNAPPY, &[leaf]);
    let mut bytes = std::fs::read(&path).unwrap();
    // In thrift's compact form a column's path ("a", after its length) is followed by field 4, an i32: the codec, zigzag: 1 is snappy, 3 lzo.
    let pattern = [1, b'a', 0x15, 2];
    let places: Vec<usize> =
        (0..bytes.len() - 4).filter(|&at| bytes[at..at + 4] == pattern).collect();
    assert_eq!(places.len(), 1);
    bytes[places[0] + 3] = 6;
    std::fs::write(&path, &bytes).unwrap();
    let message = failure(&path);
    let expected = "the column \"a\" is compressed with lzo, which is not read";
    assert!(message.contains(expected), "{message}");
    // Of another codec than it says, a page cannot be decompressed.
    for codec in [12, 8] {
        bytes[places[0] + 3] = codec;
        std::fs::write(&path, &bytes).unwrap();
        let message = failure(&path);
        assert!(message.contains("a page cannot be decompressed"), "{message}");
    }
}

fn pyarrow(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/parquet").join(name)
}

#[test]
fn files_of_pyarrow_are_read_whatever_their_compression() {
    for codec in ["zstd", "brotli", "snappy"] {
        for version in [1, 2] {
            let path = pyarrow(&format!("{codec}-pages-{version}.parquet"));
            let read: Vec<Row> = rows(&path).unwrap().map(Result::unwrap).collect();
            assert_eq!(read.len(), 60);
            for (i, row) in read.iter().enumerate() {
                let tags: Vec<String> = (0..i % 4).map(|k| format!("t{k}")).collect();
                let source = [json!("alpha"), json!("beta"), Value::Null][i % 3].clone();
                let expected = json!({
                    "question": format!("What is {i} + {}?", i % 7),
                    "answer": (i + i % 7).to_string(),
                    "source": source,
                    "score": i as f64 / 8.0,
                    "tags": tags,
                    "unset": null,
                });
                assert_eq!(Value::Object(row.fields.clone()), expected, "{codec}, pages {version}");
            }
        }
    }
}

/// Schemas that the record reader takes for a fault of the program: an answer all the same.
#[test]
fn a_schema_that_is_not_one_is_refused_without_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.parquet");
    let schema = "message schema { required group turns (LIST) {
        required binary one (UTF8); required binary two (UTF8); } }";
    let leaf = || Leaf::Text(vec!["x"], None, None);
    write_parquet(&path, schema, Compression::UNCOMPRESSED, &[vec![leaf(), leaf()]]);
    let message = failure(&path);
    assert!(
        message.contains("odd.parquet") && message.contains("form that is not read"),
        "{message}"
    );
    assert!(!super::is_guarded());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Cut anywhere, and with bytes of it changed, a file is read or refused: no panic, no endless reading.
    #[test]
    fn a_damaged_parquet_file_is_rows_or_a_sentence(
        cut in 0.0..1.0f64,
        changes in prop::collection::vec((0.0..1.0f64, any::<u8>()), 0..4),
        cuts in any::<bool>(),
        source in 0..4usize,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        match ["zstd-pages-1", "zstd-pages-2", "brotli-pages-1"].get(source) {
            Some(name) => {
                std::fs::copy(pyarrow(&format!("{name}.parquet")), &path).unwrap();
            }
            None => {
                let group = eurus_rows(["numina_olympiads", "taco"], ["One?", "Two?"], ["1", "{}"]);
                write_parquet(&path, EURUS, Compression::SNAPPY, &[group]);
            }
        }
        let mut bytes = std::fs::read(&path).unwrap();
        for (place, byte) in changes {
            let place = 4 + ((bytes.len() - 4) as f64 * place) as usize;
            bytes[place] = byte;
        }
        if cuts {
            bytes.truncate((bytes.len() as f64 * cut) as usize);
        }
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(rows) = rows(&path) {
            for row in rows.take(1000) {
                if let Err(error) = row {
                    let message = format!("{error:#}");
                    prop_assert!(message.contains("x.parquet"), "{}", message);
                }
            }
        }
    }
}

#[test]
fn math500_itself_is_read_where_it_is_at_hand() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/math500/math500.json");
    if !path.exists() {
        println!("skipped: there is no {}", path.display());
        return;
    }
    let rows: Vec<Row> = rows(&path).unwrap().collect::<anyhow::Result<_>>().unwrap();
    assert_eq!(rows.len(), 500);
    for row in &rows {
        for column in ["problem", "solution", "expected_answer"] {
            assert!(!row.checked(row.text(column)).unwrap().is_empty());
        }
    }
}
