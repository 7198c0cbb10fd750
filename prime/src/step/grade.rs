//! Rollouts to outcomes: every response graded by the task while others are still sampled, and the batch put together.

use std::sync::mpsc::channel;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use prime_model::{Completion, Finish, Tokenizer};

use super::rollout::Prompt;
use super::{Response, Rollouts};
use crate::graders::{Failure, Grade, GraderSettings, OnFailure, work};
use crate::tasks::Task;

/// A graded response: its text and its grade.
pub type Judged = (String, Grade);

/// Work for a grader: some responses to a prompt, by their places among its samples.
struct Job {
    prompt: usize,
    responses: Vec<(usize, Vec<u32>, bool)>,
}

/// Runs `sample`, which calls what it is given with each sample when it is finished, and grades those on threads beside it. Returns what
/// `sample` does, and for each prompt the graded responses in the order of its samples: it does not depend on which was finished first.
///
/// A task that compares the responses to a prompt is given all of them at once, others each by itself.
///
/// # Errors
/// When sampling fails, or a response cannot be decoded.
pub fn beside<T>(
    task: &dyn Task,
    tokenizer: &Tokenizer,
    prompts: &[Prompt],
    samples: usize,
    settings: &GraderSettings,
    sample: impl FnOnce(&mut dyn FnMut(usize, &Completion)) -> Result<T>,
) -> Result<(T, Vec<Vec<Judged>>)> {
    let workers = if task.is_slow() { work::workers(settings.workers) } else { 1 };
    let judged: Mutex<Vec<Vec<Option<Judged>>>> =
        Mutex::new(vec![vec![None; samples]; prompts.len()]);
    let failure: Mutex<Option<anyhow::Error>> = Mutex::new(None);
    let (jobs, waiting) = channel::<Job>();
    let waiting = Mutex::new(waiting);
    let work = || {
        loop {
            // Held while waiting: whoever has the lock is the next to work.
            let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(job) = job else { break };
            match judge(task, tokenizer, &prompts[job.prompt], &job) {
                Ok(grades) => {
                    let mut judged = judged.lock().unwrap_or_else(PoisonError::into_inner);
                    for ((place, ..), grade) in job.responses.iter().zip(grades) {
                        judged[job.prompt][*place] = Some(grade);
                    }
                }
                Err(error) => {
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        }
    };
    let made = std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(work);
        }
        let mut groups: Vec<Vec<(usize, Vec<u32>, bool)>> = vec![Vec::new(); prompts.len()];
        let made = sample(&mut |request, completion| {
            let (prompt, place) = (request / samples, request % samples);
            let group = &mut groups[prompt];
            group.push((place, completion.tokens.clone(), completion.finish == Finish::Stop));
            if !task.compares() || group.len() == samples {
                let mut responses = std::mem::take(group);
                responses.sort_by_key(|&(place, ..)| place);
                // The threads wait for jobs until this end is gone.
                let _ = jobs.send(Job { prompt, responses });
            }
        });
        drop(jobs);
        made
    })?;
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let judged = judged.into_inner().unwrap_or_else(PoisonError::into_inner);
    let complete = |group: Vec<Option<Judged>>| group.into_iter().collect::<Option<Vec<Judged>>>();
    let judged = judged.into_iter().map(complete).collect::<Option<Vec<_>>>();
    Ok((made, judged.context("a sample was never finished")?))
}

fn judge(
    task: &dyn Task,
    tokenizer: &Tokenizer,
    prompt: &Prompt,
    job: &Job,
) -> Result<Vec<Judged>> {
    let texts = job.responses.iter().map(|(_, tokens, _)| tokenizer.decode(tokens, true));
    let texts: Vec<String> = texts.collect::<prime_model::Result<_>>()?;
    let responses: Vec<(&str, bool)> = texts
        .iter()
        .zip(&job.responses)
        .map(|(text, (_, _, finished))| (text.as_str(), *finished))
        .collect();
    let grades = task.grade_group(&prompt.problem, &responses);
    if grades.len() != texts.len() {
        bail!(
            "the grader of {} returned {} grades for {} responses",
            task.name(),
            grades.len(),
            texts.len()
        );
    }
    Ok(texts.into_iter().zip(grades).collect())
}

/// A batch of graded rollouts, and what was left out of it.
#[derive(Debug)]
pub struct Collected {
    /// The batch.
    pub batch: Rollouts,
    /// For each group of the batch, its prompt's place among the prompts.
    pub prompts: Vec<usize>,
    /// Responses of which the grader failed.
    pub errors: usize,
    /// Responses for which the grader had not enough time.
    pub timeouts: usize,
    /// Groups left out because of such responses.
    pub dropped_groups: usize,
}

/// Packs prompts and graded responses into one batch. What could not be graded is left out: the response alone, with its group when fewer
/// than two are left, or always with its group.
///
/// # Errors
/// When responses do not make a batch.
pub fn collect(
    prompts: &[Prompt],
    completions: Vec<Vec<Completion>>,
    judged: &[Vec<Judged>],
    on_failure: OnFailure,
) -> Result<Collected> {
    let mut collected = Collected {
        batch: Rollouts::new(),
        prompts: Vec::new(),
        errors: 0,
        timeouts: 0,
        dropped_groups: 0,
    };
    for (place, ((prompt, completions), judged)) in
        prompts.iter().zip(completions).zip(judged).enumerate()
    {
        let wanted = completions.len();
        let mut kept: Vec<(Completion, f32)> = Vec::with_capacity(wanted);
        for (completion, (_, grade)) in completions.into_iter().zip(judged) {
            match grade.failure {
                Some(Failure::Error(_)) => collected.errors += 1,
                Some(Failure::Timeout(_)) => collected.timeouts += 1,
                None => kept.push((completion, grade.score)),
            }
        }
        let failed = kept.len() < wanted;
        if failed && (kept.len() < 2 || on_failure == OnFailure::DropGroup) {
            collected.dropped_groups += 1;
            continue;
        }
        let mut responses = Vec::with_capacity(kept.len());
        for (completion, outcome) in kept {
            collected.batch.entropies.extend_from_slice(&completion.entropy);
            responses.push(Response {
                tokens: completion.tokens,
                old_log_probs: completion.log_probs,
                outcome,
                finished: completion.finish == Finish::Stop,
            });
        }
        collected.batch.push_group(prompt.index.to_string(), prompt.tokens.to_vec(), &responses)?;
        collected.prompts.push(place);
    }
    Ok(collected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::{Problem, Split};

    /// Grades by the text: its length in tenths, or a failure; slowest first.
    struct ByText {
        compares: bool,
    }

    impl Task for ByText {
        fn name(&self) -> &str {
            "by-text"
        }
        fn len(&self, _: Split) -> Option<u64> {
            None
        }
        fn problem(&self, _: Split, _: u64) -> Option<Problem> {
            None
        }
        fn grade(&self, _: &Problem, response: &str, _: bool) -> Grade {
            std::thread::sleep(std::time::Duration::from_millis(5 - response.len().min(5) as u64));
            match response {
                "e" => Grade::failed(Failure::Error("broken".into())),
                "t" => Grade::failed(Failure::Timeout("slow".into())),
                text => Grade::scored(text.len() as f32 / 10.0, None),
            }
        }
        fn compares(&self) -> bool {
            self.compares
        }
        fn is_slow(&self) -> bool {
            true
        }
        fn alphabet(&self) -> Option<&str> {
            Some("aet")
        }
        fn longest_prompt(&self) -> Option<usize> {
            None
        }
        fn longest_solution(&self) -> Option<usize> {
            None
        }
    }

    fn made(
        texts: &[[&str; 3]],
        order: &[usize],
        workers: usize,
        compares: bool,
    ) -> (Vec<Prompt>, Vec<Vec<Completion>>, Vec<Vec<Judged>>) {
        let tokenizer = Tokenizer::characters("aet", "<pad>", "<eos>").unwrap();
        let problem = Problem::default();
        let prompts: Vec<Prompt> = (0..texts.len())
            .map(|index| Prompt {
                index: index as u64,
                problem: problem.clone(),
                tokens: vec![0].into(),
            })
            .collect();
        let completion = |text: &str| {
            let tokens = tokenizer.encode(text, false).unwrap();
            let many = tokens.len();
            Completion {
                tokens,
                log_probs: vec![-1.0; many],
                entropy: vec![0.5; many],
                finish: Finish::Stop,
            }
        };
        let completions: Vec<Vec<Completion>> =
            texts.iter().map(|group| group.iter().map(|text| completion(text)).collect()).collect();
        let settings = GraderSettings { workers, ..Default::default() };
        let (_, judged) =
            beside(&ByText { compares }, &tokenizer, &prompts, 3, &settings, |finished| {
                for &request in order {
                    finished(request, &completions[request / 3][request % 3]);
                }
                Ok(())
            })
            .unwrap();
        (prompts, completions, judged)
    }

    #[test]
    fn grades_stand_where_their_samples_do_whatever_ends_first() {
        let texts = [["a", "aa", "aaa"], ["aaaa", "a", "aa"]];
        let expected = [vec![0.1, 0.2, 0.3], vec![0.4, 0.1, 0.2]];
        for (order, workers) in [([0, 1, 2, 3, 4, 5], 1), ([5, 0, 4, 1, 3, 2], 3)] {
            for compares in [false, true] {
                let (.., judged) = made(&texts, &order, workers, compares);
                let scores: Vec<Vec<f32>> = judged
                    .iter()
                    .map(|group| group.iter().map(|(_, grade)| grade.score).collect())
                    .collect();
                assert_eq!(scores, expected);
                assert_eq!(judged[1][0].0, "aaaa");
            }
        }
    }

    #[test]
    fn what_could_not_be_graded_is_counted_and_never_scored() {
        let texts = [["a", "e", "aa"], ["t", "e", "a"], ["a", "aa", "aaa"]];
        let (prompts, completions, judged) = made(&texts, &[0, 1, 2, 3, 4, 5, 6, 7, 8], 2, false);
        let collected =
            collect(&prompts, completions.clone(), &judged, OnFailure::DropResponse).unwrap();
        assert_eq!((collected.errors, collected.timeouts, collected.dropped_groups), (2, 1, 1));
        assert_eq!(collected.prompts, [0, 2]);
        assert_eq!(collected.batch.outcomes, [0.1, 0.2, 0.1, 0.2, 0.3]);
        collected.batch.check().unwrap();
        let collected = collect(&prompts, completions, &judged, OnFailure::DropGroup).unwrap();
        assert_eq!((collected.dropped_groups, collected.prompts.clone()), (2, vec![2]));
        assert_eq!(collected.batch.outcomes, [0.1, 0.2, 0.3]);
    }

    #[test]
    fn an_error_of_sampling_ends_the_threads() {
        let tokenizer = Tokenizer::characters("aet", "<pad>", "<eos>").unwrap();
        let settings = GraderSettings::default();
        let made =
            beside(&ByText { compares: false }, &tokenizer, &[], 1, &settings, |_| -> Result<()> {
                bail!("no room")
            });
        assert_eq!(made.unwrap_err().to_string(), "no room");
    }
}
