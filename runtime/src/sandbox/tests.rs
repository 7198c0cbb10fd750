use super::*;

const SHELL: &str = "/bin/sh";

/// A sandbox of each kind that is to be had here.
fn sandboxes() -> Vec<Sandbox> {
    let readable =
        ["/bin", "/lib", "/lib64", "/usr/bin", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"]
            .map(PathBuf::from);
    let works = |sandbox: &Sandbox| {
        let finished = sandbox.run(&["-c", "echo well"], &[], b"", b"", &Limits::default())?;
        (finished.stdout == b"well\n").then_some(()).ok_or(format!("{finished:?}"))
    };
    let kinds = [Mode::Namespaces, Mode::Landlock];
    let kinds = kinds.map(|mode| Sandbox::new(Path::new(SHELL), &readable, mode));
    let there = kinds.into_iter().filter(|sandbox| match works(sandbox) {
        Ok(()) => true,
        Err(reason) => {
            println!("skipped: {}: {reason}", sandbox.mode());
            false
        }
    });
    there.collect()
}

fn run(sandbox: &Sandbox, script: &str) -> Finished {
    // A busy machine gives a loop its second of processor time late.
    run_within(sandbox, script, Duration::from_secs(60))
}

fn run_within(sandbox: &Sandbox, script: &str, wall: Duration) -> Finished {
    let limits =
        Limits { processor: Duration::from_secs(1), wall, output: 4096, ..Default::default() };
    sandbox
        .run(&["-c", script], &[("NAME", "value")], b"first\nsecond\n", b"extra", &limits)
        .unwrap()
}

#[test]
fn a_program_reads_its_input_and_leaves_its_output() {
    for sandbox in sandboxes() {
        let finished = run(
            &sandbox,
            "read x; read y; read z <&3; echo \"$y $x $z $NAME\"; echo no >&2; exit 3",
        );
        assert_eq!(finished.ending, Ending::Exited(3));
        assert_eq!(String::from_utf8_lossy(&finished.stdout), "second first extra value\n");
        assert_eq!(finished.stderr, b"no\n");
    }
}

#[test]
fn limits_of_time_and_output_end_a_program() {
    for sandbox in sandboxes() {
        assert_eq!(run(&sandbox, "while :; do :; done").ending, Ending::ProcessorTime);
        // A shell that is the first process of its namespace outlives the signal of a full output, and goes on in vain.
        let flooded = run(&sandbox, "while :; do echo 0123456789; done");
        assert_eq!((flooded.ending, flooded.stdout.len()), (Ending::Output, 4096));
        let flood = "i=0; while [ $i -lt 512 ]; do echo 0123456; i=$((i+1)); done";
        let full = run(&sandbox, flood);
        assert_eq!((full.ending, full.stdout.len()), (Ending::Exited(0), 4096));
        let then = |rest: &str| {
            run_within(
                &sandbox,
                &format!("{flood}; echo 2>/dev/null; {rest}"),
                Duration::from_secs(2),
            )
        };
        assert_eq!(then("exit 0").ending, Ending::Output);
        assert_eq!(then("exec /bin/sleep 600").ending, Ending::Output);
        let waiting = std::time::Instant::now();
        assert_eq!(
            run_within(&sandbox, "trap '' TERM INT; exec /bin/sleep 600", Duration::from_secs(2))
                .ending,
            Ending::WallTime
        );
        assert!(waiting.elapsed() < Duration::from_secs(60));
    }
}

#[test]
fn a_program_starts_no_other_and_finds_no_other_files() {
    for sandbox in sandboxes() {
        let finished = run(&sandbox, "(echo forked) ; echo after");
        assert!(!String::from_utf8_lossy(&finished.stdout).contains("forked"), "{finished:?}");
        let finished = run(&sandbox, "read x < /etc/passwd && echo read");
        assert!(finished.stdout.is_empty(), "{finished:?}");
        let outside = std::env::temp_dir().join("prime-sandbox-test-outside");
        let finished = run(
            &sandbox,
            &format!(
                "echo x > {0} && echo written; echo y > /usr/x; echo z > /bin/x",
                outside.display()
            ),
        );
        assert!(!outside.exists(), "{finished:?}");
        assert!(!Path::new("/usr/x").exists() && !Path::new("/bin/x").exists());
    }
}

#[test]
fn a_program_that_is_not_there_is_a_sentence() {
    for sandbox in sandboxes() {
        let sandbox = Sandbox { program: "/bin/no-such-program".into(), ..sandbox };
        let message = sandbox.run(&[], &[], b"", b"", &Limits::default()).unwrap_err();
        assert!(message.contains("starting the program failed"), "{message}");
        let message = Sandbox::new(Path::new("a\0b"), &[], Mode::Limits)
            .run(&[], &[], b"", b"", &Limits::default())
            .unwrap_err();
        assert!(message.contains("zero byte"), "{message}");
    }
}
