use super::*;

use std::time::Instant;

const HOPPER: Chip = Chip { major: 9, minor: 0 };

const SCALE: Program = Program {
    name: "scale/scale.cu",
    source: "#include \"types.cuh\"\n\
             template <class T> struct Scale { T *out; float factor; u32 count; };\n\
             template <class T> __global__ void scale(const Scale<T> args) {\n\
             \x20   const u32 i = threadIdx.x;\n\
             \x20   if (i < args.count) args.out[i] *= args.factor;\n\
             }\n",
    headers: &[("types.cuh", "using u32 = unsigned int;\n")],
};

/// Whether there is a compiler; without one the test that asks prints a sentence and ends.
fn compiler() -> bool {
    let found = nvrtc();
    if let Err(error) = &found {
        println!("skipped: {error}");
    }
    found.is_ok()
}

fn embedded() -> Text {
    Text::of(&SCALE, None).unwrap()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn an_instance_compiles_to_code_for_the_chip_under_its_lowered_name() {
    if !compiler() {
        return;
    }
    for (chip, flags) in [(Chip { major: 8, minor: 0 }, 80), (HOPPER, 90)] {
        let compiled = compile_text(&embedded(), "scale<float>", chip, None).unwrap();
        assert_eq!(compiled.symbol, "_Z5scaleIfEv5ScaleIT_E");
        assert!(compiled.cubin.starts_with(b"\x7fELF"), "a cubin is an ELF file");
        // Bits 8 to 15 of the flags of a cubin's header name the chip since CUDA 13, bits 0 to 7 before.
        assert!(compiled.cubin[48..52].contains(&flags), "{:?}", &compiled.cubin[48..52]);
        let name = compiled.symbol.as_bytes();
        assert!(compiled.cubin.windows(name.len()).any(|window| window == name));
    }
    let double = compile_text(&embedded(), "scale<double>", HOPPER, None).unwrap();
    assert_eq!(double.symbol, "_Z5scaleIdEv5ScaleIT_E");
}

#[test]
fn a_kernel_is_compiled_once_and_then_read_from_the_folder() {
    if !compiler() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("not/there yet");
    let first = compile_text(&embedded(), "scale<float>", HOPPER, Some(&inner)).unwrap();
    let [entry] = <[PathBuf; 1]>::try_from(files(&inner)).unwrap();
    assert!(entry.file_name().unwrap().to_str().unwrap().starts_with("scale-"));
    let started = Instant::now();
    assert_eq!(compile_text(&embedded(), "scale<float>", HOPPER, Some(&inner)).unwrap(), first);
    println!("reading a kernel took {:?}", started.elapsed());
    // What is in the folder is what is taken: another symbol under the same name shows that nothing was compiled.
    let other = Compiled { symbol: "other".to_owned(), ..first };
    cache::write(&entry, &other).unwrap();
    assert_eq!(compile_text(&embedded(), "scale<float>", HOPPER, Some(&inner)).unwrap(), other);
}

#[test]
fn a_damaged_file_is_compiled_again_and_replaced() {
    if !compiler() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let whole = compile_text(&embedded(), "scale<float>", HOPPER, Some(folder.path())).unwrap();
    let entry = files(folder.path()).remove(0);
    let bytes = std::fs::read(&entry).unwrap();
    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for damaged in [&flipped, &bytes[..bytes.len() / 2], &bytes[..20], b"", b"something else"] {
        std::fs::write(&entry, damaged).unwrap();
        assert_eq!(cache::read(&entry), None);
        let again = compile_text(&embedded(), "scale<float>", HOPPER, Some(folder.path())).unwrap();
        assert_eq!(again, whole);
        assert_eq!(std::fs::read(&entry).unwrap(), bytes);
    }
    assert_eq!(files(folder.path()), [entry], "temporary files are gone");
}

#[test]
fn a_folder_that_cannot_be_written_costs_the_file_and_not_the_kernel() {
    if !compiler() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // A file where the folder should be: no permission can be taken from the user who may do everything.
    let place = folder.path().join("file");
    std::fs::write(&place, "").unwrap();
    let compiled = compile_text(&embedded(), "scale<float>", HOPPER, Some(&place)).unwrap();
    assert!(!compiled.cubin.is_empty());
    let error = cache::write(&place.join("x.kernel"), &compiled).unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot create {}", place.display())), "{error}");
}

#[test]
fn every_part_of_a_kernel_is_part_of_its_file_s_name() {
    let entry = |text: &Text, expression: &str, chip, compiler| {
        cache::entry(Path::new(""), text, expression, chip, compiler)
    };
    let base = entry(&embedded(), "scale<float>", HOPPER, "13.0");
    let mut source = embedded();
    source.source.to_mut().push(' ');
    let mut header = embedded();
    header.headers[0].1.to_mut().push(' ');
    let mut shifted = embedded();
    let moved = shifted.headers[0].1.to_mut().remove(0);
    shifted.source.to_mut().push(moved);
    let others = [
        entry(&embedded(), "scale<double>", HOPPER, "13.0"),
        entry(&embedded(), "scale<float>", Chip { major: 8, minor: 9 }, "13.0"),
        entry(&embedded(), "scale<float>", HOPPER, "13.1"),
        entry(&source, "scale<float>", HOPPER, "13.0"),
        entry(&header, "scale<float>", HOPPER, "13.0"),
        entry(&shifted, "scale<float>", HOPPER, "13.0"),
    ];
    for (index, other) in others.iter().enumerate() {
        assert_ne!(base, *other, "part {index}");
    }
    assert_eq!(base, entry(&embedded(), "scale<float>", HOPPER, "13.0"));
}

#[test]
fn text_that_does_not_compile_is_shown_with_its_numbered_lines() {
    if !compiler() {
        return;
    }
    let wrong = Program {
        source: "#include \"types.cuh\"\n__global__ void scale(float *out) {\n    out[0] = nothing;\n}\n",
        ..SCALE
    };
    let text = Text::of(&wrong, None).unwrap();
    let error = compile_text(&text, "scale", HOPPER, None).unwrap_err().to_string();
    assert!(
        error.starts_with("`scale` of scale/scale.cu does not compile for sm_90a:\n"),
        "{error}"
    );
    assert!(error.contains("\"nothing\" is undefined"), "{error}");
    assert!(error.contains("\n>    3 |     out[0] = nothing;\n     4 | }\n"), "{error}");

    let error = compile_text(&embedded(), "scael<float>", HOPPER, None).unwrap_err().to_string();
    assert!(error.starts_with("`scael<float>` of scale/scale.cu does not compile"), "{error}");
    assert!(error.contains("scael"), "{error}");
}

#[test]
fn a_chip_that_the_compiler_does_not_know_is_named_beside_those_that_it_knows() {
    if !compiler() {
        return;
    }
    let future = Chip { major: 99, minor: 9 };
    let error = compile_text(&embedded(), "scale<float>", future, None).unwrap_err().to_string();
    assert!(error.contains("does not compile for sm_999") && error.contains("sm_90,"), "{error}");
}

#[test]
fn many_kernels_are_compiled_at_once_and_come_in_the_order_of_the_list() {
    if !compiler() {
        return;
    }
    let text = embedded();
    let types = ["float", "double", "int", "nothing", "unsigned", "char", "short"];
    let results =
        on_all_cores(&types, |name| compile_text(&text, &format!("scale<{name}>"), HOPPER, None));
    for (name, result) in types.iter().zip(&results) {
        let alone = compile_text(&text, &format!("scale<{name}>"), HOPPER, None);
        assert_eq!(result.as_ref().ok(), alone.as_ref().ok(), "{name}");
        assert_eq!(result.is_err(), *name == "nothing");
    }
}

#[test]
fn edited_text_is_taken_from_the_folder_and_the_rest_as_it_was_built_in() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let text = Text::of(&SCALE, Some(folder.path())).unwrap();
    assert_eq!((text.name.as_str(), &*text.source), (SCALE.name, SCALE.source));

    // The layout of the repository's own folder, then the name alone, then the name with its room.
    std::fs::create_dir_all(place("src/scale")).unwrap();
    std::fs::create_dir_all(place("prelude")).unwrap();
    std::fs::create_dir_all(place("scale")).unwrap();
    for (file, header) in [
        ("scale.cu", "prelude/types.cuh"),
        ("src/scale/scale.cu", "types.cuh"),
        ("scale/scale.cu", "types.cuh"),
    ] {
        std::fs::write(place(file), file).unwrap();
        std::fs::write(place(header), header).unwrap();
        let text = Text::of(&SCALE, Some(folder.path())).unwrap();
        assert_eq!((&*text.source, &*text.headers[0].1), (file, header));
        assert_eq!(text.name, place(file).display().to_string());
        assert_eq!(text.file(&text.name), Some(file));
        assert_eq!(text.file("types.cuh"), Some(header));
    }
}

#[test]
fn an_edited_kernel_that_does_not_compile_is_shown_by_its_path_and_lines() {
    if !compiler() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scale.cu");
    std::fs::write(&path, SCALE.source.replace("args.count", "args.cuont")).unwrap();
    std::fs::write(folder.path().join("types.cuh"), "// mine\nusing u32 = unsigned;\n").unwrap();
    let text = Text::of(&SCALE, Some(folder.path())).unwrap();
    let error = compile_text(&text, "scale<int>", HOPPER, None).unwrap_err().to_string();
    let path = path.display();
    assert!(error.starts_with(&format!("`scale<int>` of {path} does not compile")), "{error}");
    assert!(error.contains(&format!("{path}(5): error: class \"Scale<int>\"")), "{error}");
    assert!(error.contains("\n>    5 |     if (i < args.cuont)"), "{error}");

    std::fs::write(folder.path().join("types.cuh"), "// mine\nusing u32 = unsinged;\n").unwrap();
    let text = Text::of(&SCALE, Some(folder.path())).unwrap();
    let error = compile_text(&text, "scale<int>", HOPPER, None).unwrap_err().to_string();
    assert!(error.contains("types.cuh(2): error"), "{error}");
    assert!(error.contains("\n>    2 | using u32 = unsinged;"), "{error}");
}

#[test]
fn a_folder_of_edited_text_that_is_not_there_is_refused() {
    let Err(error) = Text::of(&SCALE, Some(Path::new("/not/there"))) else { panic!("accepted") };
    assert_eq!(
        error.to_string(),
        "PRIME_KERNELS names /not/there, which is not a folder; expected one with edited device code"
    );
}
