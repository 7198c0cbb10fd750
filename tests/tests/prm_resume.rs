//! An offline PRM that was stopped and resumed is the one that was not. Alone in its file: stopping is asked of a whole process.

use prime::config::{Config, PRM};
use prime::run::folder::RunFolder;
use prime::run::interrupt;
use prime::run::offline::{End, prm};
use prime_tests::runs;

#[test]
fn a_training_stopped_and_resumed_ends_with_the_bits_of_one_that_was_not() {
    let folder = tempfile::tempdir().unwrap();
    runs::parities(folder.path());
    let model = runs::other_model(folder.path(), &folder.path().join("tokenizer"));
    let data = folder.path().join("graded.jsonl");
    let lines: String = (0..24u32)
        .map(|i| {
            let bits = format!("{i:05b}");
            let parity = i.count_ones() % 2;
            let other = 1 - parity;
            format!(
                "{{\"prompt\":\"{bits}?\",\"completions\":[\"{parity}\",\"{other}\",\"{parity}{parity}\"],\"correctness\":[1,0,0.25]}}\n"
            )
        })
        .collect();
    std::fs::write(&data, lines).unwrap();
    for (loss, rank) in [("kto", 0), ("dpo-pairs", 0), ("prefix-value", 0), ("ce", 3)] {
        let settings = [
            format!("model.path={}", model.display()),
            format!("offline.files=[{:?}]", data.display().to_string()),
            "offline.held_out_one_in=4".to_string(),
            "offline.max_tokens=16".to_string(),
            "offline.batch_size=4".to_string(),
            "offline.epochs=2".to_string(),
            "offline.eval_every=3".to_string(),
            "train.save_every=2".to_string(),
            format!("prm.loss={loss}"),
            format!("lora.rank={rank}"),
        ];
        let config = Config::load_over(PRM, &[], &settings).unwrap();
        let [unbroken, stopped] =
            ["unbroken", "stopped"].map(|name| folder.path().join(format!("{loss}-{name}")));
        let complete = |folder: &mut RunFolder| match prm(&config, folder).unwrap() {
            End::Complete(report) => report.evaluations.len(),
            End::Interrupted(sentence) => panic!("{sentence}"),
        };
        let mut run = RunFolder::create(&unbroken, &config).unwrap();
        assert_eq!(complete(&mut run), 2);
        drop(run);

        let mut run = RunFolder::create(&stopped, &config).unwrap();
        interrupt::request_after(5);
        let end = prm(&config, &mut run).unwrap();
        interrupt::withdraw();
        assert!(
            matches!(&end, End::Interrupted(sentence) if sentence.contains("--resume")),
            "{end:?}"
        );
        drop(run);
        let (mut run, resumed) = RunFolder::resume(&stopped, None).unwrap();
        assert_eq!(resumed, config);
        complete(&mut run);
        drop(run);

        assert_eq!(runs::results(&unbroken), runs::results(&stopped), "{loss}");
        // Resumed once more, a complete training changes nothing.
        let (mut run, _) = RunFolder::resume(&stopped, None).unwrap();
        complete(&mut run);
        drop(run);
        assert_eq!(runs::results(&unbroken), runs::results(&stopped), "{loss}");
    }
}
