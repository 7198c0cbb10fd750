//! Agreement with the majority: a reward without labels (TTRL, arXiv 2504.16084).

use anyhow::{Result, ensure};

use super::{Failure, Grade, Grader};

/// Right when a response's answer is the one that most responses to the prompt give. Another grader finds the answers and says which
/// are the same.
///
/// - Responses without an answer have no vote and score 0; where no response has one, all score 0.
/// - Of several answers with equally many votes, the one that was given first counts, so that the reward does not depend on chance.
/// - A response that cannot be compared has a failure and no vote.
///
/// A single response, as in an evaluation, is graded by the other grader against the reference answer.
pub struct Majority {
    by: Box<dyn Grader>,
}

impl Majority {
    /// Majorities of the answers that a grader finds.
    ///
    /// # Errors
    /// When that grader does not compare answers with each other.
    pub fn new(by: Box<dyn Grader>) -> Result<Self> {
        let names = ["exact", "gsm8k", "gsm8k-flexible", "math", "numeric", "arithmetic"];
        ensure!(
            names.contains(&by.name()),
            "grader.majority.by is {:?}, expected a grader whose answers can be compared: {}",
            by.name(),
            names.join(", ")
        );
        Ok(Majority { by })
    }

    /// What stands for an answer where the grader expects a response.
    fn as_response(&self, answer: &str) -> String {
        match self.by.name() {
            "math" | "numeric" => format!("\\boxed{{{answer}}}"),
            "gsm8k" | "gsm8k-flexible" => format!("#### {answer}"),
            "arithmetic" => format!("#{answer}"),
            _ => answer.to_owned(),
        }
    }
}

impl Grader for Majority {
    fn name(&self) -> &'static str {
        "majority"
    }

    fn grade(&self, response: &str, answer: &str) -> Grade {
        self.by.grade(response, answer)
    }

    fn grade_group(&self, responses: &[&str], _answer: &str) -> Vec<Grade> {
        // Each class: its answer and the responses that gave it.
        let mut classes: Vec<(String, Vec<usize>)> = Vec::new();
        let mut grades = Vec::with_capacity(responses.len());
        for (index, response) in responses.iter().enumerate() {
            let found = self.by.grade(response, "");
            let Some(answer) = found.extracted.filter(|answer| !answer.trim().is_empty()) else {
                grades.push(match found.failure {
                    Some(failure) => Grade::failed(failure),
                    None => Grade::nothing_found(),
                });
                continue;
            };
            grades.push(Grade::binary(false, answer.clone()));
            let mut failure = None;
            let class = classes.iter().position(|(other, _)| {
                let grade = self.by.grade(&self.as_response(&answer), other);
                failure = failure.take().or(grade.failure);
                *other == answer || grade.score == 1.0
            });
            match (class, failure) {
                (Some(class), _) => classes[class].1.push(index),
                (None, Some(failure)) => grades[index] = Grade::failed(failure),
                (None, None) => classes.push((answer, vec![index])),
            }
        }
        let most = classes.iter().map(|(_, votes)| votes.len()).max().unwrap_or(0);
        if let Some((_, votes)) = classes.iter().find(|(_, votes)| votes.len() == most) {
            votes.iter().for_each(|&index| grades[index].score = 1.0);
        }
        grades
    }

    fn compares(&self) -> bool {
        true
    }

    fn needs_answer(&self) -> bool {
        false
    }
}

/// The failure of a response that stands alone where a group is needed.
pub(super) fn alone(name: &str) -> Failure {
    Failure::Error(format!(
        "{name} compares the responses to one prompt, and this line names no prompt"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graders::{Math, Numeric};

    fn scores(responses: &[&str]) -> Vec<f32> {
        let grader = Majority::new(Box::new(Math)).unwrap();
        grader.grade_group(responses, "").into_iter().map(|grade| grade.score).collect()
    }

    #[test]
    fn answers_of_one_meaning_vote_together() {
        assert_eq!(
            scores(&["\\boxed{0.5}", "\\boxed{2}", "\\boxed{\\frac12}", "no"]),
            [1.0, 0.0, 1.0, 0.0]
        );
        assert_eq!(
            scores(&["\\boxed{2}", "\\boxed{1}", "\\boxed{1}", "\\boxed{2}"]),
            [1.0, 0.0, 0.0, 1.0]
        );
        assert_eq!(scores(&["no", "none"]), [0.0, 0.0]);
        assert_eq!(scores(&["no", "\\boxed{1}"]), [0.0, 1.0]);
        assert!(scores(&[]).is_empty());
    }

    #[test]
    fn an_evaluation_compares_with_the_reference() {
        let grader = Majority::new(Box::new(Numeric::default())).unwrap();
        assert_eq!(grader.grade("it is 5", "5").score, 1.0);
        assert_eq!(grader.grade("it is 5", "6").score, 0.0);
        assert!(Majority::new(Box::new(crate::graders::countdown::Countdown)).is_err());
    }
}
