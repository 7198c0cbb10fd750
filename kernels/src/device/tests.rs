//! What Rust and `.cu` texts must agree on, checked without a device.

#[cfg(feature = "emulated")]
use super::launch;
use super::{CODE, StructLayout};

/// A `.cu` text without comments.
fn code_of(text: &str) -> String {
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The fields of a struct of a `.cu` text by name and type, in order.
fn fields_of(text: &str, name: &str) -> Option<Vec<(String, String)>> {
    let head = format!("struct {name} {{");
    let body = &text[text.find(&head)? + head.len()..];
    let body = &body[..body.find('}')?];
    let fields =
        body.split(';').map(str::trim).filter(|field| !field.is_empty()).flat_map(|field| {
            // A type may hold spaces and commas between angle brackets; names follow it.
            let end = match field.rfind('>') {
                Some(end) => end + 1,
                None => field.find(' ').unwrap_or(field.len()),
            };
            let (kind, names) = field.split_at(end);
            let kind =
                if kind.starts_with("Global<") { "Pointer".to_owned() } else { kind.to_owned() };
            names.split(',').map(|name| (name.trim().to_owned(), kind.clone())).collect::<Vec<_>>()
        });
    Some(fields.collect())
}

fn c_type(rust: &str) -> &str {
    match rust {
        "f32" => "float",
        "f64" => "double",
        other => other,
    }
}

#[test]
fn argument_structs_are_those_of_the_device_code() {
    for code in CODE {
        for StructLayout { name, fields } in code.structs {
            let found =
                code.sources.iter().find_map(|source| fields_of(&code_of(source.text), name));
            let found =
                found.unwrap_or_else(|| panic!("no `.cu` text of the room has `struct {name}`"));
            let expected: Vec<(String, String)> = fields
                .iter()
                .map(|(field, kind)| ((*field).to_owned(), c_type(kind).to_owned()))
                .collect();
            assert_eq!(found, expected, "struct {name}");
        }
    }
}

#[test]
fn every_header_of_the_prelude_is_embedded() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/prelude");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".cuh"))
        .collect();
    files.sort();
    let embedded: Vec<&str> = super::HEADERS.iter().map(|(name, _)| *name).collect();
    assert_eq!(files, embedded);
}

#[test]
fn kernels_include_nothing_but_the_prelude_and_hold_no_assembly() {
    for source in CODE.iter().flat_map(|code| code.sources) {
        for line in code_of(source.text).lines() {
            let line = line.trim();
            assert!(!line.contains("asm"), "{}: {line}", source.name);
            if let Some(header) = line.strip_prefix("#include") {
                let header = header.trim().trim_matches('"');
                let known = super::HEADERS.iter().any(|(name, _)| *name == header);
                assert!(known, "{}: {line}", source.name);
            }
        }
    }
}

#[test]
fn a_struct_is_read_with_its_types_and_several_names_a_line() {
    let text = code_of(
        "template <class T> struct A {\n Global<const T> x, y; // z\n u32 rows;\n float epsilon; };",
    );
    let found = fields_of(&text, "A").unwrap();
    let expected = [("x", "Pointer"), ("y", "Pointer"), ("rows", "u32"), ("epsilon", "float")];
    assert_eq!(found, expected.map(|(name, kind)| (name.to_owned(), kind.to_owned())));
    assert_eq!(fields_of(&text, "B"), None);
}

/// The emulated device stands for a GPU: a launcher asks both for the same.
#[cfg(feature = "emulated")]
#[test]
fn launches_that_are_listed_are_not_started() {
    use prime_runtime::{DType, Device, Tensor};

    let mut out = Tensor::zeros(Device::Emulated, DType::F32, &[3, 8]).unwrap();
    let names = |listed: Vec<launch::Wanted>| -> Vec<String> {
        listed.iter().map(|(source, text)| format!("{} {text}", source.name)).collect()
    };
    let fill = |out: &mut Tensor| crate::fill::forward(out.view_mut(), 7.0);
    let listed = launch::list(|| fill(&mut out).and_then(|()| fill(&mut out)));
    let listed = names(listed.unwrap());
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert!(listed[0].starts_with("fill/fill.cu fill<float"), "{listed:?}");
    assert!(out.view().to_f32_vec().iter().all(|&x| x == 0.0));
    // And the next launch runs.
    fill(&mut out).unwrap();
    assert!(out.view().to_f32_vec().iter().all(|&x| x == 7.0));
}

#[test]
fn instances_for_hopper_are_listed_for_hopper_alone() {
    use prime_runtime::cuda::Chip;
    let listed = |chip| {
        let instances = super::instances(chip).into_iter();
        instances.filter(|(program, _)| program.name.ends_with("_sm90.cu")).count()
    };
    assert!(listed(super::HOPPER) > 0);
    assert_eq!(listed(Chip::OLDEST), 0);
    assert_eq!(listed(Chip { major: 10, minor: 0 }), 0);
}
