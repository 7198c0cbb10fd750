use super::*;
use serde_json::json;

/// A grader, where there is Python and protection.
fn grader() -> Option<Code> {
    let settings = CodeSettings { processor_seconds: 1.0, wall_seconds: 3.0, ..Default::default() };
    let grader = Code::new(&settings);
    match grader.sandbox() {
        Ok(_) => Some(grader),
        Err(reason) => {
            println!("skipped: {reason}");
            None
        }
    }
}

fn block(program: &str) -> String {
    format!("First:\n```python\nprint('no')\n```\nThen:\n```python\n{program}\n```\nThat is it.")
}

#[test]
fn the_score_is_the_share_of_tests_passed() {
    let Some(grader) = grader() else { return };
    let tests = json!({"inputs": ["1 2\n", "3 4\n", "5 6\n", "0 1\n"], "outputs": ["3\n", "7", " 11 \n", "2"]}).to_string();
    let grade = grader.grade(&block("a, b = map(int, input().split())\nprint(a + b)"), &tests);
    assert_eq!((grade.score, grade.failure), (0.75, None));
    assert_eq!(grade.extracted.unwrap(), "passed 3 of 4 tests: test 4 gave another output");
    let grade = grader.grade(&block("import sys\nif __name__ == '__main__':\n    print(sum(map(int, sys.stdin.read().split())))"), &tests);
    assert_eq!(grade.score, 0.75);
    assert_eq!(grader.grade(&block("print(3) or exit(1)"), &tests).score, 0.0);
    let wrong = grader.grade(&block("def ("), &tests);
    assert!(wrong.extracted.unwrap().contains("SyntaxError"));
    assert_eq!(grader.grade("print(3)", &tests), Grade::nothing_found());
    assert!(matches!(grader.grade(&block("print(3)"), "3").failure, Some(Failure::Error(_))));
}

#[test]
fn functions_and_methods_are_called_with_their_arguments() {
    let Some(grader) = grader() else { return };
    let tests = json!({"fn_name": "add", "inputs": [[1, 2], ["a", "b"], "[1]\n[2]"], "outputs": [3, ["ab"], [1, 2]]}).to_string();
    for program in [
        "def add(a, b):\n    print('noise')\n    return a + b",
        "class Solution:\n    def add(self, a: int, b: Optional[int]) -> List[int]:\n        return a + b",
        "class Solution:\n    def add(self, a, b):\n        return tuple(a + b) if isinstance(a, list) else a + b",
    ] {
        let grade = grader.grade(&block(program), &tests);
        assert_eq!(grade.score, 1.0, "{program}: {:?}", grade.extracted);
    }
    let grade = grader.grade(&block("def other(a, b):\n    return 3"), &tests);
    assert_eq!(grade.score, 0.0);
}

#[test]
fn a_test_beyond_its_limits_is_not_passed_and_says_why() {
    let Some(grader) = grader() else { return };
    let tests = json!({"inputs": [""], "outputs": ["1"]}).to_string();
    for (program, reason) in [
        ("while True: pass", "used up its"),
        ("print(1)\nimport time\ntime.sleep(60)", "used up its time"),
        ("while True: print('x' * 1000)", "wrote too much"),
        ("x = [0] * 10 ** 10", "MemoryError"),
        ("import os\nos.kill(os.getpid(), 11)", "test 1"),
    ] {
        let grade = grader.grade(&block(program), &tests);
        assert_eq!((grade.score, grade.failure), (0.0, None), "{program}");
        assert!(
            grade.extracted.as_ref().unwrap().contains(reason),
            "{program}: {:?}",
            grade.extracted
        );
    }
}

#[test]
fn python_that_is_not_there_is_a_failure_and_a_sentence() {
    let settings = CodeSettings { python: "/no/such/python".into(), ..Default::default() };
    let grader = Code::new(&settings);
    let message = grader.ready().unwrap_err().to_string();
    assert!(
        message.contains("needs Python") && message.contains("grader.code.python"),
        "{message}"
    );
    let tests = json!({"inputs": [""], "outputs": ["1"]}).to_string();
    assert!(matches!(grader.grade(&block("print(1)"), &tests).failure, Some(Failure::Error(_))));
}
