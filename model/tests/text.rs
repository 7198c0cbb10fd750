//! Tokenizers and chat templates of model folders give what `transformers` gives for them.

mod support;

use prime_model::{ChatTemplate, Config, Message, Tokenizer};
use prime_runtime::safetensors::{Dtype, File};
use serde_json::Value;
use support::{Folder, fixtures, vectors};

fn read(path: &std::path::Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn check_texts(tokenizer: &Tokenizer, expected: &Value) {
    for case in expected["texts"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&case["ids"]), "{text:?}");
        let plain = tokenizer.encode(text, false).unwrap();
        assert_eq!(plain, ids(&case["ids_without_special"]), "{text:?}");
        assert_eq!(tokenizer.decode(&plain, false).unwrap(), text);

        let mut stream = tokenizer.stream(false);
        let mut pieces: Vec<String> = plain.iter().map(|&id| stream.push(id).unwrap()).collect();
        pieces.push(stream.finish().unwrap());
        assert_eq!(pieces.concat(), text, "streamed as {pieces:?}");
        assert!(pieces.iter().all(|piece| !piece.contains(char::REPLACEMENT_CHARACTER)));

        // A piece a token, whatever of the text stands before them.
        for cut in 0..=plain.len() {
            let (before, after) = plain.split_at(cut);
            let head = tokenizer.decode(before, false).unwrap();
            let pieces = tokenizer.pieces(before, after).unwrap();
            assert_eq!(pieces.len(), after.len());
            if !head.ends_with(char::REPLACEMENT_CHARACTER) {
                assert_eq!(head + &pieces.concat(), text, "cut at {cut} into {pieces:?}");
            }
        }
    }
}

fn check_chats(template: &ChatTemplate, expected: &Value) {
    for case in expected["chats"].as_array().unwrap() {
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        let prompt = case["add_generation_prompt"].as_bool().unwrap();
        assert_eq!(template.render(&messages, prompt).unwrap(), case["text"].as_str().unwrap());
    }
}

#[test]
fn texts_of_every_folder_become_the_ids_that_transformers_gives_and_come_back() {
    for Folder { name, path } in fixtures() {
        println!("{name}");
        check_texts(&Tokenizer::load(&path).unwrap(), &read(&path.join("expected.json")));
    }
    let expected =
        read(&support::repository().join("tests/fixtures/tokenizers/minimind.expected.json"));
    for Folder { name, path } in vectors() {
        println!("{name}");
        check_texts(&Tokenizer::load(&path).unwrap(), &expected);
    }
}

#[test]
fn texts_become_the_ids_beside_the_expected_numbers() {
    let ours = [
        "3 + 4 = 7",
        "Ada has 12 pens and gives 5 away. She keeps 12 - 5 = 7 pens.",
        "x^2 = 9, so x = 3 or x = -3.",
    ];
    let theirs = [
        "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May.",
        "12 + 7 = 19",
        "Let x be a real number with x^2 - 5x + 6 = 0. Then x = 2 or x = 3.",
    ];
    let folders = fixtures().into_iter().map(|folder| (folder, ours));
    for (Folder { name, path }, texts) in folders.chain(vectors().into_iter().map(|f| (f, theirs)))
    {
        println!("{name}");
        let tokenizer = Tokenizer::load(&path).unwrap();
        tokenizer.check(&Config::load(&path).unwrap()).unwrap();
        let expected = File::open(path.join("expected.safetensors")).unwrap();
        for (index, text) in texts.into_iter().enumerate() {
            let tensor = expected.tensor(&format!("{index}.input_ids")).unwrap();
            assert_eq!(tensor.dtype, Dtype::I64);
            let ids: Vec<u32> = tensor
                .bytes
                .chunks_exact(8)
                .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()) as u32)
                .collect();
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids, "{text}");
        }
    }
}

#[test]
fn conversations_are_rendered_as_transformers_renders_them() {
    for Folder { name, path } in fixtures() {
        println!("{name}");
        check_chats(&ChatTemplate::load(&path).unwrap(), &read(&path.join("expected.json")));
    }
    let expected =
        read(&support::repository().join("tests/fixtures/tokenizers/minimind.expected.json"));
    for Folder { name, path } in vectors() {
        println!("{name}");
        check_chats(&ChatTemplate::load(&path).unwrap(), &expected);
    }
}

#[test]
fn a_template_that_refuses_says_why() {
    let folder = fixtures().into_iter().find(|f| f.name.starts_with("qwen3")).unwrap();
    let template = ChatTemplate::load(&folder.path).unwrap();
    let messages = [Message::new("user", "a"), Message::new("robot", "b")];
    let message = template.render(&messages, true).unwrap_err().to_string();
    assert!(
        message.contains(
            "chat_template.jinja: the chat template failed in line 10: unknown role robot"
        ),
        "{message}"
    );
}

#[test]
fn folders_without_a_template_or_with_a_broken_one_are_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    assert!(ChatTemplate::find(dir.path()).unwrap().is_none());
    let message = ChatTemplate::load(dir.path()).unwrap_err().to_string();
    assert!(message.contains("the folder has no chat template"), "{message}");
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    for (config, expected) in [
        (
            r#"{"chat_template": 3}"#,
            "`chat_template` is a number, expected a text or a list of named templates",
        ),
        (
            r#"{"chat_template": [{"name": "rag", "template": ""}]}"#,
            "`chat_template` has no template named `default`, only `rag`",
        ),
        (
            r#"{"chat_template": ["x"]}"#,
            "`chat_template` holds an entry without the texts `name` and `template`",
        ),
        (r#"{"chat_template": "{% if %}"}"#, "the chat template failed in line 1: "),
    ] {
        write("tokenizer_config.json", config);
        let message = ChatTemplate::find(dir.path()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    write("chat_template.jinja", "{{ messages[0].content }}\n");
    let template = ChatTemplate::load(dir.path()).unwrap();
    assert_eq!(template.render(&[Message::new("user", "hello")], false).unwrap(), "hello");
}

#[test]
fn a_character_tokenizer_has_one_token_a_character_and_puts_no_spaces_between() {
    let tokenizer = Tokenizer::characters("0123456789+-= \nab<>é", "<pad>", "<eos>").unwrap();
    assert_eq!(tokenizer.vocab_size(), 22);
    let text = "12 + 3 =\n15 <a>é";
    let ids = tokenizer.encode(text, true).unwrap();
    assert_eq!(ids.len(), text.chars().count());
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    assert_eq!(tokenizer.encode("1<eos>", true).unwrap(), [3, 1]);
    assert_eq!(tokenizer.decode(&[3, 1, 0], true).unwrap(), "1");
    assert_eq!(tokenizer.decode(&[3, 1, 0], false).unwrap(), "1<eos><pad>");
    assert_eq!(
        (tokenizer.eos_id(), tokenizer.is_special(1), tokenizer.is_special(3)),
        (Some(1), true, false)
    );
    let message = tokenizer.encode("1 * 2", true).unwrap_err().to_string();
    assert_eq!(
        message,
        "the text holds the character '*', which the tokenizer the character tokenizer does not know"
    );
    assert!(Tokenizer::characters("aba", "<pad>", "<eos>").is_err());
    assert!(Tokenizer::characters("ab", "<eos>", "<eos>").is_err());
}

#[test]
fn a_character_tokenizer_survives_the_way_through_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::characters("0123456789 ", "<pad>", "<eos>").unwrap();
    for (name, text) in tokenizer.files() {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let read = Tokenizer::load(dir.path()).unwrap();
    assert_eq!((read.eos_token(), read.eos_id()), (Some("<eos>"), Some(1)));
    assert_eq!(read.encode("10 2", true).unwrap(), tokenizer.encode("10 2", true).unwrap());
    tokenizer.check_same(&read).unwrap();
    let other = Tokenizer::characters("0123456789+", "<pad>", "<eos>").unwrap();
    let message = tokenizer.check_same(&other).unwrap_err().to_string();
    assert_eq!(
        message,
        "the character tokenizer: id 12 is `+` here, but ` ` in the character tokenizer: the two models need the same tokenizer"
    );
}

#[test]
fn a_tokenizer_with_more_ids_than_the_model_has_embeddings_is_refused() {
    let folder = fixtures().remove(0);
    let tokenizer = Tokenizer::load(&folder.path).unwrap();
    let config = Config::load(&folder.path).unwrap();
    tokenizer.check(&config).unwrap();
    let smaller = Config { vocab_size: 280, ..config };
    let message = tokenizer.check(&smaller).unwrap_err().to_string();
    assert!(
        message
            .contains("its ids go up to 287, but the model has a `vocab_size` of 280: the token `"),
        "{message}"
    );
}

#[test]
fn a_tokenizer_file_that_is_none_is_refused_with_a_sentence() {
    for (text, expected) in [
        ("{", "t.json: it is not JSON: "),
        ("[]", "t.json: it holds a list, expected an object"),
        ("{}", "t.json: it is not a tokenizer: "),
        (
            r#"{"model": {"type": "WordLevel", "vocab": {}, "unk_token": "u"}}"#,
            "t.json: its vocabulary is empty",
        ),
    ] {
        let message = Tokenizer::from_json("t.json", text.into()).unwrap_err().to_string();
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn a_tokenizer_whose_template_names_a_token_it_does_not_define_is_refused() {
    let folder = fixtures().into_iter().find(|f| f.name.starts_with("llama3")).unwrap();
    let mut value = read(&folder.path.join("tokenizer.json"));
    value["post_processor"]["special_tokens"] = serde_json::json!({});
    let message = Tokenizer::from_json("t.json", value.to_string()).unwrap_err().to_string();
    assert_eq!(
        message,
        "t.json: its post-processor names the token `<|start|>`, but does not define it in `special_tokens`"
    );
}

#[test]
fn truncation_and_padding_written_in_a_tokenizer_file_are_left_out() {
    let folder = fixtures().remove(0);
    let mut value = read(&folder.path.join("tokenizer.json"));
    value["truncation"] = serde_json::json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    let tokenizer = Tokenizer::from_json("t.json", value.to_string()).unwrap();
    assert!(tokenizer.encode("1 2 3 4 5 6", false).unwrap().len() > 2);
}

#[test]
fn a_character_of_several_tokens_is_streamed_when_it_is_whole() {
    let tokenizer = Tokenizer::load(&fixtures().remove(0).path).unwrap();
    let ids = tokenizer.encode("😀", false).unwrap();
    assert_eq!(ids.len(), 4, "four bytes, none of them merged");
    let mut stream = tokenizer.stream(true);
    let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(pieces, ["", "", "", "😀"]);
    let mut stream = tokenizer.stream(true);
    assert_eq!(stream.push(ids[0]).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
}
